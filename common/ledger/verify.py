"""What somebody who does not trust a ledger can check: chain, signatures, receipt, and ε from the raw events.

Nothing here needs the site's private key but `export`, and nothing writes to the ledger.
"""

import math
import shutil
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import ConfideError, LedgerError
from ..privacy import events
from ..privacy.accounting import epsilon_pld, epsilon_prv, epsilon_rdp, filter_epsilon, is_private
from ..privacy.events import History, history_of, of_run, parts_of
from .book import RELATION, Book, Charge, Limit
from .chain import Head, check_document, read_json, read_public_key, signed_document
from .ledger import DATABASE, PUBLIC_KEY, RECEIPT, Ledger, locked
from .reading import UNREADABLE, connect, file_digest, match_receipt, read_chain

_TOLERANCE = 0.005
"""two accountants on different meshes; more than this part apart is a finding"""
_PRV_ERROR = 0.021
"""what Opacus' PRV adds to ε for its mesh, with some room"""
_ROUNDING = 1e-3


@dataclass(frozen=True)
class LedgerAudit:
    """The outcome for one ledger; `findings` is empty when all holds."""

    path: str
    site: str
    head: Head
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    datasets: list[dict[str, Any]] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        facts = {**vars(self), "head": vars(self.head), "holds": self.holds}
        return _finite(facts)


def find_ledgers(path: Path) -> list[Path]:
    """The ledger files at a path: a file, a site's folder, or a folder of sites. Raises LedgerError for none."""
    if path.is_file():
        return [path]
    found = [path / DATABASE] if (path / DATABASE).is_file() else sorted(path.glob(f"*/{DATABASE}"))
    if not found:
        raise LedgerError(f"{path}: no {DATABASE} there; give a ledger, a site's folder, or a folder of sites")
    return found


def audit(database: Path, receipt: Path | None = None, public_key: Path | None = None) -> LedgerAudit:
    """Verifies one ledger file.

    receipt: omitted: the receipt.json beside it. public_key: omitted: the public.key beside it; give the one that the
    site registered, since whoever can replace a ledger can replace what lies beside it. Raises LedgerError where this
    user may not read it.
    """
    kept = receipt or database.parent / RECEIPT
    site, head, book = "?", Head(0, ""), Book()
    findings: list[str] = []
    notes: list[str] = []
    try:
        public = read_public_key(public_key or database.parent / PUBLIC_KEY)
        document = check_document(read_json(kept), "head", public, str(kept))
        site = str(document["site"])
        book, state = _read(database, public, site, document)
        head = book.head
        if state == "behind":
            notes.append("the receipt is one entry behind, as a crash leaves it; the next entry mends it")
    except PermissionError as error:  # says nothing about the ledger
        raise LedgerError(
            f"{error.filename or database}: this user may not open it, so nothing was verified; run as the site's user"
        ) from None
    except (ConfideError, *UNREADABLE) as error:
        findings.append(str(error))
    except (KeyError, OSError) as error:
        findings.append(f"a part is missing: {error}")
    datasets = [_dataset(name, book.limits[name], _charges(book, name)) for name in book.limits]
    for facts in datasets:
        findings += facts["findings"]
    notes += _shared_contents(book)
    return LedgerAudit(str(database), site, head, findings, notes, datasets)


def _shared_contents(book: Book) -> list[str]:
    """What ledgers of earlier versions may hold: one content with two budgets. Their ε are of the same records."""
    names: dict[str, set[str]] = {}
    for charge in book.standing():
        names.setdefault(charge.content[:64], set()).add(charge.dataset)
    return [
        f"data sets {', '.join(sorted(same))} were charged for the same records: what these have spent is all of it"
        for same in names.values()
        if len(same) > 1
    ]


def _charges(book: Book, dataset: str) -> list[Charge]:
    return [charge for charge in book.charges.values() if charge.dataset == dataset]


