"""ε of a record at several sites: the values of the privacy page, and independent bounds on both sides."""

import numpy as np
import pytest

from confide.common.errors import PrivacyError
from confide.common.privacy import claims
from confide.common.privacy.copies import copies_epsilon, ledgers_epsilon
from confide.common.privacy.explain import in_words
from confide.common.privacy.mechanism import PrivacyPlan
from confide.common.privacy.plan import privacy_plan


def plan_of(q: float, z: float, steps: int) -> PrivacyPlan:
    return PrivacyPlan(q, z, steps, 1.0, 1e-5, 1000, 100.0)


def test_the_values_of_the_privacy_page() -> None:
    """At the noise where 8 is charged: two copies 16.5, not the 10.1 of two ledgers; four 34.2."""
    plan = plan_of(0.05, 0.586, 30)
    assert copies_epsilon(plan, 1) == pytest.approx(8.0, abs=0.01)
    assert copies_epsilon(plan, 2) == pytest.approx(16.54, abs=0.02)
    assert copies_epsilon(plan, 4) == pytest.approx(34.19, abs=0.02)
    assert plan_of(0.05, 0.586, 2 * 30).epsilon() == pytest.approx(10.06, abs=0.01)


def test_one_copy_is_the_sampled_gaussian() -> None:
    assert copies_epsilon(plan_of(0.01, 1.0, 1000), 1) == pytest.approx(plan_of(0.01, 1.0, 1000).epsilon(), abs=0.02)


def test_without_sampling_copies_are_a_larger_shift() -> None:
    """q = 1: J copies move the sum by J·C, as if the noise were z/J."""
    assert copies_epsilon(plan_of(1.0, 6.0, 3), 3) == pytest.approx(plan_of(1.0, 2.0, 3).epsilon(), abs=1e-3)


@pytest.mark.parametrize("z", np.geomspace(0.008, 20, 40))
def test_every_noise_has_an_epsilon(z: float) -> None:
    """At q = 1 the tails of a mixture failed to rounding, for some noise multipliers."""
    assert copies_epsilon(plan_of(1.0, float(z), 1), 2) > 0


def test_one_step_agrees_with_integration() -> None:
    """δ(ε) = ∫ max(0, P − e^ε·Q) over the line, the worse of adding and removing, at the ε that was found."""
    q, z = 0.1, 0.8
    found = copies_epsilon(plan_of(q, z, 1), 2)
    x = np.linspace(-30, 34, 2_000_001)
    without = np.exp(-(x**2) / (2 * z**2))
    chances = ((1 - q) ** 2, 2 * q * (1 - q), q**2)
    present = sum(p * np.exp(-((x - i) ** 2) / (2 * z**2)) for i, p in enumerate(chances))
    scale = (x[1] - x[0]) / (z * (2 * np.pi) ** 0.5)
    deltas = [np.maximum(0, a - np.exp(found) * b).sum() * scale for a, b in ((present, without), (without, present))]
    assert max(deltas) == pytest.approx(1e-5, rel=0.01)


def test_ledgers_compose_where_each_site_adds_its_own_noise() -> None:
    plan = plan_of(0.05, 0.634, 30)
    assert ledgers_epsilon(plan, 2) == pytest.approx(plan.epsilon(60))
    assert plan.epsilon() < ledgers_epsilon(plan, 2) < copies_epsilon(plan, 2)


def test_no_copies_are_nothing_to_account_for() -> None:
    for epsilon in (copies_epsilon, ledgers_epsilon):
        with pytest.raises(PrivacyError, match="copies: 0 received; allowed: 1 and more"):
            epsilon(plan_of(0.05, 0.6, 3), 0)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("local", "each site adds noise of its own, and the 2 ledgers compose"),
        ("distributed", "one noise covers all copies, and the sites' ledgers do not add up to it"),
        ("client", "what one person gave lies at one site"),
    ],
)
def test_words_state_the_assumption_with_a_computed_figure(make_config, local, mode: str, words: str) -> None:
    privacy = {**local, "mode": mode}
    if mode == "client":
        del privacy["declared_examples"]
    config = make_config(privacy=privacy)
    plan = privacy_plan(config, 1000)
    assert plan is not None
    found = (ledgers_epsilon if mode == "local" else copies_epsilon)(plan, 2)
    sentence = claims.several_sites(config, plan)
    assert words in sentence
    assert f"At 2 sites its ε is {found:.3g} at δ = 1e-05" in sentence
    assert sentence in in_words(config, plan)
    assert "at one site" in claims.limits(config)
    assert ("the sites' ledgers compose" in claims.limits(config)) == (mode == "local")
