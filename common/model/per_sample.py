"""Per-record gradients of the trained arrays, clipped and summed.

Opacus hooks on the unwrapped model (`wrap_model=False` in Opacus' terms): the model stays the object that PEFT built.
For LoRA a per-record gradient has r·(d_in + d_out) numbers, so materialising it is cheaper than ghost clipping's T×T.

Opacus takes the leading dimension of what a layer reads for the batch. Where it is something else (a table of relative
positions, a sequence-first layout) it adds one record's gradient to another's, silently. Every call of a hooked layer
is checked for it here; `proof.py` compares with gradients taken alone, before data is read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.validators import ModuleValidator
from torch import nn

from ..errors import ModelError, PrivacyError
from .checkpointing import recomputing
from .loading import FineTuneModel

_SLACK = 1 - 1e-6
"""Rounding must not carry a clipped gradient, or what is left of a sum without it, above C: with norms and sums in
float64 a sum of n records of d numbers is off by at most (n² + d)·2⁻⁵³·C, below 10⁻⁶·C up to n = 60,000."""
_CHUNK = 2**22
"""numbers that are held in float64 at once"""


@dataclass(frozen=True, eq=False)
class _Attached:
    """A model's hooks, and what its hooked layers have read since the last backward pass."""

    owners: dict[str, nn.Module]
    """modules that own trained parameters, by name"""
    hooks: GradSampleHooks
    calls: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    """layer and shape of its input, a call each"""

    def clear(self, model: FineTuneModel) -> None:
        """Forgets a forward pass whose backward never came, and all gradients."""
        self.calls.clear()
        for owner in self.owners.values():
            owner.__dict__.pop("activations", None)
            owner.__dict__.pop("max_batch_len", None)
        for p in model.trained.values():
            p.grad = None
            p.grad_sample = None  # pyright: ignore[reportAttributeAccessIssue]  # Opacus' attributes
            p._forward_counter = 0  # pyright: ignore[reportAttributeAccessIssue]
            # of a backward pass that ended among several calls of a layer: the next would be added to it
            vars(p).pop("_current_grad_sample", None)


_attached: WeakKeyDictionary[FineTuneModel, _Attached] = WeakKeyDictionary()


@contextmanager
def hooked(model: FineTuneModel) -> Iterator[None]:
    """Within, a backward pass leaves `grad_sample` (B, …) on every trained parameter.

    Only modules that own trained parameters are in training mode (Opacus records nothing in evaluation mode); dropout
    stays off. Raises ModelError when the model's trained part has no per-record gradients.
    """
    attached = _attach(model)
    if attached.hooks.hooks_enabled:
        raise PrivacyError("hooked twice: one pass would take the hooks of the other")
    attached.clear(model)
    for owner in attached.owners.values():
        owner.train()
    attached.hooks.enable_hooks()
    try:
        with recomputing(model.module, model.recomputes):
            yield
    finally:
        attached.hooks.disable_hooks()
        for owner in attached.owners.values():
            owner.eval()
        attached.clear(model)


@contextmanager
def unhooked(model: FineTuneModel) -> Iterator[None]:
    """Within `hooked`, a stretch whose passes through the model are nobody's gradient; elsewhere nothing."""
    attached = _attached.get(model)
    if attached is None or not attached.hooks.hooks_enabled:
        yield
        return
    attached.hooks.disable_hooks()
    for owner in attached.owners.values():
        owner.eval()
    try:
        yield
    finally:
        for owner in attached.owners.values():
            owner.train()
        attached.hooks.enable_hooks()


def forget(model: FineTuneModel) -> None:
    """Within `hooked`, after a pass that failed: nothing of it stays for the next."""
    if (attached := _attached.get(model)) is not None:
        attached.clear(model)


def _attach(model: FineTuneModel) -> _Attached:
    """Once a model: hooks cost milliseconds to attach and nothing while they are disabled."""
    if model not in _attached:
        _attached[model] = _attach_new(model)
    return _attached[model]


def _attach_new(model: FineTuneModel) -> _Attached:
    validate(model)
    trained = {id(p) for p in model.trained.values()}
    owners: dict[str, nn.Module] = {
        name: module
        for name, module in model.module.named_modules()
        if any(id(p) in trained for p in module.parameters(recurse=False))
    }
    for name, owner in owners.items():
        if list(owner.children()):
            raise ModelError(
                f"{plain_name(name)}: {type(owner).__name__} holds trained arrays and submodules; per-record gradients "
                "need layers without submodules; choose other model.lora.targets"
            )
    try:
        attached = _Attached(owners, GradSampleHooks(model.module, loss_reduction="sum", strict=False))
    except Exception:  # a layer that Opacus does not know: nothing of its hooks stays
        for handle in model.module.__dict__.pop("autograd_grad_sample_hooks", []):
            handle.remove()
        raise
    attached.hooks.disable_hooks()
    for name, owner in owners.items():
        owner.register_forward_pre_hook(_noting(attached, name))
    return attached


