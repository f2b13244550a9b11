"""Views of a record for training: spoiled copies of its text or picture, or its embeddings pushed up its own loss.

A record's views are averaged *before* its gradient is clipped (augmentation multiplicity, De et al. 2022), so under
differential privacy a record counts once however many views it has, and ε does not change.
"""

from dataclasses import replace

import numpy as np
import torch

from .config import RunConfig
from .models import FineTuneModel
from .per_sample import unhooked
from .pictures import spoiled
from .robustness.embeddings import ascended, embedding_layer, moved
from .robustness.perturbations import characters, reworded
from .types import Records, Rows

POOL = 4
"""copies that are made of each record; a step draws from them"""


def encode_with_copies(config: RunConfig, model: FineTuneModel, rows: Rows) -> Records:
    """The records as they are; behind them all their other variants, where the task has some, or `POOL` spoiled copies,
    where the run augments."""
    records = model.encode(rows)
    for variant in range(1, model.task.VARIANTS):
        records = records.joined(model.encode(rows, variant))
    if not config.augments:
        return model.with_features(records)
    for copy in range(POOL):
        rng = np.random.default_rng([config.run.seed, 0xA06, copy])
        records = records.joined(model.encode(_copy(config, rows, rng)))
    return model.with_features(records)


def _copy(config: RunConfig, rows: Rows, rng: np.random.Generator) -> Rows:
    """The rows, spoiled as the run says."""
    made, strength, texts, pictures = config.data.augmentation, config.training.augmentation, rows.text, rows.pictures
    if made.of_texts:
        texts = [
            reworded(text, made.swap or 0.0, made.delete or 0.0, made.insert or 0.0, made.punctuation or 0.0, rng)
            for text in texts
        ]
    if strength is not None:
        texts = [characters(text, strength, rng) for text in texts]
    if pictures is not None and made.of_pictures:
        pictures = spoiled(pictures, made.flip, made.shift, made.noise, rng)
    return replace(rows, text=texts, pictures=pictures)


def view_losses(
    config: RunConfig, model: FineTuneModel, records: Records, part: np.ndarray, number: int, rng: np.random.Generator
) -> torch.Tensor:
    """(V, B) losses of the views of the named records; gradients flow.

    part: (B,) numbers of records as they are. number: of the round. rng: decides which copies.
    """
    training = config.training
    if (variants := model.task.VARIANTS) > 1:
        part = part + len(records) // variants * rng.integers(variants, size=len(part))
    if config.augments:
        size = len(records) // (1 + POOL)
        copies = [part + size * (1 + rng.integers(POOL, size=len(part))) for _ in range(training.views - 1)]
        return _losses(config, model, records, np.concatenate([part, *copies]), rng).view(training.views, len(part))
    if training.adversarial is None or number <= training.adversarial_warmup:
        return _losses(config, model, records, part, rng)[None]
    batch = model.batch(records, part)
    with unhooked(model):
        climbed = ascended(model, batch, training.adversarial, training.adversarial_steps)
    deltas = climbed if training.adversarial_kind == "freelb" else climbed[-1:]
    views = 1 + len(deltas)
    repeated = {name: torch.cat([value] * views) for name, value in batch.items()}
    with moved(embedding_layer(model), torch.cat([torch.zeros_like(deltas[0]), *deltas])):
        losses = model.task.record_losses(model.module, repeated)
    return losses.view(views, len(part))


def _losses(
    config: RunConfig, model: FineTuneModel, records: Records, part: np.ndarray, rng: np.random.Generator
) -> torch.Tensor:
    """(B,) losses of the named records, mixed with one another where the run says so."""
    if config.data.augmentation.mix is None:
        return model.losses(records, part)
    batch = model.batch(records, part)
    read = batch["features"] if "features" in batch else model.represent(batch)  # (B, F)
    share = rng.beta(config.data.augmentation.mix, config.data.augmentation.mix, size=len(part)).astype(np.float32)
    kept, other = torch.from_numpy(share).to(read.device), torch.from_numpy(rng.permutation(len(part))).to(read.device)
    mixed = kept[:, None] * read + (1 - kept)[:, None] * read[other]
    own, others = (
        model.task.record_losses(model.module, {"features": mixed, "targets": targets})
        for targets in (batch["targets"], batch["targets"][other])
    )
    return kept * own + (1 - kept) * others
