"""Whole runs of the tasks beside classification, and what a run passes on to the next."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModel

import confide
from confide.cli.main import main
from confide.client.worker import Worker
from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig
from confide.common.errors import ConfigError, ModelError, RoundError
from confide.common.model.loading import model_of
from confide.common.types import IGNORED
from confide.server.deploy.runs import declare
from confide.server.report import read_report
from confide.server.start import initial_adapter
from confide.simulations.canaries import canary_records
from confide.simulations.run import resume, simulate
from confide.tests.federation import Federation
from confide.tests.rings import slow
from confide.tests.simulations.test_simulate import CutError, _stop_after, adapter_of
from confide.tests.tiny import PEOPLE, PLACES, merged, sentences, write_conll, write_csv


@pytest.fixture
def tagging(make_config, wordpiece: Path, tmp_path: Path):
    """RunConfig of an entity run with changes on top."""
    data = {"train": str(write_conll(tmp_path / "train.conll", 240, 1)), "limit": 240}
    data["test"] = str(write_conll(tmp_path / "test.conll", 80, 2))

    def make(**changes) -> RunConfig:
        base = {"model": {"backbone": str(wordpiece), "task": "token-classification"}, "data": data}
        return make_config(**merged(base, changes))

    return make


def private(local: dict, mode: str) -> dict:
    return {**local, "mode": mode} if mode != "none" else {}


@pytest.mark.parametrize("mode", ["none", "distributed", *slow("local")])
def test_entities_are_learned_in_every_mode(tagging, local, mode: str) -> None:
    config = tagging(privacy=private(local, mode), run={"rounds": 40 if mode == "none" else 3})
    report = read_report(simulate(config))
    assert report["model"]["labels"] == ["B-loc", "B-per", "I-loc", "I-per", "O"]
    assert {"span_f1", "span_precision", "span_recall"} <= report["after"].keys()
    if mode == "none":
        assert report["after"]["span_f1"] > 0.7 > report["before"]["span_f1"] + 0.5
    else:
        assert 0 < report["privacy"]["epsilon_spent"] <= 8.0
    assert "span_f1" in (config.output / "report.html").read_text()
    base = confide.load_base(config.output / "adapter")
    PeftModel.from_pretrained(base, str(config.output / "adapter"))


def test_canary_records_of_entities_have_a_random_tag_for_each_word(tagging, local) -> None:
    config = tagging(privacy=local, audit={"records": 40}, run={"rounds": 1})
    found = read_report(simulate(config))["audit"]["records"]
    assert found["canaries"] == 40
    assert 0 <= found["epsilon_steinke"] <= found["ceiling_steinke"]
    resolved = resolve(config)
    records = canary_records(resolved, model_of(resolved), "site-1")
    assert records.wanted is not None
    tags = records.wanted[records.wanted != IGNORED]
    assert len(tags) == 8 * len(records)
    assert {*tags} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    "mode", ["none", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("local", "distributed"))]
)
def test_hidden_words_are_guessed_in_every_mode(tagging, local, mode: str) -> None:
    """The words are random and the backbone is, too: what can be learned is how often each occurs."""
    run = {"rounds": 40 if mode == "none" else 3}
    config = tagging(model={"task": "masked-lm"}, privacy=private(local, mode), run=run)
    report = read_report(simulate(config))
    if mode == "none":
        assert report["after"]["perplexity"] < 0.97 * report["before"]["perplexity"]
    else:
        assert 0 < report["privacy"]["epsilon_spent"] <= 8.0


def test_lora_in_every_linear_layer_leaves_out_the_unused_pooler(tagging) -> None:
    """ "dense" names the pooler, too, which no task reads: a trained array without a gradient fails every site."""
    report = read_report(
        simulate(tagging(model={"lora": {"rank": 2, "targets": ["query", "dense"]}}, run={"rounds": 1}))
    )
    assert report["rounds"][0]["failed"] == []


def test_targets_that_the_loss_does_not_reach_are_refused_first(make_config, monkeypatch) -> None:
    monkeypatch.setattr(
        "confide.common.tasks.sequence_classification.load_backbone", lambda path, _: AutoModel.from_pretrained(path)
    )
    config = make_config(model={"lora": {"rank": 3, "targets": ["dense"]}})
    with pytest.raises(ModelError, match=r"does not depend on .*pooler.* name targets that the task uses"):
        simulate(config)
    assert not config.output.exists()


def test_a_run_in_which_no_site_can_train_stops(make_config, monkeypatch) -> None:
    def fails(self, number, task, account, *rest):
        raise RuntimeError("secret record")

    monkeypatch.setattr(Worker, "train", fails)
    config = make_config(run={"rounds": 50})
    with pytest.raises(
        RoundError, match="3 rounds in a row without an update of any site; the first reason: RuntimeError"
    ):
        simulate(config)
    lines = (config.output / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert "secret" not in "".join(lines)


def test_a_masked_run_resumes_to_the_same_bits(tagging, monkeypatch, tmp_path: Path) -> None:
    def masked(name: str) -> RunConfig:
        return tagging(model={"task": "masked-lm"}, run={"rounds": 4, "output": str(tmp_path / name)})

    whole = adapter_of(simulate(masked("whole")))
    with monkeypatch.context() as patched:
        _stop_after(patched, 2)
        with pytest.raises(CutError):
            simulate(masked("cut"))
    again = adapter_of(resume(tmp_path / "cut"))
    assert all(np.array_equal(again[name], array) for name, array in whole.items())


@pytest.fixture
def pretrained(tagging, tmp_path: Path) -> Path:
    return simulate(tagging(model={"task": "masked-lm"}, run={"rounds": 4, "output": str(tmp_path / "pretrained")}))


def test_a_run_starts_from_another(tagging, pretrained: Path, tmp_path: Path) -> None:
    """LoRA of masked-lm lies under other names; the head begins as the seed decides."""
    config = tagging(model={"init_from": str(pretrained)}, run={"rounds": 1, "output": str(tmp_path / "next")})
    resolved = resolve(config)
    model = model_of(resolved)
    old = load_file(pretrained / "adapter" / "adapter_model.safetensors")
    start = initial_adapter(resolved, model)
    for name, array in start.items():
        if ".lora_" in name:
            (source,) = [key for key in old if key.endswith(name.split("backbone.")[1])]
            np.testing.assert_array_equal(array, old[source])
            assert np.abs(array).sum() > 0
        else:
            np.testing.assert_array_equal(array, model.initial[name])
    folder = simulate(config)
    facts = read_report(folder)["model"]["init_from"]
    assert facts == {"folder": str(pretrained), "name": "tiny", "mode": "none", "epsilon": None}
    assert "this model unprotected" in (folder / "report.html").read_text()
    on = tagging(model={"init_from": str(folder)}, run={"rounds": 1, "output": str(tmp_path / "on")})
    ends = load_file(folder / "adapter" / "adapter_model.safetensors")
    for name, array in initial_adapter(resolve(on), model).items():  # the same task: head and all
        np.testing.assert_array_equal(array, ends[name])


def test_a_start_that_does_not_fit_is_refused_before_anything_is_written(tagging, pretrained, tmp_path) -> None:
    output = {"output": str(tmp_path / "next")}
    with pytest.raises(ConfigError, match="holds no adapter; give the folder of a finished run"):
        simulate(tagging(model={"init_from": str(tmp_path)}, run=output))
    with pytest.raises(ConfigError, match=r"lora .* there, .* here; they must be the same"):
        simulate(tagging(model={"init_from": str(pretrained), "lora": {"rank": 3}}, run=output))
    assert not (tmp_path / "next").exists()


def test_a_server_starts_runs_from_its_own_runs_only(tagging, pretrained: Path, tmp_path: Path) -> None:
    federation = Federation(tmp_path / "federation", 2)
    federation.make()
    with pytest.raises(ConfigError, match="allowed: the name of a finished run of this server"):
        declare(federation.server, tagging(model={"init_from": str(pretrained)}))
    (federation.server / "runs").mkdir(exist_ok=True)
    (federation.server / "runs" / "first").symlink_to(pretrained)
    declared = declare(federation.server, tagging(model={"init_from": "first"}))
    assert Path(declared.model.init_from or "").samefile(pretrained)
    with pytest.raises(ConfigError, match="allowed: the name"):
        declare(federation.server, tagging(model={"init_from": "../runs/first"}))


def test_data_of_another_task_is_refused_in_one_line(tagging, tmp_path: Path, monkeypatch, capsys) -> None:
    """A table of classes given to the tagger: which row, and not what it says."""
    path = write_csv(tmp_path / "classes.csv", sentences(5, 0))
    config = tagging().model_dump(mode="json", exclude_none=True)
    config["data"]["train"] = str(path)
    import tomli_w

    (tmp_path / "run.toml").write_text(tomli_w.dumps(config))
    monkeypatch.setattr(
        sys, "argv", ["confide", "simulate", str(tmp_path / "run.toml"), "--out", str(tmp_path / "out")]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code != 0
    err = capsys.readouterr().err
    assert "row 2, column 'label'" in err
    assert len(err.strip().splitlines()) == 1
    assert not any(word in err for word in [*PLACES, *PEOPLE])
    assert not (tmp_path / "out").exists()


def test_the_report_of_entities_is_whole(tagging) -> None:
    folder = simulate(tagging(run={"rounds": 1}))
    report = json.loads((folder / "report.json").read_text())
    assert report["confusion"] == {"before": None, "after": None}
    assert report["partition"]["counts"] == [[60]] * 4
