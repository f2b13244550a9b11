"""LoRA on a base model, by PEFT: on which layers, and what is trained whole beside it."""

import re
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..config.tables import ModelSection
from ..errors import ModelError, first_line
from ..tasks import Task
from .limits import SHARED

STAND_IN = "stand_in"
"""a layer that nothing runs through: PEFT wants a place for LoRA also where only whole modules are trained"""
ALL_LINEAR = "all-linear"
_OTHER_INPUTS = re.compile(r"(^|\.)(vision|visual|image|audio|speech|multi_modal)[\w]*(\.|$)")
"""towers of a backbone that reads more than text, which no text passes through"""
_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
_QUERY_OR_VALUE = re.compile(
    r"(^|_)(w?q|w?v|qkv|wqkv|kv|qv|query|value|queries|values|attn|in_proj)(_|$)", re.IGNORECASE
)
"""in the own name of an attention's layer: it makes queries, values, or these together with keys"""
_CAN_CARRY = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
"""kinds of layers that PEFT puts LoRA on"""


def linear_layers(base: nn.Module, task: Task, but: list[str]) -> list[str]:
    """The names of a model's linear layers (of GPT-2's Conv1D, too), in order.

    PEFT has the same string, but leaves the output layer out only where the model that it is given is a transformers
    model itself; confide's tasks wrap a backbone together with a head. Left out: what is in a module of a name of `but`
    (parts that are trained whole, and stand-ins), the layer that turns vectors into words, and, where the task reads
    texts alone, towers for images and sound. Raises ModelError where none is left.
    """
    outputs = [m.get_output_embeddings() for m in base.modules() if isinstance(m, PreTrainedModel)]
    skipped = {id(layer) for layer in outputs if layer is not None}
    found = [
        name
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
        and id(layer) not in skipped
        and not _within(name, but)
        and (task.READS.images or not _OTHER_INPUTS.search(name))
    ]
    if not found:
        saved = [name for name in but if name != STAND_IN and name not in task.HEAD]
        raise ModelError(
            f"model.lora.modules_to_save: {', '.join(map(repr, saved))} received, beside which this model has no "
            "linear layer for LoRA; take it out, or set model.train = 'full'"
            if saved
            else f"model.lora.targets: '{ALL_LINEAR}' received; this model has no linear layer; name modules"
        )
    return found


def attention_layers(base: nn.Module, task: Task, but: list[str]) -> list[str]:
    """Of `linear_layers`, those that project to queries and values, where LoRA began (Hu et al. 2021, §4.2): the
    default for an architecture that PEFT has none for. Of an attention whose layers are named otherwise, all.

    Raises ModelError, naming the linear layers, where no module is an attention.
    """
    linear = linear_layers(base, task, but)
    kinds = {name: type(module).__name__ for name, module in base.named_modules()}
    inside = [name for name in linear if _ATTENTION.search(name) or _in_attention(name, kinds)]
    own = {name: name.rsplit(".", 1)[-1] for name in inside}
    found = [name for name in inside if _QUERY_OR_VALUE.search(own[name]) and "global" not in own[name]] or inside
    if not found:
        raise ModelError(
            f"model.lora.targets: nothing received, and {type(_inner(base)).__name__} has no linear layers of an "
            f"attention; allowed: '{ALL_LINEAR}', or names among {', '.join(_last_names(linear))}"
        )
    return found


def _in_attention(name: str, kinds: dict[str, str]) -> bool:
    """Whether a module around a layer is an attention by its class."""
    parts = name.split(".")
    return any(_ATTENTION.search(kinds[".".join(parts[:i])]) for i in range(1, len(parts)))


def _inner(base: nn.Module) -> nn.Module:
    """The model of transformers in one of confide's tasks."""
    return next((module for module in base.modules() if isinstance(module, PreTrainedModel)), base)


