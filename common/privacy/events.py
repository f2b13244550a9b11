"""What a mechanism did, as dp-accounting's events ⇄ JSON; how it is accounted is another matter (accounting.py).

A ledger holds exactly the kinds below; anything else is refused, never guessed.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from dp_accounting import DpEvent, NonPrivateDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

from ..errors import PrivacyError


@dataclass(frozen=True)
class DiscreteGaussianDpEvent(DpEvent):
    """One release of integer sums with discrete Gaussian noise of standard deviation √((z·Δ₂)² + 1/12) grid steps.

    noise_multiplier: z, that of the Gaussian as which it is accounted. coordinates: d, which decides the grid, with it
    Δ₂ = G + √d, and how far from that Gaussian the release is (accounting.py).
    """

    noise_multiplier: float
    coordinates: int
    sensitivity: float = 1.0
    """what one unit moves the sum by at most, in Δ₂: the release is accounted as a Gaussian of multiplier z ÷ this"""


@dataclass(frozen=True)
class ApartDpEvent(DpEvent):
    """Releases of one run, in which a record is either trained on or held out, by a function of that record alone that
    was fixed before the run. So one record is in one of the two (docs/explanation/privacy.md, "Held-out records").

    trained, held_out: the releases that records of either kind take part in; None: none.
    """

    trained: DpEvent | None
    held_out: DpEvent | None


Step = DpEvent
"""One step: a NonPrivateDpEvent, or a discrete Gaussian, Poisson-sampled or not. As a key of a `History` also an
ApartDpEvent, all that one run released."""


def step_event(sampling_rate: float, release: DpEvent) -> Step:
    """A release of a Poisson sample; without sampling the release itself."""
    return release if sampling_rate == 1 else PoissonSampledDpEvent(sampling_rate, release)


def repeated(step: Step, count: int) -> DpEvent:
    return SelfComposedDpEvent(step, count)


def of_run(step: Step, steps: int, held_out: Step | None = None, evaluations: int = 0) -> DpEvent:
    """What one run releases. held_out: what one evaluation releases of held-out records; None: there are none."""
    if held_out is None:
        return repeated(step, steps)
    return ApartDpEvent(
        repeated(step, steps) if steps else None, repeated(held_out, evaluations) if evaluations else None
    )


def parts_of(event: DpEvent) -> tuple[Step | None, int, Step | None, int]:
    """Inverse of `of_run`; the step of what was released 0 times is None."""
    if not isinstance(event, ApartDpEvent):
        return *counted(event), None, 0
    step, count = (None, 0) if event.trained is None else counted(event.trained)
    held_out, evaluations = (None, 0) if event.held_out is None else counted(event.held_out)
    return step, count, held_out, evaluations


def to_json(event: DpEvent) -> dict[str, Any]:
    """Raises PrivacyError for a kind that cannot be accounted for."""
    if isinstance(event, SelfComposedDpEvent):
        return {"type": "self-composed", "count": event.count, "event": to_json(event.event)}
    if isinstance(event, PoissonSampledDpEvent):
        return {"type": "poisson-sampled", "probability": event.sampling_probability, "event": to_json(event.event)}
    if isinstance(event, DiscreteGaussianDpEvent):
        return {
            "type": "discrete-gaussian",
            "noise_multiplier": event.noise_multiplier,
            "coordinates": event.coordinates,
            **({} if event.sensitivity == 1 else {"sensitivity": event.sensitivity}),
        }
    if isinstance(event, ApartDpEvent):
        parts = {"trained": event.trained, "held-out": event.held_out}
        return {"type": "apart", **{name: None if part is None else to_json(part) for name, part in parts.items()}}
    if isinstance(event, NonPrivateDpEvent):
        return {"type": "non-private"}
    raise PrivacyError(f"event {type(event).__name__}: cannot be accounted for")


def from_json(content: Any) -> DpEvent:
    """Inverse of `to_json`. Raises PrivacyError for unknown kinds and for numbers that spend nothing or everything."""
    try:
        match content["type"]:
            case "self-composed":
                event: DpEvent = SelfComposedDpEvent(from_json(content["event"]), content["count"])
            case "poisson-sampled":
                event = PoissonSampledDpEvent(content["probability"], from_json(content["event"]))
            case "discrete-gaussian":
                event = DiscreteGaussianDpEvent(
                    content["noise_multiplier"], content["coordinates"], content.get("sensitivity", 1.0)
                )
            case "apart":
                parts = (content["trained"], content["held-out"])
                event = ApartDpEvent(*(None if part is None else from_json(part) for part in parts))
            case "non-private":
                event = NonPrivateDpEvent()
            case "skellam" | "gaussian" as earlier:
                raise PrivacyError(
                    f"event '{earlier}': an earlier version of confide wrote it, and accounted otherwise; make a new "
                    "ledger in another folder"
                )
            case other:
                raise PrivacyError(f"event '{other}': unknown; it cannot be accounted for")
    except (KeyError, TypeError, ValueError) as error:
        raise PrivacyError(f"event: a part is missing or of another type ({type(error).__name__})") from None
    check(event)
    return event


def check(event: DpEvent) -> None:
    """Raises PrivacyError: a count below 1, a rate outside (0, 1], noise that is not finite and positive."""
    match event:
        case SelfComposedDpEvent():
            count = event.count
            _require(_whole(count) and 1 <= count <= 10**12, f"count {count}; allowed: a whole number from 1 to 10^12")
            inside = isinstance(event.event, SelfComposedDpEvent | ApartDpEvent)
            _require(not inside, "self-composed or apart inside self-composed")
            check(event.event)
        case PoissonSampledDpEvent():
            q = event.sampling_probability
            _require(_number(q) and 0 < q <= 1, f"sampling rate {q}; allowed: above 0, at most 1")
            inner = event.event
            _require(isinstance(inner, DiscreteGaussianDpEvent), "sampled: only discrete-gaussian")
            check(inner)
        case DiscreteGaussianDpEvent():
            z, d = event.noise_multiplier, event.coordinates
            _require(_number(z) and 1e-3 <= z <= 1e6, f"noise multiplier {z}; allowed: from 0.001 to 1000000")
            _require(_whole(d) and 1 <= d <= 2**40, f"coordinates {d}; allowed: a whole number from 1 to 2^40")
            s = event.sensitivity
            _require(_number(s) and 1e-6 <= s <= 1, f"sensitivity {s}; allowed: from 0.000001 to 1")
        case ApartDpEvent():
            _check_apart(event)
        case NonPrivateDpEvent():
            pass
        case _:
            raise PrivacyError(f"event {type(event).__name__}: cannot be accounted for")


def _check_apart(event: ApartDpEvent) -> None:
    """Held-out records are counted in every release, so theirs are not sampled."""
    trained, held_out = event.trained, event.held_out
    _require(trained is not None or held_out is not None, "apart: neither trained nor held-out")
    for part in (trained, held_out):
        if part is not None:
            _require(isinstance(part, SelfComposedDpEvent), "apart: only self-composed")
            check(part)
    if trained is not None:
        _require(not isinstance(counted(trained)[0], NonPrivateDpEvent), "apart: a trained step without noise")
    if held_out is not None:
        plain = isinstance(counted(held_out)[0], DiscreteGaussianDpEvent)
        _require(plain, "apart: held-out records only in a discrete-gaussian")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise PrivacyError(f"event: {message}")


def counted(event: DpEvent) -> tuple[Step, int]:
    """The step and how often it was taken."""
    return (event.event, event.count) if isinstance(event, SelfComposedDpEvent) else (event, 1)


History = Counter[Step]
"""How often each step was taken; equal steps are composed together, and order does not matter to composition."""


def history_of(events: list[DpEvent]) -> History:
    history: History = Counter()
    for event in events:
        step, count = counted(event)
        history[step] += count
    return history
