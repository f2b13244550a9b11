"""What a training step takes of memory, from the configuration alone, and the batches that fit beside it.

A model without numbers (torch's meta device) runs one forward pass; what autograd would keep is counted. Nothing is
tried until the kernel kills it.

Bytes at the peak, with S sites that train at the same time, R records of T tokens in a batch, d trained numbers, V
tokens in the vocabulary:

    weights + S·(site + R·row) + runtime

row: what autograd keeps of a record, three times the largest of it for what is in flight backward, and the record's
gradient twice. site: the trained numbers with their gradients, sums and noise, and one piece of logits.
"""

import math
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..config.run import RunConfig
from ..errors import ModelError, first_line
from ..machine import total_ram
from .backbones import Folders, resolve_backbone
from .checkpointing import recomputable
from .checkpoints import number_of_weights
from .dummies import dummy_records
from .limits import input_embeddings
from .loading import FineTuneModel, model_of, outline
from .output import positions_of
from .shapes import MOST_RECORDS
from .weights import LARGE, held_bytes

_RUNTIME = 600 * 2**20
"""bytes of Python, torch, transformers and the data of a small run"""
_OF_TRAINED = 80
"""bytes of a trained number beside records' gradients: float32 with gradient, start and optimizer; sums, noise and
shares of 64 bits"""
_OF_LOGITS = 20
"""bytes of a logit of a piece: itself, in float32, its exponential, its gradient in both types"""
_IN_FLIGHT = 3
"""times the largest array of a record, of what is computed backward"""
_FEW = 8
"""records of a batch below which activations are computed again"""
USABLE = 0.8
"""share of free memory that a plan takes"""
_MOST_ON_CPU, _MOST_ON_GPU = 4096, 65_536
"""tokens of a batch beyond which nothing is gained"""


@dataclass(frozen=True)
class Plan:
    """What a run takes, in bytes."""

    weights: int
    """frozen and trained, once for all sites of a process"""
    activations: int
    """that autograd keeps of one record of `length` tokens"""
    in_flight: int
    """of such a record, backward"""
    gradients: int
    """of one record, where single records are clipped"""
    logits: int
    """of one piece of the output layer; 0 without one"""
    trained: int
    """of a site's trained numbers, with their sums and noise"""
    length: int
    """tokens of the longest record; a record without text counts as so many"""
    sites: int
    """that train at the same time in one process"""
    recomputed: int | None = None
    """`activations` where layers are computed again; None: not of this model"""

    @property
    def row(self) -> int:
        """Of each record of a batch."""
        return self.activations + self.in_flight + self.gradients

    @property
    def site(self) -> int:
        """Of each site beside its batch."""
        return self.trained + self.logits

    def peak(self, rows: int) -> int:
        """Bytes of a step whose batches have so many of the longest records."""
        return _RUNTIME + self.weights + self.sites * (self.site + rows * self.row)

    def within(self, usable: int, checkpointing: str | bool) -> "Plan":
        """The plan with `model.checkpointing` decided: activations are those that are kept then."""
        few = (usable - self.peak(0)) // (self.sites * self.row) < _FEW
        wanted = checkpointing is True or (checkpointing == "auto" and few)
        return replace(self, activations=self.recomputed) if wanted and self.recomputed is not None else self

    def rows(self, usable: int, most: int) -> int:
        """The records of a batch that fit in so many bytes: a power of two. Raises ModelError where not one does."""
        fit = (usable - self.peak(0)) // (self.sites * self.row)
        if fit < 1:
            raise ModelError(
                f"memory: a step on one record of {self.length} tokens takes {gib(self.peak(1))}, and "
                f"{gib(usable)} may be used; lower model.max_length or engine.workers, set model.weights = "
                "'nf4', or choose a smaller backbone"
            )
        return 2 ** int(math.log2(max(1, min(fit, most, MOST_RECORDS))))


def gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def planned(config: RunConfig, folders: Folders = ()) -> Plan:
    """Of a run whose classes are resolved, from configurations alone. Raises ModelError, and what a model raises that
    cannot be followed without numbers."""
    return plan_of(config, outline(config, folders), sites_at_once(config, folders))


def with_plan(config: RunConfig, folders: Folders = ()) -> RunConfig:
    """The run with `training.batch_tokens` and `model.checkpointing` decided, before data are read: what a site holds
    has no part in it.

    A model that cannot be followed without numbers is followed with them, on one record of the longest. Raises
    ModelError where one record does not fit.
    """
    training, model = config.training, config.model
    if training.batch_tokens == "auto":
        plan = followed(config, folders)
        usable = usable_memory(config)
        chosen = plan.within(usable, training.adversarial is None and model.checkpointing)
        model = model.model_copy(update={"checkpointing": model.checkpointing is True or chosen is not plan})
        training = training.model_copy(update={"batch_tokens": batch_tokens(chosen, usable)})
    elif model.checkpointing == "auto":
        model = model.model_copy(update={"checkpointing": False})
    return config.model_copy(update={"training": training, "model": model})


def followed(config: RunConfig, folders: Folders = ()) -> Plan:
    """As `planned`; a model that cannot be followed without numbers is followed with them. Raises ModelError."""
    try:
        return planned(config, folders)
    except ModelError:
        raise
    except Exception:  # of architectures that no one here knows
        return _followed_with_numbers(config, folders)


