"""report.json → report.html: one file that opens offline, its pictures inside."""

import base64
import json
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import Environment, PackageLoader, select_autoescape

from ...common.config import RunConfig
from ...common.mechanism import PrivacyPlan
from ..checkpoint import Checkpoint
from . import plots
from .build import build_report

PARTITION = "partition.json"


def write_report(
    folder: Path,
    config: RunConfig,
    count: tuple[int, int],
    plan: PrivacyPlan | None,
    state: Checkpoint,
    after: dict[str, Any],
    audit: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes report.json and report.html and returns the facts."""
    partition_file = folder / PARTITION
    partition = json.loads(partition_file.read_text(encoding="utf-8")) if partition_file.is_file() else None
    report = build_report(config, count, plan, state, after, partition, audit)
    steps = config.training.local_steps
    curve = [plan.epsilon(k * steps) for k in range(config.run.rounds + 1)] if plan else None
    _replace(folder / "report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    _replace(folder / "report.html", render_html(report, curve))
    return report


def render_html(report: dict[str, Any], epsilon_curve: list[float] | None) -> str:
    """epsilon_curve: ε after 0 … R rounds; None without privacy."""
    pictures = [("Accuracy", "accuracy", plots.accuracy(report))]
    if epsilon_curve is not None:
        pictures.append(("Privacy spent", "epsilon", plots.epsilon(report, epsilon_curve)))
    pictures.append(("Time and traffic", "traffic", plots.traffic(report)))
    if report["partition"]:
        pictures.append(("Who holds what (simulated)", "partition", plots.partition(report["partition"])))
    for when in ("before", "after"):
        if report["confusion"][when]:
            drawn = plots.confusion(report["confusion"][when], report["model"]["labels"])
            pictures.append((f"Confusion {when}", f"confusion-{when}", drawn))
    environment = Environment(loader=PackageLoader(__package__ or "", "."), autoescape=select_autoescape())
    return environment.get_template("template.html").render(
        report=report,
        pictures=[(title, name, base64.b64encode(png).decode()) for title, name, png in pictures],
        configuration=tomli_w.dumps(report["config"]),
        failures=[(row["round"], failure) for row in report["rounds"] for failure in row["failed"]],
    )


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
