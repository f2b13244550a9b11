"""One-run bounds against the planning table and closed forms, canaries, coins."""

import hashlib
import math

import numpy as np
import pytest
from scipy.stats import binom, multivariate_normal, norm

from confide.common.errors import ConfigError
from confide.common.privacy.audit import (
    NO_CANARIES,
    GradientCanaries,
    _shown,
    bounds,
    canary_rows,
    coins,
    commitment,
    gdp_bound,
    gdp_mu,
    record_likelihood,
    steinke_bound,
    step_likelihood,
    top_guesses,
)
from confide.tests.rings import slow

DELTA = 1e-5


def expected_bounds(epsilon: float, m: int, repeats: int = 60) -> tuple[float, float]:
    """Mean bounds of idealised Gaussian canaries, the top 5 % guessed."""
    rng, mu, r = np.random.default_rng(0), gdp_mu(epsilon, DELTA), m // 20
    right = []
    for _ in range(repeats):
        tossed = rng.integers(0, 2, m).astype(bool)
        right.append(top_guesses(rng.normal(size=m) + mu * tossed, tossed, r))
    found = {v: (steinke_bound(m, r, v, DELTA), gdp_bound(m, r, v, DELTA)) for v in set(right)}
    return float(np.mean([found[v][0] for v in right])), float(np.mean([found[v][1] for v in right]))


@pytest.mark.parametrize(
    ("epsilon", "m", "steinke", "gdp"),
    [
        *slow((1, 5000, 0.34, 0.43), (2, 5000, 0.76, 1.0), (4, 5000, 1.82, 2.48), (8, 5000, 3.24, 4.63)),
        (4, 1000, 1.22, 1.69),
        (8, 1000, 2.52, 3.68),
        (8, 200, 0.89, 1.24),
    ],
)
def test_the_planning_table(epsilon: float, m: int, steinke: float, gdp: float) -> None:
    """Within ±15 %. The table's other entries are zero, or means of a few draws of a bound that jumps by more than that
    with each right guess: benchmarks/RESULTS.md has both beside each other."""
    found = expected_bounds(epsilon, m)
    assert found[0] == pytest.approx(steinke, rel=0.15)
    assert found[1] == pytest.approx(gdp, rel=0.15)


@pytest.mark.parametrize(("r", "ceiling"), [(20, 1.79), (50, 2.76), (100, 3.47)])
def test_ceilings(r: int, ceiling: float) -> None:
    assert steinke_bound(1000, r, r, DELTA) == pytest.approx(ceiling, abs=0.01)


def test_without_delta_all_right_guesses_have_a_closed_form() -> None:
    """s^r ≤ 0.05 at s = 1/(1+e^−ε) gives ε = −log(0.05^(−1/r) − 1)."""
    for r in (10, 50, 100):
        assert steinke_bound(1000, r, r, 0.0) == pytest.approx(-math.log(0.05 ** (-1 / r) - 1), abs=2e-3)


def test_bounds_hold_at_the_confidence_they_state() -> None:
    """Guesses that are right with probability s = 1/(1+e^−ε), the worst of pure DP: above ε once in twenty at most."""
    epsilon, m, r = 1.0, 400, 100
    s = 1 / (1 + math.exp(-epsilon))
    exceeded = sum(binom.pmf(v, r, s) for v in range(r + 1) if steinke_bound(m, r, v, 0.0) > epsilon)
    assert 0 < exceeded <= 0.05


def test_chance_shows_nothing_and_more_right_guesses_show_more() -> None:
    assert steinke_bound(1000, 50, 25, DELTA) == gdp_bound(1000, 50, 25, DELTA) == 0
    found = [steinke_bound(1000, 50, v, DELTA) for v in range(30, 51)]
    assert found == sorted(found)
    assert all(gdp_bound(1000, 50, v, DELTA) >= 0.9 * steinke_bound(1000, 50, v, DELTA) for v in range(30, 51, 5))
    with pytest.raises(ValueError, match="0 ≤ right"):
        steinke_bound(10, 5, 6, DELTA)


def test_gaussian_dp_is_its_own_inverse() -> None:
    mu = gdp_mu(3.0, DELTA)
    delta = norm.cdf(-3 / mu + mu / 2) - math.exp(3) * norm.cdf(-3 / mu - mu / 2)
    assert delta == pytest.approx(DELTA, rel=1e-4)


def test_coins_are_fair_independent_of_one_another_and_bound_by_the_commitment() -> None:
    n = 200_000
    tossed = coins(b"s" * 32, "gradient", n)
    assert abs(tossed.mean() - 0.5) < 5 * 0.5 / math.sqrt(n)  # false alarm below 6e-7
    pairs = tossed[:-1] == tossed[1:]
    assert abs(pairs.mean() - 0.5) < 5 * 0.5 / math.sqrt(n)
    np.testing.assert_array_equal(coins(b"s" * 32, "gradient", 10), tossed[:10])
    assert not np.array_equal(coins(b"s" * 32, "records", n), tossed)
    assert commitment(b"s" * 32) != commitment(b"t" * 32)
    assert len(commitment(b"s" * 32)) == len(hashlib.sha256().hexdigest())


ARRAYS = {"a.lora_A.weight": np.zeros((4, 50)), "a.lora_B.weight": np.zeros((50, 4)), "head.weight": np.zeros((2, 50))}


def audited(make_config, local, canaries: int, clients: int = 4):
    return make_config(
        privacy=local, audit={"canaries": canaries, "records": 40}, data={"partition": {"clients": clients}}
    )


