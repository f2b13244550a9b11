"""Views of a record for training: perturbed copies of its text or image, or its embeddings pushed up its own loss.

A record's views are averaged *before* its gradient is clipped (augmentation multiplicity, De et al. 2022), so under
differential privacy a record counts once however many views it has, and ε does not change.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..config.run import RunConfig
from ..errors import PrivacyError
from ..model.embeddings import ascended, embedding_layer, moved
from ..model.loading import FineTuneModel
from ..model.per_sample import unhooked
from ..tasks import answers_of
from ..types import CHARACTERS, Records, Rows
from .images import perturbed
from .perturbations import characters, reworded
from .record_keys import Keys, choices, own_generator, record_keys

POOL = 4
"""copies that are made of each record; a step draws from them"""
_COPIES = 0xA06


def encode_with_copies(config: RunConfig, model: FineTuneModel, rows: Rows, secret: bytes) -> Records:
    """The records as they are; behind them all their other variants, where the task has some, or `POOL` perturbed
    copies, where the run augments.

    secret: of the site; a record's copies follow from it and from that record alone.
    """
    keys, person = record_keys(rows, secret), None
    if rows.person is not None:
        person = np.unique(rows.person, return_inverse=True)[1].astype(np.int64)
    rows = rows.within(CHARACTERS * model.max_length)
    records = model.tokenised(rows)
    for variant in range(1, model.task.VARIANTS):
        records = records.joined(model.tokenised(rows, variant))
    for copy in range(POOL if config.augments else 0):
        records = records.joined(model.tokenised(_copy(config, rows, keys, copy)))
    many = encodings(config, model)
    person = None if person is None else np.tile(person, many)
    return replace(model.with_features(records), keys=np.tile(keys, many), person=person)


def encodings(config: RunConfig, model: FineTuneModel) -> int:
    """How many encodings of each record lie one behind another."""
    return 1 + POOL if config.augments else model.task.VARIANTS


def views_of(config: RunConfig) -> tuple[int, ...]:
    """Numbers of rows that a record may have in a batch of this run."""
    training = config.training
    if config.augments:
        return (training.views,)
    if training.adversarial is None:
        return (1,)
    return 1, 1 + (training.adversarial_steps if training.adversarial_kind == "freelb" else 1)


def _copy(config: RunConfig, rows: Rows, keys: Keys, copy: int) -> Rows:
    """The rows, each spoiled as the run says, by a generator of its own."""
    made, strength, texts, images = config.data.augmentation, config.training.augmentation, rows.text, rows.images
    rngs = [own_generator(key, _COPIES, copy) for key in keys]
    chances = made.swap or 0.0, made.delete or 0.0, made.insert or 0.0, made.punctuation or 0.0

    def spoiled(texts: list[str]) -> list[str]:
        if made.of_texts:
            texts = [reworded(text, *chances, rng) for text, rng in zip(texts, rngs, strict=True)]
        if strength is not None:
            texts = [characters(text, strength, rng) for text, rng in zip(texts, rngs, strict=True)]
        return texts

    texts, pair = spoiled(texts), None if rows.pair is None else spoiled(rows.pair)
    if images is not None and made.of_images and len(rows):
        images = np.concatenate(
            [perturbed(images[i : i + 1], made.flip, made.shift, made.noise, rng) for i, rng in enumerate(rngs)]
        )
    return replace(rows, text=texts, pair=pair, images=images)


@dataclass(frozen=True)
class Draw:
    """What a step draws beside its records."""

    salt: int
    """decides which copies of each record are taken; new in every step"""
    rng: np.random.Generator
    """decides what is mixed, where nobody's gradient stands alone"""

    @classmethod
    def of(cls, rng: np.random.Generator) -> "Draw":
        return cls(int(rng.integers(2**63)), rng)


def view_losses(
    config: RunConfig,
    model: FineTuneModel,
    records: Records,
    part: np.ndarray,
    number: int,
    draw: Draw,
    length: int | None = None,
) -> torch.Tensor:
    """(V, B) losses of the views of the named records; gradients flow.

    part: (B,) numbers of records as they are. number: of the round. length: tokens to pad to; omitted: the longest.
    Raises PrivacyError for records without keys of their own where copies are drawn.
    """
    training, many = config.training, encodings(config, model)
    size = len(records) // many
    if many > 1 and records.keys is None:
        raise PrivacyError("records without keys: their copies cannot be drawn by each record for itself")
    if config.augments and records.keys is not None:
        drawn = [1 + choices(records.keys[part], draw.salt + view, POOL) for view in range(training.views - 1)]
        every = np.concatenate([part, *(part + size * copies for copies in drawn)])
        return _losses(config, model, records, every, draw.rng, length).view(training.views, len(part))
    if many > 1 and records.keys is not None:
        part = part + size * choices(records.keys[part], draw.salt, many)
    if training.adversarial is None or number <= training.adversarial_warmup:
        return _losses(config, model, records, part, draw.rng, length)[None]
    batch = model.batch(records, part, length)
    with unhooked(model):
        climbed = ascended(model, batch, training.adversarial, training.adversarial_steps)
    deltas = climbed if training.adversarial_kind == "freelb" else climbed[-1:]
    views = 1 + len(deltas)
    repeated = {name: torch.cat([value] * views) for name, value in batch.items()}
    with moved(embedding_layer(model), torch.cat([torch.zeros_like(deltas[0]), *deltas])):
        losses = model.task.record_losses(model.module, repeated)
    return losses.view(views, len(part))


def padded_to(config: RunConfig, model: FineTuneModel, records: Records) -> np.ndarray:
    """(N,) tokens of each record's longest encoding: what its batch is shaped by, whichever copies are drawn."""
    many = encodings(config, model)
    lengths = records.lengths(np.arange(len(records)))
    size = len(records) // many
    return lengths if many == 1 else lengths[: many * size].reshape(many, size).max(0)


def _losses(
    config: RunConfig,
    model: FineTuneModel,
    records: Records,
    part: np.ndarray,
    rng: np.random.Generator,
    length: int | None,
) -> torch.Tensor:
    """(B,) losses of the named records, mixed with one another where the run says so."""
    if config.data.augmentation.mix is None:
        return model.losses(records, part, length)
    batch = model.batch(records, part, length)
    read = batch["features"] if "features" in batch else model.represent(batch)  # (B, F)
    share = rng.beta(config.data.augmentation.mix, config.data.augmentation.mix, size=len(part)).astype(np.float32)
    kept, other = torch.from_numpy(share).to(read.device), torch.from_numpy(rng.permutation(len(part))).to(read.device)
    mixed = kept[:, None] * read + (1 - kept)[:, None] * read[other]
    own, others = (
        model.task.record_losses(
            model.module, {"features": mixed, **{name: values[order] for name, values in answers_of(batch).items()}}
        )
        for order in (slice(None), other)
    )
    return kept * own + (1 - kept) * others
