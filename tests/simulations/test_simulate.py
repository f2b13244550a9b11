"""Whole runs in process: results, resume bit for bit, privacy spent, strategies, failures of sites."""

import json
from pathlib import Path

import numpy as np
import pytest
from opacus.accountants import PRVAccountant
from safetensors.numpy import load_file

import confide
from confide.client.worker import Worker
from confide.common.config.run import RunConfig
from confide.common.config.tables import FLOWER_STRATEGIES
from confide.common.errors import ConfigError, DataError, PrivacyError, RoundError
from confide.common.model.loading import FineTuneModel
from confide.server import rounds
from confide.simulations.run import resume, simulate
from confide.simulations.sites import forget_sites
from confide.tests.faults import dies_in, no_noise


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def adapter_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def run(config: RunConfig) -> dict:
    return report_of(simulate(config))


def test_a_run_learns_and_leaves_what_the_design_names(make_config) -> None:
    folder = simulate(make_config(run={"rounds": 25}))
    assert {path.name for path in folder.iterdir()} == {
        "report.json",
        "report.html",
        "adapter",
        "metrics.jsonl",
        "tensorboard",
        "config.toml",
        "checkpoints",
        "partition.json",
        "data.json",
    }
    report = report_of(folder)
    assert report["after"]["accuracy"] > 0.8 > report["before"]["accuracy"] + 0.2
    names = {"accuracy", "macro_f1", "loss", "worst_class", "calibration_error"}
    assert report["before"].keys() == report["after"].keys() == {*names, "main"}
    privacy = report["privacy"]
    assert (privacy["mode"], privacy["epsilon_spent"], privacy["noise_multiplier"]) == ("none", None, None)
    row = report["rounds"][-1]
    assert {"round", "seconds", "accuracy", "bytes_up", "bytes_down", "sites", "failed"} <= row.keys()
    # LoRA and head in float32, and the header of numpy's format
    size = 4 * report["model"]["trainable"]
    assert 4 * size < row["bytes_up"] < 4 * (size + 200 * 12)
    assert report["model"]["trainable"] < report["model"]["total"]
    assert [json.loads(line)["round"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == list(
        range(1, 26)
    )
    assert list((folder / "tensorboard").glob("events*"))
    assert report["partition"]["labels"] == ["negative", "positive"]
    assert np.sum(report["partition"]["counts"]) == 240


def test_local_privacy_spends_what_was_planned_and_opacus_agrees(make_config, local) -> None:
    config = make_config(run={"rounds": 6}, privacy=local, data={"partition": {"clients": 4, "kind": "dirichlet"}})
    report = run(config)
    privacy = report["privacy"]
    assert privacy["epsilon_planned"] == 8
    assert 7.5 < privacy["epsilon_spent"] <= 8
    accountant = PRVAccountant()
    accountant.history = [(privacy["noise_multiplier"], local["sampling_rate"], privacy["steps"])]
    assert accountant.get_epsilon(privacy["delta"]) <= 8.01  # its upper bound is 0.01 above its estimate
    assert [site["steps"] for site in privacy["sites"]] == [6] * 4
    assert {"unit", "adversary", "sampling", "delta", "composition", "accountant"} <= privacy.keys()
    assert privacy["cross_check"]["epsilon"] == pytest.approx(accountant.get_epsilon(1e-5), rel=0.02)  # PLD and PRV
    assert not any("train_loss" in row for row in report["rounds"])  # a loss would be a release


def test_epsilon_is_composed_over_all_rounds_for_every_site(make_config, local) -> None:
    """With a cohort of 2 of 4, a site spends for the rounds it was asked in, the run reports the largest."""
    config = make_config(run={"rounds": 5}, privacy=local, server={"cohort": 2})
    privacy = run(config)["privacy"]
    steps = {site["site"]: site["steps"] for site in privacy["sites"]}
    assert sum(steps.values()) == 10
    by_steps = {site["steps"]: site["epsilon_spent"] for site in privacy["sites"]}
    assert sorted(by_steps.values()) == [by_steps[s] for s in sorted(by_steps)]
    assert privacy["epsilon_spent"] == max(by_steps.values())


class CutError(Exception):
    pass


def _stop_after(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = rounds.Round.ask

    def ask(self):
        if self._number > number:
            raise CutError
        return real(self)

    monkeypatch.setattr(rounds.Round, "ask", ask)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training": {"local_steps": 3}, "server": {"cohort": 3}},
        {"training": {"local_steps": 2}, "server": {"aggregation": "exact"}},
        {"server": {"aggregation": "fedadam", "options": {"eta": 0.02, "tau": 1e-6}}},
        {"server": {"aggregation": "fedavgm", "options": {"server_momentum": 0.9}}},
        {"training": {"schedule": "cosine", "warmup": 1, "weight_decay": 0.01}},
        {"training": {"schedule": "linear", "warmup": 3, "weight_decay": 0.01, "local_steps": 2}},
    ],
    ids=["server steps", "cohort", "exact", "fedadam", "fedavgm", "schedule", "schedule at the sites"],
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    make_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    whole = simulate(make_config(run={"rounds": 5, "output": str(tmp_path / "whole")}, **changes))
    with monkeypatch.context() as patched:
        _stop_after(patched, 2)
        with pytest.raises(CutError):
            simulate(make_config(run={"rounds": 5, "output": str(tmp_path / "cut")}, **changes))
    cut = resume(tmp_path / "cut")
    a, b = adapter_of(whole), adapter_of(cut)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)
    first, second = report_of(whole), report_of(cut)
    assert first["after"] == second["after"]
    assert [row["accuracy"] for row in first["rounds"]] == [row["accuracy"] for row in second["rounds"]]


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_run_that_is_cut_inside_a_round_equals_the_uninterrupted_one_bit_for_bit(
    make_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    whole = simulate(make_config(run={"rounds": 4, "output": str(tmp_path / "whole")}))
    with monkeypatch.context() as patched:
        dies_in(patched, number)
        with pytest.raises(KeyboardInterrupt):
            simulate(make_config(run={"rounds": 4}))
    forget_sites()
    cut = resume(tmp_path / "run")
    a, b = adapter_of(whole), adapter_of(cut)
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert report_of(whole)["after"] == report_of(cut)["after"]
    assert not any(row["failed"] for row in report_of(cut)["rounds"])


def test_a_resumed_private_run_goes_on_with_what_was_charged(
    make_config, local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        _stop_after(patched, 2)
        with pytest.raises(CutError):
            simulate(make_config(run={"rounds": 4}, privacy=local))
    privacy = report_of(resume(tmp_path / "run"))["privacy"]
    assert [site["steps"] for site in privacy["sites"]] == [4] * 4


def test_a_crash_inside_a_round_leaves_it_charged(make_config, local, tmp_path: Path, monkeypatch) -> None:
    """Round 2 was asked for twice, so the sites refuse the fourth: nobody takes more steps than were declared."""
    with monkeypatch.context() as patched:
        real = Worker.train

        def cut(self, site, task, account, *rest):
            if task.round == 2 and site == 2:
                raise KeyboardInterrupt
            return real(self, site, task, account, *rest)

        patched.setattr(Worker, "train", cut)
        with pytest.raises(KeyboardInterrupt):
            simulate(make_config(run={"rounds": 4}, privacy=local))
    forget_sites()
    report = report_of(resume(tmp_path / "run"))
    assert [len(row["sites"]) for row in report["rounds"]] == [4, 4, 4, 0]
    assert {failure["site"] for failure in report["rounds"][3]["failed"]} == {f"site-{i}" for i in range(1, 5)}
    assert "spent 4 steps, asked 1, limit 4, remaining 0" in report["rounds"][3]["failed"][0]["reason"]
    assert report["privacy"]["epsilon_spent"] <= 8
    assert [site["steps"] for site in report["privacy"]["sites"]] == [4] * 4


@pytest.mark.parametrize("which", ["train", "test"])
def test_a_run_is_not_resumed_with_other_rows(
    make_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    config = make_config(run={"rounds": 3})
    with monkeypatch.context() as patched:
        _stop_after(patched, 1)
        with pytest.raises(CutError):
            simulate(config)
    forget_sites()
    file = Path(getattr(config.data, which))
    before = file.read_text()
    file.write_text(before.replace("film", "story", 1))
    with pytest.raises(ConfigError, match=f"the rows of .*{file.name} are not those that the run began with"):
        resume(config.output)
    forget_sites()
    file.write_text(before)
    assert len(report_of(resume(config.output))["rounds"]) == 3


def test_resuming_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.toml"):
        resume(tmp_path)


def test_a_folder_in_use_is_kept(make_config, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        simulate(make_config())
    with pytest.raises(ConfigError, match="holds no run of confide"):
        simulate(make_config(), overwrite=True)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_a_run_may_be_replaced_when_asked(make_config) -> None:
    simulate(make_config(run={"rounds": 1}))
    folder = simulate(make_config(run={"rounds": 2}), overwrite=True)
    assert len(report_of(folder)["rounds"]) == 2


@pytest.mark.parametrize("aggregation", ["ffa", "exact", *FLOWER_STRATEGIES])
def test_every_aggregation_plays(make_config, aggregation: str) -> None:
    options = {
        "qfedavg": {"client_learning_rate": 0.02},
        "fedprox": {"proximal_mu": 0.1},
        "fedtrimmedavg": {"beta": 0.25},
    }.get(aggregation, {})
    clients = 8 if aggregation == "bulyan" else 4
    report = run(
        make_config(
            run={"rounds": 2},
            server={"aggregation": aggregation, "options": options},
            training={"local_steps": 2},
            data={"partition": {"clients": clients}},
        )
    )
    assert all(not row["failed"] for row in report["rounds"])
    assert np.isfinite(report["after"]["loss"])
    assert report["after"]["loss"] != report["before"]["loss"]


def test_frozen_factors_do_not_travel_up(make_config) -> None:
    report = run(make_config(run={"rounds": 1}, server={"aggregation": "ffa"}))
    assert report["rounds"][0]["bytes_up"] < report["rounds"][0]["bytes_down"]


def test_unknown_options_of_a_strategy_write_nothing(make_config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.options: received .*'nosuch'.* for 'fedadam'"):
        simulate(make_config(server={"aggregation": "fedadam", "options": {"nosuch": 1}}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["train", "test"])
def test_missing_data_writes_nothing(make_config, tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        simulate(make_config(data={key: str(tmp_path / "gone.csv")}))
    assert not (tmp_path / "run").exists()


def test_half_floats_on_the_wire(make_config, tmp_path: Path) -> None:
    narrow = run(make_config(server={"upload_dtype": "float16"}, run={"output": str(tmp_path / "narrow")}))
    wide = run(make_config())
    assert narrow["rounds"][0]["bytes_up"] < 0.75 * wide["rounds"][0]["bytes_up"]
    assert narrow["after"]["loss"] == pytest.approx(wide["after"]["loss"], abs=0.01)


def fails_at(monkeypatch: pytest.MonkeyPatch, sites: dict[int, Exception], when: int = 2) -> None:
    real = Worker.train

    def train(self, site, task, account, *rest):
        if task.round == when and site in sites:
            with account.taking(1):
                raise sites[site]
        return real(self, site, task, account, *rest)

    monkeypatch.setattr(Worker, "train", train)


def test_one_failing_site_never_voids_a_round(make_config, local, monkeypatch) -> None:
    secret = "patient Smith has measles"
    fails_at(monkeypatch, {0: PrivacyError("the sum is not bounded"), 3: ValueError(secret)})
    report = run(make_config(privacy=local))
    second = report["rounds"][1]
    assert second["sites"] == ["site-2", "site-3"]
    reasons = {failure["site"]: failure["reason"] for failure in second["failed"]}
    assert reasons["site-1"] == "the sum is not bounded"
    assert reasons["site-4"].startswith("ValueError in test_simulate.py, line ")
    assert secret not in json.dumps(report)
    # what a failed site reserved stays charged
    assert [site["steps"] for site in report["privacy"]["sites"]] == [3] * 4
    assert report["privacy"]["sites"][0]["rounds"] == 2


def test_a_round_with_too_few_replies_changes_nothing(make_config, monkeypatch) -> None:
    fails_at(monkeypatch, {site: RuntimeError("x") for site in range(3)})
    report = run(make_config())
    assert report["rounds"][1]["accuracy"] == report["rounds"][0]["accuracy"]
    assert report["rounds"][1]["loss"] == report["rounds"][0]["loss"]
    assert report["rounds"][2]["loss"] != report["rounds"][1]["loss"]
    assert len(report["rounds"][1]["failed"]) == 3


def test_too_few_replies_for_flowers_strategies(make_config, monkeypatch) -> None:
    fails_at(monkeypatch, {site: RuntimeError("x") for site in range(3)})
    report = run(make_config(server={"aggregation": "fedadam"}))
    assert report["rounds"][1]["loss"] == report["rounds"][0]["loss"]


def test_sites_past_the_deadline_are_left_out(make_config, monkeypatch) -> None:
    real = Worker.train

    def slow(self, site, task, account, *rest):
        import time

        if site == 1:
            time.sleep(1.2)
        return real(self, site, task, account, *rest)

    monkeypatch.setattr(Worker, "train", slow)
    report = run(make_config(run={"rounds": 1}, server={"deadline": 1.0}))
    assert report["rounds"][0]["sites"] == ["site-1", "site-2"]
    assert {f["reason"] for f in report["rounds"][0]["failed"]} == {"no reply within the deadline"}


def test_an_update_that_is_not_finite_is_left_out(make_config, monkeypatch) -> None:
    real = Worker.train

    def diverged(self, site, task, account, *rest):
        update = real(self, site, task, account, *rest)
        if site == 2:
            next(iter(update.delta.values()))[:] = np.nan
        return update

    monkeypatch.setattr(Worker, "train", diverged)
    report = run(make_config(run={"rounds": 1}))
    assert report["rounds"][0]["failed"][0]["site"] == "site-3"
    assert "not finite" in report["rounds"][0]["failed"][0]["reason"]
    assert np.isfinite(report["after"]["loss"])


def test_sites_of_another_version_are_refused(make_config, monkeypatch) -> None:
    monkeypatch.setattr("confide.client.handlers.__version__", "0.0.1")
    with pytest.raises(RoundError, match=r"0 sites answered.*version 0\.0\.1 at a site"):
        simulate(make_config())


def test_two_sites_of_one_name_are_refused(make_config, monkeypatch) -> None:
    monkeypatch.setattr("confide.simulations.sites.site_name", lambda *_: "site-1")
    with pytest.raises(RoundError, match="two nodes call themselves 'site-1'"):
        simulate(make_config())


def test_a_natural_partition_names_its_clients(make_config, tmp_path: Path) -> None:
    rows = ["text,label,ward"]
    for i in range(60):
        rows.append(f"{'good fine' if i % 2 else 'bad awful'},{'positive' if i % 2 else 'negative'},ward-{i % 3}")
    (tmp_path / "wards.csv").write_text("\n".join(rows) + "\n")
    content = make_config().model_dump()
    content["data"] |= {"train": str(tmp_path / "wards.csv"), "partition": {"kind": "natural", "column": "ward"}}
    report = run(RunConfig.parse(content, "test"))
    assert len(report["privacy"]["sites"]) == 3


@pytest.mark.parametrize(
    ("backbone", "mode"),
    [*(pytest.param(name, "local", marks=pytest.mark.slow) for name in ("gpt2", "llama")), ("gpt2", "distributed")],
)
def test_language_models_train_under_privacy(
    request: pytest.FixtureRequest, make_config, local, backbone: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_noise(monkeypatch)
    config = make_config(
        model={"backbone": str(request.getfixturevalue(backbone)), "task": "causal-lm"},
        run={"rounds": 30},
        privacy={**local, "mode": mode, "epsilon": 2000.0},
    )
    report = run(config)
    assert report["after"]["perplexity"] < report["before"]["perplexity"]
    assert report["privacy"]["epsilon_spent"] <= 2000
    assert report["confusion"] == {"before": None, "after": None}


def test_instructions_dealt_out_by_a_column(make_config, gpt2: Path, tmp_path: Path) -> None:
    rows = ["q,a,label"] + [f"the film was {'good' if i % 2 else 'bad'},it was quite,{i % 2}" for i in range(40)]
    (tmp_path / "qa.csv").write_text("\n".join(rows) + "\n")
    path = str(tmp_path / "qa.csv")
    config = make_config(
        model={"backbone": str(gpt2), "task": "causal-lm"},
        data={
            "train": path,
            "test": path,
            "prompt": "q",
            "response": "a",
            "partition": {"kind": "shards", "clients": 4, "shards_per_client": 1},
        },
    )
    report = run(config)
    assert report["after"]["loss"] < report["before"]["loss"]
    assert report["partition"]["labels"] == ["0", "1"]


def test_public_names() -> None:
    assert confide.RunConfig is RunConfig
    assert confide.load_base is not None
    with pytest.raises(AttributeError, match="nosuch"):
        _ = confide.nosuch


@pytest.mark.parametrize("when", ["before", "after the first round"])
def test_a_model_that_diverges_ends_the_run_in_a_line(make_config, when: str, monkeypatch) -> None:
    """No NaN gets into a page, no round is played on it, and what was right until then stays."""
    config = make_config(training={"learning_rate": 1e30 if when != "before" else 0.02})
    if when == "before":
        monkeypatch.setattr(FineTuneModel, "scores", lambda *_, **__: {"loss": np.array([np.nan, 1.0])})
    with pytest.raises(RoundError, match=r"mean loss on [\d,]+ public records is nan, so it has diverged"):
        simulate(config)
    assert not (config.output / "report.json").exists()
    assert "NaN" not in "".join(path.read_text() for path in config.output.glob("metrics.jsonl"))
