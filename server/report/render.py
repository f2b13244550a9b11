"""report.json → report.html: one file that opens offline, its images inside."""

import base64
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import tomli_w
from jinja2 import Environment, PackageLoader, select_autoescape

from ...common.config.run import RunConfig
from ...common.errors import ConfigError
from ...common.json_file import read_object
from ...common.privacy.audit import CANARY_KINDS
from ...common.privacy.mechanism import PrivacyPlan
from ...common.run_folder import own_file
from ...common.whole import write_whole
from ..checkpoint import Checkpoint
from . import plots
from .build import SCHEMA, build_report
from .facts import Partition, Report, figures, misfit

PARTITION = "partition.json"
_REMOVE = "restore it, or remove it: only a plot is made of it"


def write_report(
    folder: Path,
    config: RunConfig,
    count: tuple[int, int],
    plan: PrivacyPlan | None,
    state: Checkpoint,
    after: dict[str, Any],
    found: dict[str, dict[str, Any] | None],
) -> Report:
    """Writes report.json and report.html and returns the facts. found: as in `build_report`."""
    partition_file = folder / PARTITION
    partition = None
    if partition_file.is_file():
        partition = cast(Partition, read_object(partition_file, _REMOVE))
        if (wrong := misfit(partition, Partition)) is not None:
            raise ConfigError(f"{partition_file}: {wrong}; {_REMOVE}")
    report = build_report(config, count, plan, state, after, partition, found)
    _save(folder, report)
    return report


def read_report(folder: Path) -> dict[str, Any]:
    """The facts of a finished run. Raises ConfigError when there is none."""
    path = folder / "report.json"
    try:
        report = json.loads(own_file(path).read_text(encoding="utf-8"), parse_constant=_no_number)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{folder}: no report.json there; give the folder of a finished run") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: not JSON; the run's report was changed; restore it, or run again") from None
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise ConfigError(f"{path}: not a report of this version of confide (schema {SCHEMA})")
    if (wrong := misfit(report, Report)) is not None:
        raise ConfigError(f"{path}: {wrong}; the run's report was changed; restore it, or give the folder of one run")
    return {**dict.fromkeys(Report.__annotations__), **report}


def _no_number(text: str) -> None:
    """NaN and infinities, which JSON has not."""
    raise ValueError(text)


def amend_report(folder: Path, part: str, facts: dict[str, Any] | list[Any]) -> None:
    """Sets one part of a finished run's report, and draws report.html anew. Raises ConfigError."""
    report = read_report(folder)
    _save(folder, cast(Report, {**report, part: facts}))


def _save(folder: Path, report: Report) -> None:
    write_pair(folder, report, render_html(report))


def write_pair(folder: Path, report: Mapping[str, Any], html: str) -> None:
    """report.json and report.html, each whole or not at all."""
    write_whole(folder / "report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    write_whole(folder / "report.html", html)


def render_html(report: Report) -> str:
    """One page, images inside."""
    images = [("Accuracy", "accuracy", plots.accuracy(report))]
    privacy = report["privacy"]
    if privacy["mode"] != "none":
        images.append(("Privacy spent", "epsilon", plots.epsilon(privacy, report["config"]["run"]["rounds"])))
    if facts := report["audit"]:
        images.append(("What an attack could measure", "audit", plots.audit(facts, privacy)))
    if facts := report["leakage"]:
        images.append(("Who was in the training data?", "leakage", plots.leakage(facts, privacy)))
    if facts := report["robustness"]:
        images.append(("Accuracy under noise", "noise", plots.noise(facts)))
    if facts := report.get("personal"):
        images.append(("Shared head and heads of the sites", "personal", plots.personal(facts)))
    if facts := report.get("compression"):
        images.append(("Variants of the model", "variants", plots.variants(facts)))
    if (facts := report.get("explanation")) and facts["curves"]:
        images.append(("Are the maps faithful?", "faithfulness", plots.faithfulness(facts)))
    images.append(("Time and traffic", "traffic", plots.traffic(report)))
    if report["partition"]:
        images.append(("Who holds what (simulated)", "partition", plots.partition(report["partition"])))
    for when in ("before", "after"):
        if counts := report["confusion"][when]:
            drawn = plots.confusion(counts, report["model"]["labels"])
            images.append((f"Confusion {when}", f"confusion-{when}", drawn))
    return render(
        "template.html",
        images,
        report=report,
        measured={when: figures(report[when]) for when in ("before", "after")},
        audit_kinds=plots.AUDIT_KINDS,
        canary_kinds=CANARY_KINDS,
        attacks=plots.ATTACKS,
        shade=_shade,
        configuration=tomli_w.dumps(report["config"]),
        failures=[(row["round"], failure) for row in report["rounds"] for failure in _failures(row)],
    )


def render(template: str, images: list[tuple[str, str, bytes]], **facts: Any) -> str:
    """A page of this folder's templates. images: title, name and PNG of each."""
    drawn = [(title, name, base64.b64encode(png).decode()) for title, name, png in images]
    return _templates().get_template(template).render(images=drawn, **facts)


@lru_cache(maxsize=1)
def _templates() -> Environment:
    """Compiled once a process."""
    return Environment(loader=PackageLoader(__package__ or "", "."), autoescape=select_autoescape())


def _shade(scores: list[float], index: int) -> str:
    """The background of a word in a map: green for the class, orange against it."""
    most = max((abs(score) for score in scores), default=0.0)
    strength = abs(scores[index]) / most if most else 0.0
    return f"rgba({'46, 160, 100' if scores[index] > 0 else '234, 110, 60'}, {0.75 * strength:.2f})"


def _failures(row: dict[str, Any]) -> list[dict[str, str]]:
    """Of the sites, and of the round as a whole."""
    void = [{"site": "all", "reason": row["void"]}] if "void" in row else []
    return [*row["failed"], *void]
