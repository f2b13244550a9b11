"""Proofs of models that are the same bit for bit, made once a process: for tests that are not about proofs."""

import hashlib
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import nn

from confide.common.model.apart import state_of
from confide.common.model.loading import FineTuneModel
from confide.common.model.shapes import Shapes


class Proofs:
    """As `prove`; what it found of a model is kept by all that it depends on."""

    def __init__(self, prove: Callable[..., Shapes]) -> None:
        self.prove = prove
        self._found: dict[tuple, Shapes] = {}
        self._contents: WeakKeyDictionary[nn.Module, bytes] = WeakKeyDictionary()

    def __call__(self, model: FineTuneModel, shapes: Shapes, views: tuple[int, ...] = (1,)) -> Shapes:
        if any(part._forward_hooks or part._forward_pre_hooks for part in model.template.modules()):
            return self.prove(model, shapes, views)  # what a hook does is not seen in the settings
        if model.template not in self._contents:
            self._contents[model.template] = content_of(model)
        content = self._contents[model.template], model.task.record_losses
        key = content, shapes, views, torch.get_num_threads()
        if key not in self._found:
            self._found[key] = self.prove(model, shapes, views)  # a refusal is raised, and not kept
        return self._found[key]


def content_of(model: FineTuneModel) -> bytes:
    """A digest of the weights as they were loaded, of every layer's kind and settings, and of what is trained and
    read. What training made of the weights does not count: a model is proved once for all of its rounds."""
    module, made = model.template, hashlib.sha256()
    facts = [state_of(module), str(module), str(getattr(module.get_base_model(), "config", None)), repr(model.task)]
    facts += [model.max_length, model.head_only, model.classes, model.pad, str(model.device), list(model.trained)]
    text = repr(facts)
    for folder in {str(getattr(part, "name_or_path", "")) for part in module.modules()} - {""}:
        text = text.replace(folder, "")  # the same files in another place
    made.update(text.encode())
    for name, array in [*module.named_parameters(), *module.named_buffers()]:
        made.update(repr((name, array.dtype, tuple(array.shape))).encode())
        made.update(array.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return made.digest()
