"""`confide doctor`: is this installation, this machine, this model fit for the run, and what will a round cost?"""

import importlib.metadata
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ..common.config.run import RunConfig
from ..common.errors import ConfideError
from ..common.model.apart import dummy_records
from ..common.model.loading import FineTuneModel, model_of
from ..common.model.per_sample import clipped_sum, hooked
from ..common.tasks import Batch, ragged
from ..common.types import Records
from ..server.report.build import PACKAGES

_TYPICAL = 0.5
"""share of max_length that a record of the time estimate has"""
_TOLERANCE = 1e-3


def examine(config: RunConfig) -> bool:
    """Prints a table of findings; True when nothing stands in the way."""
    table = Table(title="confide doctor", title_justify="left", show_header=False)
    fit = True
    for name, text, good in _findings(config):
        table.add_row("[green]ok[/]" if good else "[red]no[/]", name, text)
        fit = fit and good
    Console().print(table)
    return fit


def _findings(config: RunConfig) -> Iterator[tuple[str, str, bool]]:
    yield "python", sys.version.split()[0], sys.version_info >= (3, 11)
    tested = tested_versions()
    for package in PACKAGES:
        found = importlib.metadata.version(package)
        note = "" if found == tested.get(package) else f" (tested: {tested.get(package, 'never')})"
        yield package, found + note, True
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    yield "device", device, True
    total, free = _memory()
    yield "memory", f"{free:.1f} GiB free of {total:.1f}", True
    labels = config.data.labels or ["first", "second"]
    try:
        model = model_of(config.model_copy(update={"data": config.data.model_copy(update={"labels": labels})}))
    except ConfideError as error:
        yield "model", str(error), False
        return
    trained, whole = model.count()
    yield "model", f"{config.model.backbone}: {trained:,} of {whole:,} parameters trained", True
    try:
        error = per_sample_error(model)
    except (ConfideError, NotImplementedError, RuntimeError) as failure:
        yield "per-sample gradients", str(failure).splitlines()[0], False
        return
    yield (
        "per-sample gradients",
        f"{config.model.task} with LoRA: largest difference to one-by-one gradients {error:.1e}",
        error < _TOLERANCE,
    )
    seconds, memory = estimate(config, model)
    yield "time per round", f"about {seconds:.1f} s, if all cores keep busy, evaluation aside", True
    yield "memory of a run", f"about {memory:.1f} GiB at the peak, data aside", memory < free


def tested_versions() -> dict[str, str]:
    """Package → version of constraints.txt, the set that the tests ran with."""
    text = (Path(__file__).parent.parent / "constraints.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.MULTILINE))


def _memory() -> tuple[float, float]:
    """GiB in all and free."""
    page = os.sysconf("SC_PAGE_SIZE") / 2**30
    free = os.sysconf("SC_AVPHYS_PAGES") * page
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else []:
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) / 2**20
    return os.sysconf("SC_PHYS_PAGES") * page, free


def _random_records(model: FineTuneModel, lengths: list[int]) -> Records:
    if model.task.READS.pairs:
        return dummy_records(model, lengths)
    rng = np.random.default_rng(0)
    vocabulary = min(1000, int(getattr(model.module.config, "vocab_size", 1000)))
    tokens = [rng.integers(0, vocabulary, length).tolist() for length in lengths]
    starts_or_classes = np.ones(len(lengths), dtype=np.int64)
    return ragged(tokens, starts_or_classes)


def _batch(model: FineTuneModel, records: Records, indices: np.ndarray) -> Batch:
    return model.batch(records, indices)


def per_sample_error(model: FineTuneModel) -> float:
    """Largest relative difference between a batch's clipped sum and the sum of records taken alone by autograd.

    A record whose gradient depends on its batch-mates shows here, and so does a layer that Opacus misreads.
    """
    model.set(model.initial)
    records = _random_records(model, [5, 9, 12, 7])
    clip = 0.1
    alone = torch.zeros(0)
    for index in range(len(records)):
        losses = model.task.record_losses(model.module, _batch(model, records, np.array([index])))
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(losses.sum(), list(model.trained.values()))])
        clipped = gradient * (clip / gradient.norm()).clamp(max=1)
        alone = clipped if index == 0 else alone + clipped
    with hooked(model):
        losses = model.task.record_losses(model.module, _batch(model, records, np.arange(len(records))))
        together, _ = clipped_sum(model, losses, clip)
    return float((together - alone).norm() / alone.norm())


def estimate(config: RunConfig, model: FineTuneModel) -> tuple[float, float]:
    """Seconds of a round and GiB at the peak, from one physical batch that is really computed."""
    size = config.training.physical_batch
    longest = _random_records(model, [config.model.max_length] * size)
    with hooked(model):  # decides the peak
        clipped_sum(model, model.task.record_losses(model.module, _batch(model, longest, np.arange(size))), 1.0)
    records = _random_records(model, [max(2, int(config.model.max_length * _TYPICAL))] * size)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        with hooked(model):
            losses = model.task.record_losses(model.module, _batch(model, records, np.arange(size)))
            clipped_sum(model, losses, 1.0)
        best = min(best, time.perf_counter() - started)
    sites = config.server.cohort or config.data.partition.clients or 1
    if config.private and config.expected_rows is not None:
        drawn = config.expected_rows * sites / (config.data.partition.clients or sites)
    else:
        drawn = size * sites
    seconds = best * drawn / size * config.training.local_steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return seconds, peak
