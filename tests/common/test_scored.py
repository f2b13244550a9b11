"""The shapes of held-out records: one row where a record's scores are not its own to the last bit."""

import numpy as np
import pytest
import torch

from confide.common.config.run import RunConfig
from confide.common.model import scored
from confide.common.model.loading import model_of
from confide.common.model.proof import proved_shapes
from confide.common.tasks import sequence_classification


@pytest.fixture
def private(make_config, local) -> RunConfig:
    labels = ["negative", "positive"]
    return make_config(privacy=local, data={"labels": labels}, training={"batch_tokens": 512})


def test_where_scores_are_their_own_the_proved_shapes_stay(private: RunConfig) -> None:
    model = model_of(private)
    proved = proved_shapes(private, model)
    before = model.get()
    found = scored.scored_shapes(model, proved)
    assert [found.rows(length) for length in found.all_lengths] == [proved.rows(n) for n in proved.all_lengths]
    assert any(found.rows(length) > 1 for length in found.all_lengths)
    assert all(np.array_equal(before[name], array) for name, array in model.get().items())


def test_where_a_mate_moves_a_score_records_are_alone(private: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only without gradients, as a kernel of its own for these would be: the proof of gradients does not see it."""
    model, real = model_of(private), sequence_classification.score
    proved = proved_shapes(private, model)

    def score(module: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        found = real(module, batch)
        mates = np.float32(1e-6 * found["loss"][0]) * (len(found["loss"]) > 1)
        return {**found, "loss": found["loss"] + mates}

    monkeypatch.setattr(sequence_classification, "score", score)
    monkeypatch.setattr(scored, "_known", {})
    found = scored.scored_shapes(model, proved)
    assert [found.rows(length) for length in found.all_lengths] == [1] * len(found.all_lengths)
