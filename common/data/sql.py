"""SQL sources, `URL#TABLE` or `URL#SELECT …`, read by SQLAlchemy (the extra `sql`).

Each value is what the database's driver makes of it, and nothing is kept on disk. A query that computes (a cast, a
division) can fail on one row and then fails as a whole, which tells of that row: let it name columns alone.
"""

import re
from collections.abc import Sequence
from typing import Any

from ..errors import DataError

URL = re.compile(r"^[a-z][a-z0-9+]*://")


def shown(source: str) -> str:
    """A source without the password of its url."""
    return re.sub(r"//[^#]*@", "//…@", source, count=1) if URL.match(source) else source


def query(source: str) -> tuple[list[str], list[Sequence[object]]]:
    """The names of the columns, and the rows. Text that is not UTF-8 has lone surrogates in SQLite.

    Raises DataError, which shows no password and nothing that a driver says.
    """
    url, _, text = source.partition("#")
    if not text:
        raise DataError(f"{shown(url)}: no table named; write URL#TABLE or URL#SELECT …")
    if not text.lower().lstrip().startswith("select"):
        text = f'SELECT * FROM "{text}"'  # noqa: S608  # the operator's own file names its own table
    try:
        return _answer(url, text)
    except ImportError:
        raise DataError(f"{shown(url)}: SQL needs sqlalchemy; install confide[sql] and the database's driver") from None
    except Exception as error:
        # a driver's message may quote rows, so only its kind is told
        raise DataError(f"{shown(url)}: the query failed ({_kind(error)}); check url, table and columns") from None


def _answer(url: str, text: str) -> tuple[list[str], list[Sequence[object]]]:
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":  # otherwise one text that is not UTF-8 fails the query
            driver: Any = connection.connection.driver_connection
            driver.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        found = connection.execution_options(no_parameters=True).exec_driver_sql(text)
        return list(found.keys()), [[_owned(value) for value in row] for row in found]


def _owned(value: object) -> object:
    return bytes(value) if isinstance(value, memoryview | bytearray) else value


def _kind(error: Exception) -> str:
    """The kind of a database's error; what it may say of a row is not told apart."""
    from sqlalchemy.exc import DatabaseError

    return "DatabaseError" if isinstance(error, DatabaseError) else type(error.__cause__ or error).__name__
