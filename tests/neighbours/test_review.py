"""What an outside review found about randomness and gradients (docs/explanation/pitfalls.md), one test a line.

Each right value stands beside a control: with the fault put back the same test fails, so it would have seen it.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from confide.common.data import active, augmentation
from confide.common.data.active import choose
from confide.common.model import per_sample
from confide.common.model.proof import prove
from confide.common.model.shapes import Shapes
from confide.tests.neighbours.cases import CLIP, Case, adapter_of, check, check_distillation, host_of, refusal, run_of
from confide.tests.neighbours.rows import table_of
from confide.tests.neighbours.site import Observer, Sites, all_but, ask, everybody

WORDS = Case("bert", views="words")


def shared_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies as they were made: from one generator, in the order of the file."""
    made = augmentation._copy

    def copies(config, rows, keys, copy):
        stream = np.random.default_rng([config.run.seed, copy])
        monkeypatch.setattr(augmentation, "own_generator", lambda key, *purpose: stream)
        return made(config, rows, keys, copy)

    monkeypatch.setattr(augmentation, "_copy", copies)


def moved_by(sites: Sites, watch: Observer, case: Case, name: str) -> float:
    """How far a row that was not drawn moves the sum, in C."""
    table, config = table_of(case.task).shorter(set()), run_of(sites, case, 1)
    place = next(i for i, row in enumerate(table.rows) if row.name == name)
    assert all(row.kind == "good" for row in table.rows[: place + 1])
    sums = []
    for rows, draw in ((table, all_but(place)), (table.without(table.rows[place]), everybody)):
        host = host_of(sites, case, rows)
        (told,) = ask(watch, host, config, adapter_of(host, config), [draw])
        sums.append(told.sums[0])
    return float(np.linalg.norm(sums[0] - sums[1])) / CLIP


