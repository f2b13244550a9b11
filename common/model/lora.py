"""LoRA on a base model, by PEFT: on which layers, and what is trained whole beside it."""

import re
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..config.tables import ModelSection
from ..errors import ModelError
from ..tasks import Task

STAND_IN = "stand_in"
"""a layer that nothing runs through: PEFT wants a place for LoRA also where only whole modules are trained"""
ALL_LINEAR = "all-linear"
_OTHER_INPUTS = re.compile(r"(^|\.)(vision|visual|image|audio|speech|multi_modal)[\w]*(\.|$)")
"""towers of a backbone that reads more than text, which no text passes through"""


def linear_layers(base: nn.Module, task: Task, but: list[str]) -> list[str]:
    """The names of a model's linear layers (of GPT-2's Conv1D, too), in order.

    PEFT has the same string, but leaves the output layer out only where the model that it is given is a transformers
    model itself; confide's tasks wrap a backbone together with a head. Left out: what is under a name of `but` (parts
    that are trained whole, and stand-ins), the layer that turns vectors into words, and, where the task reads texts
    alone, towers for images and sound. Raises ModelError where none is left.
    """
    outputs = [m.get_output_embeddings() for m in base.modules() if isinstance(m, PreTrainedModel)]
    skipped = {id(layer) for layer in outputs if layer is not None}
    found = [
        name
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
        and id(layer) not in skipped
        and not _under(name, but)
        and (task.READS.images or not _OTHER_INPUTS.search(name))
    ]
    if not found:
        raise ModelError(f"model.lora.targets: '{ALL_LINEAR}' received; this model has no linear layer; name modules")
    return found


def _under(name: str, whole: list[str]) -> bool:
    """Whether a layer is in a part that PEFT trains whole: it compares the ends of names."""
    parts = name.split(".")
    return any(".".join(parts[: i + 1]).endswith(tuple(whole)) for i in range(len(parts)))


def with_lora(base: nn.Module, task: Task, model: ModelSection) -> PeftModel:
    children = {name: child for name, child in base.named_children() if name != STAND_IN}
    whole = [name for name in children if name in task.HEAD or name in (model.lora.modules_to_save or ())]
    if model.train == "full":
        whole = [name for name, child in children.items() if next(child.parameters(), None) is not None]
    if unknown := [name for name in model.lora.modules_to_save or () if name not in children]:
        raise ModelError(f"model.lora.modules_to_save: received '{unknown[0]}'; allowed: {', '.join(children)}")
    targets = list(model.lora.targets or ()) or None
    if model.lora.targets == ALL_LINEAR:
        targets = linear_layers(base, task, [*whole, STAND_IN])
    config = LoraConfig(
        r=model.lora.rank if model.train == "lora" else 1,
        lora_alpha=model.lora.alpha,  # pyright: ignore[reportArgumentType]  # PEFT divides: a float is as good
        use_rslora=model.lora.scaling == "rank_stabilized",
        lora_dropout=0.0,
        target_modules=targets if model.train == "lora" else [STAND_IN],
        modules_to_save=whole or None,
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # GPT-2's Conv1D: PEFT corrects it itself
            # input and output embeddings that are trained whole are two tables from then on
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT's, of few bits
            module = get_peft_model(base, config)
    except ValueError as error:
        if "target_modules" in str(error) and model.lora.targets is None:
            raise ModelError("model.lora.targets: PEFT knows no default for this architecture; name modules") from None
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in base.named_modules() if isinstance(m, nn.Linear)})
        raise ModelError(
            f"model.lora.targets: received {targets}; allowed: modules of the backbone, such as {', '.join(linear)}"
        ) from None
    if not isinstance(module, PeftModel):
        raise ModelError("PEFT did not return a PeftModel")
    return module


def lora_pairs(names: list[str]) -> list[tuple[str, str]]:
    """(A, B) names of each LoRA layer of an adapter."""
    return [(name, name.replace(".lora_A.", ".lora_B.")) for name in names if ".lora_A." in name]


def train_in_float32(module: PeftModel) -> None:
    """Makes everything float32 that is trained, and what it reads; LoRA's layers see to that themselves."""
    for name, part in module.named_modules():
        own = [p for p in part.parameters(recurse=False) if p.requires_grad and p.dtype != torch.float32]
        for p in own:
            p.data = p.data.float()
        if own and ".lora_" not in name:
            part.register_forward_pre_hook(_read_in_float32)


def _read_in_float32(_: nn.Module, inputs: tuple) -> tuple:
    return tuple(x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)
