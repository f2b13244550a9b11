"""What `confide doctor` says of a run's data and privacy before a second is spent: what will be learned from, how much
of a step is noise, and which other settings would carry more signal at the same ε."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..common.config.run import RunConfig
from ..common.data.record_keys import record_keys
from ..common.errors import ConfideError
from ..common.model.loading import FineTuneModel
from ..common.modes import mode_of
from ..common.modes.by_record import declared
from ..common.privacy.explain import half_interval
from ..common.privacy.plan import declared_steps, privacy_plan
from ..common.types import Rows
from .sites import simulated_data

Finding = tuple[str, str, bool | None]
"""its name, its words, and whether the run may go on with it; None: it may, and will be the worse for it"""

_FEW, _APART, _LOUD, _DROWNED = 20.0, 1.5, 2.0, 5.0
"""expected records of a step below which little is learned; rows and declaration apart; z; noise over signal"""
_CUT, _SAME, _WIDE = 0.1, 0.01, 0.1
"""shares of records: cut, and of the test set trained on; half of an interval of what sites count"""
_HALF = 0.98
"""of a 95 % interval of a share of one half of n records, times √n"""


@dataclass(frozen=True)
class Step:
    """One released step of a private run."""

    multiplier: float
    """z"""
    noise: float
    """standard deviation of the noise in one number of the sum over all sites, in clip norms"""
    expected: float
    """B: records (persons, sites) that are drawn, over all sites"""
    numbers: int
    """d"""

    @property
    def ratio(self) -> float:
        """√d·σ/B: the noise's norm over the largest norm that the drawn gradients can add up to, each clipped to C."""
        return math.sqrt(self.numbers) * self.noise / self.expected


def step_of(config: RunConfig, trained: int, units: int | None = None) -> Step | None:
    """None without privacy, or where what is released are teachers' answers. units: records (persons) that the sites
    hold, which may be others than they declare; omitted: as declared, and in mode `client` the sites."""
    plan, mode = privacy_plan(config, trained), mode_of(config)
    if plan is None or mode.TEACHERS:
        return None
    sites, z = config.clients, plan.noise_multiplier
    summed = config.secure or config.privacy.mode == "client"
    more = sites / plan.most_shares if config.secure else (1 if summed else sites)
    held = _units(config) if units is None else units
    return Step(z, z * math.sqrt(more), plan.sampling_rate * held * config.trained_share, plan.trained)


def _units(config: RunConfig) -> float:
    """Declared at all sites together."""
    return float(config.clients if config.privacy.mode == "client" else declared(config))


def judged(config: RunConfig, model: FineTuneModel, seconds: float | None) -> Iterator[Finding]:
    """Of a simulation. seconds: of a round, as measured; None where it was not."""
    rows = yield from _of_data(config, model)
    yield from _of_public(config, model)
    units = None if config.privacy.mode == "client" else rows
    step = step_of(config, model.count()[0], units)
    if step is not None:
        yield from _of_privacy(config, step, rows)
        if step.expected < _FEW or step.multiplier > _LOUD or step.ratio > _DROWNED:
            yield from _better(config, model, step, units)
    if seconds is not None:
        whole = seconds * config.run.rounds
        yield "time in all", f"about {_time(whole)} for {config.run.rounds} rounds, evaluation aside", True


def _of_data(config: RunConfig, model: FineTuneModel) -> Iterator[Finding]:
    """Returns how many records, or persons, the sites hold together; None where the data cannot be read here."""
    try:
        data = simulated_data(config, model)
    except ConfideError as error:
        yield "data", str(error), False
        return None
    whole = np.concatenate([*data.parts, *data.held_out])
    count, sizes = len(whole), [len(part) for part in data.parts]
    text = f"{count:,} records at {len(sizes)} sites, {min(sizes):,} to {max(sizes):,} each"
    if data.held_out:
        text += f" to train on, and {len(np.concatenate(data.held_out)):,} held out"
    if data.labels is not None and config.data.labels:
        held = np.bincount(data.labels[np.concatenate(data.parts)], minlength=len(config.data.labels))
        text += f"; {len(held)} classes, the smallest of {held.min():,} records and the largest of {held.max():,}"
        lacking = int((held == 0).sum())
        yield "data", f"{text}; of {lacking} nothing will be learned" if lacking else text, _mind(not lacking)
    else:
        yield "data", text, True
    cut = 0.0 if data.records.cut is None else float(data.records.cut.mean())
    longest = int(np.diff(data.records.offsets).max(initial=0))
    if model.task.READS.text:
        text = f"up to {longest} tokens; {100 * cut:.1f} % of the records are cut to model.max_length"
        yield "lengths", text if cut <= _CUT else f"{text}; raise it", True if cut <= _CUT else None
    person = data.records.person
    return count if person is None else len(np.unique(person))