@pytest.mark.parametrize("views", ["words", "characters"])
def test_one_row_more_changes_no_others_copies(
    sites: Sites, watch: Observer, views: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """‖S(D) − S(D−r)‖ was 1.28 C to 1.67 C for a row that was not drawn."""
    case = replace(WORDS, views=views)
    assert moved_by(sites, watch, case, "first") == 0
    shared_stream(monkeypatch)
    assert moved_by(sites, watch, case, "first") > 0.05  # by how much depends on the words that were hit


def test_one_row_more_changes_one_teachers_votes(
    sites: Sites, watch: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nineteen other teachers' votes changed with the copies; or where records were dealt in the order of the file."""
    case = replace(WORDS, train="head")
    check_distillation(sites, watch, case, ["first"])
    from confide.client import teach

    monkeypatch.setattr(teach, "choices", lambda keys, salt, count: np.arange(len(keys)) % count)
    with pytest.raises((AssertionError, ValueError)):
        check_distillation(sites, watch, case, ["first"])


@pytest.mark.parametrize("strategy", ["random", "bald"])
def test_one_row_more_in_the_pool_displaces_one_other(
    make_config, strategy: active.Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It displaced 14 of 50 (random) and 36 of 50 (bald)."""
    from confide.common.config.resolve import resolve
    from confide.common.model.loading import model_of
    from confide.common.types import Rows
    from confide.tests.tiny import sentences

    model = model_of(resolve(make_config()))
    pool = model.encode(Rows("pool", [text for text, _ in sentences(120, 3)], labels=np.zeros(120, dtype=np.int64)))
    rng = np.random.default_rng(1)
    adapter = {name: (a + 0.3 * rng.normal(size=a.shape)).astype(np.float32) for name, a in model.initial.items()}

    def displaced() -> int:
        found = []
        for there in (np.arange(120), np.arange(1, 120)):
            chosen = choose(strategy, 50, model, adapter, pool, there, np.arange(0), np.random.default_rng(7))
            found.append({*chosen.tolist()})
        return len(found[1] - found[0])

    assert displaced() <= 1
    if strategy == "random":  # lots in the order of the rows

        def lots(keys, salt):
            return np.random.default_rng(salt).integers(2**63, size=len(keys)).astype(np.uint64)

        monkeypatch.setattr(active, "mixed", lots)
    else:  # masks of each record, in the order of the rows

        def with_dropout(head, vectors, rng):
            masks = [torch.from_numpy(rng.random(tuple(vectors.shape)) >= 0.1) for _ in range(20)]
            return np.stack([active._probabilities(head, vectors * mask / 0.9) for mask in masks])

        monkeypatch.setattr(active, "_with_dropout", with_dropout)
    assert displaced() > 5


@pytest.mark.parametrize(
    "case",
    [
        Case("deberta-v3"),
        Case("deberta-v3", targets=("query_proj", "key_proj", "value_proj")),
        Case("deberta-v3", "token-classification", targets=("key_proj",)),
        Case("longformer", targets=("query", "value")),
        Case("mpnet", train="full"),
        Case("opt", "causal-lm", targets=("fc1",)),
    ],
    ids=str,
)
def test_layers_that_read_no_batch_are_refused(sites: Sites, case: Case) -> None:
    """A record moved the sum by 1.48 C (default targets) and 1.72 C (query, key, value)."""
    reason = refusal(sites, case)
    assert reason is not None
    assert "reads an array of shape" in reason
    assert "choose" in reason


def test_without_the_proof_the_review_s_fault_shows(
    sites: Sites, watch: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeBERTa-v3 with default targets, the proof and the check of each call taken out."""

    def unproved(config, model) -> Shapes:
        return Shapes(model.max_length, 8, 12.0)

    monkeypatch.setattr("confide.client.worker.proved_shapes", unproved)
    monkeypatch.setattr(per_sample, "_check_calls", lambda model, rows: None)
    with pytest.raises(AssertionError, match=r"the sum is not that of its records alone|the site gives up|moves"):
        check(sites, watch, Case("deberta-v3"), [])


@pytest.mark.parametrize(
    "name", ["unknown class", "over-long", "empty", "broken bytes", "a column too few", "no tokens"]
)
def test_no_row_makes_a_site_fail(sites: Sites, watch: Observer, name: str) -> None:
    """A class that is not in `data.labels`, or a text longer than the backbone's positions: that there was an error, or
    none, told of the row, for ε = 0."""
    case = Case("roberta", turn=3)
    table, config = table_of(case.task, case.turn).shorter({name}), run_of(sites, case, 2)
    replies = []
    for rows in (table, table.without(next(row for row in table.rows if row.name == name))):
        host = host_of(sites, case, rows)
        told = ask(watch, host, config, adapter_of(host, config), [everybody, all_but(0)])
        assert not any(one.gave_up or "error" in one.reply for one in told)
        replies.append([one.reply for one in told])
    assert replies[0] == replies[1]


def test_more_tokens_than_positions_are_refused_before_a_row_is_read(sites: Sites) -> None:
    for architecture, most in (("bert", 65), ("roberta", 64)):
        case = Case(architecture, train="head", max_length=most)
        assert refusal(sites, case) is None
        reason = refusal(sites, replace(case, max_length=most + 2))
        assert reason is not None
        assert "positions" in reason


def test_a_proof_is_of_one_model_on_one_machine(make_config) -> None:
    """It is kept, and not taken for that of other shapes, views or threads."""
    from confide.common.config.resolve import resolve
    from confide.common.model.loading import model_of

    model = model_of(resolve(make_config()))
    shapes = Shapes(16, 4, 4.0)
    assert prove(model, shapes) is prove(model, shapes)
    assert prove(model, shapes, (2,)) is not prove(model, shapes)


@pytest.mark.parametrize("train", ["head", "lora"])
def test_shapes_are_proved_for_trained_weights(sites: Sites, watch: Observer, train: str) -> None:
    """At a new head's small weights the logits are nearly zero, and what a product of few rows rounds otherwise at
    another position is lost; at trained weights it is not."""
    check(sites, watch, Case("roberta", train=train, pooling="model"), [])


@pytest.mark.parametrize("most", [8, 12, 16, 17, 24])
def test_short_records_are_proved_too(sites: Sites, most: int) -> None:
    """Embeddings that are also the output layer: refused at any length."""
    reason = refusal(sites, Case("bert", "masked-lm", train="full", max_length=most))
    assert reason is not None
    assert "word_embeddings" in reason
