"""Class weights and label smoothing against torch's own cross-entropy, record by record, and where they come from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig
from confide.common.errors import ConfigError
from confide.common.model.class_loss import ClassLoss, class_loss_of
from confide.common.model.loading import model_of
from confide.common.model.per_sample import clipped_sum, hooked
from confide.common.tasks import class_losses
from confide.common.types import IGNORED

LABELS = ["bad", "good", "so-so"]
CLASSES = [0, 0, 0, 0, 1, 1, 2]
"""of the public rows"""


@pytest.fixture
def content(bert: Path, tmp_path: Path) -> dict:
    rows = [{"text": "good fine lovely"[: 4 + 5 * (i % 3)], "label": LABELS[c]} for i, c in enumerate(CLASSES)]
    public = tmp_path / "public.jsonl"
    public.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"backbone": str(bert), "max_length": 8, "lora": {"rank": 2}},
        "data": {"train": str(public), "test": str(public), "partition": {"clients": 1}},
        "server": {"min_clients": 1},
        "training": {"class_weights": "balanced", "label_smoothing": 0.1},
    }


def resolved(content: dict, **data: object) -> RunConfig:
    return resolve(RunConfig.parse(content | {"data": content["data"] | data}, "test"))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 2.0, 7.0)])
def test_a_record_has_torch_s_weighted_and_smoothed_loss(weights: tuple[float, ...], smoothing: float) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    batch = {"targets": targets, "class_shares": ClassLoss(weights, smoothing).shares(targets)}
    wanted = F.cross_entropy(logits, targets, torch.tensor(weights), reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(class_losses(logits, batch), wanted)


def test_words_that_do_not_count_lose_nothing() -> None:
    torch.manual_seed(0)
    weights = (0.5, 2.0, 7.0)
    logits, targets = torch.randn(2, 4, 3), torch.tensor([[0, IGNORED, 2, 1], [IGNORED, IGNORED, 1, 0]])
    batch = {"targets": targets, "class_shares": ClassLoss(weights, 0.2).shares(targets)}
    found, options = class_losses(logits, batch), {"reduction": "none", "label_smoothing": 0.2}
    wanted = F.cross_entropy(logits.transpose(1, 2), targets, torch.tensor(weights), **options)
    torch.testing.assert_close(found, wanted)
    assert (found[targets == IGNORED] == 0).all()


def test_balanced_weights_follow_from_the_public_sets(content: dict) -> None:
    config = resolved(content)
    assert config.data.class_shares == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    found = class_loss_of(RunConfig.from_flat(config.to_flat()))  # as a site gets it
    assert found is not None
    assert found.weights == pytest.approx((7 / 12, 7 / 6, 7 / 3))  # 1 / (K · share), as scikit-learn's "balanced"
    assert np.dot(found.weights, (4 / 7, 2 / 7, 1 / 7)) == pytest.approx(1)  # over what is expected


def test_with_a_validation_set_nothing_is_learned_from_the_test_set(content: dict, tmp_path: Path) -> None:
    """Neither weights nor the scale of numbers know a label of data.test."""
    validation = tmp_path / "validation.jsonl"
    rows = [{"text": "good", "label": LABELS[c], "number": c} for c in (0, 1, 2, 2)]
    validation.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert resolved(content, validation=str(validation)).data.class_shares == pytest.approx((1 / 4, 1 / 4, 1 / 2))
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps({"text": "good", "number": 100 + i}) + "\n" for i in range(9)))
    numbers = {"validation": str(validation), "test": str(test), "label": "number"}
    plain = content | {"model": content["model"] | {"task": "regression"}, "training": {}}
    assert resolved(plain, **numbers).data.scale == pytest.approx((np.mean([0, 1, 2, 2]), np.std([0, 1, 2, 2])))


def test_stated_shares_come_before_counted_ones(content: dict) -> None:
    found = class_loss_of(resolved(content, class_shares=[3, 2, 1]))
    assert found is not None
    assert found.weights == pytest.approx((6 / 9, 1, 2))


def test_a_run_without_either_has_the_plain_loss(content: dict) -> None:
    assert class_loss_of(resolved(content | {"training": {}})) is None


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"class_shares": [0.5, 0.5]}, "2 shares received for 3 classes"),
        ({"labels": [*LABELS, "ugly"]}, "has the class 'ugly', so its weight would be infinite"),
    ],
)
def test_shares_that_do_not_fit_are_refused(content: dict, data: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        resolved(content, **data)


def test_a_record_s_loss_and_gradient_are_its_own(content: dict) -> None:
    """Whoever is in the batch: nothing is divided by the weights of others."""
    config = resolved(content)
    model = model_of(config)
    records = model.encode(model.rows(config.data.test, config.data))
    everyone = np.arange(len(records))
    together = model.losses(records, everyone, 8).detach()
    alone = torch.cat([model.losses(records, np.array([i]), 8).detach() for i in everyone])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    logits = torch.from_numpy(model.scores(records, everyone)["probabilities"]).log()
    weights = torch.tensor(class_loss_of(config).weights)  # pyright: ignore[reportOptionalMemberAccess]
    wanted = F.cross_entropy(logits, torch.tensor(CLASSES), weights, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(together, wanted, rtol=1e-4, atol=1e-5)
    sums = []
    for kept in (everyone, everyone[:-1]):
        with hooked(model):
            sums.append(clipped_sum(model, model.losses(records, kept, 8), 0.5)[0])
    assert float((sums[0] - sums[1]).norm()) <= 0.5


def test_reported_losses_are_without_weights(content: dict) -> None:
    plain, weighted = resolved(content | {"training": {}}), resolved(content)
    found = []
    for config in (plain, weighted):
        model = model_of(config)
        model.set(model.initial)
        records = model.encode(model.rows(config.data.test, config.data))
        found.append(model.scores(records, np.arange(len(records)))["loss"])
    assert found[0] == pytest.approx(found[1])
