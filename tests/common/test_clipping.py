"""Client-level clipping, and the clip norm that adapts (Andrew et al. 2021)."""

import math

import numpy as np
import pytest

from confide.common.errors import PrivacyError
from confide.common.privacy.clipping import Contribution, clipped, from_total, next_clip, to_vector
from confide.common.privacy.mechanism import PoissonMechanism, PrivacyPlan, plan_for
from confide.common.privacy.noise import l2_sensitivity, secure_generator, to_grid

_Z = 5.0  # false alarm below 6e-7


def adaptive(coordinates: int = 1001, count_noise: float = 2.0, sites: int = 100) -> PrivacyPlan:
    return plan_for(
        epsilon=8,
        delta=1e-5,
        sampling_rate=0.5,
        steps=10,
        clip=1.0,
        coordinates=coordinates,
        declared_units=sites,
        count_noise=count_noise,
    )


def test_an_update_is_cut_as_a_whole() -> None:
    update = np.array([3.0, 4.0])
    assert clipped(update, 10.0) == Contribution(update, 0.5) or np.array_equal(clipped(update, 10.0).update, update)
    cut = clipped(update, 1.0)
    np.testing.assert_allclose(cut.update, [0.6, 0.8])
    assert cut.whole == -0.5
    broken = clipped(np.array([np.nan, 1.0]), 1.0)
    assert not broken.update.any()
    assert broken.whole == -0.5


@pytest.mark.parametrize(("whole", "direction"), [(1.0, -1), (0.0, 1)])
def test_the_clip_norm_moves_the_right_way(whole: float, direction: int) -> None:
    """bᵢ = 1 means UNclipped: too many whole updates lower C, too few raise it."""
    new = next_clip(2.0, whole, 0.5, 0.2)
    assert math.copysign(1, new - 2.0) == direction
    assert new == pytest.approx(2.0 * math.exp(-0.2 * (whole - 0.5)))


def test_it_finds_the_quantile() -> None:
    """On updates of known norms C settles where the share γ of them is whole."""
    norms = np.random.default_rng(1).lognormal(1.0, 0.5, 400)
    clip = 0.1
    for _ in range(300):
        clip = next_clip(clip, float((norms <= clip).mean()), 0.7, 0.2)
    assert clip == pytest.approx(np.quantile(norms, 0.7), rel=0.05)


def test_update_and_count_are_one_release() -> None:
    """1/z² = 1/z_Δ² + 1/(2σ_b)², and the joint sensitivity on the grid is what z speaks of."""
    plan = adaptive()
    z, sigma = plan.noise_multiplier, 2.0
    deviation = plan.variance**0.5
    z_update = deviation / l2_sensitivity(plan.coordinates)
    assert z**-2 == pytest.approx(z_update**-2 + (2 * sigma) ** -2, rel=2e-5)  # less what rounding the count costs
    most = math.hypot(l2_sensitivity(plan.coordinates), plan.count_scale / 2 + 1)
    assert deviation / most == pytest.approx(z)
    # on the grid: no contribution exceeds that, whatever it is
    rng = np.random.default_rng(0)
    for clip in (0.01, 1.0, 30.0):
        contribution = clipped(rng.normal(size=1000) * 1e3, clip)
        on_grid = to_grid(to_vector(contribution, plan, clip), clip, plan.grid, rng)
        assert np.linalg.norm(on_grid) <= most


def test_the_noised_count_is_unbiased_with_the_noise_it_promises() -> None:
    plan = adaptive(coordinates=2, sites=10)
    rng = secure_generator()
    whole = to_vector(Contribution(np.zeros(1), 0.5), plan, 1.0) * 3 + to_vector(
        Contribution(np.zeros(1), -0.5), plan, 1.0
    )
    shares = []
    for _ in range(4000):
        mechanism = PoissonMechanism(plan, rng)
        mechanism.draw(1)
        shares.append(from_total(mechanism.share(whole, 1.0), plan, 1.0)[1])
    counts = (np.array(shares) - 0.5) * plan.denominator
    assert abs(counts.mean() - 1.0) < _Z * 2.0 / 4000**0.5
    assert counts.std() == pytest.approx(2.0, rel=_Z / (2 * 4000) ** 0.5)


def test_a_count_that_would_spend_it_all_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"privacy.clip_count_noise: 0.1 received"):
        adaptive(count_noise=0.1)


def test_without_a_count_the_update_is_the_vector() -> None:
    plan = plan_for(epsilon=8, delta=1e-5, sampling_rate=0.5, steps=10, clip=1.0, coordinates=3, declared_units=10)
    contribution = Contribution(np.arange(3.0), 0.5)
    assert to_vector(contribution, plan, 1.0) is contribution.update
    mean, share = from_total(np.array([2**16, 0, -(2**16)]), plan, 2.0)
    np.testing.assert_allclose(mean, np.array([2.0, 0, -2.0]) / 5)
    assert share is None
