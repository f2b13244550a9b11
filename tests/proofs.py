"""Proofs of models that are the same bit for bit, made once a session: for tests that are not about proofs."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import nn

from confide.common.model.apart import state_of
from confide.common.model.loading import FineTuneModel
from confide.common.model.shapes import Shapes


class Proofs:
    """As `prove`; what it found of a model is kept by all that it depends on, in a folder that all processes of a
    session share: they run on one machine."""

    def __init__(self, prove: Callable[..., Shapes], folder: Path) -> None:
        self.prove, self._folder = prove, folder
        self._contents: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._answered: WeakKeyDictionary[nn.Module, dict[tuple, Shapes]] = WeakKeyDictionary()
        folder.mkdir(exist_ok=True)

    def __call__(self, model: FineTuneModel, shapes: Shapes, views: tuple[int, ...] = (1,)) -> Shapes:
        once = shapes, views, torch.get_num_threads()
        answered = self._answered.setdefault(model.template, {})
        if once not in answered:  # as the product: a model is looked at once, whatever becomes of it later
            answered[once] = self._first(model, shapes, views)
        return answered[once]

    def _first(self, model: FineTuneModel, shapes: Shapes, views: tuple[int, ...]) -> Shapes:
        if changed(model):
            return self.prove(model, shapes, views)
        if model.template not in self._contents:
            self._contents[model.template] = content_of(model)
        key = repr((self._contents[model.template], shapes, views, torch.get_num_threads()))
        kept = self._folder / hashlib.sha256(key.encode()).hexdigest()
        if not kept.is_file():
            proved = self.prove(model, shapes, views)  # a refusal is raised, and not kept
            written = kept.with_name(f"{kept.name}.{os.getpid()}")
            written.write_text(json.dumps(list(proved.found.items())), encoding="utf-8")
            written.replace(kept)
        return replace(shapes, found=dict(json.loads(kept.read_text(encoding="utf-8"))))


def changed(model: FineTuneModel) -> bool:
    """Whether a test has put something into the model that its weights and settings do not show."""
    hooks = any(part._forward_hooks or part._forward_pre_hooks for part in model.template.modules())
    return hooks or not model.task.record_losses.__module__.startswith("confide.common.tasks.")


def content_of(model: FineTuneModel) -> str:
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
    return made.hexdigest()
