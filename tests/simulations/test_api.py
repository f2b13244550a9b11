"""The Python interface, as a script uses it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
from flwr.serverapp.strategy import FedAvg
from transformers import AutoModel, AutoTokenizer

import confide
from confide.common.errors import ConfigError, DataError
from confide.common.run_folder import CONFIG
from confide.tests.tiny import merged, sentences

ROWS, TESTS = sentences(60, 1), sentences(30, 2)


def frame(rows: Sequence[tuple[str, str]]) -> pandas.DataFrame:
    return pandas.DataFrame(rows, columns=["text", "label"])


@pytest.fixture
def settings(bert: Path, tmp_path: Path) -> dict[str, Any]:
    """A run without data."""
    return {
        "run": {"rounds": 2, "output": str(tmp_path / "run")},
        "model": {"backbone": str(bert), "max_length": 16, "lora": {"rank": 2}},
        "data": {"partition": {"clients": 3}},
        "training": {"learning_rate": 0.02, "batch_size": 16},
    }


class Watching(confide.Callback):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def started(self, run) -> None:
        self.seen.append(run.config.model.task)

    def round_done(self, row: dict[str, Any]) -> None:
        self.seen.append(f"round {row['round']}")

    def finished(self, run) -> dict[str, Any]:
        return {"mine": self.seen}


def test_a_run_of_objects_is_read_asked_and_audited(settings: dict[str, Any], bert: Path, tmp_path: Path) -> None:
    model, tokenizer = AutoModel.from_pretrained(bert), AutoTokenizer.from_pretrained(bert)
    del settings["model"]["backbone"]
    privacy = {"mode": "local", "epsilon": 8.0, "sampling_rate": 0.3, "declared_examples": 60}
    content = merged(settings, {"privacy": privacy, "engine": {"ledger": str(tmp_path / "ledgers")}})
    watching, train = Watching(), datasets.Dataset.from_pandas(frame(ROWS))
    run = confide.simulate(
        content, data=train, test=frame(TESTS), model=model, tokenizer=tokenizer, callbacks=[watching]
    )
    assert watching.seen == ["sequence-classification", "round 1", "round 2"]
    assert run.report["mine"] == watching.seen
    assert [row["round"] for row in run.metrics] == [1, 2]
    again = confide.load(run.folder)
    answers = again.predict([text for text, _ in TESTS[:4]])
    assert {answer["label"] for answer in answers} <= set(again.config.data.labels or ())
    found = confide.audit(again)
    assert found["promised"] == pytest.approx(8.0, rel=0.05)
    assert all(0 < spent <= 8.0 for spent in found["spent"].values())
    assert len(found["spent"]) == len(found["ledgers"]) == 3
    assert all(ledger["holds"] for ledger in found["ledgers"])
    assert confide.resume(run.folder).report["after"] == run.report["after"]


def test_class_numbers_of_a_dataset_are_read_by_their_names(settings: dict[str, Any]) -> None:
    names = sorted({label for _, label in ROWS})
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=names))
    rows = {"text": [text for text, _ in ROWS], "label": [names.index(label) for _, label in ROWS]}
    run = confide.simulate(settings, data=datasets.Dataset.from_dict(rows, features=features), test=frame(TESTS))
    assert run.config.data.labels == names


def test_a_partition_function_and_a_strategy_of_the_caller(settings: dict[str, Any]) -> None:
    class Halved(FedAvg):
        rounds = 0

        def configure_train(self, server_round, arrays, config, grid):
            type(self).rounds += 1
            return super().configure_train(server_round, arrays, config, grid)

    def by_length(rows: pandas.DataFrame) -> list[str]:
        return ["long" if len(text) > 30 else "short" for text in rows["text"]]

    run = confide.simulate(
        settings, data=frame(ROWS), test=frame(TESTS), partition=by_length, strategy=Halved(fraction_evaluate=0.0)
    )
    assert Halved.rounds == 2
    assert run.config.clients == 2
    assert [len(row["sites"]) for row in run.report["rounds"]] == [2, 2]
    with pytest.raises(ConfigError, match="with no strategy object"):
        confide.resume(run.folder)


def test_what_cannot_start_leaves_nothing(settings: dict[str, Any], bert: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(bert)
    given: dict[str, Any] = {"data": frame(ROWS), "test": frame(TESTS)}
    unlabelled = frame(ROWS).drop(columns="label")
    cases: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
        ({}, {"data": frame(ROWS)}, ConfigError, "data.test"),
        ({}, {**given, "data": unlabelled}, DataError, "label"),
        ({}, {**given, "data": ROWS}, ConfigError, "data: list received; allowed: a pandas.DataFrame"),
        ({}, {**given, "model": model}, ConfigError, "tokenizer: nothing received"),
        ({}, {**given, "tokenizer": object()}, ConfigError, "tokenizer: received without a model"),
        ({}, {**given, "partition": lambda rows: ["a"]}, ConfigError, "1 sites received for 60 rows"),
        ({"engine": {"kind": "ray"}}, {**given, "callbacks": [Watching()]}, ConfigError, "objects of this process"),
        ({"sweep": {}}, given, ConfigError, "a recipe of many runs"),
        (
            {"privacy": {"mode": "distributed", "epsilon": 8.0, "sampling_rate": 0.3, "declared_examples": 60}},
            {**given, "strategy": FedAvg()},
            ConfigError,
            "server.aggregation",
        ),
    ]
    for changes, arguments, error, why in cases:
        with pytest.raises(error, match=why):
            confide.simulate(merged(settings, changes), **arguments)
        assert not list(tmp_path.glob("run*"))


def test_inputs_of_another_run_are_not_touched(settings: dict[str, Any]) -> None:
    run = confide.simulate(settings, data=frame(ROWS), test=frame(TESTS))
    inputs = run.folder.with_name("run.inputs")
    before = {path.name: path.read_bytes() for path in inputs.iterdir()}
    assert (inputs.stat().st_mode & 0o777) == 0o700
    with pytest.raises(ConfigError, match="is not empty"):
        confide.simulate(settings, data=frame(ROWS[:30]), test=frame(TESTS))
    assert {path.name: path.read_bytes() for path in inputs.iterdir()} == before
    assert (run.folder / CONFIG).is_file()


def test_only_what_the_task_reads_is_asked(settings: dict[str, Any]) -> None:
    run = confide.simulate(settings, data=frame(ROWS), test=frame(TESTS))
    with pytest.raises(ConfigError, match="texts: 0 received; task 'sequence-classification' reads texts"):
        run.predict()
    with pytest.raises(ConfigError, match="images: 1 received"):
        run.predict(["good"], ["x.png"])
    assert np.isfinite([answer["probability"] for answer in run.predict(["good", "bad"])]).all()


def test_public_names_are_found() -> None:
    for name in confide.__all__:
        assert getattr(confide, name) is not None
    assert set(dir(confide)) == set(confide.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = confide.nothing


def test_a_run_that_is_not_replaced_keeps_its_inputs(settings: dict[str, Any]) -> None:
    run = confide.simulate(settings, data=frame(ROWS), test=frame(TESTS))
    inputs = run.folder.with_name("run.inputs")
    before = {path.name: path.read_bytes() for path in inputs.iterdir()}
    with pytest.raises(DataError, match="label"):
        confide.simulate(settings, data=frame(ROWS).drop(columns="label"), test=frame(TESTS), overwrite=True)
    assert {path.name: path.read_bytes() for path in inputs.iterdir()} == before
    assert confide.resume(run.folder).report["after"] == run.report["after"]
    confide.simulate(settings, data=frame(ROWS[:40]), test=frame(TESTS), overwrite=True)
    assert (inputs / "train.parquet").read_bytes() != before["train.parquet"]
    assert sorted(path.name for path in run.folder.parent.glob("run*")) == ["run", "run.inputs"]


def test_a_partition_of_named_rows_beside_a_given_test_set(settings: dict[str, Any], tmp_path: Path) -> None:
    frame(ROWS).to_csv(tmp_path / "rows.csv", index=False)
    content = merged(settings, {"data": {"train": str(tmp_path / "rows.csv")}})
    run = confide.simulate(content, test=frame(TESTS), partition=lambda rows: ["a", "b", "c"] * (len(rows) // 3))
    assert run.config.clients == 3


@pytest.mark.parametrize("table", ["run", "data", "model"])
def test_a_table_that_is_none_is_told_in_one_line(settings: dict[str, Any], bert: Path, table: str) -> None:
    model, tokenizer = AutoModel.from_pretrained(bert), AutoTokenizer.from_pretrained(bert)
    with pytest.raises(ConfigError) as told:
        confide.simulate(
            {**settings, table: "x"}, data=frame(ROWS), test=frame(TESTS), model=model, tokenizer=tokenizer
        )
    assert "\n" not in str(told.value)
    assert table in str(told.value)
