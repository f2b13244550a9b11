"""ε of a history, against dp-accounting, Opacus and the values of the privacy page; the Rényi filter."""

import math
from collections import Counter

import pytest
from dp_accounting import DpEvent, GaussianDpEvent, LaplaceDpEvent, NonPrivateDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant, compute_epsilon

from confide.common.errors import PrivacyError
from confide.common.privacy.accounting import (
    conversion,
    epsilon_of,
    epsilon_opacus,
    epsilon_pld,
    epsilon_rdp,
    filter_epsilon,
    filter_order,
    nearest_order,
    rdp_curve,
)
from confide.common.privacy.events import SkellamDpEvent, check, from_json, history_of, repeated, step_event, to_json
from confide.common.privacy.mechanism import skellam_epsilon


def gaussian(q: float, z: float, count: int):
    return repeated(step_event(q, GaussianDpEvent(z)), count)


def skellam(q: float, z: float, count: int, d: int = 1000):
    return repeated(step_event(q, SkellamDpEvent(z, d)), count)


def test_values_of_the_privacy_page() -> None:
    assert epsilon_of(history_of([gaussian(64 / 2000, 1.0, 10)]), 1e-5) == pytest.approx(1.15, abs=0.01)
    assert epsilon_of(history_of([gaussian(64 / 2000, 1.0, 500)]), 1e-5) == pytest.approx(4.61, abs=0.01)
    many = history_of([gaussian(0.05, 0.7, 200)])
    assert epsilon_pld(many, 1e-5) == pytest.approx(10.55, abs=0.01)
    assert epsilon_rdp(many, 1e-5) == pytest.approx(12.0, abs=0.05)


def test_mixed_histories_agree_with_dp_accounting() -> None:
    events = [gaussian(0.02, 0.8, 30), gaussian(0.1, 2.0, 5), gaussian(1.0, 10.0, 3)]
    account = RdpAccountant()
    for event in events:
        account.compose(event)
    ours = epsilon_rdp(history_of(events), 1e-6)
    assert ours == pytest.approx(account.get_epsilon(1e-6), rel=0.01)
    assert epsilon_pld(history_of(events), 1e-6) <= ours
    assert epsilon_opacus(history_of(events), 1e-6) == pytest.approx(ours, rel=1e-6)


def test_skellam_is_composed_by_rdp_and_confirmed_from_below() -> None:
    history = history_of([skellam(0.03, 0.6, 40)])
    assert epsilon_of(history, 1e-5) == pytest.approx(skellam_epsilon(0.03, 0.6, 40, 1e-5, 1000))
    assert epsilon_pld(history, 1e-5) < epsilon_opacus(history, 1e-5) < epsilon_rdp(history, 1e-5)


def test_equal_steps_are_composed_together_in_any_order() -> None:
    one = history_of([skellam(0.03, 0.6, 1)] * 40)
    assert one == history_of([skellam(0.03, 0.6, 40)])
    assert epsilon_rdp(one, 1e-5) == epsilon_rdp(history_of([skellam(0.03, 0.6, 25), skellam(0.03, 0.6, 15)]), 1e-5)


def test_nothing_spends_nothing_and_no_noise_spends_all() -> None:
    bare = history_of([repeated(NonPrivateDpEvent(), 3), skellam(0.03, 0.6, 40)])
    for epsilon in (epsilon_rdp, epsilon_pld, epsilon_opacus, epsilon_of):
        assert epsilon(Counter(), 1e-5) == 0
        assert epsilon(bare, 1e-5) == math.inf
    assert filter_epsilon(bare, 3.0, 1e-5) == math.inf
    assert filter_epsilon(Counter(), 3.0, 1e-5) == 0


def test_the_conversion_is_that_of_dp_accounting_and_tighter_than_the_classical() -> None:
    for order, rho in ((2.0, 3.0), (5.0, 1.0), (32.0, 0.2)):
        expected, _ = compute_epsilon([order], [rho], 1e-5)
        assert rho + conversion(order, 1e-5) == pytest.approx(expected)
        assert conversion(order, 1e-5) < math.log(1e5) / (order - 1)


