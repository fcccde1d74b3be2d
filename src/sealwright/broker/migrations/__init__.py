"""The tables in PostgreSQL, version by version (Alembic); SQLite files make theirs themselves. See ADR 17."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import SQLAlchemyError

from sealwright.broker.database import REVISION, postgres_engine, schema_newer, unavailable
from sealwright.errors import SettingsError

_LOCK = 0x5EA10002  # advisory: one migration at a time


def migrate(url: URL) -> tuple[str, str]:
    """Bring a database's tables to this version, in one transaction; return the versions before and after.

    Raises:
        UnavailableError: `store-unavailable`. VerificationError: `schema-newer`. SettingsError: `extra-missing`.
    """
    engine = postgres_engine(url, size=1)
    try:
        with engine.begin() as db:
            db.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            before = _version(db)
            if before > REVISION:
                raise schema_newer(before)
            _upgrade(db)
            return before, _version(db)
    except SQLAlchemyError as exc:
        raise unavailable(exc) from None
    finally:
        engine.dispose()


def _upgrade(db: Connection) -> None:
    try:
        from alembic import command
        from alembic.config import Config
    except ModuleNotFoundError as exc:
        raise SettingsError(
            "migrations need an extra: pip install 'sealwright[postgres]'", code="extra-missing"
        ) from exc
    config = Config(attributes={"connection": db})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, "head")


def _version(db: Connection) -> str:
    if db.execute(text("SELECT to_regclass('alembic_version')")).scalar() is None:
        return ""
    return str(db.execute(text("SELECT version_num FROM alembic_version")).scalar() or "")
