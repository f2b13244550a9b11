"""Per-sample gradients of the trained arrays, clipped and summed.

Opacus hooks on the unwrapped model (`wrap_model=False` in Opacus' terms): the model stays the object that PEFT built.
For LoRA a per-sample gradient has r·(d_in + d_out) numbers, so materialising it is cheaper than ghost clipping's T×T.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.validators import ModuleValidator
from torch import nn

from .errors import ModelError, PrivacyError
from .models import FineTuneModel

_SLACK = 1 - 1e-6
"""Float32 rounding must not carry a clipped gradient above C."""

_attached: WeakKeyDictionary[FineTuneModel, tuple[list[nn.Module], GradSampleHooks]] = WeakKeyDictionary()


@contextmanager
def hooked(model: FineTuneModel) -> Iterator[None]:
    """Within, a backward pass leaves `grad_sample` (B, …) on every trained parameter.

    Only modules that own trained parameters are in training mode (Opacus records nothing in evaluation mode); dropout
    stays off. Raises ModelError when the model's trained part has no per-sample gradients.
    """
    owners, hooks = _attach(model)
    for owner in owners:
        owner.train()
    hooks.enable_hooks()
    try:
        yield
    finally:
        hooks.disable_hooks()
        for owner in owners:
            owner.eval()
            owner.__dict__.pop("activations", None)  # of a forward pass whose backward never came
            owner.__dict__.pop("max_batch_len", None)
        for p in model.trained.values():
            p.grad = None
            p.grad_sample = None  # pyright: ignore[reportAttributeAccessIssue]  # Opacus' attributes
            p._forward_counter = 0  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def unhooked(model: FineTuneModel) -> Iterator[None]:
    """Within `hooked`, a stretch whose passes through the model are nobody's gradient; elsewhere nothing."""
    owners, hooks = _attached.get(model, ([], None))
    active = hooks is not None and hooks.hooks_enabled
    if hooks is None or not active:
        yield
        return
    hooks.disable_hooks()
    for owner in owners:
        owner.eval()
    try:
        yield
    finally:
        for owner in owners:
            owner.train()
        hooks.enable_hooks()


def _attach(model: FineTuneModel) -> tuple[list[nn.Module], GradSampleHooks]:
    """Once a model: hooks cost milliseconds to attach and nothing while they are disabled."""
    if model not in _attached:
        _attached[model] = _attach_new(model)
    return _attached[model]


def _attach_new(model: FineTuneModel) -> tuple[list[nn.Module], GradSampleHooks]:
    validate(model)
    trained = {id(p) for p in model.trained.values()}
    owners = [m for m in model.module.modules() if any(id(p) in trained for p in m.parameters(recurse=False))]
    for owner in owners:
        if list(owner.children()):
            raise ModelError(
                f"{type(owner).__name__} holds trained arrays and submodules; per-sample hooks need leaves"
            )
    hooks = GradSampleHooks(model.module, loss_reduction="sum", strict=False)
    return owners, hooks


def validate(model: FineTuneModel) -> None:
    """Refuses modules whose output for one record depends on others. Raises ModelError, naming them."""
    was = {m: m.training for m in model.module.modules()}
    model.module.train()  # the validator demands training mode: BatchNorm in evaluation mode would be harmless
    errors = ModuleValidator.validate(model.module, strict=False)
    for module, training in was.items():
        module.training = training
    if errors:
        raise ModelError(f"model.backbone: not usable under differential privacy: {str(errors[0]).splitlines()[0]}")


def clipped_sum(model: FineTuneModel, losses: torch.Tensor, clip: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Backward of per-record losses, each record's gradient clipped, all added up.

    losses: (B,), or (V, B) of V views of each record whose gradients are averaged before they are clipped; from a
    forward pass inside `hooked`. clip: C, the L2 bound over all trained arrays together.
    Returns the flat sum (d,) float32 and the norms before clipping (B,). f_i = min(1, C / ‖g_i‖); a gradient that is
    not finite counts as 0. Raises PrivacyError when a trained parameter received no per-sample gradient.
    """
    torch.where(torch.isfinite(losses), losses, 0.0).sum().backward()
    views = losses if losses.dim() == 2 else losses[None]  # (V, B)
    parts: list[torch.Tensor] = []
    for name, p in model.trained.items():
        sample = getattr(p, "grad_sample", None)
        if not isinstance(sample, torch.Tensor) or sample.shape[0] != views.numel():
            raise PrivacyError(f"no per-sample gradient for {name}: its clipping could not be bounded")
        parts.append(sample.reshape(*views.shape, -1).mean(0))  # (B, d_p)
        p.grad_sample = None  # pyright: ignore[reportAttributeAccessIssue]  # Opacus' attribute
        p.grad = None
    norms = torch.stack([part.float().norm(dim=1) for part in parts], dim=1).norm(dim=1)  # (B,)
    finite = torch.isfinite(norms) & torch.isfinite(views).all(0)
    factors = torch.where(finite, (clip * _SLACK / norms.clamp(min=1e-12)).clamp(max=1.0), 0.0)
    if not finite.all():  # 0 · NaN is NaN: such rows are replaced, not scaled
        parts = [torch.where(finite[:, None], part, 0.0) for part in parts]
    return torch.cat([factors @ part for part in parts]), norms
