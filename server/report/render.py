"""report.json → report.html: one file that opens offline, its images inside."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import tomli_w
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from ...common.config.run import RunConfig
from ...common.errors import ConfigError
from ...common.json_file import read_object
from ...common.privacy.audit import CANARY_KINDS
from ...common.privacy.mechanism import PrivacyPlan
from ...common.run_folder import own_file
from ...common.whole import write_whole
from ..checkpoint import Checkpoint
from . import audited, drawing, plots, verdict
from .build import SCHEMA, build_report
from .facts import Partition, Report, figures, misfit

PARTITION = "partition.json"
_CONTENTS = "<!--contents-->"
"""where a page has its table of contents"""
_REMOVE = "restore it, or remove it: only a plot is made of it"
Image = tuple[str, str, Figure]
"""of a page: title, name, plot"""


@dataclass(frozen=True)
class _Drawn:
    """A plot as a template puts it into a page."""

    title: str
    svg: str
    wide: bool
    """wider than a telephone: it scrolls in its box"""


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
    """One page, plots inside."""
    counts = report["confusion"]["after"]
    labels = report["model"]["labels"]
    return render(
        "template.html",
        _images(report),
        report=report,
        verdict=verdict.sentences(report),
        audited=audited.verdict(report),
        reconciled=audited.reconciled(report) if report["audit"] else [],
        unit=audited.unit(report["privacy"]) if report["privacy"]["mode"] != "none" else "",
        limits=audited.limits(report),
        differ=audited.differ(report),
        quotes=audited.quotes(report),
        compared=_compared(report),
        confused=plots.most_confused(counts, labels) if counts and len(labels) > plots.MAX_NAMED else [],
        spent=bool(report["rounds"]) and all("epsilon" in row for row in report["rounds"]),
        told=verdict.told,
        measured={when: figures(report[when]) for when in ("before", "after")},
        audit_kinds=plots.AUDIT_KINDS,
        canary_kinds=CANARY_KINDS,
        attacks=plots.ATTACKS,
        shade=_shade,
        configuration=tomli_w.dumps(report["config"]),
        failures=[(row["round"], failure) for row in report["rounds"] for failure in _failures(row)],
    )


def _images(report: Report) -> list[Image]:
    """The plots of what is in the report; a name is an id of the page, and the template puts each beside its facts."""
    images = [("By round", "accuracy", plots.accuracy(report)), ("Compared", "compared-plot", plots.compared(report))]
    privacy = report["privacy"]
    if privacy["mode"] != "none":
        images.append(("Privacy spent", "epsilon", plots.epsilon(privacy, report["config"]["run"]["rounds"])))
    if facts := report["audit"]:
        images.append(("What an attack could measure", "measured", plots.audit(facts, privacy)))
    if facts := report["leakage"]:
        images.append(("Who was in the training data?", "roc", plots.leakage(facts, privacy)))
    if facts := report["robustness"]:
        images.append(("Accuracy under noise", "noise", plots.noise(facts)))
    if facts := report.get("personal"):
        images.append(("Shared head and heads of the sites", "heads", plots.personal(facts)))
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
    return images


def _compared(report: Report) -> list[dict[str, Any]]:
    """Rows of the table of comparisons: name, how, value, low, high, gain in words; of what was not measured, why."""
    main, found, rows = report["after"]["main"], report["baselines"], []
    for name, title in verdict.NAMES.items():
        if (one := found[name]) is None:
            rows.append({"name": title, "missing": found["not_measured"].get(name, "")})
            continue
        better, words, certain = verdict.difference(main, one["gain"])
        gain = f"{'+' if better >= 0 else '−'}{words}{'' if certain else ' (cannot be told from 0)'}"
        low, high = (one["low"], one["high"]) if "low" in one else (min(one["sites"]), max(one["sites"]))
        interval = f"{verdict.told(main, low)} to {verdict.told(main, high)}"
        rows.append(
            {
                "name": title,
                "how": one["how"],
                "value": verdict.told(main, one["value"]),
                "interval": interval if "low" in one else f"sites: {interval}",
                "gain": gain,
            }
        )
    return rows


def render(template: str, images: list[Image], **facts: Any) -> str:
    """A page of this folder's templates, with its table of contents."""
    drawn = {name: _Drawn(title, drawing.svg(plot, name, title), _wide(plot)) for title, name, plot in images}
    page = _templates().get_template(template).render(images=drawn, **facts)
    sections = re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', page)
    items = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in sections)
    return page.replace(_CONTENTS, f'<nav aria-label="Contents"><ul>{items}</ul></nav>', 1)


def _wide(plot: Figure) -> bool:
    return plot.get_size_inches()[0] > drawing.WIDTH


@lru_cache(maxsize=1)
def _templates() -> Environment:
    """Compiled once a process."""
    return Environment(loader=PackageLoader(__package__ or "", "."), autoescape=select_autoescape())


def _shade(scores: list[float], index: int) -> str:
    """The background of a word in a map: green for the class, orange against it, in the page's own shades."""
    most = max((abs(score) for score in scores), default=0.0)
    strength = abs(scores[index]) / most if most else 0.0
    return f"rgb(var(--{'for' if scores[index] > 0 else 'against'}) / {0.75 * strength:.2f})"


def _failures(row: dict[str, Any]) -> list[dict[str, str]]:
    """Of the sites, and of the round as a whole."""
    void = [{"site": "all", "reason": row["void"]}] if "void" in row else []
    return [*row["failed"], *void]
