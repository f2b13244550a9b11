"""Knowledge distillation (Hinton et al. 2015) on public or unlabelled text: a small model learns a large one's answers.

No label and no private row is read: the teacher is the released model, so nothing is charged.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ...common.config.tables import ModelSection
from ...common.errors import ConfigError
from ...common.model.backbones import resolve_backbone
from ...common.model.loading import build, pad_of
from ...common.model.optimizer import warmed_up
from ...common.model.reading import tokenizer_of
from ...common.tasks import load_task
from ...common.types import ProgressCallback, shuffled_batches
from .answers import Compared, apart
from .finished import TorchModel
from .prune import keep_layers, layers_of, spread

_WARMUP, _NORM = 0.1, 1.0


@dataclass(frozen=True)
class DistillationConfig:
    """How a student is trained."""

    steps: int = 1000
    batch: int = 64
    learning_rate: float = 3e-4
    temperature: float = 2.0
    hidden: float = 0.0
    """weight of the distance of hidden states, of a student cut from its teacher (Romero et al. 2015)"""
    seed: int = 0


def shallow(teacher: TorchModel, count: int) -> TorchModel:
    """A student of `count` of the teacher's own layers, evenly spread, with its head (Sanh et al. 2019)."""
    student = teacher.copy()
    keep_layers(student, spread(len(layers_of(student.module)), count))
    return student


def other_backbone(teacher: TorchModel, backbone: str, pooling: str, seed: int) -> TorchModel:
    """A student on a backbone of its own, with a new head. Raises ModelError."""
    path = resolve_backbone(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        section = ModelSection.model_validate({"backbone": backbone, "pooling": pooling, "task": teacher.task})
        module = build(load_task(teacher.task), path, section, len(teacher.labels))
    tokenizer, task = tokenizer_of(path), teacher.task
    asked = tokenizer, teacher.max_length, teacher.labels, pad_of(tokenizer), task
    spelling = None if teacher.spelling is None else teacher.spelling.over(tokenizer.get_vocab())
    return TorchModel(module.eval(), *asked, scale=teacher.scale, spelling=spelling)


def distil(
    teacher: TorchModel, student: TorchModel, texts: list[str], settings: DistillationConfig, progress: ProgressCallback
) -> None:
    """Trains all the student's weights, in place, by `answers.apart`: T²·KL(teacher ‖ student) at temperature T. AdamW.

    texts: public or unlabelled. Raises ConfigError for too few, or hidden states of unlike widths.
    """
    progress("the teacher's answers", 0, 1)
    both = Compared(teacher, student, texts)
    if len(both.texts) < settings.batch:
        raise ConfigError(f"--public: {len(both.texts)} texts received; at least {settings.batch}, a batch, are needed")
    pairs = _pairs(teacher, student) if settings.hidden else []
    same_tokens = not pairs or teacher.ids(texts[:50]) == both.ids[:50]
    if not same_tokens:
        raise ConfigError("--hidden: teacher and student read other tokens; distil logits alone")
    rise = max(1, round(_WARMUP * settings.steps))
    optimizer, schedule = warmed_up(student.module.parameters(), settings.learning_rate, settings.steps, rise)
    parts = shuffled_batches(both.texts, settings.batch, np.random.default_rng([settings.seed, 0xD15]))
    for p in student.module.parameters():
        p.requires_grad_()
    lessons = _Distillation(teacher, student, both, pairs, settings)
    for step, chosen in zip(range(settings.steps), parts, strict=False):
        optimizer.zero_grad()
        loss = sum(lessons.add_gradient(part, chosen) for part in both.by_length(chosen))
        nn.utils.clip_grad_norm_(student.module.parameters(), _NORM)
        optimizer.step()
        schedule.step()
        progress(f"distilling, loss {loss:.3f}", step + 1, settings.steps)
    student.module.eval()


@dataclass(frozen=True)
class _Distillation:
    """What a step is made of."""

    teacher: TorchModel
    student: TorchModel
    both: Compared
    pairs: list[tuple[nn.Module, nn.Module]]
    settings: DistillationConfig

    def add_gradient(self, part: np.ndarray, step: np.ndarray) -> float:
        """The share that some texts have in the loss of their step; its gradient is added to the student's.

        A step's loss is a mean over its rows, and of hidden states over its tokens, so it is the sum of these shares
        however its texts are cut into batches.
        """
        both = self.both
        tokens, mask = self.student.batch([both.ids[i] for i in part])
        with _noted([layer for _, layer in self.pairs]) as learned:
            found = both.found(self.student.module(tokens, mask), part)
        loss = apart(both.wanted(part), found, both.reads, self.settings.temperature) * (len(found) / both.rows(step))
        if self.pairs:
            with torch.no_grad(), _noted([layer for layer, _ in self.pairs]) as known:
                self.teacher.module(tokens, mask)
            weight = mask[..., None] / sum(len(both.ids[i]) for i in step)
            loss = loss + self.settings.hidden * sum(
                (((a - b) ** 2).mean(-1, keepdim=True) * weight).sum() for a, b in zip(known, learned, strict=True)
            )
        loss.backward()
        return float(loss.detach())


def _pairs(teacher: TorchModel, student: TorchModel) -> list[tuple[nn.Module, nn.Module]]:
    """Each layer of the student with the teacher's that it shall give the same states as."""
    above, below = layers_of(teacher.module), layers_of(student.module)
    pairs = [(above[number], below[i]) for i, number in enumerate(spread(len(above), len(below)))]
    widths = [
        {p.shape[-1] for name, p in layer.named_parameters() if "LayerNorm" in name} for pair in pairs for layer in pair
    ]
    if len({frozenset(width) for width in widths}) > 1:
        raise ConfigError("--hidden: the student's hidden states have another width than the teacher's; leave it out")
    return pairs


@contextmanager
def _noted(layers: list[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Within, the outputs of layers are noted, in order."""
    seen: list[torch.Tensor] = []

    def note(module: nn.Module, inputs: object, output: object) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, torch.Tensor):
            seen.append(value)

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(note).remove)
        yield seen
