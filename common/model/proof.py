"""Proved with dummy records, before a row is read: this model's per-record gradients are per record, on this machine.

Clipping bounds a record's part in a sum only if the gradient that is clipped is that record's alone. Whether it is
depends on the architecture (what its layers read), on Opacus, and on kernels; none of it depends on data, so random
records show it: their gradients, taken together in the shapes that training uses, against each taken alone by plain
autograd; and bit for bit, in other positions, among other mates, among fewer.
"""

import math
import re
import secrets
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..config.run import RunConfig
from ..data.augmentation import views_of
from ..errors import ModelError, PrivacyError, first_line
from ..types import Records
from . import kept_proofs
from .apart import (
    ALONE,
    COMPARED,
    MANY,
    RECORDS,
    Operations,
    Seen,
    check_features,
    check_past,
    check_read,
    check_stateless,
    over_the_batch,
    small_products,
    works_alike,
)
from .checksums import Layers
from .class_loss import ClassLoss
from .dummies import dummy_records
from .elementwise import Elementwise
from .loading import FineTuneModel
from .per_sample import hooked, plain_name, record_gradients
from .shapes import MOST_RECORDS, Shapes, filled

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.15}
"""of a record's gradient alone against the same in a batch: other kernels round otherwise (≤ 10⁻⁶ seen in float32,
5·10⁻² in bfloat16, on a record of random tokens); that nothing of other records is in it is shown bit for bit"""
_REACHING = 4
"""dummy records whose loss must reach what is trained"""

_Asked = tuple[Shapes, tuple[int, ...], int, ClassLoss | None]
"""shapes, views, threads, and what the loss weighs"""
_proved: WeakKeyDictionary[nn.Module, dict[_Asked, Shapes]] = WeakKeyDictionary()
_proving = threading.Lock()


def check_reached(model: FineTuneModel) -> None:
    """Raises ModelError when the loss does not depend on a trained array, when no array gets a gradient other than zero
    (nothing could be trained then), or when a text of `model.max_length` tokens does not pass through the model."""
    model.set(model.initial)  # it may come from another run
    try:
        lengths = [min(8, model.max_length)] * _REACHING
        loss = model.losses(dummy_records(model, lengths), np.arange(_REACHING)).sum()
        found = torch.autograd.grad(loss, list(model.trained.values()), allow_unused=True)
    except Exception as error:  # of a dummy record
        raise ModelError(
            f"model.backbone: this model does not answer a short record of the task ({first_line(error)}); choose "
            "another model.pooling ('model' for the backbone's own head), or another backbone"
        ) from None
    if lost := [name for name, g in zip(model.trained, found, strict=True) if g is None]:
        lora = any(".lora_" in name for name in model.trained)
        raise ModelError(
            f"{'model.lora.targets' if lora else 'model.train'}: the loss does not depend on {lost[0]} (and "
            f"{len(lost) - 1} more); {'name targets that the task uses' if lora else _advice(model)}"
        )
    # LoRA's A has a gradient of zero as long as B is zero, but B and a head have none of zero
    if not any(bool((torch.isfinite(g) & (g != 0)).any()) for g in found):
        raise ModelError(
            "model.backbone: the gradients of random records are zero or not finite in every trained array, so nothing "
            f"could be trained; choose another backbone; or {_advice(model)}"
        )
    if model.task.EXPORT == "text":
        check_past(model)
    check_read(model)
    try:
        with torch.no_grad():
            model.losses(dummy_records(model, [model.max_length]), np.array([0]))
    except Exception as error:
        raise ModelError(
            f"model.max_length: a text of {model.max_length} tokens does not pass through this model "
            f"({first_line(error)}); lower it, or choose another backbone"
        ) from None


