"""What Alembic runs: on the connection that it was given, and on nothing else."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
