"""Leakage attacks on cases with a known answer."""

import numpy as np
import pytest
import torch

from confide.common.model.loading import model_of
from confide.common.privacy.audit import largest_rate
from confide.simulations.attacks import inversion, membership


def test_roc_of_a_gaussian_shift_is_the_textbooks() -> None:
    rng, n = np.random.default_rng(0), 200_000
    members = np.arange(2 * n) < n
    found = membership.roc(rng.normal(size=2 * n) + members, members)
    from scipy.stats import norm

    assert found.area == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.005)
    assert found.at(0.01) == pytest.approx(norm.sf(norm.isf(0.01) - 1), abs=0.005)


def test_equal_scores_show_nothing() -> None:
    members = np.arange(100) < 50
    found = membership.roc(np.zeros(100), members)
    assert found.area == 0.5
    assert found.at(0.01) == 0.0


def test_likelihood_ratio_finds_what_the_loss_hides() -> None:
    """Records differ in difficulty by more than membership moves them: only a reference for each record tells."""
    rng, n, k = np.random.default_rng(1), 2000, 8
    difficulty = rng.normal(0, 5, n)
    members = np.arange(n) < n // 2
    was_in = np.stack([rng.permutation(n) < n // 2 for _ in range(k // 2)])
    was_in = np.concatenate([was_in, ~was_in])

    def confidences(inside: np.ndarray) -> np.ndarray:
        return difficulty + 2.0 * inside + rng.normal(0, 1, inside.shape)

    target = confidences(members)
    ratio = membership.likelihood_ratio(target, np.stack([confidences(row) for row in was_in]), was_in)
    assert membership.roc(ratio, members).area > 0.85
    assert membership.roc(target, members).area < 0.65
    facts = membership.summary(ratio, members)
    assert facts["tpr_upper"]["0.01"] > facts["tpr"]["0.01"]
    with pytest.raises(ValueError, match="in some reference models"):
        membership.likelihood_ratio(target, target[None], members[None])


def test_confidence_is_the_logit_of_the_probability() -> None:
    p = np.array([0.1, 0.5, 0.99])
    np.testing.assert_allclose(membership.confidence(-np.log(p)), np.log(p / (1 - p)))
    assert np.isfinite(membership.confidence(np.array([0.0, 1e3]))).all()


def test_no_attack_beats_the_bound_of_its_epsilon() -> None:
    assert largest_rate(0.0, 0.0, 0.01) == pytest.approx(0.01)
    assert largest_rate(1.0, 1e-5, 0.01) == pytest.approx(np.e * 0.01 + 1e-5)
    assert largest_rate(50.0, 0.0, 0.01) == pytest.approx(1.0)
    assert membership.upper_limit(1.0, 10) == 1.0
    assert membership.upper_limit(0.0, 1000) == pytest.approx(1 - 0.025 ** (1 / 1000), rel=1e-6)


def resolved(make_config, **changes):
    return make_config(data={"labels": ["negative", "positive"]}, **changes)


@pytest.mark.parametrize(
    ("backbone", "task"), [("bert", "sequence-classification"), ("gpt2", "causal-lm"), ("llama", "causal-lm")]
)
def test_first_layers_are_those_that_see_one_token(request, make_config, backbone: str, task: str) -> None:
    model = model_of(resolved(make_config, model={"backbone": str(request.getfixturevalue(backbone)), "task": task}))
    names = list(inversion.first_layer(model, 8))
    assert names
    assert all(".0." in name and ".lora_A.weight" in name for name in names)
    assert set(names) <= set(model.trained)


def test_a_token_in_the_span_is_read_and_one_outside_is_not(make_config) -> None:
    model = model_of(resolved(make_config))
    layer = next(iter(inversion.first_layer(model, 6).values()))
    inputs = torch.cat([chunk for _, chunk in inversion.candidates(model, layer, 6)])  # (V, 6, d)
    secret = [(5, 0), (9, 1), (17, 4)]
    rows = np.stack([inputs[token, place].numpy() for token, place in secret])
    gradient = np.random.default_rng(0).normal(size=(4, 3)) @ rows  # rank 3
    basis = inversion.span([gradient])
    assert len(basis) == 3
    found = inversion.span_check(model, layer, [basis], [4], 6, known=[])[0]
    assert {(token, place) for token, place, _ in found[:3]} == set(secret)
    assert found[2][2] < 1e-3 < found[3][2]
    assert not {item[0] for item in inversion.span_check(model, layer, [basis], [3], 6, known=[5])[0]} & {5}
    assert len(inversion.span([np.zeros((2, 3))])) == 0


def test_rows_of_an_embeddings_gradient_name_the_tokens() -> None:
    gradient = np.zeros((10, 4))
    gradient[[2, 7]] = [[1, 0, 0, 0], [0, 3, 0, 0]]
    assert inversion.tokens_of_embedding(gradient, 5) == [7, 2]


def test_the_class_of_one_record_is_its_negative_entry() -> None:
    assert inversion.label_of_bias(np.array([0.2, -0.7, 0.5])) == 1
