"""Whole runs of the task `preference`."""

from pathlib import Path

import numpy as np
import pytest

from confide.common.errors import ConfigError, DataError
from confide.common.model.loading import model_of
from confide.common.types import Rows
from confide.server.report import read_report
from confide.server.ship.predict import load
from confide.simulations.audit import audit_canaries
from confide.simulations.doctor import per_sample_error
from confide.simulations.run import simulate
from confide.tests.faults import no_noise
from confide.tests.rings import slow
from confide.tests.tiny import BAD, GOOD, NEUTRAL, write_csv

HEADER = ("question", "better", "worse")


def pairs(count: int, seed: int) -> list[tuple[str, str, str]]:
    """Good words are preferred to bad ones, and the better answer is now the longer, now the shorter."""
    rng = np.random.default_rng(seed)

    def some(words: list[str]) -> str:
        return " ".join(rng.choice(words, rng.integers(1, 5)))

    return [(f"{some(NEUTRAL)} was", some(GOOD), some(BAD)) for _ in range(count)]


@pytest.fixture
def preferring(make_config, gpt2: Path, tmp_path: Path):
    """A run of the task; changes: of its tables."""
    train, test = (
        write_csv(tmp_path / f"{count}.csv", pairs(count, seed), HEADER) for count, seed in ((240, 1), (40, 2))
    )
    columns = dict(zip(("prompt", "chosen", "rejected"), HEADER, strict=True))

    def make(**changes):
        data = {"train": str(train), "test": str(test), **columns}
        return make_config(
            model={"backbone": str(gpt2), "task": "preference", **changes.pop("model", {})},
            data={**data, **changes.pop("data", {})},
            **changes,
        )

    return make


@pytest.mark.parametrize("mode", ["none", *slow("local", "distributed", "client")])
def test_the_chosen_answers_become_likelier(preferring, local, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    no_noise(monkeypatch)
    privacy = {**local, "mode": mode, "epsilon": 300.0}
    if mode == "client":
        privacy |= {"sampling_rate": 1.0}
        del privacy["declared_examples"]
    changes = {} if mode == "none" else {"privacy": privacy}
    report = read_report(simulate(preferring(run={"rounds": 12}, training={"learning_rate": 0.03}, **changes)))
    assert report["before"]["accuracy"] == 0.5
    assert report["before"]["loss"] == pytest.approx(np.log(2))
    assert report["after"]["accuracy"] > 0.8
    assert report["after"]["margin"] > 0
    assert report["after"]["loss"] < report["before"]["loss"]


@pytest.mark.slow
def test_a_person_has_many_pairs_and_an_adapter_may_have_frozen_factors(preferring, local, tmp_path: Path) -> None:
    rows = [(*row, f"p{number % 60}") for number, row in enumerate(pairs(240, 1))]
    train = str(write_csv(tmp_path / "persons.csv", rows, (*HEADER, "who")))
    privacy = {**local, "epsilon": 300.0, "declared_persons": 60}
    del privacy["declared_examples"]
    config = preferring(
        data={"train": train, "person": "who"}, privacy=privacy, server={"aggregation": "ffa"}, run={"rounds": 2}
    )
    report = read_report(simulate(config))
    assert report["after"]["loss"] != report["before"]["loss"]
    assert report["privacy"]["unit"].startswith("person")


def test_the_model_continues_prompts(preferring) -> None:
    model, _ = load(simulate(preferring(run={"rounds": 1})))
    assert set(model.answers(Rows("x", ["the film was"]))[0]) == {"continuation"}


@pytest.mark.slow
def test_canary_pairs_and_the_doctor(preferring, local) -> None:
    config = preferring(run={"rounds": 2}, privacy={**local, "epsilon": 500.0, "sampling_rate": 0.5})
    assert per_sample_error(model_of(config)) < 1e-3
    config = config.model_copy(update={"audit": config.audit.model_copy(update={"records": 40})})
    found = audit_canaries(config, control=False)
    assert found["sensitivity"]["holds"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"chosen": None},
            r"data\.chosen: nothing received with task 'preference'; a record is a prompt with a chosen",
        ),
        ({"rejected": None}, r"data\.rejected: nothing received with task 'preference'"),
        ({"prompt": None}, r"data\.prompt: nothing received with task 'preference'"),
        ({"response": "better"}, r"data\.response: 'better' received with task 'preference'; the answers are those of"),
    ],
)
def test_columns_that_are_not_named_are_refused(preferring, changed: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preferring(data=changed)


@pytest.mark.parametrize("key", ["prompt", "chosen", "rejected"])
def test_columns_that_are_not_there_are_refused(preferring, key: str) -> None:
    with pytest.raises(DataError, match=r"column 'nosuch' is missing; the columns are: question, better, worse; set"):
        simulate(preferring(data={key: "nosuch"}))


def test_a_row_without_an_answer_is_refused_by_its_name(preferring, tmp_path: Path) -> None:
    train = str(write_csv(tmp_path / "gap.csv", [*pairs(8, 1), ("the film was", "good", " ")], HEADER))
    with pytest.raises(DataError, match=r"row 10, column 'worse'"):
        simulate(preferring(data={"train": train}))