def _noting(attached: _Attached, name: str):
    def note(module: nn.Module, inputs: tuple) -> None:
        if attached.hooks.hooks_enabled and torch.is_grad_enabled():
            shape = inputs[0].shape if inputs and isinstance(inputs[0], torch.Tensor) else ()
            attached.calls.append((name, tuple(shape)))

    return note


def plain_name(name: str) -> str:
    """A module's name without the wrappers of PEFT."""
    wrappers = ("base_model.model.", ".modules_to_save.default", ".lora_A.default", ".lora_B.default")
    for wrapper in wrappers:
        name = name.replace(wrapper, "")
    return name


def validate(model: FineTuneModel) -> None:
    """Refuses modules whose output for one record depends on others. Raises ModelError, naming them."""
    was = {m: m.training for m in model.module.modules()}
    model.module.train()  # the validator demands training mode: BatchNorm in evaluation mode would be harmless
    errors = ModuleValidator.validate(model.module, strict=False)
    for module, training in was.items():
        module.training = training
    if errors:
        raise ModelError(f"model.backbone: not usable under differential privacy: {str(errors[0]).splitlines()[0]}")


def record_gradients(model: FineTuneModel, losses: torch.Tensor, real: int | None = None) -> list[torch.Tensor]:
    """Backward of per-record losses: (B, d_p) float32 of each trained array, in order.

    losses: (B,), or (V, B) of V views of each record, whose gradients are averaged; from a forward pass inside
    `hooked`. real: how many records count, the first ones (omitted: all); the others only fill the batch.
    A loss that is not finite gives NaN to its own record and nothing to others. Raises PrivacyError when a layer read
    something whose leading dimension is not the batch, or a trained array received no per-record gradient.
    """
    views = losses if losses.dim() == 2 else losses[None]  # (V, B)
    _check_calls(model, views.numel())
    counted = views[:, : real or views.shape[1]]
    torch.where(torch.isfinite(counted), counted, 0.0).sum().backward()
    _check_calls(model, views.numel())  # of layers that were computed again
    lost = ~torch.isfinite(counted).all(0)
    parts: list[torch.Tensor] = []
    for name, p in model.trained.items():
        sample = getattr(p, "grad_sample", None)
        if isinstance(sample, list):  # of a layer that was computed again for each of several passes
            sample = torch.stack(sample).sum(0) if len({part.shape for part in sample}) == 1 else None
        if not isinstance(sample, torch.Tensor) or sample.shape[0] != views.numel():
            raise PrivacyError(f"no per-sample gradient for {name}: its clipping could not be bounded")
        part = sample.reshape(*views.shape, -1)[:, : counted.shape[1]].mean(0)  # (B, d_p)
        parts.append(torch.where(lost[:, None], torch.nan, part) if lost.any() else part)
        p.grad_sample = None  # pyright: ignore[reportAttributeAccessIssue]  # Opacus' attribute
        p.grad = None
    return parts


def _check_calls(model: FineTuneModel, rows: int) -> None:
    attached = _attached.get(model)
    calls = [] if attached is None else list(attached.calls)
    if attached is not None:
        attached.calls.clear()
    for name, shape in calls:
        if not shape or shape[0] != rows:
            raise PrivacyError(
                f"{plain_name(name)} reads an array of shape {shape} in a batch of {rows} records: its leading "
                "dimension is not the batch, so one record's gradient could not be told from others'"
            )


def clipped_sum(
    model: FineTuneModel, losses: torch.Tensor, clip: float, real: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The records' gradients, each clipped, all added up. losses, real: as in `record_gradients`.

    clip: C, the L2 bound over all trained arrays together. Norms, factors and the sum are float64 on the gradients as
    they are held, so that what is added has norm ≤ C whatever type computed it.
    Returns the flat sum (d,) float64 and the norms before clipping (B,) float64. f_i = min(1, C / ‖g_i‖); a gradient
    that is not finite counts as 0. Raises PrivacyError as `record_gradients`.
    """
    return clipped_rows(record_gradients(model, losses, real), clip)


def clipped_rows(parts: list[torch.Tensor], clip: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of rows that are clipped one by one, and their norms, as in `clipped_sum`. parts: (B, d_p) columns."""
    squares = torch.zeros(parts[0].shape[0], dtype=torch.float64, device=parts[0].device)
    for chunk in _chunks(parts):
        squares += (chunk.double() ** 2).sum(1)
    norms = squares.sqrt()  # (B,)
    finite = torch.isfinite(norms)
    factors = torch.where(finite, (clip * _SLACK / norms.clamp(min=1e-30)).clamp(max=1.0), 0.0)
    if not finite.all():  # 0 · NaN is NaN: such rows are replaced, not scaled
        parts = [torch.where(finite[:, None], part, 0.0) for part in parts]
    return torch.cat([factors @ chunk.double() for chunk in _chunks(parts)]), norms


def _chunks(parts: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The columns of all parts, in order, a bounded number of them at a time."""
    for part in parts:
        yield from part.split(max(1, _CHUNK // max(1, part.shape[0])), dim=1)
