"""Held-out records: who they are, how much they may move a release, its noise, and an independent accountant."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from opacus.accountants import PRVAccountant

from confide.common.counted import by_measure, numbers_of, vectors
from confide.common.data.holdout import held_out
from confide.common.errors import PrivacyError
from confide.common.privacy.accounting import epsilon_pld
from confide.common.privacy.events import History
from confide.common.privacy.held_out import HeldOut
from confide.common.privacy.mechanism import PoissonMechanism, PrivacyPlan, plan_for
from confide.common.privacy.noise import grid_variance, l2_sensitivity, secure_generator
from confide.common.types import Rows

FALSE_ALARM = 1e-6


def plan_of(
    epsilon: float = 8.0, rate: float = 0.05, evaluations: int = 11, counted: int = 2, d: int = 5000
) -> PrivacyPlan:
    return plan_for(
        epsilon=epsilon,
        delta=1e-5,
        sampling_rate=rate,
        steps=30,
        clip=0.7,
        coordinates=d + counted,
        declared_units=900,
        counted=counted,
        evaluations=evaluations,
    )


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 8.0])
@pytest.mark.parametrize(("rate", "evaluations", "counted"), [(0.05, 11, 2), (0.3, 1, 2), (0.01, 101, 20), (1.0, 2, 4)])
def test_all_evaluations_cost_a_held_out_record_no_more_than_the_run(
    epsilon: float, rate: float, evaluations: int, counted: int
) -> None:
    plan = plan_of(epsilon, rate, evaluations, counted)
    assert plan.held_out is not None
    assert (
        plan.noise_multiplier
        == plan_for(
            epsilon=epsilon,
            delta=1e-5,
            sampling_rate=rate,
            steps=30,
            clip=0.7,
            coordinates=5000 + counted,
            declared_units=900,
        ).noise_multiplier
    )  # nothing is taken from training
    assert plan.epsilon(0) <= epsilon
    assert plan.epsilon() == max(plan.epsilon(0), plan.epsilon(None, 0)) <= epsilon
    s = plan.held_out.sensitivity
    assert s == 1 or plan.epsilon(0) > 0.99 * epsilon  # and no part of it is left
    # what one record moves, on the grid and rounded, against the noise that is there: an independent accountant
    moved = plan.held_out.scale(plan.coordinates) * plan.grid + math.sqrt(counted)
    assert moved <= s * l2_sensitivity(plan.coordinates)
    deviation = math.sqrt(grid_variance(plan.noise_multiplier, plan.coordinates))
    account = PRVAccountant()
    account.history = [(deviation / moved, 1.0, evaluations)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert account.get_epsilon(1e-5, eps_error=0.01) - 0.01 <= epsilon * 1.002


def test_a_run_costs_the_larger_part() -> None:
    plan = plan_of()
    step, counting = plan.step, plan.evaluation
    assert counting is not None
    assert plan.epsilon(7, 3) == max(epsilon_pld(History({step: 7}), 1e-5), epsilon_pld(History({counting: 3}), 1e-5))
    assert plan.epsilon(0, 0) == 0
    assert plan.epsilon(7, 0) < plan.epsilon(7, 11)


def test_so_many_counts_that_rounding_takes_them_up_are_refused() -> None:
    with pytest.raises(PrivacyError, match=r"evaluation: \d+ counts in \d+ evaluations leave a held-out record"):
        HeldOut(2000, 10_000, 5e-4).require_room(2010)
    HeldOut(2000, 10_000, 0.1).require_room(2010)


def test_the_noise_of_the_counts_is_that_of_all_coordinates() -> None:
    """800 counts: mean and variance of what is released, by bounds that a normal law leaves with less than 1e-6."""
    plan = plan_of(counted=800, evaluations=1, d=200)
    assert plan.held_out is not None
    mechanism = PoissonMechanism(plan, secure_generator())
    mechanism.nobody()
    gradient = mechanism.release(np.zeros(plan.coordinates))
    assert gradient.shape == (200,)
    assert mechanism.steps == 0  # no step was taken
    assert mechanism.counts.shape == (800,)
    deviation = math.sqrt(plan.count_variance)
    assert abs(mechanism.counts.mean()) < 5.1 * deviation / math.sqrt(800)
    assert abs(mechanism.counts.var() / deviation**2 - 1) < 5.5 * math.sqrt(2 / 800)
    mechanism.nobody()
    vector = np.zeros(plan.coordinates)
    vector[200:] = 30 * plan.clip * plan.held_out.scale(plan.coordinates)  # thirty records each
    mechanism.release(vector)
    assert abs(mechanism.counts.mean() - 30) < 5.1 * deviation / math.sqrt(800)


def test_nobody_is_drawn_once_a_release() -> None:
    mechanism = PoissonMechanism(plan_of(), secure_generator())
    mechanism.nobody()
    with pytest.raises(PrivacyError, match="not released"):
        mechanism.nobody()
    with pytest.raises(PrivacyError, match="not released"):
        mechanism.draw(3)


def rows_of(texts: list[str], labels: list[int] | None = None, person: list[str] | None = None) -> Rows:
    labels = labels or [0] * len(texts)
    return Rows("test", texts, labels=np.array(labels), person=None if person is None else np.array(person))


def test_a_side_follows_from_the_record_and_the_secret_alone() -> None:
    texts = [f"text {number}" for number in range(4000)]
    found = held_out(rows_of(texts), b"secret", 0.1)
    # a share outside five deviations has a chance below 6e-7
    assert abs(found.mean() - 0.1) < 5 * math.sqrt(0.09 / 4000)
    order = np.random.default_rng(0).permutation(4000)
    assert np.array_equal(held_out(rows_of([texts[i] for i in order]), b"secret", 0.1), found[order])
    assert np.array_equal(held_out(rows_of(texts, [number % 7 for number in range(4000)]), b"secret", 0.1), found)
    assert np.array_equal(held_out(rows_of([f" TEXT  {number}" for number in range(4000)]), b"secret", 0.1), found)
    assert np.array_equal(held_out(rows_of(texts[::3]), b"secret", 0.1), found[::3])
    other = held_out(rows_of(texts), b"another", 0.1)
    assert abs((found & other).mean() - 0.01) < 5 * math.sqrt(0.0099 / 4000)
    assert (held_out(rows_of(texts), b"secret", 0.2) >= found).all()  # a larger share holds out these and more


def test_persons_are_on_one_side_with_all_their_rows() -> None:
    person = [f"patient {number % 50}" for number in range(500)]
    found = held_out(rows_of([f"text {n}" for n in range(500)], person=person), b"secret", 0.5)
    by = {who: {bool(one) for one, whose in zip(found, person, strict=True) if whose == who} for who in person}
    assert all(len(sides) == 1 for sides in by.values())
    assert {True, False} == set.union(*by.values())


@pytest.mark.parametrize(
    ("changes", "measures", "classes"),
    [
        ({}, 1, 1),
        ({"evaluation": {"sites": True, "per_class": True}}, 1, 2),
        ({"model": {"task": "regression"}}, 1, 1),
        ({"model": {"task": "causal-lm"}, "evaluation": {"sites": True, "bound": 3.0}}, 2, 1),
    ],
)
def test_a_records_vector_has_norm_one_at_most(make_config, changes, measures, classes) -> None:
    config = make_config(**{"data": {"labels": ["no", "yes"]}, "evaluation": {"sites": True}, **changes})
    assert numbers_of(config) == 2 * measures * classes
    rng = np.random.default_rng(0)
    values = np.abs(rng.standard_cauchy((500, measures)))
    values[:3] = [[np.nan] * measures, [np.inf] * measures, [0.0] * measures]
    found = vectors(config, values, rng.integers(0, 2, 500))
    assert found.shape == (500, numbers_of(config))
    assert np.linalg.norm(found, axis=1).max() <= 1 + 1e-12
    assert not found[:2].any()  # says nothing, and is not counted
    back = by_measure(config, found.sum(0))
    assert back.sum((0, 2)) == pytest.approx([498.0] * measures)
    assert replace(plan_of(), held_out=None).trained == plan_of().coordinates
