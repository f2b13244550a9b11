"""A head of a site's own, on the federation's model: fitted where the records are, and never sent.

The shared model learns what features are worth having, and a site with another mix of classes draws its own lines
through them (Collins et al. 2021; that FedAvg and a fit at the end suffice: Collins et al. 2022). Nothing is released,
so nothing is charged: the head must stay at the site, since it is as personal as its records.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data.record_keys import Keys, choices
from ..errors import ModelError
from ..types import Adapter, Records
from .loading import FineTuneModel

STRENGTHS = (1.0, 0.1, 0.01, 0.001)
"""of the pull towards the shared head, per record; infinite is the shared head itself"""
_FOLDS, _STEPS, _LEAST = 4, 100, 20


@dataclass(frozen=True)
class PersonalHead:
    arrays: Adapter
    """the head's part of the adapter; the rest is the shared one's"""
    strength: float | None
    """of the pull that did best on records left out; None: the shared head did best, and is kept"""
    shared: float
    """accuracy of the shared head on the site's records"""
    validated: float
    """accuracy on records left out of the fit, of the head that was chosen"""


def personal_head(
    model: FineTuneModel, adapter: Adapter, records: Records, indices: np.ndarray, seed: int
) -> PersonalHead:
    """Fits a head to the named records; by cross-validation, and only if it beats the shared one there.

    Raises ModelError for a task without classes, or a head that reads more than one vector a record.
    """
    names = head_names(model)
    inputs, head = head_inputs(model, adapter, records, indices)
    targets = torch.from_numpy(np.asarray(records.targets[indices]))
    shared = _accuracy(head, inputs, targets)
    kept = {name: adapter[name] for name in names}
    if len(indices) < _LEAST:
        return PersonalHead(kept, None, shared, shared)
    fold = choices(_keys(records)[indices], seed, _FOLDS)  # each record's own: one more moves none of the others
    right = dict.fromkeys(STRENGTHS, 0.0)
    for left_out in range(_FOLDS):
        inside, outside = torch.from_numpy(fold != left_out), torch.from_numpy(fold == left_out)
        for strength in STRENGTHS:
            fitted = _fitted(head, inputs[inside], targets[inside], strength)
            right[strength] += _accuracy(fitted, inputs[outside], targets[outside]) * int(outside.sum())
    best = max(STRENGTHS, key=lambda strength: right[strength])  # of equals the strongest pull
    if right[best] / len(indices) <= shared:
        return PersonalHead(kept, None, shared, shared)
    state = _fitted(head, inputs, targets, best).state_dict()
    arrays = {name: _of(state, name).detach().cpu().numpy().astype(np.float32) for name in names}
    return PersonalHead(arrays, best, shared, right[best] / len(indices))


def _keys(records: Records) -> Keys:
    if records.keys is None:
        raise ModelError("records without keys cannot be dealt to folds")
    return records.keys


def head_names(model: FineTuneModel) -> list[str]:
    """The arrays of the adapter that are the head's. Raises ModelError where the task has none."""
    names = [name for name in model.parameters if {*name.split(".")} & {*model.task.HEAD}]
    if not model.task.CLASSES or model.task.READS.label == "classes" or not names:
        raise ModelError("a task without classes has no head that could stay at a site")
    return names


def _of(state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The array of a head's own state that an adapter's name means: it ends alike."""
    return next(value for key, value in state.items() if name.endswith(f".{key}"))


def _head(model: FineTuneModel) -> nn.Module:
    """The trained copy of the head inside PEFT's wrapper."""
    for name, module in model.module.named_modules():
        if name.rsplit(".", 1)[-1] in model.task.HEAD and hasattr(module, "modules_to_save"):
            return module.get_submodule("modules_to_save.default")
    raise ModelError("the model has no head that PEFT trains whole")


@torch.no_grad()
def head_inputs(
    model: FineTuneModel, adapter: Adapter, records: Records, indices: np.ndarray
) -> tuple[torch.Tensor, nn.Module]:
    """(n, h) what the head reads for each record, and a copy of the shared head, on the CPU."""
    model.set(adapter)
    head, seen = _head(model), []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().cpu()))
    done = []
    try:
        for part, batch in model.fixed_batches(records, indices):
            model.task.score(model.module, batch)
            seen[-1] = seen[-1][: len(part)]
            done.append(part)
    finally:
        hook.remove()
    if any(one.dim() != 2 for one in seen):
        raise ModelError("the head reads whole texts, not one vector each; set model.pooling to mean, first or last")
    inputs = torch.cat(seen)[torch.from_numpy(np.argsort(np.concatenate(done)))]
    own = copy.deepcopy(head).cpu().eval()
    return inputs, own


def _fitted(head: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, strength: float) -> nn.Module:
    """The head that minimises the mean loss + strength · ‖change‖² (L-BFGS on all records at once)."""
    fitted = copy.deepcopy(head)
    parameters = [p.requires_grad_() for p in fitted.parameters()]
    start = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.LBFGS(parameters, max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        pull = sum(((p - before) ** 2).sum() for p, before in zip(parameters, start, strict=True))
        value = F.cross_entropy(fitted(inputs), targets) + strength * pull
        value.backward()
        return value

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    return fitted


@torch.no_grad()
def _accuracy(head: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float((head(inputs).argmax(1) == targets).float().mean()) if len(targets) else 0.0
