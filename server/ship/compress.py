"""`confide compress`: variants of a finished model, measured side by side, and which to take under given limits."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common.data.perturbations import characters
from ...common.errors import ConfigError
from ...common.tasks import load_task
from ...common.types import ProgressCallback, Reads, Rows
from ..report import amend_report
from .distil import DistillationConfig, distil, other_backbone, shallow
from .exporting import export, quantized
from .factors import factorise
from .finished import FinishedRun, TorchModel, exported, exported_texts
from .prune import keep_layers, layers_of, least_needed_layers, prune
from .runtime import FACTS, MODEL, VARIANTS, Answering, OnnxModel, load_variant

FULL, INT8 = "onnx", "int8"
_NOISE = 0.1
"""share of characters perturbed, for the column of robustness"""
_REPEATS, _WARM, _BATCH, _PARITY_ROWS = 60, 5, 32, 64
_TRAINED = {"lora": "LoRA merged", "head": "the backbone and its head", "full": "all weights"}
"""what a variant holds, by what was trained"""


@dataclass(frozen=True)
class Limits:
    """What a place allows; None: anything."""

    ms: float | None = None
    """median of one text, milliseconds"""
    mb: float | None = None
    accuracy: float | None = None


def make_variants(
    folder: Path,
    *,
    public: list[str] | None = None,
    layers: int | None = None,
    heads: float = 0.0,
    neurons: float = 0.0,
    factors: float | None = None,
    settings: DistillationConfig | None = None,
    progress: ProgressCallback = lambda *_: None,
) -> list[str]:
    """Writes variants of a run: its model in float32 and int8; with public text also a pruned one in both.

    layers: how many are kept. heads, neurons: shares that are cut. factors: share of each matrix's numbers that is left
    when it becomes two low-rank factors. Returns their names. Raises ConfigError, ModelError.
    """
    pruned = layers is not None or heads or neurons or factors is not None
    if pruned and not public:
        raise ConfigError(
            "--layers, --heads, --ffn, --factors: what matters is measured on public text; name it with --public"
        )
    run = FinishedRun(folder, *(exported_texts() if pruned else exported()), two_texts=not pruned)
    teacher = run.merged()
    place, rows = folder / VARIANTS, run.rows(_PARITY_ROWS)
    progress("exporting", 0, 1)
    names = _pair(teacher, place, "", _TRAINED[run.config.model.train], rows)
    if pruned and public:
        student = teacher.copy()
        parts = []
        if layers is not None:
            progress("which layers matter", 0, 1)
            kept = least_needed_layers(student, public[:256], layers)
            keep_layers(student, kept)
            parts.append(f"layers {', '.join(str(i + 1) for i in kept)} of {len(layers_of(teacher.module))}")
        if heads or neurons:
            progress("which heads and neurons matter", 0, 1)
            prune(student, public[:512], heads=heads, neurons=neurons)
            parts.append(f"without {100 * heads:g} % of heads, {100 * neurons:g} % of feed-forward neurons")
        if factors is not None:
            progress("low-rank factors", 0, 1)
            factorise(student, public[:512], factors)
            parts.append(f"matrices as two factors of {100 * factors:g} % of their numbers")
        if settings is not None:
            distil(teacher, student, public, settings, progress)
            parts.append(f"distilled from the whole model on {len(public):,} public texts")
        names += _pair(student, place, "pruned-", "pruned: " + "; ".join(parts), rows)
    return names


def make_student(
    folder: Path,
    student: str,
    public: list[str],
    settings: DistillationConfig,
    *,
    pooling: str = "mean",
    progress: ProgressCallback = lambda *_: None,
) -> list[str]:
    """`confide distill`. student: a number of the model's own layers, or a backbone. Returns the variants' names."""
    run = FinishedRun(folder, *exported_texts())
    teacher = run.merged()
    own = student.isdigit()
    made = shallow(teacher, int(student)) if own else other_backbone(teacher, student, pooling, settings.seed)
    distil(teacher, made, public, settings, progress)
    what = f"{student} layers" if own else student
    name = f"student-{student}-" if own else f"student-{Path(student).name}-"
    text = f"student ({what}), distilled on {len(public):,} texts without labels"
    progress("exporting", 0, 1)
    return _pair(made, folder / VARIANTS, name, text, run.rows(_PARITY_ROWS))


def _pair(model: TorchModel, place: Path, prefix: str, what: str, rows: Rows) -> list[str]:
    full, small = f"{prefix}{FULL}", f"{prefix}{INT8}"
    export(model, place / full, full, f"{what}; float32", rows)
    quantized(place / full, place / small, small, f"{what}; int8 weights")
    return [full, small]


def measure(
    folder: Path,
    *,
    limit: int | None = None,
    limits: Limits = Limits(),
    progress: ProgressCallback = lambda *_: None,
) -> dict[str, Any]:
    """Every variant of a run beside its torch model; becomes part of the run's report.

    limit: test rows for accuracy. Raises ConfigError.
    """
    run = FinishedRun(folder, *exported(), two_texts=True)
    sample = run.rows(limit)
    names = sorted(path.parent.name for path in (folder / VARIANTS).glob(f"*/{FACTS}"))
    if not names:
        raise ConfigError(f"{folder / VARIANTS}: no variants there")
    threads = torch.get_num_threads()
    teacher = run.merged()
    rows = []
    for number, name in enumerate(["torch", *names]):
        progress(f"measuring {name}", number, len(names) + 1)
        own = None if name == "torch" else folder / VARIANTS / name
        model: Answering = teacher if own is None else OnnxModel(own, threads)
        bytes_ = _bytes_of(teacher) if own is None else (own / MODEL).stat().st_size
        rows.append(
            {
                "name": name,
                "what": f"as trained: {_TRAINED[run.config.model.train]}, torch"
                if own is None
                else load_variant(own).what,
                "mb": bytes_ / 1e6,
                **_latency(model, sample),
                "memory_mb": _memory(folder, name),
                **_quality(model, sample),
            }
        )
    facts = {
        "rows": len(sample),
        "threads": threads,
        "noise": _NOISE,
        "measure": run.model.task.MAIN[0],
        "variants": rows,
        "limits": vars(limits),
        **recommended(rows, limits),
    }
    amend_report(folder, "compression", facts)
    return facts


def recommended(rows: list[dict[str, Any]], limits: Limits) -> dict[str, Any]:
    """The variant to take: of those within the limits the most accurate, of equals the fastest. Without limits: the
    fastest that loses at most a point. `missed` says, where none fits, what the nearest lacks."""
    best = rows[0]["accuracy"]
    wanted = limits
    if limits == Limits():
        wanted = Limits(accuracy=best - 0.01)
    fits = [row for row in rows if not _missed(row, wanted)]
    if not fits:
        nearest = min(rows, key=lambda row: (len(_missed(row, wanted)), row["ms_1"]))
        return {"recommended": None, "missed": f"{nearest['name']}: {'; '.join(_missed(nearest, wanted))}"}
    if limits == Limits():
        return {"recommended": min(fits, key=lambda row: row["ms_1"])["name"], "missed": None}
    return {"recommended": max(fits, key=lambda row: (row["accuracy"], -row["ms_1"]))["name"], "missed": None}


def _missed(row: dict[str, Any], limits: Limits) -> list[str]:
    found = []
    if limits.ms is not None and row["ms_1"] > limits.ms:
        found.append(f"{row['ms_1']:.1f} ms, allowed {limits.ms:g}")
    if limits.mb is not None and row["mb"] > limits.mb:
        found.append(f"{row['mb']:.1f} MB, allowed {limits.mb:g}")
    if limits.accuracy is not None and row["accuracy"] < limits.accuracy:
        found.append(f"accuracy {row['accuracy']:.3f}, wanted {limits.accuracy:.3f}")
    return found


def _quality(model: Answering, sample: Rows) -> dict[str, float | None]:
    """noisy: with characters perturbed, of one class for a text; None elsewhere."""
    noisy = None
    if model.reads == Reads():
        rng = np.random.default_rng([0, 0xC0])
        texts, pair = (
            None if given is None else [characters(text, _NOISE, rng) for text in given]
            for given in (sample.text, sample.pair)
        )
        noisy = _right(model, replace(sample, text=texts or [], pair=pair))
    return {"accuracy": _right(model, sample), "noisy": noisy}


def _right(model: Answering, sample: Rows) -> float:
    """The task's main metric, as the task itself counts it."""
    outputs, labels = model.outputs(sample), sample.labels
    if sample.tags is not None:
        found, true = (np.empty(len(sample), dtype=object) for _ in range(2))
        for i, row in enumerate(outputs):
            read = ~np.isnan(row[:, 0])
            found[i], true[i] = row[read].argmax(1), sample.tags[i][read]
    elif model.reads.label == "number":
        found, true = np.concatenate(outputs), np.asarray(labels)
    elif model.reads.label == "classes":
        found, true = np.stack(outputs) > 0, np.asarray(labels)
    else:
        return float((np.stack(outputs).argmax(1) == labels).mean())
    scores = {"predicted": found, "true": true, "loss": np.zeros(len(sample))}
    task = load_task(model.task)
    return float(task.metrics(scores, len(model.labels))[0][task.MAIN[1]])


def _latency(model: Answering, sample: Rows) -> dict[str, float]:
    """Median and 95th percentile of one row and of a batch of 32, in milliseconds, tokenisation included."""
    found: dict[str, float] = {}
    for size in (1, _BATCH):
        times = []
        for number in range(_WARM + (_REPEATS if size == 1 else _REPEATS // 3)):
            first = number * size % max(1, len(sample) - size)
            rows = sample.take(np.arange(first, min(first + size, len(sample))))
            started = time.perf_counter()
            model.outputs(rows)
            times.append(1000 * (time.perf_counter() - started))
        kept = times[_WARM:]
        found |= {f"ms_{size}": float(np.median(kept)), f"p95_{size}": float(np.quantile(kept, 0.95))}
    return found


def _bytes_of(model: TorchModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.module.parameters())


def _memory(folder: Path, name: str) -> float:
    """MB of a fresh process that loads the variant and answers one batch, at its highest."""
    command = [sys.executable, "-m", "confide.server.ship.peak", str(folder.resolve()), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # ours
    try:
        return float(json.loads(done.stdout)["mb"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{name}: does not run in a process of its own: {done.stderr.strip()[-200:]}") from None
