"""A report that somebody changed is told by the part that does not fit."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from confide.common.errors import ConfigError
from confide.server.report import read_report
from confide.server.report.facts import Report, misfit

PRIVACY = {
    **dict.fromkeys(("unit", "adversary", "sampling", "delta", "epsilon_planned", "epsilon_spent", "noise_multiplier")),
    "mode": "none",
    "steps": 3,
    "statement": "none",
    "sites": [{"site": "site-1", "rounds": 1, "steps": 1}],
}
MAIN = {"name": "accuracy", "key": "accuracy", "higher": True, "value": 0.5, "low": 0, "high": 1, "records": 2}
REPORT: dict[str, Any] = {
    "schema": 1,
    "name": "tiny",
    "finished": "2026",
    "before": {"accuracy": 0.5, "main": {**MAIN}},
    "after": {"accuracy": 1, "main": MAIN},
    "baselines": {
        **dict.fromkeys(("zero_shot", "alone", "pooled", "pooled_private")),
        "majority": {"value": 0.5, "low": 0.4, "high": 0.6, "how": "", "gain": {"value": 0.5, "low": 0.1, "high": 0.6}},
        "not_measured": {"alone": "not asked for"},
    },
    "privacy": PRIVACY,
    "rounds": [{"round": 1}],
    "model": {
        "backbone": "b",
        "task": "t",
        "pooling": "mean",
        "trainable": 1,
        "total": 2,
        "labels": ["a"],
        "init_from": None,
    },
    "confusion": {"before": None, "after": [[1, 0], [0, 1]]},
    "generations": [],
    "environment": {},
    "config": {},
}


def test_a_report_as_confide_writes_it_fits() -> None:
    assert misfit(REPORT, Report) is None
    assert misfit({**REPORT, "partition": {"labels": ["a"], "counts": [[1]]}, "best_round": 2}, Report) is None


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("privacy", None, "'privacy'"),
        ("privacy.mode", "nosuch", "'privacy.mode'"),
        ("privacy.steps", True, "'privacy."),  # of two forms, one of them is named
        ("privacy.sites", [{"site": 3, "rounds": 1, "steps": 1}], "'privacy."),
        ("model.labels", [1], "'model.labels'"),
        ("rounds", {}, "'rounds'"),
        ("confusion", {"before": "x"}, "'confusion.before'"),
        ("partition", {"labels": []}, "'partition.counts'"),
        ("name", 3, "'name'"),
        ("after.main.low", "0", "'after.main.low'"),
        ("baselines.majority.gain", 0.5, "'baselines.majority"),
    ],
)
def test_what_does_not_fit_is_named(key: str, value: object, told: str) -> None:
    report = copy.deepcopy(REPORT)
    *parts, last = key.split(".")
    place = report
    for part in parts:
        place = place[part]
    place[last] = value
    assert (misfit(report, Report) or "").startswith(told)


def test_a_report_without_what_nobody_asked_for_reads_as_one_with_nothing_there(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(REPORT))
    assert read_report(tmp_path)["compression"] is None
    for text in ("{", "[" * 100_000, json.dumps(REPORT).replace("0.5", "NaN"), '{"schema": 1, "kind": "sweep"}', "[]"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"report\.json: ") as caught:
            read_report(tmp_path)
        assert "\n" not in str(caught.value)