def proved_shapes(config: RunConfig, model: FineTuneModel) -> Shapes:
    """The shapes of a run's batches under privacy, in which the model was proved. Raises ModelError as `prove`."""
    training, drawn = config.training, config.expected_rows
    expected = math.inf if drawn is None else drawn / config.clients
    unread = not model.task.READS.text or (model.head_only and model.pools)
    if model.task.READS.text and model.positions is not None and model.max_length >= model.positions:
        raise ModelError(
            f"model.max_length: {model.max_length} received; this backbone has positions for {model.positions} tokens, "
            f"and under privacy one stays free for padding; allowed: at most {model.positions - 1}"
        )
    shapes = Shapes(
        0 if unread else model.max_length, min(MOST_RECORDS, max(1, training.tokens // model.max_length)), expected
    )
    with _proving:
        return prove(model, shapes, views_of(config))


def prove(model: FineTuneModel, shapes: Shapes, views: tuple[int, ...] = (1,)) -> Shapes:
    """The shapes with the rows of each length for which a record's gradient has the same bits whatever its mates, their
    number and its position, on this machine with this many threads. Once each; what took long is kept for later
    processes (kept_proofs.py).

    views: numbers of rows that a record may have in a batch. Raises ModelError, naming the layer, where a record's
    gradient is not its own.
    """
    done = _proved.setdefault(model.template, {})
    key = shapes, views, torch.get_num_threads(), model.class_loss
    if key not in done:
        check_stateless(model, shapes)
        with filled_in(model):
            proof = _Proof(model, shapes, views)
            place = kept_proofs.place_of(model, key)
            found = kept_proofs.kept(place)
            if found is None or not proof.finds_again(found):
                started = time.monotonic()
                found = {length: proof.rows_for(length) for length in shapes.all_lengths}
                if time.monotonic() - started > kept_proofs.DEAR:
                    kept_proofs.keep(place, found)
        if model.head_only:
            check_features(model)
        done[key] = replace(shapes, found=found)
    return done[key]


class _Proof:
    """One model's, with other weights than zero."""

    def __init__(self, model: FineTuneModel, shapes: Shapes, views: tuple[int, ...]) -> None:
        self.model, self.shapes, self.views = model, shapes, views
        self._shortest = shapes.all_lengths[0]
        self._weights = {shape for p in model.trained.values() for shape in (tuple(p.shape), tuple(p.shape)[::-1])}
        self._small: dict[tuple[int, frozenset], bool] = {}
        """of rows, and of products in which records could look alike by chance: whether many records do"""
        self._done: dict[tuple[int, int], tuple[Elementwise, frozenset]] = {}
        """of a length and rows"""

    def rows_for(self, length: int) -> int:
        compared = length <= COMPARED or length == self._shortest
        for rows in self.shapes.candidates(length):
            if compared:
                self._compare(length, rows)
            if rows == 1 or (self._same_work(length, rows) and self._rows_alike(length, rows)):
                return rows
        return 1

    def finds_again(self, found: dict[int, int]) -> bool:
        """Whether an earlier proof is of these shapes, and one of its lengths, drawn anew, is proved again."""
        lengths = list(self.shapes.all_lengths)
        if list(found) != lengths:
            return False
        length = secrets.choice(lengths)
        return self.rows_for(length) == found[length]

    def _compare(self, length: int, rows: int) -> None:
        """A batch's gradients with those of its first records taken alone."""
        records = records_of(self.model, length, 0)
        together = _together(self.model, records, np.arange(min(RECORDS, rows)), rows, self.views[0], length)
        for index in range(min(ALONE, rows)):
            _compare(self.model, _alone(self.model, records, index, length), [part[index] for part in together])

    def _same_work(self, length: int, rows: int) -> bool:
        """Whether the model does the same for other records."""
        which = np.resize(np.arange(RECORDS), rows)
        return works_alike(
            *(partial(self.model.losses, records_of(self.model, length, seed), which, length) for seed in range(2))
        )

    def _rows_alike(self, length: int, rows: int) -> bool:
        """Many records, where a product has few numbers of each, or treats its last vectors otherwise: of those perhaps
        one in two to twenty rounds otherwise at the next position, so few records could look alike by chance. Where
        every product has many numbers of each record, none could. Once for lengths that have the same such products.

        Of elementwise operations the few numbers at the end of a range could look alike, too: there must be none.
        """
        elementwise, products = self._work(length, rows)
        if not (elementwise.alike() and self._bits_stay(length, rows, 0)):
            return False
        small = rows, products
        if products and small not in self._small:
            cheaper = self._shortest if products == self._work(self._shortest, rows)[1] else length
            sets = -(-MANY // min(rows, RECORDS))
            self._small[small] = all(self._bits_stay(cheaper, rows, seed) for seed in range(1, 1 + sets))
        return self._small.get(small, True)

    def _work(self, length: int, rows: int) -> tuple[Elementwise, frozenset]:
        """What a batch's gradients take: elementwise operations, and products in which records could look alike."""
        if (length, rows) not in self._done:
            with Elementwise() as elementwise:
                seen = self._seen(length, rows)
            products = small_products(seen, rows, self._weights)
            if products and length > 2:  # whether they are of all records together, shows where rows are shorter
                other = self._shortest if length > self._shortest else length - 1
                numbers = [(rows * views * length, rows * views * other) for views in self.views]
                products -= over_the_batch(seen, self._seen(other, rows), self._weights, numbers)
            self._done[length, rows] = elementwise, products
        return self._done[length, rows]

    def _seen(self, length: int, rows: int) -> Seen:
        with Operations() as operations:
            for views in self.views:
                which = np.resize(np.arange(RECORDS), rows)
                _together(self.model, records_of(self.model, length, 0), which, rows, views, length)
        return operations.seen

    def _bits_stay(self, length: int, rows: int, seed: int) -> bool:
        """Whether other positions, other mates and fewer of them leave the gradients the same; for the first set those
        of the longest also where no shorter one is beside them."""
        records, everybody = records_of(self.model, length, seed), np.resize(np.arange(RECORDS), rows)
        turned = np.roll(np.arange(rows), 1)
        longest = turned[everybody[turned] % 2 == 0]
        for views in self.views:
            together = self._bits(records, everybody, rows, views, length)
            for where in [turned] + [longest] * (seed == 0):
                again = self._bits(records, everybody[where], rows, views, length)
                if len(together) != len(again):
                    return False
                if not all(torch.equal(one[where], two) for one, two in zip(together, again, strict=True)):
                    return False
        return True

    def _bits(self, records: Records, which: np.ndarray, rows: int, views: int, length: int) -> list[torch.Tensor]:
        """(n, …) of every trained array the records' gradients, and of every layer checksums of what it makes of them
        and of that one's gradients: a last bit that is lost further on is seen where it arises."""
        with Layers(self.model, views, rows) as layers:
            gradients = _together(self.model, records, which, rows, views, length)
        return gradients + [checksums[: len(which)] for checksums in layers.seen]


def records_of(model: FineTuneModel, length: int, seed: int) -> Records:
    """RECORDS of a shape's length: every other one as long as it takes, the others shorter."""
    # records that are read once for their features have a length of their own, but none in a batch
    longest = max(1, length - 1) if length else min(12, model.max_length)
    own = np.linspace(longest, max(1, longest * 2 // 3), RECORDS).round().astype(int)
    own[::2] = longest
    return dummy_records(model, own.tolist(), seed)


def _together(
    model: FineTuneModel, records: Records, which: np.ndarray, rows: int, views: int, length: int
) -> list[torch.Tensor]:
    """(n, d_p) of each trained array: the named records' gradients in one batch of `rows`, `views` times each."""
    batch = np.tile(filled(which, rows), views)
    try:
        with hooked(model):
            losses = model.losses(records, batch, length).view(views, rows)
            return [part.detach().clone() for part in record_gradients(model, losses, len(which))]
    except PrivacyError as error:
        raise ModelError(f"{error}; {_advice(model)}") from None
    except ModelError:
        raise
    except Exception as error:  # of dummy records: whatever Opacus or the model cannot do
        where = _layer_of(model, error)
        raise ModelError(
            f"{where}: Opacus has no per-record gradients for it ({first_line(error)}); {_advice(model)}"
        ) from None


def _layer_of(model: FineTuneModel, error: Exception) -> str:
    """The layer in whose backward pass an error arose, by the frames that it passed."""
    names = {module: name for name, module in model.module.named_modules()}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for local in ("module", "layer"):
            found = frame.f_locals.get(local)
            if isinstance(found, nn.Module) and found in names and not list(found.children()):
                return f"{plain_name(names[found])} ({type(found).__name__})"
    return "model.backbone"


def _advice(model: FineTuneModel) -> str:
    if not any(".lora_" in name for name in model.trained):
        return "choose model.train = 'lora' or 'head'"
    tables = sorted({_layer(name).rsplit(".", 1)[-1] for name in model.trained if ".lora_embedding_" in name})
    outputs = {id(m.get_output_embeddings()) for m in model.module.modules() if isinstance(m, PreTrainedModel)}
    kinds = {
        name.removesuffix(".base_layer").rsplit(".", 1)[-1]
        for name, module in model.module.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and ".lora_" not in name and "modules_to_save" not in name
        and id(module) not in outputs
    }  # fmt: skip
    left = ", ".join(sorted(kinds - set(model.task.HEAD) - {"stand_in", "original_module"}))
    if tables:
        return f"take {', '.join(tables)}, an embedding, out of model.lora.targets; layers that can be there: {left}"
    return f"choose other model.lora.targets (layers here: {left}), or model.train = 'head'"


def _alone(model: FineTuneModel, records: Records, index: int, length: int) -> list[torch.Tensor]:
    """(d_p,) of each trained array, by autograd, without hooks or mates."""
    loss = model.losses(records, np.array([index]), length).sum()
    found = torch.autograd.grad(loss, list(model.trained.values()), allow_unused=True)
    return [
        torch.zeros(p.numel(), device=p.device) if g is None else g.flatten()
        for p, g in zip(model.trained.values(), found, strict=True)
    ]


def _compare(model: FineTuneModel, alone: list[torch.Tensor], together: list[torch.Tensor]) -> None:
    whole = float(torch.cat(alone).double().norm())
    apart = {name: float((a - b).double().norm()) for name, a, b in zip(model.trained, alone, together, strict=True)}
    name = max(apart, key=lambda key: apart[key] if np.isfinite(apart[key]) else np.inf)
    if not apart[name] <= TOLERANCES[model.dtype] * whole:
        raise ModelError(
            f"{_layer(name)}: the per-record gradient differs from that of the record taken alone by "
            f"{apart[name] / max(whole, 1e-30):.2g} of its length: it is not one record's, so clipping it would bound "
            f"nothing; {_advice(model)}"
        )


def _layer(name: str) -> str:
    """Of an array's saved name."""
    return re.sub(r"\.lora_(embedding_)?[AB]", "", plain_name(name).removesuffix(".weight"))


@contextmanager
def filled_in(model: FineTuneModel):
    """Within, the weights are such as training leaves: LoRA's B is not zero, which would hide errors in A, and what a
    head says is of the order of 1. Beside logits near zero every gradient of a class is one half, whatever was lost.
    No array keeps its numbers: those of a model in bfloat16 have few bits, and products of such add up without
    rounding, whatever the kernel."""
    before = model.get()
    rng = np.random.default_rng(0xF111)

    def changed(name: str, array: np.ndarray) -> np.ndarray:
        if array.ndim == 2 and ".lora_" not in name and set(name.split(".")) & set(model.task.HEAD):
            return array + rng.normal(0, array.shape[1] ** -0.5, array.shape).astype(array.dtype)
        size = 0.1 * float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) or 0.02
        return array + rng.normal(0, size, array.shape).astype(array.dtype)

    model.set({name: changed(name, array) for name, array in before.items()})
    try:
        yield
    finally:
        model.set(before)
