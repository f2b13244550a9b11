"""`confide simulate active`: rounds of labelling at simulated sites, strategy against strategy.

A recipe with an [active] table. All sites start with a few labelled rows each; then, again and again, the federation
trains on what is labelled, each site chooses by a strategy which of its own other rows are labelled next, and so on.
Which rows a site chooses is decided at the site; a run on them is an ordinary run, charged to the data set's budget.
"""

import csv
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ...common.config.resolve import resolve
from ...common.config.run import RunConfig
from ...common.config.section import Positive, Section, assignment
from ...common.data.active import SCORED, STRATEGIES, Strategy, choose, pool_epsilon
from ...common.data.partition import partition, site_name
from ...common.data.record_keys import in_order
from ...common.data.sources import training_rows
from ...common.errors import ConfigError
from ...common.ledger.verify import audit, find_ledgers
from ...common.model.adapter import read_arrays
from ...common.model.loading import FineTuneModel, model_of
from ...common.types import Reads, Records, Rows
from ...server.report import plots_many as plots
from ..sites import make_ledgers
from .runner import Key, Results, RoundCallback, most, over_seeds, reported, run_at

_SITE = "site"
_STARTED: Strategy = "random"


class ActiveSection(Section, frozen=True):
    """[active] of a recipe."""

    strategies: Annotated[tuple[Strategy, ...], Field(min_length=1)] = STRATEGIES
    """`random` is what the others are compared with, and is played whether it is named or not"""
    start: Positive = 20
    """rows of a site that are labelled before the first round, drawn at random"""
    add: Positive = 20
    """rows that each site has labelled after a round"""
    rounds: Positive = 5
    """times that sites choose; one more run is made than that"""
    seeds: Positive = 3


def play(content: dict[str, Any], out: Path | None, watch: RoundCallback, *, overwrite: bool = False) -> Path:
    """Plays what is missing and writes the page; returns the folder.

    content: of a recipe, [active] included. Raises ConfigError, DataError.
    """
    section = ActiveSection.parse(content["active"], "active")
    base = {key: value for key, value in content.items() if key != "active"}
    config = resolve(RunConfig.parse(base, "active"))
    _check(config, section)
    strategies: list[Strategy] = [_STARTED, *(name for name in section.strategies if name != _STARTED)]
    results = Results(out or config.output, content, overwrite=overwrite)
    curves = [
        _Curve(base, config, section, results, name, seed) for seed in _seeds(config, section) for name in strategies
    ]
    wanted: dict[Key, Callable[[str], dict[str, Any]]] = {curve.key: partial(curve.play, watch) for curve in curves}
    played = results.complete(wanted, lambda row: (row["strategy"], row["seed"]))
    _write(results, config, section, played)
    return results.folder


def _seeds(config: RunConfig, section: ActiveSection) -> range:
    return range(config.run.seed, config.run.seed + section.seeds)


def _check(config: RunConfig, section: ActiveSection) -> None:
    """Raises ConfigError."""
    if Reads() != model_of(config).task.READS:
        raise ConfigError(f"model.task: '{config.model.task}' received; labels are asked for one class a text here")
    if config.data.text_pair is not None:
        raise ConfigError(f"data.text_pair: '{config.data.text_pair}' received; rows are chosen by one text here")
    if config.data.partition.kind == "natural":
        raise ConfigError("data.partition.kind: 'natural' received; [active] deals rows out itself: iid or dirichlet")
    apart = [name for name in section.strategies if name not in SCORED]
    if config.private and apart:
        raise ConfigError(
            f"active.strategies: '{apart[0]}' received for mode '{config.privacy.mode}'; it looks at the chosen rows "
            "together, so one record more may change all of them and nothing bounds what that gives away; allowed "
            f"under privacy: {', '.join(SCORED)}"
        )
    if config.engine.ledger is not None:
        raise ConfigError("engine.ledger: many runs on changing rows keep ledgers of their own; leave it out")


