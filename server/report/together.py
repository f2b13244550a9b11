"""Finished runs side by side: main figure, ε, cost, and the keys of the configuration in which they differ."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.errors import ConfigError
from ...common.whole import write_whole
from . import plots_many
from .render import read_report, render
from .verdict import distance, told

PAGE, TABLE = "compare.html", "compare.csv"
_OWN = ("run.name", "run.output", "run.id", "engine.ledger")
"""keys in which any two runs differ, and which change no figure"""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_COLUMNS = ("epsilon", "delta", "mode", "unit", "rounds", "bytes_up", "bytes_down", "seconds")


def side_by_side(folders: Sequence[Path]) -> dict[str, Any]:
    """The facts of finished runs, in the order in which they are given; the first is what others differ from.

    Returns `rows` (name, folder, main, epsilon, delta, mode, unit, rounds, bytes_up, bytes_down, seconds, difference),
    and `keys`: of the configuration, where the runs differ, the value of each run by key.
    Raises ConfigError for fewer than two runs, one that is given twice, and runs with different main figures.
    """
    if len(folders) < 2:
        raise ConfigError(f"compare: {len(folders)} run received; give the folders of two or more finished runs")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("compare: a folder was received twice; give each run once")
    reports = [read_report(folder) for folder in folders]
    first = reports[0]
    for folder, report in zip(folders, reports, strict=True):
        if report["after"]["main"]["key"] != first["after"]["main"]["key"]:
            raise ConfigError(
                f"{folder}: its main figure is {report['after']['main']['name']}, and that of {folders[0]} is "
                f"{first['after']['main']['name']}; give runs that are judged by the same figure"
            )
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    rows = [_row(name, folder, report, first) for name, folder, report in zip(names, folders, reports, strict=True)]
    return {"rows": rows, "keys": _differing([_flat(report["config"]) for report in reports])}


def _row(name: str, folder: Path, report: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    rounds, privacy = report["rounds"], report["privacy"]
    return {
        "name": name,
        "folder": str(folder),
        "main": report["after"]["main"],
        "epsilon": privacy["epsilon_spent"],
        "delta": privacy["delta"],
        "mode": privacy["mode"],
        "unit": None if privacy["unit"] is None else privacy["unit"].split(":")[0],
        "rounds": len(rounds),
        "bytes_up": sum(row["bytes_up"] for row in rounds),
        "bytes_down": sum(row["bytes_down"] for row in rounds),
        "seconds": sum(row["seconds"] for row in rounds),
        "difference": None if report is first else _difference(report, first),
    }


def _difference(report: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, float] | None:
    """Of the main figures, with the interval of two independent draws of test records, which is too wide where the
    records are the same; None where the test sets are not."""
    one, other = (each["after"]["main"] for each in (report, first))
    if one["records"] != other["records"] or report["config"]["data"]["test"] != first["config"]["data"]["test"]:
        return None
    value = one["value"] - other["value"]
    half = math.hypot(*((each["high"] - each["low"]) / 2 for each in (one, other)))
    return {"value": value, "low": value - half, "high": value + half}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def _differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for config in configs for key in config if key not in _OWN)
    found = {key: [config.get(key) for config in configs] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def in_words(main: Mapping[str, Any], difference: Mapping[str, float] | None) -> str:
    """A difference from the first run, as people say it."""
    if difference is None:
        return ""
    value = ("-" if difference["value"] < 0 else "+") + distance(main, difference)
    return value + (" (cannot be told from 0)" if difference["low"] <= 0 <= difference["high"] else "")


def write(out: Path, facts: dict[str, Any]) -> None:
    """The page and the CSV of `side_by_side`, into a folder that may be there."""
    out.mkdir(parents=True, exist_ok=True)
    main = facts["rows"][0]["main"]
    plot = (f"{main['name']} against ε", "against-epsilon", plots_many.against_epsilon(facts["rows"]))
    report = {"name": "Runs side by side", **facts}
    write_whole(out / PAGE, render("runs.html", [plot], report=report, told=told, in_words=in_words))
    write_whole(out / TABLE, _csv(facts))


def _csv(facts: Mapping[str, Any]) -> str:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["run", "folder", "metric", "value", "low", "high", *_COLUMNS, *facts["keys"]])
    for i, row in enumerate(facts["rows"]):
        figures = [row["main"][key] for key in ("key", "value", "low", "high")]
        more = [row[key] for key in _COLUMNS] + [values[i] for values in facts["keys"].values()]
        lines.writerow([as_cell(value) for value in (row["name"], row["folder"], *figures, *more)])
    return text.getvalue()


def as_cell(value: Any) -> Any:
    """What a spreadsheet shows: a text that it would take for a formula begins with an apostrophe."""
    text = value if value is None or isinstance(value, int | float) else str(value)
    return f"'{text}" if isinstance(text, str) and text.startswith(_FORMULA) else text
