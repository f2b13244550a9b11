"""The plots of a report; every function takes facts of report.json and draws one figure (see `drawing`)."""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...common.privacy.audit import largest_rate
from ...common.privacy.mechanism import PrivacyPlan
from .drawing import (
    ACCENT,
    INK,
    LINE,
    MARKERS,
    ON_LIGHT,
    SECOND,
    SERIES,
    SOFT,
    WIDTH,
    figure,
    legend,
    line_of,
    named,
    scale,
)
from .facts import NoPrivacy, Partition, Privacy, Report
from .verdict import NAMES, SHARES

MAX_NAMED = 24
"""classes of a confusion matrix whose names can be read beside it"""
_MAX_BARS = 12
"""classes that a plot tells apart by shades, or gives numbers"""
_SITES_SHOWN = 30


def accuracy(report: Report) -> Figure:
    """The main metric per round on the validation rows, before and after on the test set with its interval."""
    drawn, axes = figure()
    rounds, main = [row["round"] for row in report["rounds"]], report["after"]["main"]
    looked_at = "validation" if report["config"]["data"].get("validation") else "rows of the test set"
    axes.plot(rounds, [row[main["key"]] for row in report["rounds"]], color=ACCENT, label=f"each round ({looked_at})")
    places = [(0, report["before"]["main"]), (rounds[-1] if rounds else 1, main)]
    values = [found["value"] for _, found in places]
    spread = [[found["value"] - found["low"], found["high"] - found["value"]] for _, found in places]
    ends, errors = [place for place, _ in places], np.maximum(np.transpose(spread), 0)
    axes.errorbar(ends, values, yerr=errors, fmt="o", capsize=3, color=SECOND, label="before and after (test)")
    axes.set(xlabel="round", ylabel=main["name"])
    if main["key"] in SHARES:
        axes.set(ylim=(0, 1))
    legend(axes, loc="best")
    return drawn


def compared(report: Report) -> Figure:
    """The main metric of the run and of what it is compared with, with 95 % intervals; of sites alone each one's, and
    their mean."""
    main = report["after"]["main"]
    rows = [(NAMES[name], found) for name in NAMES if (found := report["baselines"][name]) is not None]
    rows.append(("this run", main))
    drawn, axes = figure(WIDTH, 1.0 + 0.36 * len(rows))
    for place, (name, found) in enumerate(rows):
        color = ACCENT if name == "this run" else INK
        if "sites" in found:
            axes.plot(found["sites"], [place] * len(found["sites"]), "|", color=SOFT, markersize=11)
        else:
            axes.hlines(place, found["low"], found["high"], color=color, linewidth=1.6)
        axes.plot([found["value"]], [place], "o", color=color)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set(xlabel=f"{main['name']} on the public test set" + ("" if main["higher"] else " (less is better)"))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    return drawn


def epsilon(privacy: Privacy, rounds: int) -> Figure:
    """ε spent after each round by the site that spent most, and each site's end point. rounds: that are declared."""
    drawn, axes = figure()
    by_round, steps_a_round = privacy["epsilon_by_round"], privacy["steps"] // rounds
    axes.plot(np.arange(len(by_round)), by_round, color=ACCENT, label="a site that takes part in every round")
    for index, site in enumerate(privacy["sites"]):
        label = "sites at the end" if index == 0 else None
        axes.plot([site["steps"] / steps_a_round], [site["epsilon_spent"]], "o", color=SECOND, label=label)
    planned = privacy["epsilon_planned"]
    axes.axhline(planned, color=INK, linestyle="--", linewidth=0.9, label=f"planned: ε = {planned:g}")
    axes.set(xlabel="rounds", ylabel=f"ε at δ = {privacy['delta']:g}", ylim=(0, planned * 1.1))
    legend(axes, loc="lower right")
    return drawn


