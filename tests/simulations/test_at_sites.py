"""Evaluation where the data are: whole runs in each mode, resumed and with sites that fail."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2

from confide.common.config.run import RunConfig, load
from confide.common.errors import ConfigError
from confide.common.model.loading import model_of
from confide.common.privacy.mechanism import PrivacyPlan
from confide.common.privacy.plan import privacy_plan
from confide.server.app import checkpoint
from confide.server.evaluation import evaluate
from confide.server.rounds import Round
from confide.simulations.attacks.leakage import audit_leakage
from confide.simulations.run import resume, simulate
from confide.simulations.sites import SimulatedHost, forget_sites, simulated_data, worker_for
from confide.tests.faults import dies_in, fails
from confide.tests.rings import slow

HALF = {"sites": True, "holdout": 0.5}


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_without_privacy_the_counts_are_those_of_the_held_out_records(make_config) -> None:
    config = make_config(run={"rounds": 3}, evaluation={**HALF, "every": 2})
    folder = simulate(config)
    state = checkpoint.load_latest(folder / "checkpoints", _resolved(folder).digest())
    assert [(one.round, one.final) for one in state.evaluations] == [(0, False), (2, False), (3, True)]
    resolved = _resolved(folder)
    model, data = model_of(resolved), worker_for(resolved.to_flat()).data
    held = np.concatenate(data.held_out)
    assert 60 < len(held) < 180
    assert not set(held) & set(np.concatenate(data.parts))
    found = evaluate(model, state.adapter, data.records, held)
    right = int((found.scores["predicted"] == found.scores["true"]).sum())
    assert state.evaluations[-1].counts == [right, len(held) - right]
    assert state.evaluations[-1].variance == 0


def _resolved(folder: Path) -> RunConfig:
    return load(folder / "config.toml")


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_under_privacy_counts_come_with_noise(make_config, local, mode) -> None:
    local["mode"] = mode
    config = make_config(run={"rounds": 4}, privacy=local, evaluation={**HALF, "every": 3})
    folder = simulate(config)
    resolved = _resolved(folder)
    state = checkpoint.load_latest(folder / "checkpoints", resolved.digest())
    assert [(one.round, one.final) for one in state.evaluations] == [(0, False), (3, False), (4, True)]
    data = simulated_data(resolved, model_of(resolved))
    held = len(np.concatenate(data.held_out))
    for one in state.evaluations:
        assert one.counts is not None
        assert one.variance > 0.1
        deviation = (2 * one.variance) ** 0.5
        assert abs(sum(one.counts) - held) < 6 * deviation
    assert state.evaluated == dict.fromkeys(state.asked, 3)
    assert set(state.asked.values()) == {4}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_the_noise_in_counts_is_what_the_interval_takes_it_for(make_config, local, mode) -> None:
    """How many are held out is known here, so 41 evaluations show the noise; a mean square outside these bounds has a
    chance of less than 1e-6."""
    evaluation, run = {**HALF, "every": 1}, {"rounds": 40}
    folder = simulate(
        make_config(run=run, privacy={**local, "mode": mode, "sampling_rate": 0.05}, evaluation=evaluation)
    )
    state = checkpoint.load_latest(folder / "checkpoints", _resolved(folder).digest())
    held = sum(map(len, simulated_data(_resolved(folder), model_of(_resolved(folder))).held_out))
    off = [(sum(one.counts or []) - held) / (2 * one.variance) ** 0.5 for one in state.evaluations]
    assert len(off) == 41
    plan = privacy_plan(_resolved(folder), model_of(_resolved(folder)).count()[0])
    assert plan is not None
    noises = 4 if mode == "local" else 4 / (4 - 1)  # one each; or shares of which all but a colluder's make up one
    assert state.evaluations[-1].variance == pytest.approx(noises * plan.count_variance)
    low, high = chi2.ppf([5e-7, 1 - 5e-7], 41)
    assert low < float(np.square(off).sum()) < high
    assert len({round(one.counts[0], 6) for one in state.evaluations if one.counts}) == 41  # fresh each time


def sites_of(report: dict) -> dict:
    return report["evaluation"]["sites"]


def test_the_report_says_what_was_measured_and_what_it_cost(make_config, local) -> None:
    local |= {"mode": "distributed", "declared_examples": 240}
    changes = {"training": {"learning_rate": 0.05}, "run": {"rounds": 6}, "evaluation": {**HALF, "every": 3}}
    folder = simulate(make_config(privacy=local, **changes))
    report = report_of(folder)
    found, privacy = sites_of(report), report["privacy"]
    assert (found["holdout"], found["unit"], found["evaluations"]) == (0.5, "records", 3)
    assert [one["round"] for one in found["rounds"]] == [0, 3]
    assert found["after"] == found["last"]["figures"][0]
    assert found["last"]["sites"] == 4
    after = found["after"]
    assert after["low"] <= after["value"] <= after["high"]
    assert after["name"] == "accuracy"
    assert 0 < found["epsilon"] <= 8
    assert privacy["epsilon_planned"] == 8
    assert 7.9 < privacy["epsilon_spent"] <= 8
    assert len(privacy["epsilon_by_round"]) == 7
    assert "the larger ε counts" in privacy["composition"]
    rows = [row.get("at_sites") for row in report["rounds"]]
    assert [None if row is None else row["after"] for row in rows] == [0, None, None, 3, None, None]
    assert [json.loads(line).get("at_sites") for line in (folder / "metrics.jsonl").read_text().splitlines()] == rows
    page = (folder / "report.html").read_text()
    assert 'id="at-sites"' in page
    assert "Accuracy at the sites is" in page


def test_no_page_shows_fewer_records_than_none(make_config, local, monkeypatch) -> None:
    """Where hardly anybody is held out, noise makes half of the counts negative."""
    monkeypatch.setattr(PrivacyPlan, "counts", lambda self, noisy: np.array([-3.0, 1.0]))
    folder = simulate(make_config(run={"rounds": 1}, privacy=local, evaluation=HALF))
    after = sites_of(report_of(folder))["after"]
    assert (after["records"], after["value"]) == (-8.0, None)
    assert "<td>-" not in (folder / "report.html").read_text()


def test_a_run_without_it_has_none_of_it(make_config, local) -> None:
    folder = simulate(make_config(run={"rounds": 2}, privacy=local))
    report = report_of(folder)
    assert report["evaluation"] is None
    assert 'id="at-sites"' not in (folder / "report.html").read_text()
    assert not any("at_sites" in row for row in report["rounds"])
    assert not (folder / "checkpoints" / "evaluated.json").exists()


def test_counts_by_class_have_recalls(make_config) -> None:
    found = sites_of(report_of(simulate(make_config(evaluation={**HALF, "per_class": True}))))
    names = [one["key"] for one in found["last"]["figures"]]
    assert names == ["accuracy", "macro_recall", "recall: negative", "recall: positive"]
    accuracy, macro, *each = found["last"]["figures"]
    assert macro["value"] == pytest.approx(np.mean([one["value"] for one in each]))
    right = sum(one["value"] * one["records"] for one in each)
    assert accuracy["value"] == pytest.approx(right / sum(one["records"] for one in each))


@pytest.mark.parametrize("mode", ["distributed", *slow("local")])
def test_persons_are_counted_as_persons(make_config, content, data, tmp_path, mode) -> None:
    lines = (data / "train.csv").read_text().splitlines()
    rows = [f"{line},p{number % 60}" for number, line in enumerate(lines[1:])]
    (tmp_path / "persons.csv").write_text("\n".join([lines[0] + ",who", *rows]) + "\n")
    privacy = {"mode": mode, "epsilon": 8.0, "sampling_rate": 0.3, "declared_persons": 60}
    config = make_config(
        run={"rounds": 2},
        data={"train": str(tmp_path / "persons.csv"), "person": "who"},
        privacy=privacy,
        evaluation=HALF,
    )
    folder = simulate(config)
    found = sites_of(report_of(folder))
    assert found["unit"] == "persons"
    data_ = simulated_data(_resolved(folder), model_of(_resolved(folder)))
    person = data_.records.person
    assert person is not None
    held = sum(len(np.unique(person[part])) for part in data_.held_out)
    assert abs(found["after"]["records"] - held) < 6 * found["after"]["noise"]


@pytest.mark.parametrize("mode", ["distributed", *slow("none", "local")])
def test_a_run_that_was_interrupted_measures_its_model_all_the_same(
    make_config, local, mode, tmp_path, monkeypatch
) -> None:
    """Once between two evaluations, once in a round that begins with one."""
    privacy = {} if mode == "none" else {**local, "mode": mode}
    for number in (2, 3):
        folder = tmp_path / f"{mode}-{number}"
        config = make_config(run={"rounds": 4, "output": str(folder)}, privacy=privacy, evaluation={**HALF, "every": 2})
        with monkeypatch.context() as patch:
            dies_in(patch, number)
            with pytest.raises(KeyboardInterrupt):
                simulate(config)
        forget_sites()
        resume(folder)
        state = checkpoint.load_latest(folder / "checkpoints", _resolved(folder).digest())
        assert sum(one.final for one in state.evaluations) == 1
        assert [one.round for one in state.evaluations] == [0, 2, 4]
        lost = [one.round for one in state.evaluations if one.counts is None]
        if number == 2 or mode == "none":  # nobody had been asked for an evaluation in vain
            assert not lost
        else:  # of a sum the round is given up; alone, sites count a second time, and are left with none at the end
            assert lost == [2 if mode == "distributed" else 4]
        if mode != "none":
            assert max(state.evaluated.values()) <= 4
            assert report_of(folder)["privacy"]["epsilon_spent"] <= 8


def test_in_mode_none_a_resumed_run_counts_the_same(make_config, tmp_path, monkeypatch) -> None:
    def config(name: str) -> RunConfig:
        return make_config(run={"rounds": 3, "output": str(tmp_path / name)}, evaluation={**HALF, "every": 1})

    simulate(config("whole"))
    with monkeypatch.context() as patch:
        dies_in(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            simulate(config("cut"))
    forget_sites()
    resume(tmp_path / "cut")
    whole, cut = (report_of(tmp_path / name) for name in ("whole", "cut"))
    assert sites_of(whole) == sites_of(cut)


def test_a_crash_while_the_final_model_is_measured(make_config, local, tmp_path, monkeypatch) -> None:
    """Sites in memory count once: whether the first answers left is not known, so there are no second ones."""
    config = make_config(run={"rounds": 2, "output": str(tmp_path / "run")}, privacy=local, evaluation=HALF)
    with monkeypatch.context() as patch:
        dies_in(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            simulate(config)
    forget_sites()
    resume(tmp_path / "run")
    found = sites_of(report_of(tmp_path / "run"))
    assert found["after"]["value"] is None
    assert "asked 1, limit 1, remaining 0" in found["last"]["why"]
    assert "not measurable" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("number", [2, 3])
def test_sites_that_give_the_same_answer_again_have_counted_once(
    make_config, local, tmp_path, monkeypatch, number: int
) -> None:
    """As real sites do, whose server was restarted: ε is of what they charged, not of what was asked."""
    known: dict = {}
    monkeypatch.setattr(SimulatedHost, "recall", lambda self, key: known.get((self.number, key)))
    monkeypatch.setattr(
        SimulatedHost, "remember", lambda self, key, reply: known.__setitem__((self.number, key), reply)
    )
    places = {"run": {"rounds": 2, "output": str(tmp_path / "run")}, "engine": {"ledger": str(tmp_path / "sites")}}
    config = make_config(**places, privacy=local, evaluation={**HALF, "every": 1})
    real = Round.release

    def dies(self: Round, arriving) -> None:
        real(self, arriving)
        if self._number == number:
            raise KeyboardInterrupt

    for play in (lambda: simulate(config), lambda: resume(tmp_path / "run")):
        with monkeypatch.context() as patch:
            patch.setattr(Round, "release", dies)
            with pytest.raises(KeyboardInterrupt):
                play()
        forget_sites()
    report = report_of(resume(tmp_path / "run"))
    assert all(one["value"] is not None for one in (sites_of(report)["after"], *_first(sites_of(report)["rounds"])))
    assert sites_of(report)["epsilon"] <= 8
    assert report["privacy"]["epsilon_spent"] <= 8
    state = checkpoint.load_latest(tmp_path / "run" / "checkpoints", _resolved(tmp_path / "run").digest())
    assert set(state.evaluated.values()) == {3}


def _first(rounds: list[dict]) -> list[dict]:
    return [one["figures"][0] for one in rounds]


def test_a_site_that_vanishes_while_the_others_count(make_config, local, monkeypatch) -> None:
    local["mode"] = "distributed"
    config = make_config(
        run={"rounds": 2}, data={"partition": {"clients": 6}}, privacy=local, evaluation={**HALF, "every": 2}
    )
    fails(monkeypatch, "train", {1: {2}, 3: {4}})  # the first round, and the one that evaluates alone
    folder = simulate(config)
    state = checkpoint.load_latest(folder / "checkpoints", _resolved(folder).digest())
    first, final = state.evaluations
    assert "site-3" not in first.sites
    assert "site-5" not in final.sites
    assert len(first.sites) == len(final.sites) == 5
    data = simulated_data(_resolved(folder), model_of(_resolved(folder)))
    for one, missing in ((first, 2), (final, 4)):
        assert one.counts is not None
        held = sum(len(part) for number, part in enumerate(data.held_out) if number != missing)
        assert abs(sum(one.counts) - held) < 6 * (2 * one.variance) ** 0.5
        plan = privacy_plan(_resolved(folder), model_of(_resolved(folder)).count()[0])
        assert plan is not None
        assert one.variance == pytest.approx(5 / (5 - 1) * plan.count_variance)


def test_the_run_stands_when_too_few_sites_are_left_to_measure_it(make_config, local, monkeypatch) -> None:
    local["mode"] = "distributed"
    config = make_config(run={"rounds": 2}, privacy=local, evaluation=HALF)
    fails(monkeypatch, "train", {3: {0, 1, 2, 3}})
    folder = simulate(config)
    found = sites_of(report_of(folder))
    assert found["after"]["value"] is None
    assert found["last"]["why"]
    assert (folder / "adapter").is_dir()


def test_a_run_that_stops_early_measures_the_model_that_it_keeps(make_config, data) -> None:
    validation = {"validation": str(data / "train.csv")}
    config = make_config(run={"rounds": 8}, data=validation, server={"patience": 1}, evaluation=HALF)
    folder = simulate(config)
    resolved = _resolved(folder)
    state = checkpoint.load_latest(folder / "checkpoints", resolved.digest())
    (final,) = state.evaluations
    model, data = model_of(resolved), worker_for(resolved.to_flat()).data
    held = np.concatenate(data.held_out)
    found = evaluate(model, state.best, data.records, held)
    right = int((found.scores["predicted"] == found.scores["true"]).sum())
    assert final.counts == [right, len(held) - right]


def test_a_sites_policy_keeps_exact_counts_at_home(make_config, tmp_path) -> None:
    """In mode `none` counts are as private as a training loss: policy.metrics lets both leave."""
    ledger = tmp_path / "sites"
    config = make_config(run={"rounds": 1}, engine={"ledger": str(ledger)}, evaluation=HALF)
    simulate(config)
    policy = (ledger / "site.toml").read_text()
    assert "metrics = true" in policy
    (ledger / "site.toml").write_text(policy.replace("metrics = true", "metrics = false"))
    forget_sites()
    again = make_config(
        run={"rounds": 1, "output": str(tmp_path / "again")}, engine={"ledger": str(ledger)}, evaluation=HALF
    )
    found = sites_of(report_of(simulate(again)))
    assert found["after"]["value"] is None


@pytest.mark.parametrize("task", ["causal-lm", "regression"])
def test_losses_and_errors_are_counted_up_to_a_bound(make_config, gpt2, local, data, tmp_path, task) -> None:
    changes: dict = {"model": {"task": task}, "evaluation": {**HALF, "bound": 4.0}}
    if task == "causal-lm":
        changes["model"]["backbone"] = str(gpt2)
    else:
        for name in ("train", "test"):
            lines = (data / f"{name}.csv").read_text().splitlines()
            (tmp_path / f"{name}.csv").write_text(
                "\n".join([lines[0], *(line.rsplit(",", 1)[0] + f",{i % 5}" for i, line in enumerate(lines[1:]))])
                + "\n"
            )
        changes["data"] = {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv")}
    folder = simulate(make_config(run={"rounds": 2}, privacy=local, **changes))
    found = sites_of(report_of(folder))["last"]["figures"]
    keys = ["loss", "tokens"] if task == "causal-lm" else ["mae"]
    assert [one["key"] for one in found] == keys
    assert 0 < found[0]["value"] < 4
    held = sum(map(len, simulated_data(_resolved(folder), model_of(_resolved(folder))).held_out))
    assert all(abs(one["records"] - held) < 6 * one["noise"] for one in found)


@pytest.mark.parametrize(
    ("mode", "server", "training"),
    [
        ("distributed", {"setup_rounds": 1}, {}),
        ("local", {"aggregation": "fedadam"}, {"local_steps": 2}),
        ("local", {"aggregation": "median", "byzantine": 1}, {}),
        ("local", {"aggregation": "exact"}, {"local_steps": 2}),
        ("none", {"aggregation": "fedprox", "options": {"proximal_mu": 0.1}}, {}),
        ("none", {"cohort": 2}, {}),
    ],
    ids=str,
)
def test_whatever_aggregates_updates_counts_are_added_up(make_config, local, mode, server, training) -> None:
    privacy = {} if mode == "none" else {**local, "mode": mode}
    config = make_config(
        run={"rounds": 2}, privacy=privacy, server=server, training=training, evaluation={**HALF, "every": 1}
    )
    folder = simulate(config)
    report = report_of(folder)
    assert not any("void" in row for row in report["rounds"])
    found = sites_of(report)
    asked = server.get("cohort", 4)
    assert [one["sites"] for one in (*found["rounds"], found["last"])] == [asked, asked, 4]
    data = simulated_data(_resolved(folder), model_of(_resolved(folder)))
    held = sum(map(len, data.held_out))
    assert abs(found["after"]["records"] - held) <= 6 * found["after"]["noise"]


def test_a_leakage_audit_takes_no_held_out_record_for_a_member(make_config, tmp_path) -> None:
    folder = simulate(make_config(run={"rounds": 1}, data={"limit": 100}, evaluation=HALF))
    with pytest.raises(ConfigError, match="held some of its rows out of training"):
        audit_leakage(folder, 2, lambda *_: nullcontext())


def test_baselines_are_trained_on_what_the_run_is_trained_on(make_config, local) -> None:
    report = report_of(
        simulate(make_config(run={"rounds": 1}, privacy=local, baselines={"pooled": True}, evaluation=HALF))
    )
    assert report["baselines"]["pooled"] is not None
