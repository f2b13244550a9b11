"""Neighbouring data sets of a site that holds records out: what one of them moves, and what it leaves bit for bit.

A held-out record leaves every coordinate of the gradients as it is and moves the counts by at most s·C; one that is
trained on leaves the counts, and one that is broken leaves all. Through the real path, with the noise off.
"""

from typing import Any

import numpy as np
import pytest
import torch

from confide.client.deploy.host import DeployedHost
from confide.common.config.run import RunConfig
from confide.common.privacy.mechanism import PrivacyPlan
from confide.common.tasks import sequence_classification
from confide.tests.neighbours.cases import CLASSES, CLIP, SLACK, Case, _missing, adapter_of, host_of, run_of
from confide.tests.neighbours.rows import PROMPTED, TALKED, TWO, Row, Table, table_of
from confide.tests.neighbours.site import Observer, Sites, Told, ask, everybody
from confide.tests.rings import slow
from confide.tests.tiny import merged

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast")
ROUNDS = 64


def evaluating(config: RunConfig, **changes: Any) -> RunConfig:
    """Half of the records are held out, and counted in every round."""
    content = config.model_dump(mode="json", exclude_none=True)
    own = {"evaluation": {"sites": True, "holdout": 0.5, "every": 1}}
    return RunConfig.parse(merged(merged(content, own), changes), "test")


def plan_of(host: DeployedHost, config: RunConfig) -> PrivacyPlan:
    plan = host.enter(config.to_flat()).worker().plan
    assert plan is not None
    return plan


def check_apart(name: str, whole: Told, fewer: Told, plan: PrivacyPlan, kind: str) -> str:
    """The property, for one row that is removed. Returns which side it was on."""
    assert plan.held_out is not None
    assert fewer.reply == whole.reply, f"'{name}': the reply tells of it"
    assert not fewer.gave_up
    trained, held_out = _missing(whole.keys, fewer.keys), _missing(whole.held_out, fewer.held_out)
    assert trained is None or held_out is None, f"'{name}' is trained on and counted"
    bound = CLIP * plan.held_out.scale(plan.coordinates)
    for number, (total, smaller) in enumerate(zip(whole.sums, fewer.sums, strict=True)):
        gradients, counts = (np.split(one, [plan.trained]) for one in (total, smaller))
        moved = [float(np.linalg.norm(a - b)) for a, b in zip(gradients, counts, strict=True)]
        if trained is None:
            assert moved[0] == 0, f"'{name}' is not trained on, and moves gradients by {moved[0] / CLIP:.2g} C"
        if held_out is None:
            assert moved[1] == 0, f"'{name}' is not held out, and moves counts by {moved[1] / bound:.2g} of the bound"
        assert moved[0] <= CLIP + SLACK
        assert moved[1] <= bound + SLACK, f"'{name}' moves counts by {moved[1] / bound:.3g} of the bound"
        if kind == "good":
            assert max(moved) > 0 or number > 0, f"'{name}' counts as nothing"
    assert kind != "bad" or trained is held_out is None
    return "trained" if trained is not None else "held out" if held_out is not None else "nothing"


CASES = [
    Case("bert"),
    Case("bert", mode="distributed"),
    Case("roberta", "regression", steps=2),
    Case("distilbert", "token-classification"),
    Case("electra", "multi-label-classification", train="head"),
    Case("mpnet", TWO, train="head"),
    Case("gpt2", "causal-lm"),
    Case("gpt-neox", PROMPTED, form="jsonl"),
    Case("bert", views="words", turn=5),
    Case("vit", "image-classification"),
    Case("bert", "masked-lm"),
    Case("qwen3", "preference", form="jsonl"),
    Case("qwen3", TALKED, form="jsonl"),
    Case("bert", views="pgd"),
    Case("bert", dtype="bfloat16", max_length=17, batch_rows=5),
]


