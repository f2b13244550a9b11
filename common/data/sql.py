"""SQL sources, `URL#TABLE` or `URL#SELECT …`, read by SQLAlchemy (the extra `sql`).

Each value is what the database's driver makes of it, and nothing is kept on disk. A query that computes (a cast, a
division) can fail on one row and then fails as a whole, which tells of that row: let it name columns alone.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:
    from sqlalchemy import Engine

URL = re.compile(r"^[a-z][a-z0-9+]*://", re.IGNORECASE)
_SELECT = re.compile(r"\s*select\b", re.IGNORECASE)


def shown(source: str) -> str:
    """A source without the password of its url: before the host (where a # may stand in it) or among the options."""
    if not URL.match(source):
        return source
    source = re.sub(r"^([^:]*://)(?:[^#]*|[^/]*)@", r"\1…@", source)
    return re.sub(r"^([^#?]*\?)[^#]+", r"\1…", source)


def query(source: str) -> tuple[list[str], list[Sequence[object]]]:
    """The names of the columns, and the rows. Text that is not UTF-8 has lone surrogates in SQLite.

    Raises DataError, which shows no password and nothing that a driver says.
    """
    url, _, text = source.partition("#")
    where = shown(source).partition("#")[0]
    if not text:
        raise DataError(f"{where}: no table named; write URL#TABLE or URL#SELECT …")
    try:
        return _answer(url, text)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except ImportError:
        raise DataError(f"{where}: SQL needs sqlalchemy; install confide[sql] and the database's driver") from None
    except Exception as error:
        # a driver's message may quote rows, so only its kind is told
        raise DataError(f"{where}: the query failed ({_kind(error)}); check url, table and columns") from None


def _answer(url: str, text: str) -> tuple[list[str], list[Sequence[object]]]:
    """text: a query, or the name of a table."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    _require_file(engine)
    if not _SELECT.match(text):
        # in the database's own quotes
        text = f"SELECT * FROM {engine.dialect.identifier_preparer.quote_identifier(text)}"  # noqa: S608
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":  # otherwise one text that is not UTF-8 fails the query
            driver: Any = connection.connection.driver_connection
            driver.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        found = connection.execution_options(no_parameters=True).exec_driver_sql(text)
        return list(found.keys()), [[_owned(value) for value in row] for row in found]


def _require_file(engine: "Engine") -> None:
    """Raises DataError for a file that is not there: SQLite would make it, empty."""
    name = engine.url.database
    named = engine.dialect.name == "sqlite" and name and name != ":memory:" and not name.startswith("file:")
    if name and named and not Path(name).is_file():
        raise DataError("no such file; correct its path in the url")


def _owned(value: object) -> object:
    return bytes(value) if isinstance(value, memoryview | bytearray) else value


def _kind(error: Exception) -> str:
    """The kind of a database's error; what it may say of a row is not told apart."""
    from sqlalchemy.exc import DatabaseError

    return "DatabaseError" if isinstance(error, DatabaseError) else type(error.__cause__ or error).__name__
