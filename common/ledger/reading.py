"""A ledger's file as anybody may read it: the chain, its signed head, and the receipt beside it."""

import sqlite3
from pathlib import Path
from typing import Any

from ..errors import LedgerError
from .book import Book
from .chain import (
    Head,
    digest,
    verify,
)

UNREADABLE = (sqlite3.Error, UnicodeDecodeError, OverflowError)
"""what Python's sqlite3 raises for files that were damaged"""


def match_receipt(database: sqlite3.Connection, head: Head, receipt: dict[str, Any], bytes_digest: str) -> str:
    """ "same", or "behind": one entry, as a crash leaves it. Raises LedgerError for everything else."""
    kept = Head(receipt["seq"], receipt["hash"])
    if kept.seq > head.seq:
        raise LedgerError(f"the receipt has seen entry {kept.seq}, the ledger ends at {head.seq}: rolled back")
    if kept == head:
        if receipt["file"] != bytes_digest:
            raise LedgerError("bytes of the file were changed since the receipt was written")
        return "same"
    row = database.execute("SELECT hash FROM entries WHERE seq = ?", (kept.seq,)).fetchone()
    if kept.seq == head.seq or (kept.seq > 0 and (row is None or row[0] != kept.hash)):
        raise LedgerError(f"entry {kept.seq} is not the one that the receipt has seen: a fork")
    if kept.seq < head.seq - 1:
        raise LedgerError(
            f"the receipt has seen entry {kept.seq}, the ledger ends at {head.seq}: the receipt is an old copy"
        )
    return "behind"


def read_head(database: sqlite3.Connection, public: str, site: str) -> Head:
    """The signed head. Raises LedgerError when its signature does not hold."""
    row = database.execute("SELECT seq, hash, signature FROM head").fetchall()
    if len(row) != 1:
        raise LedgerError("the head is missing")
    seq, hash_, signature = row[0]
    if not isinstance(seq, int) or not isinstance(hash_, str):
        raise LedgerError("the head is not as confide wrote it: it was changed")
    if not verify(public, "chain", {"site": site, "seq": seq, "hash": hash_}, str(signature)):
        raise LedgerError("the signature of the head does not hold")
    return Head(seq, hash_)


def read_chain(database: sqlite3.Connection, public: str, site: str, known: Book) -> Book:
    """What a chain says, verified up to its signed head; entries that are `known` are not read again.

    Raises LedgerError.
    """
    head = read_head(database, public, site)
    if head.seq < known.head.seq:
        raise LedgerError(f"ends at entry {head.seq}, was at {known.head.seq}: rolled back")
    book = known.copy()
    rows = database.execute("SELECT body, hash FROM entries WHERE seq > ? ORDER BY seq", (known.head.seq,))
    for body, hash_ in rows:
        book.add(body, hash_)
    if book.head != head:
        raise LedgerError(f"the signed head is entry {head.seq}, the chain ends at {book.head.seq}")
    return book


def connect(path: Path) -> sqlite3.Connection:
    """Raises LedgerError for a file that is no database."""
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("PRAGMA synchronous = EXTRA")  # the folder as well: a commit is on disk when it returns
    except UNREADABLE as error:
        database.close()
        raise LedgerError(f"{path}: {error}") from None
    return database


def file_digest(path: Path) -> str:
    return digest(path.read_bytes())
