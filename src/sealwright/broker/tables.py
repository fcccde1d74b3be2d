"""The tables of a broker's database, for SQLite and PostgreSQL alike. Nothing in them is trusted.

What is added here is added to `sealwright.broker.migrations` too: a test compares them.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, MetaData, PrimaryKeyConstraint, String, Table

META = MetaData()
ROWS = Table(
    "security_rows",
    META,
    Column("kind", String, nullable=False),
    Column("id", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
    PrimaryKeyConstraint("kind", "id"),
)
HEAD = Table(
    "head",
    META,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("checkpoint", LargeBinary, nullable=False),
)
PENDING = Table(
    "pending",
    META,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("log_size", BigInteger, nullable=False),
    Column("entry", LargeBinary, nullable=False),
)
PENDING_ROWS = Table(
    "pending_rows",
    META,
    Column("kind", String, nullable=False),
    Column("id", String, nullable=False),
    Column("body", LargeBinary),
    PrimaryKeyConstraint("kind", "id"),
)
RECEIPTS = Table(
    "receipts",
    META,
    Column("entry", LargeBinary, primary_key=True),
    Column("lease_id", LargeBinary, nullable=False, index=True),
)

INDEX = Table(
    "entry_index",
    META,
    Column("entry_sha256", LargeBinary, primary_key=True),
    Column("position", BigInteger, nullable=False),
)


# Ciphertexts of resources, by SHA-256; a security row names the one that counts.
CONTENTS = Table(
    "contents",
    META,
    Column("sha256", LargeBinary, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

# Which replica writes. Every transaction of it reads `epoch`; whoever takes over counts it up.
WRITER = Table(
    "writer",
    META,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("beat", BigInteger, nullable=False),
)

# What follows is encrypted where others than the broker may read the database: see `sealed`.
OPENINGS = Table(
    "openings",
    META,
    Column("commitment", LargeBinary, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)
SESSIONS = Table(
    "sessions",
    META,
    Column("name", LargeBinary, primary_key=True),
    Column("ends", BigInteger, nullable=False, index=True),
    Column("body", LargeBinary, nullable=False),
)

# The log's public files, and its signed state.
LOG_FILES = Table(
    "log_files",
    META,
    Column("path", String, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)
