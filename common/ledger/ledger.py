"""A site's account of spent privacy: one SQLite file, one writer at a time, nothing forgotten.

Order: lock → check → write RESERVE → durable → COMMIT of a round's steps → then touch the data
(docs/explanation/privacy.md).

A run reserves all of its declared steps at once, before its first touch of the data; that charges them, whatever
happens next. `admission.admit` alone says whether it may. Each round COMMITs its steps before it reads, so no
more than the reserved steps can ever be released, across crashes, restarts and processes. ABORT gives a reservation
back only where the process that made it has not touched data.

A site's folder holds `ledger.db`; `receipt.json`, the signed last head with the file's SHA-256; `site.key` (mode 0600)
and `public.key`. The chain shows edits, the receipt shows truncation, rollback and every changed byte; a rollback of
both is seen by the server, which remembers the last head of each site. A crash can leave the database one entry ahead
of the receipt, never behind it.
"""

import fcntl
import os
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ... import __version__
from ..errors import BudgetError, LedgerError
from ..privacy import events
from ..privacy.events import of_run
from .admission import admit, require_same
from .book import RELATION, Book, Charge, Limit, Request
from .chain import (
    GENESIS,
    Head,
    SiteKey,
    canonical,
    check_document,
    digest,
    read_json,
    signed_document,
    sync_folder,
    write_json,
)
from .reading import UNREADABLE, connect, file_digest, match_receipt, read_chain

DATABASE, RECEIPT, KEY, PUBLIC_KEY, LOCK = "ledger.db", "receipt.json", "site.key", "public.key", "ledger.lock"