def _read(database: Path, public: str, site: str, receipt: dict[str, Any]) -> tuple[Book, str]:
    """Reads a copy: a journal that a crash left is applied there, and the original stays as it is."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / DATABASE
        with locked(database.parent):
            shutil.copyfile(database, copy)
            journal = database.with_name(database.name + "-journal")
            if journal.is_file():
                shutil.copyfile(journal, copy.with_name(journal.name))
        with closing(connect(copy)) as opened:
            complaint = opened.execute("PRAGMA integrity_check").fetchone()[0]
            if complaint != "ok":
                raise LedgerError(f"{database}: {complaint.splitlines()[0]}")
            book = read_chain(opened, public, site, Book())
            state = match_receipt(opened, book.head, receipt, file_digest(copy))
    return book, state


def _dataset(name: str, limit: Limit, charges: list[Charge]) -> dict[str, Any]:
    """One data set: what was charged, by run and in all, and by which accountant."""
    standing = [charge for charge in charges if not charge.aborted]
    computed = _computed(history_of([charge.event for charge in standing]), limit, len(standing))
    findings = [f"data set '{name}': {finding}" for finding in _disagreements(computed["epsilon"])]
    units = sorted({charge.unit for charge in charges if not charge.aborted and is_private(history_of([charge.step]))})
    if len(units) > 1:
        findings.append(f"data set '{name}': charged per {' and per '.join(units)}; ε of two units do not add up")
    spent = computed["epsilon_spent"]
    if limit.epsilon is not None and spent > limit.epsilon:
        findings.append(f"data set '{name}': spent ε = {spent:.4g} is above the limit {limit.epsilon:g}")
    return {
        "dataset": name,
        "limit": vars(limit),
        **computed,
        "unit": sorted({charge.unit for charge in charges}),
        "relation": RELATION,
        "contents": sorted({charge.content for charge in charges}),
        "runs": [_run(charge, limit.delta) for charge in charges],
        "findings": findings,
    }


def _computed(history: History, limit: Limit, runs: int) -> dict[str, Any]:
    """What follows from what `runs` runs were charged: ε by each accountant; that which the limit is held to, and by
    what; by the filter, which a further run adds to (None before an order); and what is left."""
    by = _epsilons(history, limit.delta)
    filtered = None if limit.order is None else filter_epsilon(history, limit.order, limit.delta, limit.epsilon)
    several = filtered is not None and runs > 1
    return {
        "epsilon": by,
        "epsilon_spent": filtered if several else by["pld"],
        "accountant": "Rényi filter" if several else "PLD",
        "epsilon_filter": filtered,
        "remaining": None if limit.epsilon is None else max(0.0, limit.epsilon - (filtered or 0.0)),
    }


def _run(charge: Charge, delta: float) -> dict[str, Any]:
    return {
        "run": charge.run,
        "model": charge.model,
        "configuration": charge.configuration,
        "event": events.to_json(charge.event),
        "steps": charge.steps,
        "used": charge.used,
        "evaluations": charge.evaluations,
        "evaluated": charge.evaluated,
        "aborted": charge.aborted,
        "delta": charge.delta,
        "commitment": charge.commitment,
        "epsilon_reserved": 0.0 if charge.aborted else epsilon_pld(charge.history, delta),
        "epsilon_used": epsilon_pld(charge.released, delta),
    }


def _epsilons(history: History, delta: float) -> dict[str, float | None]:
    return {
        "pld": epsilon_pld(history, delta),
        "opacus_prv": epsilon_prv(history, delta),
        "rdp": epsilon_rdp(history, delta),
    }


def _disagreements(by: dict[str, float | None]) -> list[str]:
    """PLD is the bound that is claimed. PRV must agree with it but for its own error, and Rényi DP is not below it."""
    pld, prv, rdp = by["pld"] or 0.0, by["opacus_prv"], by["rdp"] or 0.0
    found = []
    if not (prv is None or pld == prv or abs(pld - prv) <= _PRV_ERROR + _TOLERANCE * pld):
        found.append(f"Opacus' PRV says ε = {prv:.4g}, the claimed bound by PLD is {pld:.4g}")
    if rdp < pld * (1 - _TOLERANCE) - _ROUNDING:
        found.append(f"Rényi DP says ε = {rdp:.4g}, below the claimed bound by PLD, {pld:.4g}")
    return found


def export(ledger: Ledger) -> dict[str, Any]:
    """A signed account: what was reserved and used on each data set, from which anybody can compute ε again.

    It holds no content of data, no counts, and nothing that is not in the ledger's entries.
    """
    book = ledger.book()
    datasets = []
    for name, limit in book.limits.items():
        facts = _dataset(name, limit, _charges(book, name))
        if facts.pop("findings"):
            raise LedgerError(f"{ledger.folder}: data set '{name}' does not hold; run `confide audit ledger` first")
        datasets.append({key: value for key, value in facts.items() if key != "contents"})
    content = {
        "site": ledger.site,
        "head": vars(book.head),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "datasets": _finite(datasets),
    }
    return signed_document(ledger.key, "account", content)


def verify_account(document: Any, public: str, source: str) -> dict[str, Any]:
    """Checks a signed account with the site's public key alone, and computes its ε again from the events.

    Returns the content. Raises LedgerError.
    """
    content = check_document(document, "account", public, source)
    try:
        for facts in content["datasets"]:
            _require_computed(facts, source)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise LedgerError(f"{source}: a part is missing or wrong ({type(error).__name__})") from None
    return content


def _require_computed(facts: dict[str, Any], source: str) -> None:
    """Raises LedgerError where a data set's account states another ε than its events give, or more than its limit."""
    limit, where = Limit(**facts["limit"]), f"{source}: data set '{facts['dataset']}'"
    reserved = [events.from_json(run["event"]) for run in facts["runs"] if not run["aborted"]]
    computed = _computed(history_of(reserved), limit, len(reserved))
    for name, value in {**computed.pop("epsilon"), **computed}.items():
        _require_same(facts["epsilon"].get(name, facts.get(name)), value, name, where)
    for run in facts["runs"]:
        _require_run(run, limit.delta, f"{where}, run {run['run']}")
    if limit.epsilon is not None and computed["epsilon_spent"] > limit.epsilon:
        spent = computed["epsilon_spent"]
        raise LedgerError(f"{where}: spent ε = {spent:.4g} is above the limit {limit.epsilon:g}")


