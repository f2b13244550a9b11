"""Whether a request may be charged to a data set: pure functions of what the ledger knows, no files and no locks.

Between runs nothing is known but the ledger, so what decides stands there or in the site's own site.toml; the server
chooses none of it after it has seen a result.
"""

from collections.abc import Collection
from dataclasses import fields

from dp_accounting import NonPrivateDpEvent

from ..errors import BudgetError, RecordsError
from ..privacy import events
from ..privacy.accounting import epsilon_pld, epsilon_rdp, filter_epsilon, filter_order, is_private, nearest_order
from ..privacy.events import History
from .book import Book, Charge, Limit, Request

_WHOSE = 64
"""hexadecimal digits of a content that say whose records they are; the others say what they hold"""
_NAMES = {"step": "mechanism", "delta": "δ", "held_out": "mechanism of held-out records"}
"""how a message calls a part of a request that does not explain itself"""


def admit(book: Book, request: Request, limit: Limit, site: str, same: Collection[str] = ()) -> float | None:
    """The one gate before a RESERVE: what a new run asks, against all that was ever charged here.

    A data set's first private run is admitted by PLD; every later one only if the Rényi filter over everything, the
    first included, stays within the limit (docs/explanation/privacy.md has the argument).
    Returns α*, the order of the data set's Rényi filter that the entry records. It is fixed at the data set's first
    private release, limited or not, from what that run declares or from site.toml: an order chosen later could be
    chosen by what the releases showed. None while a data set has seen releases without noise only; they have no order.

    site: its name, for messages. same: other names of the data set (`same_as` of site.toml); what was charged under
    them before they became one counts as well.
    Raises BudgetError, the reason in one line: another name holds the same records or this run; δ above the data
    set's; no noise on a limited data set; another unit; over the limit. Raises PrivacyError for events that spend
    nothing or cannot be accounted for.
    """
    events.check(request.event)
    where = f"site {site}: data set '{request.dataset}'"
    _require_one_name(book, request, where, same)
    names = {request.dataset, *same}
    before = [charge for charge in book.standing() if charge.dataset in names]
    fixed = _fixed(book, [request.dataset, *(charge.dataset for charge in before)])
    if not _private(request):
        if limit.epsilon is not None:
            raise BudgetError(f"{where}: what was asked has no noise, so its ε is infinite; limit {limit.epsilon:g}")
        return None if fixed is None else fixed.order
    if request.delta > limit.delta:
        raise BudgetError(f"{where}: asked δ = {request.delta:g}, limit {limit.delta:g}; lower privacy.delta")
    _require_unit(before, request, where)
    order = fixed.order if fixed is not None and fixed.order is not None else _first_order(before, request, limit)
    if limit.epsilon is not None:
        spent = sum((book.history(name) for name in names), History())
        _require_room(spent, request, limit.epsilon, limit.delta, order, where, only=len(before) == 1)
    return order


def _fixed(book: Book, names: list[str]) -> Limit | None:
    """The limit of the first of the names whose order is fixed, else of the first."""
    known = [book.limits[name] for name in names if name in book.limits]
    return next((limit for limit in known if limit.order is not None), known[0] if known else None)


def require_same(held: Charge, request: Request, site: str) -> None:
    """A run that returns takes what it reserved: its id stands for one configuration, δ, content and mechanism.

    Raises BudgetError that names what differs, but never the content beside it: the server, which reads this, would
    learn without noise whether the rows are those of an earlier day. RecordsError where nothing else differs.
    """
    parts = [field.name for field in fields(Request)]
    others = [_NAMES.get(name, name) for name in parts if getattr(held, name) != getattr(request, name)]
    told = [name for name in others if name != "content"]
    if others:
        raise (BudgetError if told else RecordsError)(
            f"site {site}: run {request.run} returns with another {', '.join(told) or 'content'} than it "
            "reserved; a run takes what it declared first; start a new run"
        )


def _require_one_name(book: Book, request: Request, where: str, same: Collection[str]) -> None:
    """One data set is one budget, whatever it is called; one run is charged to one data set."""
    for charge in book.standing():
        if charge.dataset == request.dataset:
            continue
        if charge.content[:_WHOSE] == request.content[:_WHOSE] and charge.dataset not in same:
            raise RecordsError(
                f"{where}: holds the records that were charged as '{charge.dataset}', and two names would be two "
                f'budgets; set same_as = "{charge.dataset}" in [datasets.{request.dataset}] of site.toml, which makes '
                "them one"
            )
        if charge.run == request.run:
            raise BudgetError(
                f"{where}: run {request.run} has reserved on '{charge.dataset}'; a run takes what it declared first"
            )


def _first_order(before: list[Charge], request: Request, limit: Limit) -> float:
    """α* for a data set that has none yet: what suits repetitions of its first private run.

    Under the limit, where there is one; else under that run's own ε. Private runs from before the order was fixed (an
    earlier version's, of a data set without limit; or under another name): the first of those decides, by its own ε.
    """
    earlier = [charge for charge in before if _private(charge)]
    first = earlier[0] if earlier else request
    if not earlier and limit.order is not None:
        return nearest_order(limit.order)
    history = first.history
    most = None if earlier else limit.epsilon
    return filter_order(history, epsilon_rdp(history, limit.delta) if most is None else most, limit.delta)


def _require_unit(before: list[Charge], request: Request, where: str) -> None:
    units = {charge.unit for charge in before if _private(charge)} - {request.unit}
    if units:
        raise BudgetError(
            f"{where}: charged per {', '.join(sorted(units))} so far, asked per {request.unit}; ε of two units "
            "do not add up; give the data set another name"
        )


def _require_room(
    spent: History, request: Request, most: float, delta: float, order: float, where: str, *, only: bool
) -> None:
    """Raises BudgetError: releases without noise before, or more than is left. only: whether one run has spent it."""
    if not is_private(spent):
        raise BudgetError(f"{where}: an earlier run has no noise, so its ε is infinite; limit {most:g}")
    asked = request.history
    alone = epsilon_pld(asked, delta)
    if not spent:
        if alone > most:
            raise BudgetError(
                f"{where}: spent ε = 0, asked {alone:.4g}, limit {most:g}, remaining {most:g} (δ = {delta:g}, PLD); "
                "nothing was charged"
            )
        return
    after = filter_epsilon(spent + asked, order, delta, most)
    if after > most:
        already = filter_epsilon(spent, order, delta, most)
        as_one = f"; as the only run the earlier one has ε = {epsilon_pld(spent, delta):.4g}" if only else ""
        raise BudgetError(
            f"{where}: spent ε = {already:.4g}, asked {alone:.4g}, together {after:.4g}, limit {most:g}, remaining "
            f"{max(0.0, most - already):.4g} (δ = {delta:g}, Rényi filter of order {order:g}, which holds for several "
            f"runs{as_one}); nothing was charged"
        )


def _private(request: Request) -> bool:
    return not isinstance(request.step, NonPrivateDpEvent)