def epsilon_over_rounds(plan: PrivacyPlan, rounds: int, steps_a_round: int, others: dict[str, PrivacyPlan]) -> Figure:
    """ε against rounds, to twice the declared number, for a run's noise and for other noise.

    others: plans by the name that the legend gives them.
    """
    drawn, axes = figure()
    counts = np.arange(2 * rounds + 1)
    styles = {f"this run, z = {plan.noise_multiplier:.3g}": (plan, ACCENT, "-")}
    styles |= {name: (other, SECOND, style) for (name, other), style in zip(others.items(), ("--", ":"), strict=False)}
    for name, (each, color, style) in styles.items():
        values = [each.epsilon(int(count) * steps_a_round, 0) for count in counts]
        axes.plot(counts, values, style, color=color, label=name)
    axes.plot([rounds], [plan.epsilon(rounds * steps_a_round, 0)], "o", color=ACCENT)
    axes.axvline(rounds, color=SOFT, linewidth=0.9)
    axes.set(xlabel="rounds", ylabel=f"ε at δ = {plan.delta:g}", ylim=(0, None))
    legend(axes, loc="upper left")
    return drawn


AUDIT_KINDS = {
    "gradient": "released updates",
    "clipped_records": "released updates, through the clip",
    "records": "final model",
}
"""what an audit looked at, by the name of its part in the report"""


def audit(found: dict[str, Any], privacy: Privacy | NoPrivacy) -> Figure:
    """ε planned, spent, measured, the most that could have been measured, and measured without noise."""
    claims = [("planned", privacy["epsilon_planned"], INK), ("spent", privacy["epsilon_spent"], INK)]
    bars = claims if found["noise"] else []
    for kind, where in AUDIT_KINDS.items():
        if kind in found:
            bars.append((f"{where}: lower bound", found[kind]["epsilon_steinke"], ACCENT))
            bars.append((f"{where}: lower bound, Gaussian", found[kind]["epsilon_gdp"], ACCENT))
            bars.append((f"{where}: ceiling", found[kind]["ceiling_steinke"], SOFT))
            if kind in found.get("control", {}):
                bars.append((f"{where}: without noise", found["control"][kind]["epsilon_steinke"], SECOND))
    drawn, axes = figure(WIDTH, 0.9 + 0.32 * len(bars))
    places = np.arange(len(bars))[::-1]
    axes.barh(places, [value for _, value, _ in bars], color=[color for _, _, color in bars], alpha=0.75, height=0.65)
    for place, (_, value, _) in zip(places, bars, strict=True):
        axes.annotate(
            f"{value:.2f}", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK
        )
    axes.set_yticks(places, [name for name, _, _ in bars])
    axes.set(xlabel=f"ε at δ = {found['delta']:g}")
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    return drawn


ATTACKS = {"loss": "loss threshold", "lira": "likelihood ratio"}
"""membership attacks by their name in the report"""


def leakage(facts: dict[str, Any], privacy: Privacy | NoPrivacy) -> Figure:
    """ROC of the membership attacks on logarithmic axes: what counts is the left edge."""
    found = facts["membership"]
    drawn, axes = figure(5.4, 4.4)
    least = 1 / max(found["others"], found["members"])
    for (name, attack), color in zip(found["attacks"].items(), (SECOND, ACCENT), strict=True):
        false, true = (np.maximum(np.asarray(values), least / 2) for values in attack["curve"])
        axes.plot(false, true, color=color, label=f"{ATTACKS[name]}, AUC {attack['auc']:.3f}")
    line = np.geomspace(least / 2, 1, 50)
    axes.plot(line, line, color=INK, linestyle=":", linewidth=0.9, label="guessing")
    if found["bound"] and privacy["mode"] != "none":
        limit = [largest_rate(privacy["epsilon_spent"], privacy["delta"], rate) for rate in line]
        axes.plot(line, limit, color=INK, linestyle="--", linewidth=0.9, label="no attack can do better")
    axes.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1.05))
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    legend(axes, loc="lower right")
    return drawn


