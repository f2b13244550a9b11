"""What a model makes of a record must not depend on other records: looked at with dummy records, without gradients."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import ModelError
from ..tasks import inputs_of
from ..types import Records
from .dummies import SHORT, dummy_records, usual_tokens
from .elementwise import Elementwise
from .loading import FineTuneModel
from .per_sample import plain_name
from .shapes import Shapes

_ROUTING = ("grouped_mm", "topk", "histc", "bincount", "nonzero")
"""operations by which tokens of several records are gathered, whose kernels depend on how many there are"""
_PRODUCTS = ("mm", "mv", "dot", "linear", "conv", "gem", "einsum")
"""in the names of operations that multiply matrices, bitsandbytes' included"""
_FEW_VECTORS, _FEW_NUMBERS = 8, 4096
"""of a record in such a product: with fewer of both, records could look alike by chance"""
_NARROW, _TOGETHER = 8, 16
"""numbers of a vector in a product below which kernels take so many vectors together, or fewer: widths 1 to 3 by fours
were seen"""
RECORDS, MANY, ALONE = 16, 128, 3
"""dummy records at once, over several sets, and of those the ones that are taken alone"""
_SEEN = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
"""of what changed tokens change at their own places: more before them is not rounding"""
_UNMOVED = 1e-6
"""of an answer, what kernels may change of it"""
_LOOKED_AT = 6
"""tokens of the texts by which a model is found to see what it is to guess; fewer where it has fewer positions"""
_HOOKED = "_is_full_backward_hook"
"""which torch sets on a layer with hooks: no setting of its own, and other in a process that has trained"""
COMPARED = 50
"""tokens up to which gradients are also compared with those taken alone; longer shapes run through the same layers"""


Seen = list[tuple[str, tuple, tuple]]
"""of each operation its name, the shapes that came of it, and those that it read"""


class Operations(TorchDispatchMode):
    """Notes what is computed, the shapes that come of it, and those that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen.append((str(func), _shapes(result if isinstance(result, tuple | list) else [result]), _shapes(args)))
        return result


def _shapes(values: Iterable[object]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(x.shape) for x in values if isinstance(x, torch.Tensor))


def works_alike(*reads: Callable[[], object]) -> bool:
    """Whether several readings take the same operations on the same shapes, none of which gathers tokens of several
    records: an expert that is given as many tokens as its mates send takes another kernel for other mates, and random
    records need not show it."""
    seen = []
    for read in reads:
        with Operations() as operations, torch.no_grad():
            read()
        seen.append(operations.seen)
    return all(one == seen[0] for one in seen) and not any(name in call for call, *_ in seen[0] for name in _ROUTING)


def small_products(
    seen: Seen, rows: int, weights: Collection[tuple[int, ...]] = ()
) -> frozenset[tuple[str, tuple, tuple]]:
    """Of what `Operations` has seen in a batch of so many rows: products of a matrix with few vectors of each row, and
    to few numbers (a head over a pooled vector or over few positions; a layer over all tokens or patches is none), and
    products to very few numbers a vector whose vectors leave a rest: kernels take the last ones of the batch otherwise,
    however many there are. weights: shapes of trained arrays, of whose gradients over the whole batch nothing is used.
    """
    return frozenset(
        (call, results, read)
        for call, results, read in seen
        if any(name in call for name in _PRODUCTS)
        and "attention" not in call  # takes each record by itself
        and not ("bmm" in call and results and results[0][0] % rows == 0)  # so does this
        and not any(shape in weights and shape[0] % rows for shape in results)
        and any(_is_small(call, shape, rows) for shape in results)
    )


def over_the_batch(
    seen: Seen, other: Seen, weights: Collection[tuple[int, ...]], numbers: Collection[tuple[int, int]]
) -> frozenset[tuple[str, tuple, tuple]]:
    """Of `seen`, products that are no record's: they sum over all tokens of the batch, as a trained array's gradient
    over the whole batch does, and so sum over others where rows have another length (`other`).

    weights: shapes of trained arrays. numbers: (here, there) of tokens in a batch, one pair for each number of views.
    """
    here, there = Counter(seen), Counter(other)

    def moves(product: tuple[str, tuple, tuple], count: int) -> bool:
        call, results, read = product
        if product in there or not any(shape in weights for shape in results):
            return False
        changed = [(call, results, _replaced(read, tokens, others)) for tokens, others in numbers]
        return any(one != product and there[one] == count for one in changed)

    return frozenset(product for product, count in here.items() if moves(product, count))


def _replaced(shapes: tuple[tuple[int, ...], ...], old: int, new: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(new if size == old else size for size in shape) for shape in shapes)


def _is_small(call: str, shape: tuple[int, ...], rows: int) -> bool:
    width = shape[1 if "conv" in call and len(shape) > 2 else -1] if shape else 1
    numbers, vectors = math.prod(shape), math.prod(shape) // max(1, width)
    few = vectors < _FEW_VECTORS * rows and numbers < _FEW_NUMBERS * rows
    return few or (width < _NARROW and vectors % _TOGETHER != 0)


def check_apart(model: FineTuneModel) -> None:
    """For training that clips no single records, as that of teachers: raises ModelError where what the frozen part
    makes of a record depends on records that are read beside it, or that were read before it."""
    most = model.max_length
    if model.positions is not None:  # one stays free for padding
        most = min(most, model.positions - 1)
    shapes = Shapes(most if model.task.READS.text else 0, 1, 1.0)
    check_stateless(model, shapes)
    if model.head_only:
        check_features(model)


def check_past(model: FineTuneModel) -> None:
    """Raises ModelError for a model that is to guess the next token and sees it: an encoder, such as BERT."""
    length = min(_LOOKED_AT, model.positions or _LOOKED_AT)
    same = length // 2
    words = np.resize(np.random.default_rng(0xD077).permutation(usual_tokens(model)), length + 1)
    ids = torch.as_tensor(np.stack([words[:-1], words[1:]]), device=model.device)  # no token has the other's beside it
    ids[1, :same] = ids[0, :same]
    with torch.no_grad():
        apart = model.module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().diff(dim=0)[0].abs()
    if not apart[:same].max() <= _SEEN[model.dtype] * apart[same:].max():
        raise ModelError(
            "model.backbone: its guess of a token changes with the tokens after it, so it would learn to copy; give a "
            "decoder, such as GPT-2 or Llama, or set model.task = 'masked-lm'"
        )


def check_read(model: FineTuneModel) -> None:
    """Raises ModelError for a model whose answer to a text is that to its first token, such as a decoder's first
    vector: there would be nothing to learn."""
    length = min(SHORT, model.positions or SHORT, model.max_length)
    reads = model.task.READS
    if length < 2 or not reads.text or reads.images or reads.pairs or reads.label in (None, "tags"):
        return
    records = replace(dummy_records(model, [length] * 2), features=None)
    tokens = records.tokens.copy()
    tokens[length] = tokens[0]
    batch = model.batch(replace(records, tokens=tokens), np.arange(2))
    with torch.no_grad():
        one, other = model.module(**inputs_of(batch)).logits.float()
    if torch.allclose(one, other, rtol=_UNMOVED, atol=_UNMOVED * float(one.abs().max())):
        raise ModelError(
            "model.pooling: the answer of this model to a text does not change with anything behind its first token, "
            "as that of a decoder's first vector; set model.pooling = 'last' or 'mean', or choose another backbone"
        )


def check_stateless(model: FineTuneModel, shapes: Shapes) -> None:
    """Raises ModelError for a model that one record changes for the next: some choose their attention for good by the
    first batch they see, and some draw random numbers while they read. Looked at on a copy that has seen nothing."""
    fresh = model.copy()
    before, drawn = state_of(fresh.module), _generators()
    longest = (shapes.longest or model.max_length) if model.task.READS.text else 0
    for tokens in (longest, min(4, longest), longest):
        length = int(shapes.lengths(np.array([tokens]))[0]) or None  # features have none
        with torch.no_grad():
            fresh.losses(replace(dummy_records(fresh, [tokens]), features=None), np.array([0]), length)
        changed = [name for name, state in state_of(fresh.module).items() if before.get(name) != state]
        if changed:
            raise ModelError(
                f"{plain_name(changed[0]) or 'model.backbone'}: changes with what it has read, so one record would "
                "change another's gradient; choose another backbone"
            )
    if not all(torch.equal(one, two) for one, two in zip(drawn, _generators(), strict=True)):
        raise ModelError(
            "model.backbone: it draws random numbers while it reads, so one record would change another's gradient; "
            "choose another backbone"
        )


def _generators() -> list[torch.Tensor]:
    """The states of torch's generators."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def state_of(module: nn.Module) -> dict[str, tuple]:
    """Of each part: its kind, its settings, and its buffers' sums."""
    plain = (int, float, str, bool, type(None))
    return {
        name: (
            type(part).__name__,
            sorted(
                (key, repr(value)) for key, value in vars(part).items() if isinstance(value, plain) and key != _HOOKED
            ),
            [(key, float(buffer.double().sum())) for key, buffer in part.named_buffers(recurse=False)],
        )
        for name, part in module.named_modules()
    }