def _require_run(run: dict[str, Any], delta: float, where: str) -> None:
    """The same of one run: what it reserved, and of this what it used."""
    event = events.from_json(run["event"])
    step, steps, held_out, evaluations = parts_of(event)
    for name, count, most in (("used", run["steps"], steps), ("evaluated", run["evaluations"], evaluations)):
        if count != most or not 0 <= run[name] <= most:
            raise LedgerError(f"{where}: states {run[name]} of {count} releases, the event has {most}")
    used, evaluated = run["used"], run["evaluated"]
    released = [of_run(step, used, held_out, evaluated)] if used or evaluated else []  # pyright: ignore[reportArgumentType]
    reserved = 0.0 if run["aborted"] else epsilon_pld(history_of([event]), delta)
    _require_same(run["epsilon_reserved"], reserved, "epsilon_reserved", where)
    _require_same(run["epsilon_used"], epsilon_pld(history_of(released), delta), "epsilon_used", where)


def _require_same(claimed: Any, value: Any, name: str, where: str) -> None:
    value = _finite(value)
    numbers = isinstance(value, float) and isinstance(claimed, float)
    if claimed != value and not (numbers and math.isclose(value, claimed, rel_tol=1e-3, abs_tol=1e-6)):
        raise LedgerError(f"{where}: states {name} ε = {claimed}, the events give {value}")


def _finite(value: Any) -> Any:
    """JSON knows no infinity: "infinite" stands for it."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "infinite"
    return value
