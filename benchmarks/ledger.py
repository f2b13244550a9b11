"""Stress of the ledger: SIGKILL at random moments, races for one budget, random edits of the file, 10,000 entries.

python -m benchmarks.ledger          # the whole of it, a few minutes; the unit tests run the same with small counts
"""

import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path

from confide.common.config.run import RunConfig
from confide.common.errors import BudgetError, LedgerError
from confide.common.ledger.chain import GENESIS, SiteKey, canonical, digest
from confide.common.ledger.ledger import DATABASE, KEY, RECEIPT, Ledger, Limit, Request, Reservation
from confide.common.ledger.verify import audit
from confide.common.privacy.accounting import epsilon_pld, epsilon_prv, epsilon_rdp
from confide.common.privacy.events import DiscreteGaussianDpEvent, step_event
from confide.common.types import RoundTask
from confide.simulations.sites import SimulatedSites, make_ledgers, simulated_worker
from confide.tests.tiny import LOCAL, merged, run_content, save_bert, save_data

_STEP = step_event(0.01, DiscreteGaussianDpEvent(1.0, 1000))
_LIMIT = Limit(2.0, 1e-5)
_STEPS = 10_000
"""steps that a run of the crash test declares: more than it can take before it is killed"""


def request(run: str, steps: int = 1, dataset: str = "reviews") -> Request:
    return Request(run, dataset, digest(dataset.encode()), "example", _STEP, steps, 1e-5, "tiny", "1" * 64)