def _followed_with_numbers(config: RunConfig, folders: Folders) -> Plan:
    try:
        return plan_of(config, model_of(config, folders), sites_at_once(config, folders))
    except ModelError:
        raise
    except Exception as error:  # of a dummy record
        raise ModelError(
            f"model.backbone: a step of this model cannot be planned ({first_line(error)}); set training.batch_tokens, "
            "or choose another model.pooling or backbone"
        ) from None


def plan_of(config: RunConfig, model: FineTuneModel, sites: int) -> Plan:
    """sites: that train at the same time in one process."""
    length = model.max_length if model.task.READS.text else 0
    one, two = (_kept(model, rows, length) for rows in (1, 2))
    kept, largest = two.total - one.total, max(two.largest - one.largest, two.largest // 2)
    weights, by_layers = held_bytes(model.module)
    by_layers *= max(1, length)
    layers = len(recomputable(model.module))
    trained, _ = model.count()
    clipped = config.private and config.privacy.mode != "client"
    logits = 0
    if model.task.READS.label is None:  # guesses tokens
        words = len(input_embeddings(model.module).weight)  # pyright: ignore[reportArgumentType]
        logits = _OF_LOGITS * words * positions_of(MOST_RECORDS * max(1, length), words)
    return Plan(
        weights=weights,
        activations=kept + by_layers,
        in_flight=_IN_FLIGHT * largest,
        gradients=8 * trained if clipped else 0,
        logits=logits,
        trained=_OF_TRAINED * trained,
        length=length or model.max_length,
        sites=sites,
        recomputed=two.recomputed - one.recomputed + by_layers // layers if layers else None,
    )


def sites_at_once(config: RunConfig, folders: Folders = ()) -> int:
    """Sites that train at the same time in one process: one at a real site, and of a simulation as `engine.workers`
    says; omitted: one on a GPU and for a large backbone, which keeps all cores busy, otherwise one a core."""
    if config.data.train is None or config.engine.kind == "ray":
        return 1
    if config.engine.workers:
        return config.engine.workers
    if torch.cuda.is_available() or number_of_weights(resolve_backbone(config.model.backbone, folders)) >= LARGE:
        return 1
    return min(torch.get_num_threads(), config.data.partition.clients or 1, 8)


def batch_tokens(plan: Plan, usable: int, *, gpu: bool | None = None) -> int:
    """`training.batch_tokens` where it is to be found. usable: bytes. gpu: omitted: as here. Raises ModelError where
    one record does not fit."""
    most = _MOST_ON_GPU if (torch.cuda.is_available() if gpu is None else gpu) else _MOST_ON_CPU
    return plan.length * plan.rows(usable, max(1, most // plan.length))


def usable_memory(config: RunConfig) -> int:
    """Bytes that a run may take here: four fifths of what is free; at a real site half of what there is, since what is
    free may depend on data that were read before, and the shapes of batches must not."""
    return int(USABLE * free_memory()) if config.data.train is not None else total_memory() // 2


def total_memory() -> int:
    """Bytes of the GPU where there is one, otherwise of the machine or of its control group."""
    return torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else total_ram()


def free_memory() -> int:
    """Bytes that this process may still take: of the GPU where there is one, otherwise of the machine and of its
    control group."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    found = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, ValueError):  # other systems have no such file, and a file without a limit a word
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        found.append(limit - int((group / "memory.current").read_text()))
    return max(0, min(found))


class _Blind(TorchDispatchMode):
    """Answers what a model asks about numbers that are not there: no mask is empty."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            return False if args[0].dtype == torch.bool else 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Kept:
    """Bytes that autograd keeps of a forward pass."""

    total: int
    largest: int
    recomputed: int
    """where the model's layers are computed again: what they read, what is kept outside of them, and by one of them"""


@lru_cache(maxsize=4)  # of a model once: a study plays it in many runs
def _kept(model: FineTuneModel, rows: int, length: int) -> _Kept:
    own = {p.untyped_storage()._cdata for p in [*model.module.parameters(), *model.module.buffers()]}
    seen: dict[int, torch.UntypedStorage] = {}
    by_layer: list[tuple[int, int]] = []  # of each layer: bytes kept before it, and with it
    read: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = storage
        return tensor

    def total() -> int:
        return sum(storage.nbytes() for storage in seen.values())

    def enter(_: object, inputs: tuple) -> None:
        by_layer.append((total(), 0))
        read.update({t.untyped_storage()._cdata: t.nbytes for t in inputs if isinstance(t, torch.Tensor)})

    def leave(*_: object) -> None:
        by_layer[-1] = (by_layer[-1][0], total())

    layers = recomputable(model.module)
    hooks = [layer.register_forward_pre_hook(enter) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    records = dummy_records(model, [length] * rows)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept), _Blind(), model.device:
            batch = model.batch(records, np.arange(rows), length or None)
            model.task.record_losses(model.module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    inside = [after - before for before, after in by_layer]
    recomputed = total() - sum(inside) + max(inside, default=0) + sum(read.values())
    return _Kept(total(), max((storage.nbytes() for storage in seen.values()), default=0), recomputed)
