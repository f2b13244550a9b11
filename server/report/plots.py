"""The plots of a report, as PNG bytes; every function takes facts of report.json and draws one image."""

import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...common.privacy.audit import largest_rate
from ...common.privacy.mechanism import PrivacyPlan
from .facts import NoPrivacy, Partition, Privacy, Report
from .verdict import NAMES, SHARES

_INK, _ACCENT, _SECOND, _SOFT = "#1f2933", "#0b6e99", "#c2410c", "#9aa5b1"
_MAX_TICKS = 24
_NAME = 40
"""characters of a class that a plot shows"""
_SITES_SHOWN = 30


def _figure(width: float = 6.4, height: float = 3.4) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def accuracy(report: Report) -> bytes:
    """The main metric per round on the validation rows, before and after on the test set with its interval."""
    figure, axes = _figure()
    rounds, main = [row["round"] for row in report["rounds"]], report["after"]["main"]
    looked_at = "validation" if report["config"]["data"].get("validation") else "rows of the test set"
    axes.plot(rounds, [row[main["key"]] for row in report["rounds"]], color=_ACCENT, label=f"each round ({looked_at})")
    places = [(0, report["before"]["main"]), (rounds[-1] if rounds else 1, main)]
    values = [found["value"] for _, found in places]
    spread = [[found["value"] - found["low"], found["high"] - found["value"]] for _, found in places]
    ends, errors = [place for place, _ in places], np.maximum(np.transpose(spread), 0)
    axes.errorbar(ends, values, yerr=errors, fmt="o", capsize=3, color=_SECOND, label="before and after (test)")
    axes.set(xlabel="round", ylabel=main["name"])
    if main["key"] in SHARES:
        axes.set(ylim=(0, 1))
    axes.legend(fontsize=8, frameon=False, loc="best")
    return _png(figure)


def compared(report: Report) -> bytes:
    """The main metric of the run and of what it is compared with, with 95 % intervals; of sites alone each one's, and
    their mean."""
    main = report["after"]["main"]
    rows = [(NAMES[name], found) for name in NAMES if (found := report["baselines"][name]) is not None]
    rows.append(("this run", main))
    figure, axes = _figure(6.4, 1.0 + 0.36 * len(rows))
    for place, (name, found) in enumerate(rows):
        color = _ACCENT if name == "this run" else _INK
        if "sites" in found:
            axes.plot(found["sites"], [place] * len(found["sites"]), "|", color=_SOFT, markersize=11)
        else:
            axes.hlines(place, found["low"], found["high"], color=color, linewidth=1.6)
        axes.plot([found["value"]], [place], "o", color=color)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.xaxis.set_major_locator(MaxNLocator())
    axes.set(xlabel=f"{main['name']} on the public test set" + ("" if main["higher"] else " (less is better)"))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    return _png(figure)


def epsilon(privacy: Privacy, rounds: int) -> bytes:
    """ε spent after each round by the site that spent most, and each site's end point. rounds: that are declared."""
    figure, axes = _figure()
    by_round, steps_a_round = privacy["epsilon_by_round"], privacy["steps"] // rounds
    axes.plot(np.arange(len(by_round)), by_round, color=_ACCENT, label="a site that takes part in every round")
    for index, site in enumerate(privacy["sites"]):
        label = "sites at the end" if index == 0 else None
        axes.plot([site["steps"] / steps_a_round], [site["epsilon_spent"]], "o", color=_SECOND, label=label)
    planned = privacy["epsilon_planned"]
    axes.axhline(planned, color=_INK, linestyle="--", linewidth=0.9, label=f"planned: ε = {planned:g}")
    axes.set(xlabel="rounds", ylabel=f"ε at δ = {privacy['delta']:g}", ylim=(0, planned * 1.1))
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return _png(figure)


def epsilon_over_rounds(plan: PrivacyPlan, rounds: int, steps_a_round: int, others: dict[str, PrivacyPlan]) -> bytes:
    """ε against rounds, to twice the declared number, for a run's noise and for other noise.

    others: plans by the name that the legend gives them.
    """
    figure, axes = _figure()
    counts = np.arange(2 * rounds + 1)
    styles = {f"this run, z = {plan.noise_multiplier:.3g}": (plan, _ACCENT, "-")}
    styles |= {name: (other, _SECOND, style) for (name, other), style in zip(others.items(), ("--", ":"), strict=False)}
    for name, (each, color, style) in styles.items():
        values = [each.epsilon(int(count) * steps_a_round) for count in counts]
        axes.plot(counts, values, style, color=color, label=name)
    axes.plot([rounds], [plan.epsilon(rounds * steps_a_round)], "o", color=_ACCENT)
    axes.axvline(rounds, color=_SOFT, linewidth=0.9)
    axes.set(xlabel="rounds", ylabel=f"ε at δ = {plan.delta:g}", ylim=(0, None))
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return _png(figure)