class Ledger:
    """One site's ledger. Threads and processes may share it; each operation takes the site's lock."""

    def __init__(self, site: str, key: SiteKey, folder: Path | None, receipt: Path | None) -> None:
        """Use `create`, `open` or `in_memory`."""
        self.site, self.key, self.folder = site, key, folder
        self._receipt = receipt
        self._thread = threading.RLock()
        self._book = Book()
        self._seen: tuple[int, ...] | None = None
        self._memory: sqlite3.Connection | None = None

    @classmethod
    def create(cls, folder: Path, site: str, receipt: Path | None = None) -> "Ledger":
        """A new, empty ledger: the folder appears whole or not at all. Raises LedgerError when there is one.

        receipt: where the last head is kept; omitted: in the folder. Another disk is better.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        try:
            cls._fill(partial, folder, site, receipt)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(folder.parent)
        return cls.open(folder, receipt)

    @staticmethod
    def _fill(partial: Path, folder: Path, site: str, receipt: Path | None) -> None:
        """Makes `partial`, and renames it into `folder`."""
        partial.mkdir(mode=0o700)
        key = SiteKey.new()
        key.save(partial / KEY)
        (partial / PUBLIC_KEY).write_text(key.public + "\n", encoding="ascii")
        (partial / LOCK).touch()
        with closing(connect(partial / DATABASE)) as database:
            _make_tables(database, key, site)
        kept = receipt or partial / RECEIPT
        if receipt is not None and receipt.exists():
            raise LedgerError(f"{receipt}: is the receipt of a ledger already; a new ledger needs a new one")
        write_json(kept, _receipt_of(key, site, Head(0, GENESIS), file_digest(partial / DATABASE)))
        try:
            partial.rename(folder)
        except OSError:
            raise LedgerError(f"{folder}: a ledger is there already; open it, it cannot be replaced") from None

    @classmethod
    def open(cls, folder: Path, receipt: Path | None = None) -> "Ledger":
        """Verifies all of it first. Raises LedgerError: a part is missing, or changed, or older than it was."""
        receipt = receipt or folder / RECEIPT
        for path in (folder / DATABASE, receipt, folder / KEY):
            if not path.is_file():
                raise LedgerError(f"{path}: missing; a ledger without it cannot be trusted and is not replaced")
        key = SiteKey.load(folder / KEY)
        content = check_document(read_json(receipt), "head", key.public, str(receipt))
        ledger = cls(content["site"], key, folder, receipt)
        with ledger._exclusive() as database:
            ledger._catch_up(database)
        return ledger

    @classmethod
    def in_memory(cls, site: str, key: SiteKey) -> "Ledger":
        """For simulations: the same checks, gone with the process."""
        ledger = cls(site, key, None, None)
        ledger._memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        _make_tables(ledger._memory, key, site)
        return ledger

    @property
    def durable(self) -> bool:
        return self.folder is not None

    def book(self) -> Book:
        """The verified state, what other processes wrote included."""
        with self._exclusive() as database:
            self._catch_up(database)
            return self._book.copy()

    def head(self) -> Head:
        """The last entry."""
        with self._exclusive() as database:
            self._catch_up(database)
            return self._book.head

    def charge(self, dataset: str, run: str) -> Charge:
        """What a run has reserved and used. Raises KeyError for a run that has reserved nothing."""
        with self._exclusive() as database:
            self._catch_up(database)
            return self._book.charges[dataset, run]

    def hash_at(self, seq: int) -> str | None:
        """The hash of entry `seq`; None when there is no such entry."""
        return self.hashes_at([seq])[0]

    def hashes_at(self, seqs: Sequence[int]) -> list[str | None]:
        """The hash of each of the entries; None where there is none."""
        found: dict[int, str] = {0: GENESIS}
        with self._exclusive() as database:
            self._catch_up(database)
            for seq in {*seqs} - {0}:
                if row := database.execute("SELECT hash FROM entries WHERE seq = ?", (seq,)).fetchone():
                    found[seq] = str(row[0])
        return [found.get(seq) for seq in seqs]

    def reserve(self, request: Request, limit: Limit, same: Collection[str] = ()) -> "Reservation":
        """Charges all steps of a run, or finds what the run reserved before.

        same: other names of the data set, whose charges count as its own.
        Raises BudgetError, changing nothing: `admission.admit` refuses the run, or it comes back as another than it
        was (`admission.require_same`).
        """
        with self._exclusive() as database:
            self._catch_up(database)
            held = self._book.charges.get((request.dataset, request.run))
            if held is not None and not held.aborted:
                require_same(held, request, self.site)
                return Reservation(self, request, fresh=False)
            order = admit(self._book, request, limit, self.site, same)
            self._append(
                database,
                "RESERVE",
                request,
                (request.steps, request.evaluations),
                {
                    "unit": request.unit,
                    "relation": RELATION,
                    "delta": request.delta,
                    "limit": {"epsilon": limit.epsilon, "delta": limit.delta, "order": order},
                    "model": request.model,
                    "configuration": request.configuration,
                    "version": __version__,
                    **({"commitment": request.commitment} if request.commitment else {}),
                },
            )
        return Reservation(self, request, fresh=True)

    def charged_as(self, whose: str) -> set[str]:
        """Names of data sets under which the records of this identity were charged."""
        with self._exclusive() as database:
            self._catch_up(database)
            return {charge.dataset for charge in self._book.standing() if charge.content.startswith(whose)}

    def content_of(self, dataset: str, run: str) -> str | None:
        """The digest of the records that a run holds a reservation for; None where it holds none."""
        with self._exclusive() as database:
            self._catch_up(database)
            held = self._book.charges.get((dataset, run))
            return None if held is None or held.aborted else held.content

    def _commit(self, request: Request, steps: int, evaluations: int) -> None:
        with self._exclusive() as database:
            self._catch_up(database)
            _require_left(self.site, self._book.charges[request.dataset, request.run], steps, evaluations)
            self._append(database, "COMMIT", request, (steps, evaluations), {})

    def _abort(self, request: Request) -> None:
        with self._exclusive() as database:
            self._catch_up(database)
            if self._book.charges[request.dataset, request.run].released:
                raise LedgerError(f"run {request.run} has used steps; nothing is refunded")
            self._append(database, "ABORT", request, (request.steps, request.evaluations), {})

    def _append(
        self, database: sqlite3.Connection, kind: str, request: Request, count: tuple[int, int], facts: dict[str, Any]
    ) -> None:
        """count: steps, and evaluations."""
        head, (steps, evaluations) = self._book.head, count
        entry = {
            "seq": head.seq + 1,
            "previous": head.hash,
            "kind": kind,
            "dataset": request.dataset,
            "content": request.content,
            "run": request.run,
            "event": events.to_json(of_run(request.step, steps, request.held_out, evaluations)),
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **facts,
        }
        body = canonical(entry).decode()
        new = Head(head.seq + 1, digest(body.encode()))
        # checked as a reader would, before anything is written
        after = self._book.copy()
        after.add(body, new.hash)
        database.execute("BEGIN IMMEDIATE")
        try:
            database.execute("INSERT INTO entries VALUES (?, ?, ?)", (new.seq, body, new.hash))
            _set_head(database, self.key, self.site, new)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        self._keep_receipt(new)
        self._book = after

    def _keep_receipt(self, head: Head) -> None:
        if self.folder is None or self._receipt is None:
            return
        write_json(self._receipt, _receipt_of(self.key, self.site, head, file_digest(self.folder / DATABASE)))
        self._seen = _stamp(self.folder / DATABASE)

    def _catch_up(self, database: sqlite3.Connection) -> None:
        """Reads and verifies what is new. Raises LedgerError when the past has changed."""
        if self.folder is None:
            return  # nobody else writes
        path = self.folder / DATABASE
        if self._seen == _stamp(path):
            return
        try:
            book = read_chain(database, self.key.public, self.site, self._book)
            self._check_receipt(database, book.head, path)
        except (LedgerError, *UNREADABLE) as error:
            raise LedgerError(f"{path}: {error}; it is not used until a person has looked") from None
        self._book, self._seen = book, _stamp(path)

    def _check_receipt(self, database: sqlite3.Connection, head: Head, path: Path) -> None:
        receipt = check_document(read_json(Path(str(self._receipt))), "head", self.key.public, str(self._receipt))
        if match_receipt(database, head, receipt, file_digest(path)) == "behind":
            self._keep_receipt(head)  # a crash came between the entry and its receipt

    @contextmanager
    def _exclusive(self) -> Iterator[sqlite3.Connection]:
        with self._thread:
            if self.folder is None:
                if self._memory is None:
                    raise LedgerError("this ledger was closed")
                yield self._memory
                return
            with locked(self.folder), closing(connect(self.folder / DATABASE)) as database:
                yield database


class Reservation:
    """A run's hold on a data set."""

    def __init__(self, ledger: Ledger, request: Request, *, fresh: bool) -> None:
        self.ledger, self.request = ledger, request
        self._abortable = fresh

    @property
    def charge(self) -> Charge:
        return self.ledger.charge(self.request.dataset, self.request.run)

    @contextmanager
    def taking(self, steps: int, evaluations: int = 0) -> Iterator[int]:
        """Within, the data may be touched; gives the steps used before. COMMITs first, so that whatever happens within,
        even the death of the process, has used them.

        Raises BudgetError, before anything is touched, when more steps or evaluations than were reserved are asked for.
        """
        held = self.charge
        _require_left(self.ledger.site, held, steps, evaluations)
        self._abortable = False
        if steps or evaluations:  # what is released without noise is not counted: its ε is infinite from the first step
            self.ledger._commit(self.request, steps, evaluations)
        yield held.used

    def abort(self) -> None:
        """Gives the reservation back. Raises LedgerError unless this object made it and no data was touched."""
        if not self._abortable:
            raise LedgerError(f"run {self.request.run}: data may have been read since it reserved; nothing is refunded")
        self._abortable = False
        self.ledger._abort(self.request)