def traffic(report: Report) -> Figure:
    """Seconds and megabytes of each round."""
    drawn, axes = figure()
    rounds = [row["round"] for row in report["rounds"]]
    axes.bar(rounds, [row["seconds"] for row in report["rounds"]], color=ACCENT, alpha=0.55, label="seconds")
    axes.set(xlabel="round", ylabel="seconds")
    bytes_axis = axes.twinx()
    bytes_axis.spines[["top"]].set_visible(False)
    for key, style, label in (("bytes_up", "-", "MB up, all sites"), ("bytes_down", "--", "MB down, all sites")):
        megabytes = [row[key] / 1e6 for row in report["rounds"]]
        bytes_axis.plot(rounds, megabytes, style, color=SECOND, linewidth=1.2, label=label)
    bytes_axis.set(ylabel="MB")
    bytes_axis.set_ylim(bottom=0)
    bytes_axis.tick_params(colors=INK, labelsize=9)
    handles = [*axes.get_legend_handles_labels()[0], *bytes_axis.get_legend_handles_labels()[0]]
    legend(axes, handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return drawn


def partition(facts: Partition) -> Figure:
    """Label × client: how many records of each class each simulated site holds."""
    counts = np.asarray(facts["counts"])  # (clients, classes)
    if counts.shape[1] > _MAX_BARS:
        return _partition_map(counts)
    drawn, axes = figure(WIDTH, 3.4)
    bottom = np.zeros(len(counts))
    shades = mpl.colormaps["cividis"](np.linspace(0, 1, counts.shape[1]))  # read alike by the colour-blind
    for label, color in enumerate(shades):
        name = named(facts["labels"][label])
        sites = range(1, len(counts) + 1)
        axes.bar(sites, counts[:, label], bottom=bottom, color=color, edgecolor=LINE, linewidth=0.6, label=name)
        bottom += counts[:, label]
    axes.set(xlabel="site", ylabel="records")
    legend(axes, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawn


def _partition_map(counts: np.ndarray) -> Figure:
    """Of many classes: a cell a site and class. counts: (clients, classes)."""
    drawn, axes = figure(WIDTH, 4.4)
    axes.grid(visible=False)
    places = (0.5, len(counts) + 0.5, 0.5, counts.shape[1] + 0.5)
    image = axes.imshow(counts.T, cmap="Blues", vmin=0, aspect="auto", origin="lower", extent=places)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="site", ylabel="class, by its place in the list")
    scale(drawn, image, "records")
    return drawn


def confusion(matrix: list[list[int]], labels: list[str]) -> Figure:
    """Rows: true class, normalised; shades of one hue, and numbers and names where they can be read."""
    counts = np.asarray(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    drawn, axes = figure(WIDTH, 4.2 if len(labels) <= _MAX_BARS else 5.0)
    axes.grid(visible=False)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="predicted", ylabel="true")
    if len(labels) <= MAX_NAMED:
        names, size = [named(label) for label in labels], 9 if len(labels) <= _MAX_BARS else 7.5
        axes.set_xticks(range(len(labels)), names, rotation=45, ha="right", fontsize=size)
        axes.set_yticks(range(len(labels)), names, fontsize=size)
    else:
        axes.set(xlabel="predicted class, by its place in the list", ylabel="true class, by its place in the list")
    if len(labels) <= _MAX_BARS:
        for row, column in np.ndindex(counts.shape):
            color = "white" if shares[row, column] > 0.5 else ON_LIGHT
            axes.text(column, row, int(counts[row, column]), ha="center", va="center", fontsize=8, color=color)
    scale(drawn, image, "share of the true class")
    return drawn


def most_confused(matrix: list[list[int]], labels: list[str], most: int = 20) -> list[dict[str, Any]]:
    """The pairs of classes that were taken for one another most often: true, predicted, count, share of the true."""
    counts = np.asarray(matrix)
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    found = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:most]:
        row, column = np.unravel_index(place, wrong.shape)
        if count := int(wrong[row, column]):
            share = count / int(counts[row].sum())
            found.append({"true": labels[row], "predicted": labels[column], "count": count, "share": share})
    return found


