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

from confide.common.model.kept_proofs import content_of
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
            self._contents[model.template] = content_of(model, model.template)
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
