"""The plots of pages about many runs (see `drawing`)."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .drawing import ACCENT, INK, MARKERS, ON_LIGHT, SECOND, SERIES, SOFT, WIDTH, figure, legend, line_of, named, scale


def learning_curves(labels: list[int], rows: list[dict[str, Any]]) -> Figure:
    """Accuracy against the number of labels, a line a strategy; the first is what the others are compared with."""
    drawn, axes = figure(WIDTH, 4.0)
    for index, row in enumerate(rows):
        style = {"color": SOFT} if index == 0 else line_of(index - 1)
        axes.errorbar(
            labels, row["accuracy"], yerr=row["spread"], **style, label=named(row["strategy"]), capsize=2, linewidth=1.4
        )
    axes.axhline(rows[0]["accuracy"][-1], color=SOFT, linewidth=0.8, linestyle=":")
    axes.set(xlabel="labelled rows, all sites together", ylabel="accuracy on the public test set")
    legend(axes, loc="lower right")
    return drawn


def ways(rows: list[dict[str, Any]], measure: str) -> Figure:
    """The main figure by round, a line a way to learn; one that does not train is level. measure: the figure, and on
    which records, in words."""
    drawn, axes = figure(WIDTH, 4.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for index, row in enumerate(rows):
        if row["rounds"]:
            axes.plot(
                range(1, len(row["rounds"]) + 1),
                row["rounds"],
                **line_of(index),
                label=named(row["way"]),
                linewidth=1.4,
            )
        else:
            axes.axhline(row["value"], color=SOFT, linestyle=":", label=named(row["way"]))
    axes.set(xlabel="round", ylabel=measure)
    legend(axes, loc="lower right")
    return drawn


def trade(rows: list[dict[str, Any]], measure: str) -> Figure:
    """The main figure when no attack against that under the worst attack, a point a defence with its ε: privacy,
    robustness and accuracy are paid for with one another (Allouah et al. 2023). On the diagonal lies cost nothing.
    measure: the figure's name."""
    rows = [row for row in rows if row["clean"] is not None and row["worst"] is not None]
    drawn, axes = figure(WIDTH, 4.4)
    axes.xaxis.set_major_locator(MaxNLocator())
    least = min((row["worst"] for row in rows), default=0.0)
    most = max((row["clean"] for row in rows), default=1.0)
    ends = [max(0.0, least - 0.05), min(1.0, most + 0.05)]
    axes.plot(ends, ends, color=SOFT, linewidth=0.8, linestyle=":")
    for index, row in enumerate(rows):
        private = row["epsilon"] is not None
        price = f"ε = {row['epsilon']:.3g}" if private else "no privacy"
        axes.scatter(
            row["clean"],
            row["worst"],
            s=46,
            marker=MARKERS[index % len(MARKERS)],
            color=SERIES[index % len(SERIES)],
            label=f"{named(row['defence'])} ({price})",
        )
    axes.set(xlabel=f"{measure}, no attack", ylabel=f"{measure}, worst attack", xlim=ends, ylim=ends)
    legend(axes, loc="upper left")
    return drawn


def heat_map(
    values: np.ndarray, spread: np.ndarray, rows: list[str], columns: list[str], *, good_is_high: bool
) -> Figure:
    """Percentages, mean ± spread; the last column is their worst. values, spread: (R, C); NaN: not played."""
    drawn, axes = figure(1.8 + 0.72 * len(columns), 1.6 + 0.42 * len(rows))
    axes.grid(visible=False)
    image = axes.imshow(values, cmap="Blues" if good_is_high else "Oranges", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), [named(column) for column in columns], rotation=40, ha="right")
    axes.set_yticks(range(len(rows)), [named(row) for row in rows])
    axes.axvline(len(columns) - 1.5, color="white", linewidth=4)
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        text = "–" if np.isnan(value) else f"{100 * value:.0f}"
        if not np.isnan(value) and spread[row, column] > 0:
            text += f"\n±{100 * spread[row, column]:.0f}"
        color = INK if np.isnan(value) else "white" if value > 0.6 else ON_LIGHT
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    scale(drawn, image, "share")
    return drawn


def against_epsilon(rows: list[dict[str, Any]]) -> Figure:
    """The main figure of each run with its interval against ε; a run without privacy is a line across."""
    drawn, axes = figure(WIDTH, 3.8)
    axes.xaxis.set_major_locator(MaxNLocator())
    main = rows[0]["main"]
    for index, row in enumerate(rows):
        found, style = row["main"], line_of(index)
        if row["epsilon"] is None:
            label = f"{named(row['name'])} (no privacy)"
            axes.axhline(found["value"], color=style["color"], linestyle="--", linewidth=1.2, label=label)
            continue
        error = [[max(found["value"] - found["low"], 0)], [max(found["high"] - found["value"], 0)]]
        axes.errorbar(
            [row["epsilon"]],
            [found["value"]],
            yerr=error,
            **style,
            linestyle="none",
            capsize=3,
            label=named(row["name"]),
        )
    axes.set(xlabel="ε spent", ylabel=main["name"])
    axes.set_xlim(left=0)
    legend(axes, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawn


def seeds(rows: list[dict[str, Any]], mean: float) -> Figure:
    """The main figure of each seed with the interval of its test records, and the mean of all."""
    drawn, axes = figure(WIDTH, 3.0)
    values = np.array([[row["value"], row["low"], row["high"]] for row in rows])
    errors = np.maximum([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]], 0)
    axes.errorbar(
        [row["seed"] for row in rows], values[:, 0], yerr=errors, fmt="o", color=ACCENT, capsize=3, label="each seed"
    )
    axes.axhline(mean, color=SECOND, linestyle="--", linewidth=1.2, label="mean")
    axes.set(xlabel="seed", ylabel=rows[0]["main"]["name"])
    legend(axes, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawn
