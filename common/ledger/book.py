"""What a ledger's entries say: who reserved what on which data set, within which limit. No files and no locks here."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

from dp_accounting import DpEvent

from ..errors import LedgerError, PrivacyError
from ..privacy import events
from ..privacy.events import History, Step, history_of, of_run, parts_of
from .chain import GENESIS, Head, digest

RELATION = "add-or-remove-one"
UNITS = ("example", "person", "client")


@dataclass(frozen=True)
class Limit:
    """The budget of a named data set. epsilon None: not limited, the only kind that admits releases without noise.

    A private release is held to `delta` with a limit or without.
    """

    epsilon: float | None
    delta: float
    order: float | None = None
    """α* of the Rényi filter. In a request: the operator's wish, None for what suits the first private run. In a book:
    what that run fixed for good; None before it, so for a data set that knows only releases without noise"""


@dataclass(frozen=True)
class Request:
    """What a run asks of one data set: `steps` times `step`."""

    run: str
    dataset: str
    content: str
    """keyed hash of the records: tells the site's owner which version was read, and nobody else anything"""
    unit: str
    step: Step
    steps: int
    delta: float
    model: str
    configuration: str
    """SHA-256 of the run's configuration"""
    commitment: str | None = None
    """SHA-256 that binds an audit's coins before training"""
    held_out: Step | None = None
    """what one evaluation releases of records that are held out; None: none are"""
    evaluations: int = 0

    @property
    def event(self) -> DpEvent:
        """All that is asked."""
        return of_run(self.step, self.steps, self.held_out, self.evaluations)

    @property
    def history(self) -> History:
        return history_of([self.event])


@dataclass(frozen=True)
class Charge(Request):
    """A run's reservation on a data set, as the entries tell it; its `steps` are what counts against the limit."""

    used: int = 0
    """committed: what may have left the site"""
    evaluated: int = 0
    """likewise, of evaluations"""
    aborted: bool = False

    @property
    def released(self) -> History:
        """What may have left the site."""
        if not self.used and not self.evaluated:
            return History()
        return history_of([of_run(self.step, self.used, self.held_out, self.evaluated)])


@dataclass
class Book:
    """What a verified chain says."""

    head: Head = field(default_factory=lambda: Head(0, GENESIS))
    charges: dict[tuple[str, str], Charge] = field(default_factory=dict)
    """by data set and run"""
    limits: dict[str, Limit] = field(default_factory=dict)
    """the limit at the last reservation of each data set, its order fixed at the first private one"""

    histories: dict[str, History] = field(default_factory=dict)
    """everything charged to each data set, whichever run asked"""

    def copy(self) -> "Book":
        histories = {dataset: history.copy() for dataset, history in self.histories.items()}
        return Book(self.head, dict(self.charges), dict(self.limits), histories)

    def standing(self) -> list[Charge]:
        """Charges that count, in the order of their first reservation: all but those that were aborted."""
        return [charge for charge in self.charges.values() if not charge.aborted]

    def history(self, dataset: str) -> History:
        return self.histories.get(dataset, History())

    def add(self, body: str, hash_: str) -> None:
        """The next entry. Raises LedgerError when it does not follow, or says what cannot be."""
        number = self.head.seq + 1
        try:
            if digest(body.encode()) != hash_:
                raise LedgerError(f"entry {number}: its hash is not that of its content")
            entry = json.loads(body)
            if entry["seq"] != number or entry["previous"] != self.head.hash:
                raise LedgerError(f"entry {number}: does not follow the entry before it")
            self._apply(entry)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LedgerError(f"entry {number}: a part is missing or wrong ({type(error).__name__})") from None
        except PrivacyError as error:
            raise LedgerError(f"entry {number}: {error}") from None
        self.head = Head(number, hash_)

    def _apply(self, entry: dict[str, Any]) -> None:
        number = entry["seq"]
        event = events.from_json(entry["event"])
        step, count, held_out, evaluations = parts_of(event)
        key = (entry["dataset"], entry["run"])
        charge = self.charges.get(key)
        if entry["kind"] == "RESERVE":
            if charge is not None and not charge.aborted:
                raise LedgerError(f"entry {number}: run {entry['run']} reserves twice")
            if entry["relation"] != RELATION or entry["unit"] not in UNITS:
                raise LedgerError(f"entry {number}: relation or unit unknown")
            if step is None:
                raise LedgerError(f"entry {number}: reserves no step")
            limit = entry["limit"]
            known = self.limits.get(entry["dataset"])
            order = limit["order"] if known is None or known.order is None else known.order
            self.limits[entry["dataset"]] = Limit(limit["epsilon"], limit["delta"], order)
            self.charges[key] = Charge(
                **{name: entry[name] for name in ("run", "dataset", "delta", "unit", "model", "content")},
                configuration=entry["configuration"],
                commitment=entry.get("commitment"),
                step=step,
                steps=count,
                held_out=held_out,
                evaluations=evaluations,
            )
            self.histories.setdefault(entry["dataset"], History()).update(history_of([event]))
            return
        if charge is None or charge.aborted or step not in (None, charge.step):
            raise LedgerError(f"entry {number}: {entry['kind']} without its reservation")
        if held_out not in (None, charge.held_out):
            raise LedgerError(f"entry {number}: {entry['kind']} of held-out records without its reservation")
        used, evaluated = charge.used + count, charge.evaluated + evaluations
        if entry["kind"] == "COMMIT" and used <= charge.steps and evaluated <= charge.evaluations:
            self.charges[key] = replace(charge, used=used, evaluated=evaluated)
        elif entry["kind"] == "ABORT" and charge.used == charge.evaluated == 0 and event == charge.event:
            self.charges[key] = replace(charge, aborted=True)
            self.histories[charge.dataset] -= charge.history
        else:
            raise LedgerError(
                f"entry {number}: {entry['kind']} of {count} steps and {evaluations} evaluations, {charge.used} of "
                f"{charge.steps} and {charge.evaluated} of {charge.evaluations} used"
            )