@pytest.mark.parametrize("case", [*CASES[:3], *slow(*CASES[3:])], ids=str)
def test_a_record_is_on_one_side_and_moves_nothing_on_the_other(sites: Sites, watch: Observer, case: Case) -> None:
    table, config = table_of(case.task, case.turn), evaluating(run_of(sites, case, ROUNDS))
    host = host_of(sites, case, table)
    adapter, plan = adapter_of(host, config), plan_of(host, config)
    peer = host_of(sites, case, table_of(case.task), "site-2") if config.secure else None
    (whole,) = ask(watch, host, config, adapter, [everybody], peer)
    assert len(whole.sums) == case.steps
    for later in whole.sums[1:]:
        assert not later[plan.trained :].any()  # counted at the weights that came, once a round
    found = [
        check_apart(
            row.name,
            whole,
            ask(watch, host_of(sites, case, table.without(row)), config, adapter, [everybody], peer)[0],
            plan,
            row.kind,
        )
        for row in table.rows
    ]
    assert found.count("trained") >= 2
    assert found.count("held out") >= 2


def test_order_and_copies_change_no_side(sites: Sites, watch: Observer) -> None:
    case = Case("bert", train="head")
    config, table = evaluating(run_of(sites, case, ROUNDS)), table_of(case.task)
    host = host_of(sites, case, table)
    adapter, plan = adapter_of(host, config), plan_of(host, config)
    (whole,) = ask(watch, host, config, adapter, [everybody])
    backwards = Table(table.columns, table.rows[::-1])
    (turned,) = ask(watch, host_of(sites, case, backwards), config, adapter, [everybody])
    assert sorted(turned.keys) == sorted(whole.keys)
    assert np.abs(turned.sums[0] - whole.sums[0]).max() < SLACK
    good = [row for row in table.rows if row.kind == "good"]
    for row in (good[0], good[5]):
        other = CLASSES[1 - CLASSES.index(str(row.values[1]))]
        copies = [Row("a copy", "good", row.values), Row("otherwise", "good", (row.values[0], other))]
        more = Table(table.columns, (*table.rows, *copies))
        (copied,) = ask(watch, host_of(sites, case, more), config, adapter, [everybody])
        sides = len(copied.keys) - len(whole.keys), len(copied.held_out) - len(whole.held_out)
        assert sides in ((2, 0), (0, 2)), "a copy, or the same text of another class, is on the other side"
        (once,) = ask(watch, host_of(sites, case, more.without(copies[0])), config, adapter, [everybody])
        check_apart("a copy", copied, once, plan, "good")


def test_persons_are_held_out_whole(sites: Sites, watch: Observer) -> None:
    case = Case("bert", train="head")
    content = run_of(sites, case, ROUNDS).model_dump(mode="json", exclude_none=True)
    content["data"] |= {"person": "patient", "person_rows": 16}  # nobody has more: no draw
    content["privacy"].pop("declared_examples")
    content["privacy"]["declared_persons"] = 20
    config = evaluating(RunConfig.parse(content, "test"))
    names = ["ann", "bob", "cid", "dan", "eve", "fay", "gus", "hal"]
    rows = [
        Row(f"{who} {i}", "good", (who, f"the film was {'very ' * (i % 7)}good", CLASSES[i % 2]))
        for number, who in enumerate(names)
        for i in range(number, 2 * number + 1)
    ]
    table = Table(("patient", "text", "label"), tuple(rows))

    def of(table: Table) -> Told:
        return ask(watch, sites.host(table, person="patient"), config, adapter, [everybody])[0]

    host = sites.host(table, person="patient")
    adapter, plan = adapter_of(host, config), plan_of(host, config)
    assert plan.held_out is not None
    whole, bound, sides = of(table), CLIP * plan.held_out.scale(plan.coordinates), set()
    for who in names:
        fewer = of(Table(table.columns, tuple(row for row in rows if row.values[0] != who)))
        assert fewer.reply == whole.reply
        gone = len(whole.keys) - len(fewer.keys), len(whole.held_out) - len(fewer.held_out)
        many = sum(row.values[0] == who for row in rows)
        assert gone in ((many, 0), (0, many))
        sides.add(gone[0] > 0)
        moved = np.split(whole.sums[0] - fewer.sums[0], [plan.trained])
        if gone[0]:
            assert not moved[1].any()
            assert np.linalg.norm(moved[0]) <= CLIP + SLACK
        else:
            assert not moved[0].any()
            assert 0 < np.linalg.norm(moved[1]) <= bound + SLACK
    assert sides == {True, False}