def check_features(model: FineTuneModel) -> None:
    """Raises ModelError where what a frozen backbone makes of a record depends on who else is read with it.

    To the last bit: the head is the server's, and large weights make a gradient of any difference.
    """
    if not model.pools:
        return
    shapes = model.feature_shapes
    lengths = shapes.all_lengths if model.task.READS.text else [0]
    for below, length in zip([0, *lengths], lengths, strict=False):
        longest = max(1, length - shapes.spare)
        shorter = max(longest * 2 // 3, below - shapes.spare + 1, 1)  # of the same batch
        own = np.resize([longest, shorter, longest], RECORDS) if length else np.zeros(RECORDS, int)
        one, other = (replace(dummy_records(model, own.tolist(), seed), features=None) for seed in range(2))
        alike = works_alike(*(partial(model.features, records, np.arange(RECORDS)) for records in (one, other)))
        with Elementwise() as elementwise:
            model.features(one, np.arange(RECORDS))
        if not (alike and elementwise.alike() and _same_features(model, one, thorough=length <= COMPARED)):
            raise ModelError(
                "model.train: what this backbone makes of a record changes with the records beside it, on this "
                f"machine with {torch.get_num_threads()} threads; under privacy it must not; choose another backbone, "
                "another number of threads (OMP_NUM_THREADS: a power of two), or model.train = 'lora'"
            )


def _same_features(model: FineTuneModel, records: Records, *, thorough: bool) -> bool:
    """Whether each record's features stay the same among other mates. thorough: also beside copies of itself alone."""
    everyone, rng = np.arange(len(records)), np.random.default_rng(0xFEA7)
    expected = model.features(records, everyone)
    parts = [everyone[::-1], everyone[::2], everyone[1::2], everyone[-3:], everyone[everyone % 3 != 1]]  # the longest
    if thorough:
        parts += [everyone[i : i + 1] for i in everyone]
        parts += [rng.choice(everyone, size, replace=False) for size in (2, 5, 7, 11, 13)]
    return all(np.array_equal(model.features(records, part), expected[part]) for part in parts)
