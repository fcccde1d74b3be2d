"""What several replicas share: who writes, the log, openings, sessions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "writer",
        sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("beat", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "openings",
        sa.Column("commitment", sa.LargeBinary, primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "sessions",
        sa.Column("name", sa.LargeBinary, primary_key=True),
        sa.Column("ends", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_sessions_ends", "sessions", ["ends"])
    op.create_table(
        "log_files",
        sa.Column("path", sa.String, primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