def _last_names(names: list[str]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def _within(name: str, whole: list[str]) -> bool:
    """Whether a layer is in a part that is trained whole: PEFT puts no LoRA where any module around has such a name."""
    return not set(whole).isdisjoint(name.split("."))


def targets_of(base: nn.Module, task: Task, model: ModelSection, whole: list[str]) -> list[str] | str:
    """The layers that LoRA is put on, as PEFT's target_modules: those that are named, or PEFT's default, where it has
    one for this architecture that finds a layer, or `attention_layers`.

    whole: parts that are trained whole. Raises ModelError for a name that no layer has which can carry LoRA: others
    that match do not make up for it.
    """
    but, wanted = [*whole, STAND_IN], model.lora.targets
    if wanted == ALL_LINEAR:
        return linear_layers(base, task, but)
    names = {name: layer for name, layer in base.named_modules() if name and not _within(name, but)}
    if wanted is None:
        known = DEFAULTS.get(getattr(getattr(base, "config", None), "model_type", ""), ())
        if isinstance(known, str):  # a pattern
            return known
        if any(_named(target, name) for target in known for name in names):
            return list(known)
        return attention_layers(base, task, but)
    for target in wanted:
        meant = [layer for name, layer in names.items() if _named(target, name)]
        other = next((layer for layer in meant if not isinstance(layer, _CAN_CARRY)), None)
        words = getattr(base, "words", None)  # of confide's own head for masked-lm
        if words is not None and any(getattr(layer, "weight", None) is words for layer in meant):
            raise ModelError(
                f"model.lora.targets: received '{target}', the table that the head compares with, too, which merging "
                "would change; name other layers, or set model.pooling = 'model'"
            )
        if not meant or other is not None:
            what = "no layer of this model" if other is None else f"a {type(other).__name__}, which cannot carry LoRA"
            left_out = f" ({', '.join(whole)} aside, which is trained whole)" if whole else ""
            raise ModelError(
                f"model.lora.targets: received '{target}', which names {what}{left_out}; allowed: '{ALL_LINEAR}', or "
                f"names among {', '.join(_last_names(linear_layers(base, task, but)))}"
            )
    return list(wanted)


def _named(target: str, name: str) -> bool:
    """As PEFT compares them: a name, or its last parts."""
    return name == target or name.endswith(f".{target}")


def trained_whole(base: nn.Module, task: Task, model: ModelSection) -> list[str]:
    """The parts of a model, by their whole names, that are trained beside LoRA or instead of it.

    A head of transformers' own may have a layer before it whose name ends alike (DistilBERT's `pre_classifier`): it is
    drawn, too, and trained with it. Raises ModelError for a name that no part has, and where a module further inside
    ends like one of them: PEFT compares the ends of names, also when it reads an adapter back, and would train it.
    """
    children = {name: child for name, child in base.named_children() if name != STAND_IN}
    more = model.lora.modules_to_save or ()
    if unknown := [name for name in more if name not in children]:
        raise ModelError(f"model.lora.modules_to_save: received '{unknown[0]}'; allowed: {', '.join(children)}")
    head = tuple(name for name in children if name in task.HEAD)
    whole = [name for name in children if name in more or (head and name.endswith(head))]
    if model.train == "full":
        whole = [name for name, child in children.items() if next(child.parameters(), None) is not None]
    for other, module in base.named_modules():
        meant = next((name for name in whole if other.endswith(name)), None)
        if meant is None or other in whole or next(module.parameters(), None) is None:
            continue
        key, advice = (
            "model.train",
            "set model.pooling = 'model' for the backbone's own head, or choose another backbone",
        )
        if meant in more:
            key, advice = "model.lora.modules_to_save", "leave it out"
        raise ModelError(
            f"{key}: '{meant}' would be trained whole, and PEFT, which compares the ends of names, would train "
            f"'{other}' of this backbone, too; {advice}"
        )
    return whole


def with_lora(base: nn.Module, task: Task, model: ModelSection) -> PeftModel:
    whole = trained_whole(base, task, model)
    config = LoraConfig(
        r=model.lora.rank if model.train == "lora" else 1,
        lora_alpha=model.lora.alpha,  # pyright: ignore[reportArgumentType]  # PEFT divides: a float is as good
        use_rslora=model.lora.scaling == "rank_stabilized",
        lora_dropout=0.0,
        target_modules=targets_of(base, task, model, whole) if model.train == "lora" else [STAND_IN],
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
        raise ModelError(
            f"model.lora: PEFT does not take these layers ({first_line(error)}); choose other model.lora.targets, such "
            f"as {', '.join(_last_names(linear_layers(base, task, [*whole, STAND_IN])))}"
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


def not_trained(module: PeftModel, freeze_a: bool, *, lora: bool) -> set[str]:
    """Names of the adapter's arrays that stay as they are: A factors (FFA-LoRA), the stand-in's LoRA, and arrays that
    have no per-sample gradients: those that belong to no layer of their own (a class token), and tables of positions
    and segments, which are looked up once for a whole batch."""
    loose = {
        saved_name(f"{owner}.{name}")
        for owner, part in module.named_modules()
        if next(part.children(), None) is not None or SHARED.search(owner)
        for name, _ in part.named_parameters(recurse=False)
    }
    names = {saved_name(name) for name, p in module.named_parameters() if p.requires_grad}
    return {n for n in names if n in loose or (".lora_" in n and not lora) or (".lora_A." in n and freeze_a)}


def saved_name(name: str) -> str:
    """As PEFT's files name an array."""
    return name.replace(".modules_to_save.default", "").replace(".default", "")