AUDIT_KINDS = {
    "gradient": "released updates",
    "clipped_records": "released updates, through the clip",
    "records": "final model",
}
"""what an audit looked at, by the name of its part in the report"""


def audit(found: dict[str, Any], privacy: Privacy | NoPrivacy) -> bytes:
    """ε planned, spent, measured, the most that could have been measured, and measured without noise."""
    claims = [("planned", privacy["epsilon_planned"], _INK), ("spent", privacy["epsilon_spent"], _INK)]
    bars = claims if found["noise"] else []
    for kind, where in AUDIT_KINDS.items():
        if kind in found:
            bars.append((f"{where}: lower bound", found[kind]["epsilon_steinke"], _ACCENT))
            bars.append((f"{where}: lower bound, Gaussian", found[kind]["epsilon_gdp"], _ACCENT))
            bars.append((f"{where}: ceiling", found[kind]["ceiling_steinke"], _SOFT))
            if kind in found.get("control", {}):
                bars.append((f"{where}: without noise", found["control"][kind]["epsilon_steinke"], _SECOND))
    figure, axes = _figure(6.4, 0.9 + 0.32 * len(bars))
    places = np.arange(len(bars))[::-1]
    axes.barh(places, [value for _, value, _ in bars], color=[color for _, _, color in bars], alpha=0.75, height=0.65)
    for place, (_, value, _) in zip(places, bars, strict=True):
        axes.annotate(f"{value:.2f}", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(places, [name for name, _, _ in bars])
    axes.set(xlabel=f"ε at δ = {found['delta']:g}")
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    return _png(figure)


ATTACKS = {"loss": "loss threshold", "lira": "likelihood ratio"}
"""membership attacks by their name in the report"""


def leakage(facts: dict[str, Any], privacy: Privacy | NoPrivacy) -> bytes:
    """ROC of the membership attacks on logarithmic axes: what counts is the left edge."""
    found = facts["membership"]
    figure, axes = _figure(5.4, 4.4)
    least = 1 / max(found["others"], found["members"])
    for (name, attack), color in zip(found["attacks"].items(), (_SECOND, _ACCENT), strict=True):
        false, true = (np.maximum(np.asarray(values), least / 2) for values in attack["curve"])
        axes.plot(false, true, color=color, label=f"{ATTACKS[name]}, AUC {attack['auc']:.3f}")
    line = np.geomspace(least / 2, 1, 50)
    axes.plot(line, line, color=_INK, linestyle=":", linewidth=0.9, label="guessing")
    if found["bound"] and privacy["mode"] != "none":
        limit = [largest_rate(privacy["epsilon_spent"], privacy["delta"], rate) for rate in line]
        axes.plot(line, limit, color=_INK, linestyle="--", linewidth=0.9, label="no attack can do better")
    axes.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1.05))
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return _png(figure)