def _of_public(config: RunConfig, model: FineTuneModel) -> Iterator[Finding]:
    data = config.data
    try:
        test, learned = model.rows(data.test, data), model.rows(data.training, data)
        others = None if data.validation is None else model.rows(data.validation, data)
    except ConfideError as error:
        yield "test", str(error), False
        return
    width = 100 * _HALF / math.sqrt(len(test))
    text = f"{len(test):,} records, by which a share of right answers is known to ± {width:.1f} points"
    text += (
        "; without data.validation rounds are looked at on it, and no temperature is fitted" if others is None else ""
    )
    yield "test", *_flattered(text, test, learned, "are trained on")
    if others is not None:
        yield "validation", *_flattered(f"{len(others):,} records", test, others, "of the test set are among them")


def _flattered(text: str, test: Rows, others: Rows, which: str) -> tuple[str, bool | None]:
    """text, and what is to be minded where others are of the test set, too. which: these, in words."""
    same = int(np.isin(_read(test), _read(others)).sum())
    few = same <= _SAME * len(test)
    return text if few else f"{text}; {same:,} {which}, so the figure flatters", _mind(few)


def _read(rows: Rows) -> np.ndarray:
    """(N,) a number for what a model reads of each record, the same for the same."""
    return record_keys(replace(rows, labels=None, tags=None), b"")


def _of_privacy(config: RunConfig, step: Step, rows: int | None) -> Iterator[Finding]:
    unit = {"client": "sites"}.get(config.privacy.mode, "records" if config.data.person is None else "persons")
    steps = f"{declared_steps(config):,} step{'s' * (declared_steps(config) > 1)}"
    z = f"noise multiplier z = {step.multiplier:.3g} for ε = {config.privacy.epsilon:g} over {steps}"
    yield (
        "noise",
        z if step.multiplier <= _LOUD else f"{z}; above {_LOUD:g} little is learned",
        _mind(step.multiplier <= _LOUD),
    )
    text = f"{step.expected:.4g} {unit} expected in a step"
    enough = step.expected >= _FEW
    yield "batch", text if enough else f"{text}; below {_FEW:g} a step is mostly noise", _mind(enough)
    told = f"on a sum of {step.numbers:,} numbers the noise is {step.ratio:.2g} times the most that its gradients reach"
    yield "signal", told, _mind(step.ratio <= _DROWNED)
    if rows is not None and config.privacy.mode != "client":
        units = _units(config)
        apart = max(units / max(1, rows), rows / units)
        text = f"{units:,.0f} {unit} declared, {rows:,} are there"
        yield "declared", text if apart <= _APART else f"{text}; {_declare(config, rows)}", _mind(apart <= _APART)
    if config.evaluation.sites and (plan := privacy_plan(config, step.numbers)) is not None:
        half = half_interval(config, plan)
        wide = f"± {100 * half:.1f} points" if math.isfinite(half) else "without bound"
        text = f"what sites count of held-out {unit} has a 95 % interval of {wide}"
        good = half <= _WIDE
        yield "evaluation", text if good else f"{text}; raise evaluation.holdout or evaluation.every", _mind(good)
    if config.secure and config.clients - config.privacy.colluders <= 1:
        text = "each site must add all of the noise, as in mode local, and trusts more; take mode local, or more sites"
        yield "mode", text, None


def _declare(config: RunConfig, rows: int) -> str:
    key = "declared_examples" if config.data.person is None else "declared_persons"
    return (
        f"a public size nearer to the truth would do: privacy.{key} = {rows:,} if that may be known, or a round number"
    )


def _mind(good: bool) -> bool | None:
    return True if good else None


def _better(config: RunConfig, model: FineTuneModel, step: Step, units: int | None) -> Iterator[Finding]:
    """Settings with more signal at the same ε. units: as of `step_of`."""
    found: list[tuple[str, Step | None, str]] = []
    head = sum(p.numel() for name, p in model.trained.items() if "lora_" not in name)
    if config.model.train == "lora" and 0 < head < step.numbers and model.pools:
        found.append(("model.train = 'head'", step_of(config, head, units), "fewer numbers, each with its noise"))
    rate, rounds = config.privacy.sampling_rate or 1.0, config.run.rounds
    if rate < 1:
        other = _with(config, step, units, "privacy", sampling_rate=min(1.0, 2 * rate))
        found.append((f"privacy.sampling_rate = {min(1.0, 2 * rate):g}", other, "larger sums"))
    if rounds > 1:
        other = _with(config, step, units, "run", rounds=rounds // 2)
        found.append((f"run.rounds = {rounds // 2}", other, "less noise a step"))
    told = [f"{what}: {other.ratio:.2g} ({why})" for what, other, why in found if other and other.ratio < step.ratio]
    if told:
        yield "instead", f"noise over signal {step.ratio:.2g}; with " + "; ".join(told), None


def _with(config: RunConfig, step: Step, units: int | None, section: str, **changes: object) -> Step | None:
    table = getattr(config, section).model_copy(update=changes)
    try:
        return step_of(config.model_copy(update={section: table}), step.numbers, units)
    except ConfideError:
        return None


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
