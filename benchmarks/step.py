"""One training step on MiniLM, timed, in a process of its own: `python -m benchmarks.step plain|private RESULT`."""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

from confide.common.config.tables import LoraSection, ModelSection
from confide.common.model.backbones import DEMO_BACKBONE
from confide.common.model.loading import FineTuneModel, load_model
from confide.common.model.per_sample import clipped_sum, hooked
from confide.common.privacy.mechanism import PoissonMechanism, plan_for
from confide.common.privacy.noise import secure_generator
from confide.common.tasks import collate, ragged
from confide.common.types import Records

RECORDS, TOKENS, REPEATS = 64, 16, 15


def losses_of(model: FineTuneModel, records: Records, indices: np.ndarray) -> torch.Tensor:
    return model.task.record_losses(model.module, collate(model.task, records, indices, model.pad, model.device))


def plain_step(model: FineTuneModel, records: Records, indices: np.ndarray) -> torch.Tensor:
    gradients = torch.autograd.grad(losses_of(model, records, indices).mean(), list(model.trained.values()))
    return torch.cat([g.flatten() for g in gradients])


def private_step(
    model: FineTuneModel, records: Records, indices: np.ndarray, mechanism: PoissonMechanism
) -> torch.Tensor:
    mechanism.draw(0)
    with hooked(model):
        total, _ = clipped_sum(model, losses_of(model, records, indices), mechanism.plan.clip)
    return torch.from_numpy(mechanism.release(total.double().cpu().numpy())).float()


def mechanism_of(model: FineTuneModel, *, rate: float, steps: int, units: int) -> PoissonMechanism:
    """For ε = 8 at δ = 1e-5 and C = 1."""
    plan = plan_for(
        epsilon=8,
        delta=1e-5,
        sampling_rate=rate,
        steps=steps,
        clip=1.0,
        coordinates=model.count()[0],
        declared_units=units,
    )
    return PoissonMechanism(plan, secure_generator())


def measured(kind: str, count: int, tokens: int) -> float:
    """Seconds of a step over `count` records of `tokens` tokens, the median of `REPEATS` less three."""
    lora = LoraSection(rank=8, alpha=16, targets=("query", "value"))
    model = load_model(ModelSection(backbone=DEMO_BACKBONE, lora=lora), 2, 0)
    rng = np.random.default_rng(0)
    records = ragged([rng.integers(1000, 20000, tokens).tolist() for _ in range(count)], rng.integers(0, 2, count))
    indices = np.arange(count)
    mechanism = mechanism_of(model, rate=0.05, steps=1000, units=1280)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        if kind == "private":
            private_step(model, records, indices, mechanism)
        else:
            plain_step(model, records, indices)
        if model.device.type == "cuda":
            torch.cuda.synchronize()  # its work is queued: the call returns before it is done
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[3:]))


def main(kind: str, result: Path) -> None:
    seconds = measured(kind, RECORDS, TOKENS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result.write_text(json.dumps({"seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
