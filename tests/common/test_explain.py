"""Words that follow from numbers."""

import math

import pytest

from confide.common.privacy.explain import alternatives, belief, calibrated, in_words, most_found
from confide.common.privacy.plan import privacy_plan


def test_belief_and_hits_are_bounded_as_theory_says(make_config, local) -> None:
    assert belief(0) == 0.5
    assert belief(3) == pytest.approx(0.9526, abs=1e-4)
    config = make_config(privacy=local)
    plan = privacy_plan(config, 1000)
    assert plan is not None
    found = most_found(plan.history(), 0.01)
    assert 0.01 < found < min(1.0, math.exp(plan.epsilon()) * 0.01 + plan.delta)  # tighter than (ε, δ) alone
    less = calibrated(plan, 1.0, plan.steps)
    assert less is not None
    assert most_found(less.history(), 0.01) < found
    assert any("99.9" in paragraph for paragraph in in_words(config, plan))


def test_alternatives_answer_what_if(make_config, local) -> None:
    config = make_config(run={"rounds": 10}, privacy=local)
    plan = privacy_plan(config, 1000)
    assert plan is not None
    found = {choice.change: choice for choice in alternatives(config, plan)}
    declared = found["as declared"]
    assert found["twice the rounds, the same noise"].epsilon > declared.epsilon
    assert found["half the rounds, the same noise"].epsilon < declared.epsilon
    assert found["twice the rounds, ε = 8 kept"].noise_multiplier > declared.noise_multiplier
    assert found["ε = 1"].epsilon <= 1
    assert calibrated(plan, 1e-9, 10) is None
