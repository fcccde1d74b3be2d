"""The tables of the first version: rows, head, one pending change, receipts, the index, contents."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "security_rows",
        sa.Column("kind", sa.String, primary_key=True),
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "head",
        sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("checkpoint", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "pending",
        sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("log_size", sa.BigInteger, nullable=False),
        sa.Column("entry", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "pending_rows",
        sa.Column("kind", sa.String, primary_key=True),
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("body", sa.LargeBinary),
    )
    op.create_table(
        "receipts",
        sa.Column("entry", sa.LargeBinary, primary_key=True),
        sa.Column("lease_id", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_receipts_lease_id", "receipts", ["lease_id"])
    op.create_table(
        "entry_index",
        sa.Column("entry_sha256", sa.LargeBinary, primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "contents",
        sa.Column("sha256", sa.LargeBinary, primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
