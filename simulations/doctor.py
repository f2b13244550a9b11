"""`confide doctor`: is this installation, this machine, this model fit for the run, and what will a round cost?"""

import importlib.metadata
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..common.config.resolve import public_sources, resolve
from ..common.config.run import RunConfig
from ..common.data.files import is_file
from ..common.errors import ConfideError, first_line
from ..common.model.apart import check_apart
from ..common.model.backbones import resolve_backbone
from ..common.model.dummies import dummy_records
from ..common.model.loading import FineTuneModel, model_of
from ..common.model.memory import (
    USABLE,
    Plan,
    batch_tokens,
    followed,
    free_memory,
    gib,
    planned,
    total_memory,
    usable_memory,
    with_plan,
)
from ..common.model.per_sample import clipped_sum, hooked, validate
from ..common.model.proof import TOLERANCES, check_reached, proved_shapes
from ..common.model.weights import with_type
from ..common.modes import mode_of
from ..common.tasks import load_task
from ..common.types import ProgressCallback
from ..server.report.build import PACKAGES
from .fitness import Finding, judged

_TYPICAL = 0.5
"""share of max_length that a record of the time estimate has"""
_ROWS, _TRIES = 16, 2
"""records of the batch that is timed, and how often"""
_NOT_PRIVATE = "not for modes local and distributed, which this run does not have"
_CONTEXT = 1.0
"""GiB of a GPU that its driver and libraries take"""


def plan_for_gpu(config: RunConfig, size: float) -> bool:
    """Prints the plan for a GPU of `size` GiB; True when the run fits."""
    return show(f"confide doctor, a GPU of {size:g} GiB", _planned_for_gpu(config, size))


def show(title: str, findings: Iterable[Finding]) -> bool:
    """Prints a table of findings; True when nothing stands in the way."""
    table, fit = Table(title=title, title_justify="left", show_header=False), True
    marks = {True: "[green]ok[/]", False: "[red]no[/]", None: "[yellow]mind[/]"}
    for name, text, good in findings:
        table.add_row(marks[good], name, Text(text))  # plain: ':train:' is no picture
        fit = fit and good is not False
    Console().print(table)
    return fit


def _planned_for_gpu(config: RunConfig, size: float) -> Iterator[tuple[str, str, bool]]:
    config, _ = _with_labels(config)
    if config.model.dtype == "auto":
        config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})})
    try:
        plan = replace(planned(config), sites=config.engine.workers or 1)
        usable = int(USABLE * (size - _CONTEXT) * 2**30)
        yield from _of_plan(plan.within(usable, config.model.checkpointing), usable, gpu=True)
    except Exception as error:  # of architectures that no one here knows
        yield "memory", first_line(error), False


def _of_plan(plan: Plan, usable: int, *, gpu: bool) -> Iterator[tuple[str, str, bool]]:
    """Raises ModelError where one record does not fit."""
    yield "memory of weights", gib(plan.weights), True
    again = " (computed again)" if plan.activations == plan.recomputed else ""
    yield (
        f"… a record of {plan.length} tokens",
        f"activations {gib(plan.activations)}{again}, backward {gib(plan.in_flight)}, "
        f"its gradient {gib(plan.gradients)}",
        True,
    )
    yield "… a site beside that", f"trained numbers {gib(plan.trained)}, a piece of logits {gib(plan.logits)}", True
    tokens = batch_tokens(plan, usable, gpu=gpu)
    yield (
        "memory planned",
        f"{gib(plan.peak(tokens // plan.length))} of {gib(usable)} usable: training.batch_tokens = {tokens:,}, "
        f"{plan.sites} site{'s' * (plan.sites > 1)} at a time",
        True,
    )


def _with_labels(config: RunConfig) -> tuple[RunConfig, str | None]:
    """With the classes and the task that a run finds in its public files; two classes where it would find none. Beside
    that, why a run would refuse these files."""
    found, refused = config, None
    try:
        found = resolve(config) if all(map(_is_here, public_sources(config))) else config
    except ConfideError as error:
        refused = str(error)
    needed = load_task(found.model.task).CLASSES
    labels = found.data.labels or (["first", "second"] if needed else None)
    known = config.model_copy(
        update={
            "data": config.data.model_copy(update={"labels": labels}),
            "model": config.model.model_copy(update={"task": found.model.task}),
        }
    )
    return known, refused


def _is_here(source: str) -> bool:
    """Whether a look at it asks no hub and no database."""
    return is_file(source) or source.startswith("demo:")