def noise(facts: dict[str, Any]) -> Figure:
    """Accuracy against the share of letters or words that are touched, a line a kind of noise."""
    drawn, axes = figure(WIDTH, 4.0)
    for index, name in enumerate(dict.fromkeys(row["name"] for row in facts["perturbations"])):
        rows = [row for row in facts["perturbations"] if row["name"] == name]
        axes.errorbar(
            [0, *(100 * row["strength"] for row in rows)],
            [facts["clean"], *(row["accuracy"] for row in rows)],
            yerr=[0, *(row["spread"] for row in rows)],
            **line_of(index),
            label=name,
            linewidth=2.2 if index == 0 else 1.1,
            capsize=2,
        )
    axes.set(xlabel="touched, %", ylabel="accuracy", ylim=(0, 1))
    legend(axes, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawn


def personal(facts: dict[str, Any]) -> Figure:
    """Each site's accuracy with the shared head and with its own, the site that gains most on top."""
    rows = sorted(facts["sites"], key=lambda row: row["personal"] - row["shared"])
    if len(rows) > _SITES_SHOWN:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, _SITES_SHOWN).round().astype(int)]
    drawn, axes = figure(WIDTH, 1.4 + 0.22 * len(rows))
    places = np.arange(len(rows))
    shared, own = ([row[key] for row in rows] for key in ("shared", "personal"))
    axes.xaxis.set_major_locator(MaxNLocator())
    axes.hlines(places, shared, own, color=SOFT, linewidth=1.5)
    axes.scatter(shared, places, color=SOFT, s=26, label="shared head")
    axes.scatter(own, places, color=ACCENT, s=26, label="its own")
    axes.set_yticks(places, [named(row["name"]) for row in rows])
    axes.set(xlabel="accuracy on the public test set, in the site's mix of classes")
    legend(axes, loc="best")
    return drawn


def variants(facts: dict[str, Any]) -> Figure:
    """What is measured against the median time of one row, a bubble a variant, its area the file's size."""
    drawn, axes = figure(WIDTH, 4.0)
    for index, row in enumerate(facts["variants"]):
        best = row["name"] == facts["recommended"]
        axes.scatter(
            row["ms_1"],
            row["accuracy"],
            s=20 + 3 * row["mb"],
            color=SERIES[index % len(SERIES)],
            marker=MARKERS[index % len(MARKERS)],
            edgecolor=INK if best else "none",
            label=f"{row['name']} ({row['mb']:.0f} MB){', recommended' if best else ''}",
        )
    axes.set(xlabel="median of one row, ms", ylabel=facts["measure"])
    axes.set_xlim(left=0)
    axes.margins(y=0.25)
    for handle in legend(axes, loc="best").legend_handles:
        handle.set_sizes([30])
    return drawn


def faithfulness(facts: dict[str, Any]) -> Figure:
    """Probability of the answer as words go, and as they come: by score and in random order."""
    drawn, axes = figure(WIDTH, 3.6)
    shares = np.linspace(0, 100, len(facts["curves"]["deletion"]))
    for what, color in (("deletion", SECOND), ("insertion", ACCENT)):
        axes.plot(shares, facts["curves"][what], color=color, label=f"{what}, by score")
        axes.plot(shares, facts["curves"][f"{what}_random"], color=color, linestyle=":", label=f"{what}, random order")
    parts = "squares" if facts.get("images") else "words"
    axes.set(xlabel=f"{parts} taken away or put in, %", ylabel=facts["measure"], xlim=(0, 100))
    if facts["measure"] == "probability":
        axes.set(ylim=(0, 1))
    legend(axes, loc="best")
    return drawn