def traffic(report: Report) -> bytes:
    """Seconds and megabytes of each round."""
    figure, axes = _figure()
    rounds = [row["round"] for row in report["rounds"]]
    axes.bar(rounds, [row["seconds"] for row in report["rounds"]], color=_ACCENT, alpha=0.55, label="seconds")
    axes.set(xlabel="round", ylabel="seconds")
    bytes_axis = axes.twinx()
    bytes_axis.spines[["top"]].set_visible(False)
    for key, style, label in (("bytes_up", "-", "MB up, all sites"), ("bytes_down", "--", "MB down, all sites")):
        megabytes = [row[key] / 1e6 for row in report["rounds"]]
        bytes_axis.plot(rounds, megabytes, style, color=_SECOND, linewidth=1.2, label=label)
    bytes_axis.set(ylabel="MB")
    bytes_axis.set_ylim(bottom=0)
    bytes_axis.tick_params(colors=_INK, labelsize=8)
    handles = [*axes.get_legend_handles_labels()[0], *bytes_axis.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return _png(figure)


def partition(facts: Partition) -> bytes:
    """Label × client: how many records of each class each simulated site holds."""
    counts = np.asarray(facts["counts"])  # (clients, classes)
    figure, axes = _figure(6.4, 3.8)
    colors = mpl.colormaps["tab20" if counts.shape[1] <= 20 else "nipy_spectral"]
    bottom = np.zeros(len(counts))
    for label in range(counts.shape[1]):
        color = colors(label / max(1, counts.shape[1] - 1)) if counts.shape[1] > 20 else colors(label)
        axes.bar(
            range(1, len(counts) + 1),
            counts[:, label],
            bottom=bottom,
            color=color,
            label=_plain(facts["labels"][label]),
        )
        bottom += counts[:, label]
    axes.set(xlabel="site", ylabel="records")
    if counts.shape[1] <= 12:
        axes.legend(fontsize=7, frameon=False, ncols=1, loc="center left", bbox_to_anchor=(1, 0.5))
    return _png(figure)


def _plain(text: str) -> str:
    """A class's name in a plot: dollars are no formula, and a long one is cut."""
    cut = text if len(text) <= _NAME else f"{text[:_NAME]}…"
    return cut.replace("$", r"\$")


def confusion(matrix: list[list[int]], labels: list[str]) -> bytes:
    """Rows: true class, normalised; numbers are shown where they can be read."""
    counts = np.asarray(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 3.6 if len(labels) <= 12 else 6.4
    figure, axes = _figure(size + 1, size)
    axes.grid(visible=False)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= _MAX_TICKS:
        names = [_plain(label) for label in labels]
        axes.set_xticks(range(len(labels)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(labels)), names)
    if len(labels) <= 12:
        for row, column in np.ndindex(counts.shape):
            color = "white" if shares[row, column] > 0.5 else _INK
            axes.text(column, row, int(counts[row, column]), ha="center", va="center", fontsize=7, color=color)
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(image, shrink=0.8).ax.tick_params(labelsize=7)
    return _png(figure)


def noise(facts: dict[str, Any]) -> bytes:
    """Accuracy against the share of letters or words that are touched, a line a kind of noise."""
    figure, axes = _figure(6.4, 4.0)
    colors = mpl.colormaps["tab10"]
    for index, name in enumerate(dict.fromkeys(row["name"] for row in facts["perturbations"])):
        rows = [row for row in facts["perturbations"] if row["name"] == name]
        axes.errorbar(
            [0, *(100 * row["strength"] for row in rows)],
            [facts["clean"], *(row["accuracy"] for row in rows)],
            yerr=[0, *(row["spread"] for row in rows)],
            color=colors(index % 10),
            label=name,
            linewidth=2.2 if index == 0 else 1.1,
            capsize=2,
        )
    axes.set(xlabel="touched, %", ylabel="accuracy", ylim=(0, 1))
    axes.legend(fontsize=7, frameon=False, ncols=2, loc="lower left")
    return _png(figure)


def personal(facts: dict[str, Any]) -> bytes:
    """Each site's accuracy with the shared head and with its own, the site that gains most on top."""
    rows = sorted(facts["sites"], key=lambda row: row["personal"] - row["shared"])
    if len(rows) > _SITES_SHOWN:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, _SITES_SHOWN).round().astype(int)]
    figure, axes = _figure(6.4, 1.4 + 0.22 * len(rows))
    places = np.arange(len(rows))
    shared, own = ([row[key] for row in rows] for key in ("shared", "personal"))
    axes.xaxis.set_major_locator(MaxNLocator())
    axes.hlines(places, shared, own, color=_SOFT, linewidth=1.5)
    axes.scatter(shared, places, color=_SOFT, s=26, label="shared head")
    axes.scatter(own, places, color=_ACCENT, s=26, label="its own")
    axes.set_yticks(places, [row["name"] for row in rows])
    axes.set(xlabel="accuracy on the public test set, in the site's mix of classes")
    axes.legend(fontsize=7, frameon=False, loc="best")
    return _png(figure)


def learning_curves(labels: list[int], rows: list[dict[str, Any]]) -> bytes:
    """Accuracy against the number of labels, a line a strategy; the first is what the others are compared with."""
    figure, axes = _figure(6.4, 4.0)
    for index, row in enumerate(rows):
        color = _SOFT if index == 0 else mpl.colormaps["tab10"](index % 10)
        axes.errorbar(
            labels, row["accuracy"], yerr=row["spread"], color=color, label=row["strategy"], capsize=2, linewidth=1.4
        )
    axes.axhline(rows[0]["accuracy"][-1], color=_SOFT, linewidth=0.8, linestyle=":")
    axes.set(xlabel="labelled rows, all sites together", ylabel="accuracy on the public test set")
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    return _png(figure)