class _Curve:
    """One strategy with one seed: its sites, what they have labelled, and how good the model became."""

    def __init__(
        self,
        base: dict[str, Any],
        config: RunConfig,
        section: ActiveSection,
        results: Results,
        strategy: Strategy,
        seed: int,
    ) -> None:
        self.base, self.section, self.results = base, section, results
        self.strategy: Strategy = strategy
        self.seed = seed
        self.config = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})

    @property
    def key(self) -> tuple[str, int]:
        return self.strategy, self.seed

    def play(self, watch: RoundCallback, how_far: str) -> dict[str, Any]:
        """Labels and accuracy after each run. Raises DataError when a site has fewer rows than it shall label."""
        if self.config.data.person is not None:
            raise ConfigError(
                "data.person: received with [active]; which rows are labelled is chosen row by row, and one person's "
                "could push several others out; remove it"
            )
        rows, parts, pool, model = self._pool()
        count = self.section.start + self.section.rounds * self.section.add
        if (least := min(len(part) for part in parts)) < count:
            raise ConfigError(
                f"active.start, active.add, active.rounds: {count} rows a site received, and one site has {least}; "
                "label fewer, or deal the rows out among fewer sites"
            )
        keys = np.asarray(pool.keys)
        labelled = [part[in_order(keys[part], self.seed)][: self.section.start] for part in parts]
        points = []
        for number in range(self.section.rounds + 1):
            place = self.results.place(self.strategy, self.seed, number)
            total = sum(map(len, labelled))
            title = f"{how_far}: {self.strategy}, {total:,} labels"
            report = reported(self._run(self._write_rows(rows, labelled, place), total, place), watch, title)
            points.append({"labels": total, "accuracy": report["after"]["accuracy"]})
            adapter = read_arrays(place / "adapter")
            if number < self.section.rounds:
                for site, part in enumerate(parts):
                    rest = np.setdiff1d(part, labelled[site])
                    own = np.random.default_rng([self.seed, number, site, STRATEGIES.index(self.strategy)])
                    chosen = choose(self.strategy, self.section.add, model, adapter, pool, rest, labelled[site], own)
                    labelled[site] = np.concatenate([labelled[site], chosen])
        return {"strategy": self.strategy, "seed": self.seed, "points": points, "epsilon": self._spent()}

    def _pool(self) -> tuple[Rows, list[np.ndarray], Records, FineTuneModel]:
        data, model = self.config.data, model_of(self.config)
        rows = training_rows(model.rows(data.training, data), data, self.seed)
        parts = partition(data.partition, len(rows), rows.labels, None, self.seed)
        return rows, parts, model.with_features(model.encode(rows)), model

    def _run(self, source: Path, total: int, place: Path) -> RunConfig:
        """A run on what is labelled, and under privacy ledgers for all runs of the curve."""
        changes = [
            f"run.seed={self.seed}",
            assignment("data.train", str(source)),
            assignment("data.labels", list(self.config.data.labels or [])),
            "data.limit=",
            'data.partition.kind="natural"',
            f'data.partition.column="{_SITE}"',
        ]
        if self.config.private:  # the size follows from the recipe: it is public
            changes += [f"privacy.declared_examples={total}", assignment("engine.ledger", str(self._ledgers))]
        config = run_at(self.base, changes, place, self.strategy)
        if self.config.private and not self._ledgers.exists():
            whole = (config.privacy.epsilon or 0) * (self.section.rounds + 1)
            make_ledgers(config.model_copy(update={"privacy": config.privacy.model_copy(update={"epsilon": whole})}))
        return config

    @property
    def _ledgers(self) -> Path:
        return self.results.place("ledgers", self.strategy, self.seed)

    def _write_rows(self, rows: Rows, labelled: list[np.ndarray], place: Path) -> Path:
        names = list(self.config.data.labels or [])
        classes = np.asarray(rows.labels)
        path = place.with_suffix(".csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow([self.config.data.text, self.config.data.label, _SITE])
            for site, part in enumerate(labelled):
                name = site_name(site, len(labelled))
                out.writerows([rows.text[i], names[classes[i]], name] for i in part)
        return path

    def _spent(self) -> float | None:
        """ε of all runs of the curve together, of the site that spent most; None without privacy."""
        if not self.config.private:
            return None
        found = [audit(path).datasets[0]["epsilon_spent"] for path in find_ledgers(self._ledgers)]
        return float(max(found))


def _write(results: Results, config: RunConfig, section: ActiveSection, curves: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(curve["strategy"] for curve in curves))
    labels = [point["labels"] for point in curves[0]["points"]]
    rows = []
    for name in names:
        own = [curve for curve in curves if curve["strategy"] == name]
        accuracy, spread = over_seeds([point["accuracy"] for point in curve["points"]] for curve in own)
        spent = most(curve["epsilon"] for curve in own)
        rows.append(
            {
                "strategy": name,
                "accuracy": accuracy,
                "spread": spread,
                "epsilon": spent,
                "pool": None if spent is None else pool_epsilon(spent, config.privacy.delta),
            }
        )
    goal = rows[0]["accuracy"][-1]
    for row in rows:
        row["labels_needed"] = labels_for(goal, labels, row["accuracy"])
    facts = {
        "mode": config.privacy.mode,
        "delta": config.privacy.delta if config.private else None,
        "sites": config.clients,
        "seeds": list(_seeds(config, section)),
        "labels": labels,
        "goal": goal,
        "strategies": rows,
        "curves": curves,
    }
    images = [("Accuracy against labels", "curves", plots.learning_curves(labels, rows))]
    results.write_page("active", config.run.name, facts, images)


def labels_for(goal: float, labels: list[int], accuracy: list[float]) -> int | None:
    """How many labels give an accuracy, by a straight line between the points of a curve; None: not reached."""
    for i, value in enumerate(accuracy):
        if value >= goal:
            if i == 0:
                return labels[0]
            share = (goal - accuracy[i - 1]) / (value - accuracy[i - 1])
            return math.ceil(round(labels[i - 1] + share * (labels[i] - labels[i - 1]), 6))
    return None