def _forkserver() -> ForkServerContext:
    """Starts processes that have this module, and torch, loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


# crash


def crash_config(folder: Path) -> RunConfig:
    """A tiny run whose sites keep their ledgers in `folder`; its limit leaves room for every kill."""
    content = run_content(save_bert(folder / "bert"), save_data(folder), folder / "out")
    changes = {
        "run": {"rounds": _STEPS, "id": "first"},
        "data": {"labels": ["negative", "positive"]},
        "privacy": LOCAL,
        "engine": {"ledger": str(folder / "ledgers")},
    }
    config = RunConfig.parse(merged(content, changes), "crash")
    make_ledgers(config)
    policy = folder / "ledgers" / "site.toml"
    policy.write_text(policy.read_text().replace("epsilon = 8.0", "epsilon = 100000.0"))
    return config


def _train_until_killed(flat: dict, log: str, begun: str) -> None:
    """In a process of its own: round after round; every release is noted, durably, after it was made."""
    config = RunConfig.from_flat(flat)
    worker = simulated_worker(config)
    Path(begun).touch()  # from here on it can be killed anywhere: reserving, training, committing, releasing
    account = worker.account(SimulatedSites(config).site(0), 0, 0)
    with Path(log).open("a") as released:
        number = 0
        while True:
            number += 1
            worker.train(0, RoundTask(number, worker.model.initial), account)
            released.write(f"{config.run.id}\n")
            released.flush()
            os.fsync(released.fileno())


def crash(kills: int, seed: int = 0) -> int:
    """Kills a training process `kills` times; returns the steps released in all. Raises AssertionError.

    After each kill the ledger must verify, and for every run what was committed must not be below what was released.
    """
    rng, context = random.Random(seed), _forkserver()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config, log = crash_config(folder), folder / "released.log"
        log.touch()
        lines: list[str] = []
        database = folder / "ledgers" / "site-1" / DATABASE
        for kill in range(kills):
            flat = config.to_flat() | {"run.id": f"run-{kill // 2}"}  # every run is killed, taken up, and killed again
            begun = folder / f"begun-{kill}"
            process = context.Process(target=_train_until_killed, args=(flat, str(log), str(begun)))
            process.start()
            while not begun.exists():
                assert process.is_alive(), "the process ended before it was killed"
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.4))
            while kill == kills - 1 and log.stat().st_size == 0:  # on a busy machine nothing may have been released yet
                assert process.is_alive(), "the process ended before it was killed"
                time.sleep(0.001)
            process.kill()
            process.join()
            outcome = audit(database)
            assert outcome.holds, outcome.findings
            charges = Ledger.open(database.parent).book().charges
            lines = [line for line in log.read_text().splitlines() if line]
            for run in set(lines):
                charge = charges["default", run]
                assert charge.steps >= charge.used >= lines.count(run), (run, charge, lines.count(run))
        return len(lines)


# race


def capacity() -> int:
    """How many one-step reservations fit into the limit."""
    ledger = Ledger.in_memory("site", SiteKey.from_seed(b"0" * 32))
    count = 0
    try:
        while True:
            ledger.reserve(request(f"r{count}", 40), _LIMIT)
            count += 1
    except BudgetError:
        return count


def _grab(folder: Path, number: int) -> int:
    """One process: reserves until it is refused; returns how often it was not."""
    ledger, got = Ledger.open(folder), 0
    try:
        while True:
            ledger.reserve(request(f"p{number}-{got}", 40), _LIMIT)
            got += 1
    except BudgetError:
        return got


def race(times: int, processes: int = 8) -> list[int]:
    """Reservations that `processes` got between them in each race. Raises AssertionError when not all of the budget."""
    most, totals = capacity(), []
    with tempfile.TemporaryDirectory() as scratch, _forkserver().Pool(processes) as pool:
        for number in range(times):
            folder = Path(scratch) / f"site-{number}"
            Ledger.create(folder, "site")
            got = pool.map(partial(_grab, folder), range(processes), chunksize=1)
            assert sum(got) == most, (got, most)
            assert audit(folder / DATABASE).holds
            totals.append(sum(got))
    return totals


# tampering


def _site_with_history(folder: Path, entries: int) -> list[Path]:
    """A ledger of about `entries` entries, and copies of its file as it was on the way."""
    ledger = Ledger.create(folder, "site")
    copies = []
    for number in range(entries // 2):
        reservation = ledger.reserve(request(f"r{number}", 3, f"set-{number % 3}"), Limit(50.0, 1e-5))
        with reservation.taking(2):
            pass
        copy = folder.parent / f"old-{number}.db"
        shutil.copyfile(folder / DATABASE, copy)
        copies.append(copy)
    return copies[:-1]


def _one_byte(path: Path, rng: random.Random, old: list[Path]) -> None:
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    content[place] ^= rng.randrange(1, 256)
    path.write_bytes(bytes(content))


def _truncated(path: Path, rng: random.Random, old: list[Path]) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def _deleted(path: Path, rng: random.Random, old: list[Path]) -> None:
    path.unlink()


def _old_copy(path: Path, rng: random.Random, old: list[Path]) -> None:
    shutil.copyfile(rng.choice(old), path)


def _in_sql(path: Path, change: Callable[[sqlite3.Connection, int], None], rng: random.Random) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        count = database.execute("SELECT COUNT(*) FROM entries").fetchone()[0]
        change(database, rng.randrange(1, count + 1))


def _row_deleted(path: Path, rng: random.Random, old: list[Path]) -> None:
    _in_sql(path, lambda database, seq: database.execute("DELETE FROM entries WHERE seq = ?", (seq,)) and None, rng)


def _tail_deleted(path: Path, rng: random.Random, old: list[Path]) -> None:
    """The last entries gone, and the head turned back to an entry that was signed once, but not as it is kept."""

    def change(database: sqlite3.Connection, seq: int) -> None:
        database.execute("DELETE FROM entries WHERE seq >= ?", (seq,))
        row = database.execute("SELECT hash FROM entries WHERE seq = ?", (seq - 1,)).fetchone()
        database.execute("UPDATE head SET seq = ?, hash = ?", (seq - 1, row[0] if row else GENESIS))

    _in_sql(path, change, rng)


def _row_edited(path: Path, rng: random.Random, old: list[Path]) -> None:
    """One entry says less was asked; sometimes its hash, and all after it, are made to fit."""

    def change(database: sqlite3.Connection, seq: int) -> None:
        rows = database.execute("SELECT seq, body FROM entries ORDER BY seq").fetchall()
        previous, thorough = "", rng.random() < 0.5
        for number, body in rows:
            entry = json.loads(body)
            if number == seq:
                entry[rng.choice(["run", "dataset", "time", "content"])] = "another"
            elif number < seq or not thorough:
                previous = digest(canonical(entry))
                continue
            entry["previous"] = previous if number > 1 else entry["previous"]
            body = canonical(entry).decode()
            previous = digest(body.encode())
            database.execute("UPDATE entries SET body = ?, hash = ? WHERE seq = ?", (body, previous, number))
        if thorough:
            database.execute("UPDATE head SET hash = ?", (previous,))

    _in_sql(path, change, rng)


def _rows_swapped(path: Path, rng: random.Random, old: list[Path]) -> None:
    def change(database: sqlite3.Connection, seq: int) -> None:
        other = seq - 1 if seq > 1 else seq + 1
        for old_seq, new_seq in ((seq, -1), (other, seq), (-1, other)):
            database.execute("UPDATE entries SET seq = ? WHERE seq = ?", (new_seq, old_seq))

    _in_sql(path, change, rng)


EDITS = (_one_byte, _truncated, _deleted, _old_copy, _row_deleted, _tail_deleted, _row_edited, _rows_swapped)


def tamper(edits: int, seed: int = 0) -> dict[str, int]:
    """Applies single random edits to copies of one ledger; returns how many of each kind. Raises AssertionError.

    Half of the edits are of single bytes. Every one must be seen by an audit and refused by whoever opens the ledger.
    """
    rng = random.Random(seed)
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        original = Path(scratch) / "site"
        old = _site_with_history(original, 40)
        for number in range(edits):
            edit = EDITS[0] if rng.random() < 0.5 else rng.choice(EDITS[1:])
            copy = Path(scratch) / "edited"
            shutil.copytree(original, copy)
            edit(copy / DATABASE, rng, old)
            assert not audit(copy / DATABASE).holds, (number, edit.__name__, "an audit saw nothing")
            try:
                Ledger.open(copy)
            except LedgerError:
                pass
            else:
                raise AssertionError(f"edit {number}, {edit.__name__}: the ledger was opened")
            shutil.rmtree(copy)
            counts[edit.__name__.strip("_")] = counts.get(edit.__name__.strip("_"), 0) + 1
        assert audit(original / DATABASE).holds
    return counts


# speed


def timing(entries: int) -> dict[str, float]:
    """Milliseconds of one more entry with its check, seconds to verify and to compute ε again, at `entries` entries."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "site"
        ledger = Ledger.create(folder, "site")
        steps = [step_event(0.001, DiscreteGaussianDpEvent(z, 150_000)) for z in (3.0, 4.0, 5.0, 6.0)]
        took = []

        def timed(act: Callable[[], object]) -> None:
            started = time.perf_counter()
            act()
            took.append(time.perf_counter() - started)

        def commit(reservation: Reservation) -> None:
            with reservation.taking(1):
                pass

        for number in range(entries // 2):
            asked = Request(
                f"r{number}", "reviews", digest(b"reviews"), "example", steps[number % 4], 1, 1e-5, "tiny", "1" * 64
            )
            reservations: list[Reservation] = []
            timed(lambda asked=asked, kept=reservations: kept.append(ledger.reserve(asked, Limit(8.0, 1e-5))))
            timed(lambda kept=reservations: commit(kept[0]))
        started = time.perf_counter()
        book = Ledger.open(folder).book()
        opened = time.perf_counter() - started
        started = time.perf_counter()
        for accountant in (epsilon_pld, epsilon_prv, epsilon_rdp):
            accountant(book.history("reviews"), 1e-5)
        computed = time.perf_counter() - started
        started = time.perf_counter()
        assert audit(folder / DATABASE).holds
        assert (folder / RECEIPT).is_file()
        assert (folder / KEY).is_file()
        return {
            "entries": book.head.seq,
            "append_and_check_median_ms": 1000 * statistics.median(took[-1000:]),
            "append_and_check_worst_ms": 1000 * max(took[-1000:]),
            "verify_and_open_s": opened,
            "epsilon_three_accountants_s": computed,
            "whole_audit_s": time.perf_counter() - started,
        }


def main() -> None:
    for name, run in (
        ("timing, 10,000 entries", lambda: timing(10_000)),
        ("tamper, 1,000 edits, all detected", lambda: tamper(1000)),
        ("race, 8 processes, 100 times, reservations each", lambda: sorted(set(race(100)))),
        ("crash, 200 kills, steps released in all", lambda: crash(200)),
    ):
        started = time.perf_counter()
        print(f"{name}: {run()} ({time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