@pytest.mark.parametrize("how", ["raises", "is NaN"])
def test_a_record_that_cannot_be_scored_costs_nobody_else_anything(
    sites: Sites, watch: Observer, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training such a record counts as zero, so it counts as zero here; no batch is lost with it."""
    case = Case("bert", train="head")
    config, table = evaluating(run_of(sites, case, ROUNDS)), table_of(case.task)
    host = host_of(sites, case, table)
    adapter, plan = adapter_of(host, config), plan_of(host, config)
    (before,) = ask(watch, host, config, adapter, [everybody])
    real, held_out = sequence_classification.score, len(before.held_out)
    calls = {"rows": 0}

    def score(module: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        found = real(module, batch)
        broken = found["true"] == 0  # of one class all fail
        calls["rows"] += int(broken.sum())
        if how == "raises" and broken.any():
            raise RuntimeError("a kernel that cannot")
        return {**found, "loss": np.where(broken, np.nan, found["loss"])}

    monkeypatch.setattr(sequence_classification, "score", score)
    (after,) = ask(watch, host_of(sites, case, table), config, adapter, [everybody])
    assert calls["rows"]
    assert len(after.held_out) == held_out
    assert after.reply == before.reply
    assert np.array_equal(after.sums[0][: plan.trained], before.sums[0][: plan.trained])
    assert plan.held_out is not None
    scale = CLIP * plan.held_out.scale(plan.coordinates)
    counted = after.sums[0][plan.trained :].sum() / scale
    assert counted == pytest.approx(round(counted), abs=1e-9)
    assert 0 < counted < held_out
    for row in table.rows[:8]:
        (fewer,) = ask(watch, host_of(sites, case, table.without(row)), config, adapter, [everybody])
        check_apart(row.name, after, fewer, plan, "any" if row.kind == "good" else row.kind)


def test_the_last_round_trains_on_nothing(sites: Sites, watch: Observer) -> None:
    case = Case("bert", train="head")
    config, table = evaluating(run_of(sites, case, 2)), table_of(case.task)
    host = host_of(sites, case, table)
    adapter, plan = adapter_of(host, config), plan_of(host, config)
    first, second, last = ask(watch, host, config, adapter, [everybody] * 3)
    assert np.array_equal(first.sums[0], second.sums[0])
    assert not last.sums[0][: plan.trained].any()
    assert np.array_equal(last.sums[0][plan.trained :], first.sums[0][plan.trained :])
    assert last.reply["counts.counts has"] == first.reply["counts.counts has"]
    (refused,) = ask(watch, host, config, adapter, [everybody], first=3)
    assert "error" not in refused.reply  # the same question gets the same answer, and is not charged again
    changed = {name: array + 1 for name, array in adapter.items()}
    (refused,) = ask(watch, host, config, changed, [everybody], first=3)
    assert "spent 3 evaluations, asked 1, limit 3, remaining 0" in refused.reply["error"][1]


def test_a_site_that_holds_nobody_out_replies_alike(sites: Sites, watch: Observer) -> None:
    """Its only records are trained on, or counted, or it has none: sizes, names and types are the same."""
    case = Case("bert", train="head")
    config, table = evaluating(run_of(sites, case, ROUNDS)), table_of(case.task)
    adapter = adapter_of(host_of(sites, case, table), config)
    good = [row for row in table.rows if row.kind == "good"]
    few = [Table(table.columns, (row,)) for row in good[:6]]
    found = [ask(watch, host_of(sites, case, one), config, adapter, [everybody])[0] for one in (table, *few)]
    assert {(len(told.keys), len(told.held_out)) for told in found[1:]} == {(1, 0), (0, 1)}
    assert all(told.reply == found[0].reply for told in found)
