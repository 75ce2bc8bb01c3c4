"""The ledger in a SQL database: SQLite on one machine, PostgreSQL for a team.

    entries(run_id, seq, at, kind, event)    primary key (run_id, seq); rows are only ever added

`at` is microseconds since 1970 UTC (the same exact number in every database), `event` the event's JSON as written.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.core.runs.events import Entry, Event, from_json, to_json
from launcher.errors import LedgerConflict, LedgerUnavailable

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine, Table

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BUSY_SECONDS = 30


class SqlLedger:
    """`launcher.ports.Ledger` over an SQLAlchemy URL; tables are made on first use."""

    def __init__(self, url: str) -> None:
        self._url = url

    def append(self, run_id: str, events: Sequence[Event], *, after_seq: int, at: datetime) -> tuple[Entry, ...]:
        """As the port says; an instant before the newest entry's is moved up to it."""
        from sqlalchemy import insert
        from sqlalchemy.exc import IntegrityError

        try:
            with self._transaction(writes=True) as connection:
                last_seq, last_at = self._newest(connection, run_id)
                if last_seq != after_seq:
                    raise LedgerConflict(f"run {run_id} is at entry {last_seq}, not {after_seq}")
                entries = tuple(
                    Entry(run_id=run_id, seq=after_seq + n, at=max(at.astimezone(UTC), last_at), event=event)
                    for n, event in enumerate(events, start=1)
                )
                if entries:
                    connection.execute(insert(self._entries), [_row(entry) for entry in entries])
                return entries
        except IntegrityError as error:
            raise LedgerConflict(f"run {run_id} has an entry {after_seq + 1} already") from error

    def read(self, run_id: str, *, after_seq: int = 0) -> tuple[Entry, ...]:
        from sqlalchemy import select

        table = self._entries
        query = select(table).where(table.c.run_id == run_id, table.c.seq > after_seq).order_by(table.c.seq)
        with self._transaction() as connection:
            return tuple(_entry(row) for row in connection.execute(query))

    def run_ids(self) -> tuple[str, ...]:
        from sqlalchemy import select

        table = self._entries
        query = select(table.c.run_id).where(table.c.seq == 1).order_by(table.c.at, table.c.run_id)
        with self._transaction() as connection:
            return tuple(connection.execute(query).scalars())

    def _newest(self, connection: Connection, run_id: str) -> tuple[int, datetime]:
        from sqlalchemy import select

        table = self._entries
        query = select(table.c.seq, table.c.at).where(table.c.run_id == run_id).order_by(table.c.seq.desc()).limit(1)
        row = connection.execute(query).first()
        return (row.seq, _instant(row.at)) if row else (0, _EPOCH)

    @contextmanager
    def _transaction(self, *, writes: bool = False) -> Iterator[Connection]:
        from sqlalchemy.exc import DBAPIError, IntegrityError

        try:
            with self._engine.connect().execution_options(writes=writes) as connection, connection.begin():
                yield connection
        except IntegrityError:
            raise
        except DBAPIError as error:
            raise LedgerUnavailable(f"the ledger {self._where} does not answer: {error.orig}") from error

    @property
    def _where(self) -> str:
        from sqlalchemy.engine import make_url

        return make_url(self._url).render_as_string(hide_password=True)

    @cached_property
    def _entries(self) -> Table:
        from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, Text

        return Table(
            "entries",
            MetaData(),
            Column("run_id", String(120), primary_key=True),
            Column("seq", Integer, primary_key=True, autoincrement=False),
            Column("at", BigInteger, nullable=False),
            Column("kind", String(40), nullable=False),
            Column("event", Text, nullable=False),
        )

    @cached_property
    def _engine(self) -> Engine:
        from sqlalchemy import create_engine, event
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import DBAPIError, SQLAlchemyError

        try:
            url = make_url(self._url)
            if url.get_backend_name() == "sqlite":
                if url.database:
                    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
                engine = create_engine(url)
                event.listen(engine, "connect", _prepare_sqlite)
                event.listen(engine, "begin", _begin)
            else:
                engine = create_engine(_with_driver(url), pool_pre_ping=True)  # a supervisor outlives connections
            weakref.finalize(self, engine.dispose)  # whoever forgets the ledger leaves no connection open
            self._make_tables(engine)
        except DBAPIError as error:
            raise LedgerUnavailable(f"the ledger {self._where} cannot be opened: {error.orig}") from error
        except ImportError as error:
            fix = "install its driver; for PostgreSQL, spotlaunch[postgres]"
            raise LedgerUnavailable(f"the ledger {self._where} cannot be opened: {error}; {fix}") from error
        except (SQLAlchemyError, OSError) as error:
            raise LedgerUnavailable(f"the ledger cannot be opened: {error}; check LAUNCH_LEDGER") from error
        return engine

    def _make_tables(self, engine: Engine) -> None:
        from sqlalchemy import inspect
        from sqlalchemy.exc import DBAPIError

        try:
            self._entries.metadata.create_all(engine)
        except DBAPIError:  # somebody else made them between the look and the making
            if not inspect(engine).has_table(self._entries.name):
                raise


def _with_driver(url: URL) -> URL:
    """`postgresql://…` means the driver that the extra installs, and a server that is not there is soon given up."""
    if url.get_backend_name() != "postgresql":
        return url
    plain = url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url
    return plain if "connect_timeout" in plain.query else plain.update_query_dict({"connect_timeout": "10"})


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """WAL lets readers pass a writer; FULL, since money that was agreed to must survive a power cut."""
    connection.isolation_level = None  # transactions are begun by `_begin`, not guessed by the driver
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={_BUSY_SECONDS * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    """A writer locks before it reads: two appends behind the same entry cannot both pass the check."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _row(entry: Entry) -> dict[str, object]:
    return {
        "run_id": entry.run_id,
        "seq": entry.seq,
        "at": (entry.at - _EPOCH) // timedelta(microseconds=1),
        "kind": entry.event.kind,
        "event": to_json(entry.event),
    }


def _entry(row: Any) -> Entry:
    return Entry(run_id=row.run_id, seq=row.seq, at=_instant(row.at), event=from_json(row.event))


def _instant(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)