def findings(config: RunConfig, progress: ProgressCallback = lambda *_: None) -> Iterator[Finding]:
    """Of each finding its name, its words, and whether the run may go on with it. progress: told what is done next."""
    yield "python", sys.version.split()[0], sys.version_info >= (3, 11)
    tested = tested_versions()
    for package in PACKAGES:
        found = importlib.metadata.version(package)
        note = "" if found == tested.get(package) else f" (tested: {tested.get(package, 'never')})"
        yield package, found + note, True
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    yield "device", device, True
    progress("planning memory and loading the model", 0, 1)
    config, refused = _with_labels(config)
    yield "memory", f"{gib(free_memory())} free of {gib(total_memory())}", True
    try:
        config = config.model_copy(update={"model": with_type(config.model, resolve_backbone(config.model.backbone))})
        usable = usable_memory(config)
        plan = followed(config).within(usable, config.model.checkpointing)
        yield from _of_plan(plan, usable, gpu=torch.cuda.is_available())
        sized = with_plan(config)
        model = model_of(sized)  # as a run loads it
        check_reached(model)
    except Exception as error:  # of architectures that no one here knows
        yield "model", str(error) if isinstance(error, ConfideError) else first_line(error), False
        return
    trained, whole = model.count()
    yield "model", f"{config.model.backbone}, {config.model.dtype}: {trained:,} of {whole:,} parameters trained", True
    progress("proving for every length that a gradient is one record's", 0, 1)
    text, good, followed_by_opacus = _per_sample(config, sized, model)
    yield "per-sample gradients", text, good
    seconds = None
    if followed_by_opacus:
        progress("timing a step", 0, 1)
        given = config.training.batch_tokens
        seconds = estimate(config, model, batch_tokens(plan, usable) if given == "auto" else given)
        yield "time per round", f"about {seconds:.1f} s, if all cores keep busy, evaluation aside", True
    if refused is not None:
        yield "data", refused, False
    elif good and config.data.partition.clients is not None and _all_here(config):
        yield from judged(config, model, seconds)


def _all_here(config: RunConfig) -> bool:
    """Whether a simulation's data can be judged: of public sets that are not here, classes are not known."""
    return config.data.train is not None and all(map(_is_here, (config.data.train, *public_sources(config))))


def _per_sample(config: RunConfig, sized: RunConfig, model: FineTuneModel) -> tuple[str, bool, bool]:
    """What a private run's site looks at before it reads a row, and of another run whether it might be private: words,
    whether the run goes on, and whether Opacus follows the model. sized: the run as `with_plan` leaves it."""
    mode = mode_of(config)
    try:
        if config.private and mode.BY_RECORD:
            proved_shapes(sized, model)
            return f"{config.model.task}: each proved to be one record's, as at a site", True, True
        if config.private:
            (check_apart if mode.TEACHERS else validate)(model)
    except Exception as error:  # of layers that Opacus does not know
        return str(error) if isinstance(error, ConfideError) else first_line(error), False, False
    try:
        apart = per_sample_error(model)
    except Exception as failure:
        return f"{_NOT_PRIVATE} ({first_line(failure)})", True, False
    note = "" if apart < TOLERANCES[model.dtype] else f"; perhaps {_NOT_PRIVATE}"
    return f"{config.model.task}: largest difference to one-by-one gradients {apart:.1e}{note}", True, True


def tested_versions() -> dict[str, str]:
    """Package → version of constraints.txt, the set that the tests ran with."""
    text = (Path(__file__).parent.parent / "constraints.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.MULTILINE))


def per_sample_error(model: FineTuneModel) -> float:
    """Largest relative difference between a batch's clipped sum and the sum of records taken alone by autograd.

    A record whose gradient depends on its batch-mates shows here, and so does a layer that Opacus misreads.
    """
    model.set(model.initial)
    records = dummy_records(model, [5, 9, 12, 7])
    clip = 0.1
    alone = torch.zeros(0)
    for index in range(len(records)):
        losses = model.losses(records, np.array([index]))
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(losses.sum(), list(model.trained.values()))])
        clipped = gradient * (clip / gradient.norm()).clamp(max=1)
        alone = clipped if index == 0 else alone + clipped
    with hooked(model):
        losses = model.losses(records, np.arange(len(records)))
        together, _ = clipped_sum(model, losses, clip)
    return float((together - alone).norm() / alone.norm())


def estimate(config: RunConfig, model: FineTuneModel, tokens: int) -> float:
    """Seconds of a round, from one batch that is really computed. tokens: of a batch, as planned."""
    size = max(1, min(_ROWS, tokens // config.model.max_length))
    records = dummy_records(model, [max(2, int(config.model.max_length * _TYPICAL))] * size)
    best = float("inf")
    for _ in range(_TRIES):
        started = time.perf_counter()
        with hooked(model):
            losses = model.losses(records, np.arange(size))
            clipped_sum(model, losses, 1.0)
        best = min(best, time.perf_counter() - started)
    sites = config.server.cohort or config.data.partition.clients or 1
    if config.private and config.expected_rows is not None:
        drawn = config.expected_rows * sites / (config.data.partition.clients or sites)
    else:
        drawn = config.training.batch_size * sites
    return best * drawn / size * config.training.local_steps
