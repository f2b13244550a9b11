"""The shapes in which held-out records are scored: those of the proof of gradients, looked at once more without.

A kernel may be another one where no gradient is asked for, and one record must not turn another's answer over by the
last bit. Where it could, records of that length are scored one at a time.
"""

import threading
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from .checksums import Layers
from .loading import FineTuneModel
from .proof import RECORDS, filled_in, records_of
from .shapes import Shapes

_looking = threading.Lock()
_SETS = 3
"""of other records that are compared"""
_known: WeakKeyDictionary[nn.Module, dict[tuple[Shapes, tuple[int, ...], int], Shapes]] = WeakKeyDictionary()


def scored_shapes(model: FineTuneModel, proved: Shapes) -> Shapes:
    """The shapes of a proof, of one row where a record's scores do not have the same bits whatever its mates, their
    number and its position."""
    lengths = proved.all_lengths
    done = _known.setdefault(model.template, {})
    key = proved, tuple(proved.rows(length) for length in lengths), torch.get_num_threads()
    with _looking:
        if key not in done:
            with filled_in(model):
                alike = {one: _alike(model, one, rows) for one, rows in zip(lengths, key[1], strict=True)}
            found = {one: rows if alike[one] else 1 for one, rows in zip(lengths, key[1], strict=True)}
            done[key] = replace(proved, found=found)
        return done[key]


def _alike(model: FineTuneModel, length: int, rows: int) -> bool:
    everybody, turned = np.resize(np.arange(RECORDS), rows), np.roll(np.arange(rows), 1)
    fewer = np.resize(turned[everybody[turned] % 2 == 0], rows)  # of the longest alone
    for seed in range(_SETS if rows > 1 else 0):
        bits = _bits(model, length, rows, everybody, seed)
        for where in (turned, fewer):
            again = _bits(model, length, rows, everybody[where], seed)
            if len(bits) != len(again):
                return False
            if not all(torch.equal(one[where], two) for one, two in zip(bits, again, strict=True)):
                return False
    return True


@torch.no_grad()
def _bits(model: FineTuneModel, length: int, rows: int, which: np.ndarray, seed: int) -> list[torch.Tensor]:
    """(rows, 1) checksums of what each layer makes of the named records, and (rows,) of their losses."""
    with Layers(model, 1, rows) as layers:
        scores = model.task.score(model.module, model.batch(records_of(model, length, seed), which, length))
    return [*layers.seen, torch.from_numpy(scores["loss"])]