def ways(rows: list[dict[str, Any]]) -> bytes:
    """Accuracy by round, a line a way to learn; one that does not train is level."""
    figure, axes = _figure(6.4, 4.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for index, row in enumerate(rows):
        color = mpl.colormaps["tab10"](index % 10)
        if row["rounds"]:
            axes.plot(range(1, len(row["rounds"]) + 1), row["rounds"], color=color, label=row["way"], linewidth=1.4)
        else:
            axes.axhline(row["accuracy"], color=_SOFT, linestyle=":", label=row["way"])
    axes.set(xlabel="round", ylabel="accuracy on the validation set")
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    return _png(figure)


def variants(facts: dict[str, Any]) -> bytes:
    """What is measured against the median time of one row, a bubble a variant, its area the file's size."""
    figure, axes = _figure(6.4, 4.0)
    for index, row in enumerate(facts["variants"]):
        best = row["name"] == facts["recommended"]
        axes.scatter(
            row["ms_1"],
            row["accuracy"],
            s=20 + 3 * row["mb"],
            color=mpl.colormaps["tab10"](index % 10),
            alpha=0.75,
            edgecolor=_INK if best else "none",
            label=f"{row['name']} ({row['mb']:.0f} MB){', recommended' if best else ''}",
        )
    axes.set(xlabel="median of one row, ms", ylabel=facts["measure"])
    axes.set_xlim(left=0)
    axes.margins(y=0.25)
    for handle in axes.legend(fontsize=7, frameon=False, loc="best").legend_handles:
        handle.set_sizes([30])
    return _png(figure)


def faithfulness(facts: dict[str, Any]) -> bytes:
    """Probability of the answer as words go, and as they come: by score and in random order."""
    figure, axes = _figure(6.4, 3.6)
    shares = np.linspace(0, 100, len(facts["curves"]["deletion"]))
    for what, color in (("deletion", "#c2410c"), ("insertion", _ACCENT)):
        axes.plot(shares, facts["curves"][what], color=color, label=f"{what}, by score")
        axes.plot(shares, facts["curves"][f"{what}_random"], color=color, linestyle=":", label=f"{what}, random order")
    parts = "squares" if facts.get("images") else "words"
    axes.set(xlabel=f"{parts} taken away or put in, %", ylabel=facts["measure"], xlim=(0, 100))
    if facts["measure"] == "probability":
        axes.set(ylim=(0, 1))
    axes.legend(fontsize=7, frameon=False, loc="best")
    return _png(figure)


def trade(rows: list[dict[str, Any]]) -> bytes:
    """Accuracy when no attack against accuracy under the worst attack, a point a defence with its ε: privacy,
    robustness and accuracy are paid for with one another (Allouah et al. 2023). On the diagonal lies cost nothing."""
    rows = [row for row in rows if row["clean"] is not None and row["worst"] is not None]
    figure, axes = _figure(6.4, 4.4)
    axes.xaxis.set_major_locator(MaxNLocator())
    least = min((row["worst"] for row in rows), default=0.0)
    most = max((row["clean"] for row in rows), default=1.0)
    ends = [max(0.0, least - 0.05), min(1.0, most + 0.05)]
    axes.plot(ends, ends, color=_SOFT, linewidth=0.8, linestyle=":")
    for index, row in enumerate(rows):
        private = row["epsilon"] is not None
        price = f"ε = {row['epsilon']:.3g}" if private else "no privacy"
        axes.scatter(
            row["clean"],
            row["worst"],
            s=46,
            marker="o" if private else "s",
            color=mpl.colormaps["tab10"](index % 10),
            label=f"{row['defence']} ({price})",
        )
    axes.set(xlabel="accuracy, no attack", ylabel="accuracy, worst attack", xlim=ends, ylim=ends)
    axes.legend(fontsize=7, frameon=False, loc="upper left")
    return _png(figure)


def heat_map(
    values: np.ndarray, spread: np.ndarray, rows: list[str], columns: list[str], *, good_is_high: bool
) -> bytes:
    """Percentages, mean ± spread; the last column is their worst. values, spread: (R, C); NaN: not played."""
    figure, axes = _figure(1.8 + 0.72 * len(columns), 1.6 + 0.42 * len(rows))
    axes.grid(visible=False)
    image = axes.imshow(values, cmap="RdYlGn" if good_is_high else "RdYlGn_r", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.axvline(len(columns) - 1.5, color="white", linewidth=4)
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        text = "–" if np.isnan(value) else f"{100 * value:.0f}"
        if not np.isnan(value) and spread[row, column] > 0:
            text += f"\n±{100 * spread[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=_INK)
    figure.colorbar(image, shrink=0.8).ax.tick_params(labelsize=7)
    return _png(figure)
