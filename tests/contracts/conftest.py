"""Real servers for the contracts: one each per test process."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.hooks.conftest import s3, s3_line, s3_server
from tests.postgres import a_postgres

__all__ = ["s3", "s3_line", "s3_server"]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    with a_postgres() as url:
        yield url


@pytest.fixture
def postgres(postgres_server: str) -> str:
    """The URL of an empty database."""
    from sqlalchemy import create_engine, text

    name = f"test_{uuid.uuid4().hex}"
    engine = create_engine(postgres_server.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return postgres_server.replace("/postgres?", f"/{name}?")
