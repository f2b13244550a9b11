"""`confide evaluate lm`: lm-eval's own figures, against log-likelihoods by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from confide.common.config.resolve import resolve
from confide.common.data.demo_facts import facts
from confide.common.errors import ConfigError, DataError
from confide.server.harness import RESULTS, _four, evaluate_lm
from confide.server.ship.finished import FinishedRun
from confide.simulations.run import simulate
from confide.tests.tiny import write_csv

pytest.importorskip("lm_eval")
ROWS = [("the film was good", "happy"), ("the film was bad", "sad"), ("this story was gloomy", "sad")]
TASK = """
task: moods
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: ["happy", "sad"]
doc_to_target: a
metric_list: [{{metric: acc}}, {{metric: brier_score}}]
"""


@pytest.fixture
def finished(make_config, gpt2: Path, tmp_path: Path) -> Path:
    path = str(write_csv(tmp_path / "qa.csv", ROWS * 8, ("q", "a")))
    changes = {
        "run": {"rounds": 40},
        "model": {"backbone": str(gpt2), "task": "causal-lm"},
        "data": {"train": path, "test": path, "prompt": "q", "response": "a"},
        "training": {"learning_rate": 0.05},
        "evaluation": {"generate": 0},
    }
    return simulate(resolve(make_config(**changes)))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "moods.jsonl"
    data.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in ROWS), encoding="utf-8")
    (folder / "moods.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    return folder


def test_its_figures_are_those_of_the_likelihoods(finished: Path, tasks: Path) -> None:
    found = evaluate_lm(finished, ["moods"], tasks)
    run = FinishedRun(finished, "causal-lm")
    for when, adapter in (("before", run.model.initial), ("after", run.adapter)):
        run.model.set(adapter)
        right, apart = [], []
        for question, answer in ROWS:
            sums = {}
            for choice in ("happy", "sad"):
                asked = run.tokenizer(question)["input_ids"]
                ids = run.tokenizer(f"{question} {choice}")["input_ids"]
                with torch.no_grad():
                    said = run.model.module(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
                sums[choice] = sum(float(said[at - 1, ids[at]]) for at in range(len(asked), len(ids)))
            right.append(max(sums, key=lambda choice: sums[choice]) == answer)
            held = np.exp(list(sums.values())) / np.exp(list(sums.values())).sum()
            apart.append(np.square(held - np.array([choice == answer for choice in sums])).sum())
        assert found[when]["moods"]["acc"] == pytest.approx(np.mean(right))
        assert found[when]["moods"]["brier_score"] == pytest.approx(np.mean(apart), abs=1e-5)
    assert found["after"]["moods"]["brier_score"] < found["before"]["moods"]["brier_score"] - 0.01
    assert json.loads((finished / RESULTS).read_text()) == found
    assert evaluate_lm(finished, ["moods"], tasks, limit=1)["after"]["moods"].keys() == {"acc", "brier_score"}


@pytest.mark.slow
def test_what_cannot_be_asked_is_one_line(confide, finished: Path, tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"knows no task 'nosuch'; in .*tasks: moods; give names"):
        evaluate_lm(finished, ["nosuch"], tasks)
    with pytest.raises(ConfigError, match="--tasks: no name received"):
        evaluate_lm(finished, [], tasks)
    with pytest.raises(ConfigError, match="--include: no folder"):
        evaluate_lm(finished, ["moods"], tmp_path / "nowhere")
    (tasks / "moods.jsonl").unlink()
    with pytest.raises(DataError, match="lm-eval: "):
        evaluate_lm(finished, ["moods"], tasks)
    assert not (finished / RESULTS).exists()
    code, out, err = confide("evaluate", "lm", finished, "--tasks", "moods", "--include", tasks)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("confide: lm-eval: ")


def test_the_task_that_comes_with_confide(finished: Path) -> None:
    found = evaluate_lm(finished, ["demo_facts"], limit=8)
    assert 0 <= found["after"]["demo_facts"]["acc"] <= 1
    rows = facts("facts/test").to_pylist()
    for place in (0, 1, 6, 47):
        assert _four(rows, place)[place % 4] == rows[place]["text"]
        assert len(set(_four(rows, place))) == 4
