"""What a backbone's tables allow: the tokens it has positions for, and its input embeddings."""

import re
from collections.abc import Sequence
from inspect import signature

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ModelError, harmless

SHARED = re.compile(r"(position|token_type)[\w]*$|\.wpe$")

_ORDER = re.compile(r"(?<![xyhw]_)(position_embeddings?|embed_positions|\.wpe)$")
"""tables of a token's place in its text; LayoutLM has others, of places on a page"""


def positions(base: nn.Module) -> int | None:
    """Tokens that a model has positions for; None: no bound is stated."""
    config = getattr(base, "config", None)
    stated = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_sequence_length")]
    found = [value for value in stated if isinstance(value, int) and value > 0]
    for name, module in base.named_modules():
        if name.startswith("image_encoder."):  # an image's patches
            continue
        if isinstance(module, nn.Embedding) and _ORDER.search(name):
            first = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa counts from there
            found.append(module.num_embeddings - max(first, int(getattr(module, "offset", 0))))
    return min(found, default=None)


def check_length(base: nn.Module, max_length: int) -> None:
    """Raises ModelError where records would be longer than the model has positions for."""
    most = positions(base)
    if most is not None and max_length > most:
        raise ModelError(
            f"model.max_length: {max_length} received; this backbone has positions for {most} tokens; allowed: at most "
            f"{most}"
        )


def check_room(tokenizer: PreTrainedTokenizerBase, max_length: int, two_texts: bool) -> None:
    """Raises ModelError where a tokenizer's marks alone are longer than a record may be: it would cut nothing."""
    marks = tokenizer.num_special_tokens_to_add(pair=two_texts)
    if max_length < marks:
        raise ModelError(
            f"model.max_length: {max_length} received; this tokenizer puts {marks} marks around "
            f"{'two texts' if two_texts else 'a text'}; allowed: at least {marks + 1}"
        )


def check_order(base: nn.Module, labels: Sequence[str]) -> None:
    """Raises ModelError where a checkpoint's own head has the run's classes in another order: each answer would be
    taken for another class."""
    names = getattr(getattr(base, "config", None), "id2label", None) or {}
    own = [str(names[number]).casefold() for number in sorted(names)]
    wanted = {label.casefold(): label for label in labels}
    if (
        not isinstance(base, PreTrainedModel)
        or getattr(base, "drawn", ())
        or sorted(own) != sorted(wanted)
        or own == list(wanted)
    ):
        return
    order = ", ".join(f'"{harmless(wanted[name])}"' for name in own)
    raise ModelError(
        "data.labels: the backbone's own head has these classes in another order, and each answer would be taken for "
        f"another class; set data.labels = [{order}], or model.pooling to mean, first or last for a new head"
    )


def tells_apart(base: nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Whether a tokenizer says which of two texts a token is of, and the model reads it."""
    if tokenizer is None or "token_type_ids" not in tokenizer.model_input_names:
        return False
    return "token_type_ids" in signature(getattr(base, "backbone", base).forward).parameters


def input_embeddings(whole: nn.Module) -> nn.Module:
    """The layer of any module that turns tokens into vectors. Raises ModelError for a model without one."""
    for module in whole.modules():
        getter = getattr(module, "get_input_embeddings", None)
        if getter is None:
            continue
        try:
            layer = getter()
        except (AttributeError, NotImplementedError):
            continue
        if isinstance(layer, nn.Module):
            return layer
    kind = next((type(part).__name__ for part in whole.modules() if isinstance(part, PreTrainedModel)), "this model")
    raise ModelError(f"model.backbone: {kind} has no input embeddings, by which a text is read; give a model of texts")