def test_canaries_have_norm_c_on_lora_and_do_not_disturb_one_another(make_config, local) -> None:
    canaries = GradientCanaries.of_site(audited(make_config, local, 100), ARRAYS, "site-1")
    assert len(canaries) == 25
    total = np.zeros(500)
    canaries.add(total, np.array([3]), clip=2.0)
    assert np.linalg.norm(total) == pytest.approx(2.0)
    assert np.abs(total[400:]).max() == 0  # the head
    expected = np.zeros(25)
    expected[3] = 2.0
    np.testing.assert_allclose(canaries.scores(total), expected, atol=1e-12)
    other = GradientCanaries.of_site(audited(make_config, local, 100), ARRAYS, "site-2")
    assert not np.array_equal(canaries.coordinates, other.coordinates)
    assert len(canaries.only(np.arange(25) < 4)) == 4
    assert len(NO_CANARIES) == 0


def test_more_canaries_than_numbers_are_refused(make_config, local) -> None:
    with pytest.raises(ConfigError, match=r"audit\.canaries: 500 at one site, but LoRA has 400 numbers"):
        GradientCanaries.of_site(audited(make_config, local, 2000), ARRAYS, "site-1")


def test_canary_records_are_the_same_for_everybody(make_config, local) -> None:
    config = audited(make_config, local, 0)
    first, second = (canary_rows(config, ["x", "y", "z"], "site-1", classes=2) for _ in range(2))
    assert first.text == second.text
    assert len(first) == 10
    assert canary_rows(config, ["x", "y", "z"], "site-2", classes=2).text != first.text


def test_the_likelihood_is_that_of_the_sampled_gaussian() -> None:
    x, q, z = np.linspace(-2, 3, 7), 0.2, 0.7
    expected = np.log((q * norm.pdf(x, 1, z) + (1 - q) * norm.pdf(x, 0, z)) / norm.pdf(x, 0, z))
    np.testing.assert_allclose(step_likelihood(x, q, z), expected, atol=1e-12)
    np.testing.assert_allclose(step_likelihood(x, 1.0, z), norm.logpdf(x, 1, z) - norm.logpdf(x, 0, z), atol=1e-12)


def test_canaries_may_have_noise_of_their_own() -> None:
    x, z = np.array([0.3, 1.2]), np.array([0.7, 2.0])
    each = np.concatenate([step_likelihood(x[i : i + 1], 0.2, float(z[i])) for i in range(2)])
    np.testing.assert_allclose(step_likelihood(x, 0.2, z), each, atol=1e-12)


@pytest.fixture
def correlated() -> np.ndarray:
    """(6, 40) gradients of norm 0.2 to 1 with much in common, the first two equal."""
    rng = np.random.default_rng(4)
    found = rng.normal(size=(6, 40)) + 2 * rng.normal(size=40)
    found *= np.array([1, 1, 0.2, 0.9, 0.5, 1])[:, None] / np.linalg.norm(found, axis=1, keepdims=True)
    found[1] = found[0]
    return found


def test_the_likelihood_of_records_is_that_of_the_gaussian_it_states(correlated: np.ndarray, monkeypatch) -> None:
    """Against densities in all d dimensions."""
    q, z, drawn, released = 0.3, 0.8, 2.0, np.random.default_rng(5).normal(size=40)
    monkeypatch.setattr("confide.common.privacy.audit._shown", lambda *given: (1.0, given[-1]))
    found = record_likelihood(correlated, released, q, z, drawn)
    for i, gradient in enumerate(correlated):
        others = np.delete(correlated, i, axis=0)
        rest = (z**2 + drawn / 40) * np.eye(40) + (q / 2 + drawn / 6) * others.T @ others
        out, there = (
            multivariate_normal.logpdf(released, mean, rest)  # pyright: ignore[reportArgumentType]  # stubs: numbers only
            for mean in (np.zeros(40), gradient)
        )
        assert found[i] == pytest.approx(np.logaddexp(np.log1p(-q) + out, np.log(q) + there) - out, abs=1e-9)
    alone = record_likelihood(correlated[2:3], released, q, z, 0.0)
    expected = step_likelihood(released @ correlated[2:3].T / 0.2**2, q, z / 0.2)
    np.testing.assert_allclose(alone, expected, atol=1e-9)


def test_a_canary_that_moves_nothing_says_nothing(correlated: np.ndarray) -> None:
    correlated[3] = 0
    found = record_likelihood(correlated, np.ones(40), 0.3, 0.8, 2.0)
    assert found[3] == 0
    assert np.isfinite(found).all()
    assert (record_likelihood(np.zeros((2, 40)), np.ones(40), 0.3, 0.8, 2.0) == 0).all()


def test_noise_that_is_missing_is_not_taken_for_granted(correlated: np.ndarray) -> None:
    """What is claimed, missing noise, and contributions of 100 C. The estimate of z² from d − k = 1994 numbers has a
    relative standard error of √(2/1994), six of which are 0.19: a false alarm in 5·10⁸."""
    rng, z = np.random.default_rng(6), 0.8
    gradients = np.pad(correlated, ((0, 0), (0, 1960)))
    total, noise = gradients[[0, 3, 4]].sum(0), z * rng.normal(size=2000)
    for factor, added, scales, variances in (
        (1, noise, (1, 1), (0.81 * z**2, z**2)),
        (1, 0.01 * noise, (1, 2), (0, 1.2e-4 * z**2)),
        (100, noise, (40, 250), (0, 1e-3)),
    ):
        released = factor * total + added
        scale, variance = _shown(gradients @ gradients.T, gradients @ released, released, 0.5, z**2)
        assert scales[0] <= scale <= scales[1]
        assert variances[0] <= variance <= variances[1]


def test_a_result_states_its_ceiling() -> None:
    found = bounds(1000, 50, 45, DELTA)
    assert found["epsilon_steinke"] < found["ceiling_steinke"] < found["ceiling_gdp"]