def test_the_filter_takes_a_first_run_that_needs_the_whole_limit() -> None:
    history = history_of([skellam(0.03, 0.6, 40)])
    alone = epsilon_rdp(history, 1e-5)
    order = filter_order(history, alone, 1e-5)
    assert filter_epsilon(history, order, 1e-5) == pytest.approx(alone)


def test_the_filter_adds_up_at_its_one_order_and_is_never_below_the_best() -> None:
    first, second = history_of([skellam(0.03, 0.9, 20)]), history_of([gaussian(0.1, 1.5, 10)])
    order = filter_order(first, 8.0, 1e-5)
    both = filter_epsilon(first + second, order, 1e-5)
    orders, curve = rdp_curve(first + second)
    assert both == pytest.approx(float(curve[list(orders).index(order)]) + conversion(order, 1e-5))
    assert both >= epsilon_rdp(first + second, 1e-5)
    # repetitions of the first request exhaust the limit later at this order than at its own best one
    own = filter_order(first, epsilon_rdp(first, 1e-5), 1e-5)
    many = Counter({step: 10 * count for step, count in first.items()})
    assert filter_epsilon(many, order, 1e-5) <= filter_epsilon(many, own, 1e-5)


def test_a_filter_keeps_to_the_orders_in_use() -> None:
    assert nearest_order(3.01) == 3.0
    with pytest.raises(PrivacyError, match="a filter's order cannot change"):
        filter_epsilon(history_of([skellam(0.03, 0.6, 1)]), 3.01, 1e-5)


@pytest.mark.parametrize(
    "event",
    [
        gaussian(0.02, 0.8, 30),
        skellam(1.0, 2.0, 1),
        repeated(NonPrivateDpEvent(), 4),
        step_event(0.5, GaussianDpEvent(1.0)),
    ],
)
def test_events_come_back_as_they_were_written(event: DpEvent) -> None:
    assert from_json(to_json(event)) == event


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"type": "laplace"}, "unknown"),
        ({"type": "gaussian"}, "missing"),
        ({}, "missing"),
        ([], "missing"),
        ({"type": "gaussian", "noise_multiplier": 0.0}, "noise multiplier 0"),
        ({"type": "gaussian", "noise_multiplier": -1.0}, "noise multiplier -1"),
        ({"type": "gaussian", "noise_multiplier": math.nan}, "noise multiplier nan"),
        ({"type": "gaussian", "noise_multiplier": math.inf}, "noise multiplier inf"),
        ({"type": "gaussian", "noise_multiplier": "1"}, "noise multiplier 1"),
        ({"type": "gaussian", "noise_multiplier": True}, "noise multiplier True"),
        ({"type": "skellam", "noise_multiplier": 1.0, "coordinates": 0}, "coordinates 0"),
        ({"type": "self-composed", "count": 0, "event": {"type": "non-private"}}, "count 0"),
        ({"type": "self-composed", "count": -3, "event": {"type": "non-private"}}, "count -3"),
        ({"type": "self-composed", "count": 1.5, "event": {"type": "non-private"}}, "count 1.5"),
        (
            {"type": "poisson-sampled", "probability": 0.0, "event": {"type": "gaussian", "noise_multiplier": 1.0}},
            "sampling rate 0",
        ),
        (
            {
                "type": "poisson-sampled",
                "probability": math.nan,
                "event": {"type": "gaussian", "noise_multiplier": 1.0},
            },
            "sampling rate nan",
        ),
        ({"type": "poisson-sampled", "probability": 0.5, "event": {"type": "non-private"}}, "only gaussian"),
    ],
)
def test_events_that_cannot_be_accounted_for_are_refused(content, text: str) -> None:
    with pytest.raises(PrivacyError, match=text):
        from_json(content)


def test_unknown_mechanisms_are_refused_not_guessed() -> None:
    for event in (LaplaceDpEvent(1.0), repeated(repeated(GaussianDpEvent(1.0), 2), 2)):
        with pytest.raises(PrivacyError):
            check(event)
    with pytest.raises(PrivacyError, match="LaplaceDpEvent: cannot be accounted for"):
        to_json(LaplaceDpEvent(1.0))
    with pytest.raises(PrivacyError, match="has no noise multiplier"):
        epsilon_rdp(Counter({PoissonSampledDpEvent(0.1, LaplaceDpEvent(1.0)): 1}), 1e-5)
