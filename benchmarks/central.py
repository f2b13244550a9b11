"""Central DP-SGD written directly on Opacus: one owner of all records, the yardstick of mode `distributed`.

    python -m benchmarks.central RECIPE.toml RESULT.json

Same records, model, head, initial adapter, q, T, clip norm and optimizer as the recipe; Opacus draws the batches,
adds Gaussian noise and calibrates it by its default accountant (PRV, tighter than Rényi DP). Mode `none` trains on the
same Poisson batches without clipping or noise.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from opacus.accountants.utils import get_noise_multiplier
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer

from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig, load
from confide.common.model.loading import FineTuneModel, model_of
from confide.common.model.optimizer import make_optimizer
from confide.common.types import Records
from confide.server.evaluation import evaluate, read_public
from confide.simulations.sites import simulated_data

PHYSICAL = 64


def main(recipe: str, result: str) -> None:
    config = resolve(load(Path(recipe)))
    torch.manual_seed(config.run.seed)
    model = model_of(config)
    records = simulated_data(config, model).records
    test = read_public(config, model, config.data.test)
    warnings.filterwarnings("ignore")
    Path(result).write_text(json.dumps(run(config, model, records, test)), encoding="utf-8")


def run(config: RunConfig, model: FineTuneModel, records: Records, test: Records) -> dict[str, float]:
    """Trains from the initial adapter; the noise multiplier and the accuracy."""
    privacy, steps = config.privacy, config.run.rounds
    rate = privacy.sampling_rate or 0.05
    noise = 0.0
    if config.private:
        noise = get_noise_multiplier(
            target_epsilon=privacy.epsilon or 0.0,
            target_delta=privacy.delta,
            sample_rate=rate,
            steps=steps,
            accountant="prv",
        )
    model.set(model.initial)
    parameters = list(model.trained.values())
    inner = make_optimizer(config.training.optimizer, parameters, config.training.learning_rate)
    optimizer, hooks = inner, None
    if noise:
        hooks = GradSampleHooks(model.module, loss_reduction="sum", strict=False)
        owners = [m for m in model.module.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
        for owner in owners:  # Opacus records in training mode only; dropout stays off
            owner.train()
        optimizer = DPOptimizer(
            inner,
            noise_multiplier=noise,
            max_grad_norm=privacy.clip,
            expected_batch_size=round(rate * len(records)),
        )
    rng = np.random.default_rng(config.run.seed)
    for _ in range(steps):
        drawn = np.flatnonzero(rng.random(len(records)) < rate)
        drawn = drawn[np.argsort(records.lengths(drawn), kind="stable")]
        parts = np.array_split(drawn, max(1, -(-len(drawn) // PHYSICAL)))
        for i, part in enumerate(parts):
            loss = model.losses(records, part).sum()
            if isinstance(optimizer, DPOptimizer):
                loss.backward()
                optimizer.signal_skip_step(do_skip=i < len(parts) - 1)
                optimizer.step()
                optimizer.zero_grad()
            else:
                (loss / (rate * len(records))).backward()
        if not noise:
            optimizer.step()
            optimizer.zero_grad()
    if hooks is not None:
        hooks.cleanup()
        model.module.eval()
    accuracy = evaluate(model, model.get(), test, np.arange(len(test))).metrics["accuracy"]
    return {"noise_multiplier": noise, "accuracy": accuracy}


if __name__ == "__main__":
    main(*sys.argv[1:])
