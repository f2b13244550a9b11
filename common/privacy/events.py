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


Step = DpEvent
"""One step: a NonPrivateDpEvent, or a discrete Gaussian, Poisson-sampled or not."""


def step_event(sampling_rate: float, release: DpEvent) -> Step:
    """A release of a Poisson sample; without sampling the release itself."""
    return release if sampling_rate == 1 else PoissonSampledDpEvent(sampling_rate, release)


def repeated(step: Step, count: int) -> DpEvent:
    return SelfComposedDpEvent(step, count)


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
        }
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
                event = DiscreteGaussianDpEvent(content["noise_multiplier"], content["coordinates"])
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
            _require(not isinstance(event.event, SelfComposedDpEvent), "self-composed inside self-composed")
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
        case NonPrivateDpEvent():
            pass
        case _:
            raise PrivacyError(f"event {type(event).__name__}: cannot be accounted for")


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