def _require_left(site: str, held: Charge, steps: int, evaluations: int) -> None:
    """Raises BudgetError where a run asks for more than it reserved."""
    for what, used, asked, most in (
        ("steps", held.used, steps, held.steps),
        ("evaluations", held.evaluated, evaluations, held.evaluations),
    ):
        if used + asked > most:
            raise BudgetError(
                f"site {site}: spent {used} {what}, asked {asked}, limit {most}, remaining {most - used}; a run takes "
                f"the {what} it declared and no more"
            )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The site's lock, across processes and threads."""
    descriptor = os.open(folder / LOCK, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_tables(database: sqlite3.Connection, key: SiteKey, site: str) -> None:
    database.execute("CREATE TABLE entries (seq INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL)")
    database.execute("CREATE TABLE head (seq INTEGER NOT NULL, hash TEXT NOT NULL, signature TEXT NOT NULL)")
    _set_head(database, key, site, Head(0, GENESIS))


def _set_head(database: sqlite3.Connection, key: SiteKey, site: str, head: Head) -> None:
    signature = key.sign("chain", {"site": site, "seq": head.seq, "hash": head.hash})
    database.execute("DELETE FROM head")
    database.execute("INSERT INTO head VALUES (?, ?, ?)", (head.seq, head.hash, signature))


def _receipt_of(key: SiteKey, site: str, head: Head, bytes_digest: str) -> dict[str, Any]:
    return signed_document(key, "head", {"site": site, "seq": head.seq, "hash": head.hash, "file": bytes_digest})


def _stamp(path: Path) -> tuple[int, ...]:
    facts = path.stat()
    return (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
