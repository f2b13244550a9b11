"""`confide export --format transformers`: a folder that an auto class of transformers loads, and nothing of confide.

LoRA is merged, the head stands where that class has its own, and what was written is loaded again and compared with the
run's model before it counts.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from ...common.data.images import ImageForm
from ...common.errors import ConfigError, ModelError
from ...common.model.generation import Generator, choice
from ...common.model.pooling import PooledClassifier
from ...common.tasks import task_names
from ...common.whole import require_new, whole_folder
from .card import card, written
from .finished import FinishedRun
from .plain_adapter import require_adapter, with_adapter, write_adapter
from .runtime import padded
from .writer import CONTINUED

PARITY = 1e-5
"""largest difference of a logit, relative to the largest one, between the run's model and the folder's"""
UNMERGED, _ROUNDED = 1e-4, 0.05
"""the same where LoRA is computed beside its layer: in float32, and in bfloat16"""
_OF_DRAWING = ("temperature", "top_k", "top_p")
_AUTO: dict[str | None, Any] = {
    "fill-mask": AutoModelForMaskedLM,
    "image-classification": AutoModelForImageClassification,
    "text-classification": AutoModelForSequenceClassification,
    "text-generation": AutoModelForCausalLM,
    "token-classification": AutoModelForTokenClassification,
}
_PROBLEMS: dict[str, Literal["single_label_classification", "multi_label_classification", "regression"]] = {
    "class": "single_label_classification",
    "classes": "multi_label_classification",
    "number": "regression",
}
_OWN_HEAD = "train with model.pooling = 'model', the backbone's own head"
_REMEDIES = {
    "fill-mask": _OWN_HEAD,
    "image-classification": "train with model.pooling = 'first'",
    "text-classification": _OWN_HEAD,
}
_GREY = (0.299, 0.587, 0.114)
"""of red, green and blue in the grey of PIL: `pipeline` gives every model three channels"""
_TEXTS = ["a text of some words", "another one"]


def export_plain(
    folder: Path,
    out: Path,
    *,
    adapter: bool = False,
    base: str | None = None,
    intended: str | None = None,
    licence: str | None = None,
) -> list[str]:
    """Writes weights, configuration, tokenizer or preprocessor, and README.md; returns the files' names.

    adapter: beside them, in adapter/, what `peft.PeftModel.from_pretrained(backbone, …)` reads. base: the name under
    which people find the backbone, where the run had it from a folder. Raises ConfigError for a run whose head or whose
    reading no auto class has, ModelError when the folder's model answers otherwise; nothing is left then.
    """
    require_new(out)
    run = FinishedRun(folder, *task_names(), two_texts=True)
    if adapter:
        require_adapter(run, base)
    if run.model.spelling is not None:
        raise ConfigError(
            f"--format: 'transformers' received for a run with model.spelling = '{run.config.model.spelling}'; texts "
            "are corrected before they become tokens, which transformers does not do; ship it as hub"
        )
    model, inputs, wanted = _in_its_class(run)
    with whole_folder(out) as place:
        model.save_pretrained(place)
        kind, attention = _AUTO[run.model.task.PIPELINE], model.config._attn_implementation
        del model
        write_reader(run, place)
        model = kind.from_pretrained(place, attn_implementation=attention, trust_remote_code=False)
        found = logits_of(model, inputs)
        if not apart(found, wanted) <= PARITY:
            raise _refused(run)
        if adapter:
            write_adapter(run, model, place / "adapter", base)
            found = logits_of(with_adapter(run, kind, model.config, place / "adapter"), inputs)
            if not apart(found, wanted) <= (UNMERGED if model.dtype == torch.float32 else _ROUNDED):
                raise ConfigError("--adapter: received for a run whose adapter PEFT alone does not fit; leave it out")
        text = card(folder, [], base=base, intended=intended, licence=licence, library="transformers")
        (place / "README.md").write_text(text, encoding="utf-8")
    return written(out)


def _in_its_class(run: FinishedRun) -> tuple[PreTrainedModel, dict[str, torch.Tensor], torch.Tensor]:
    """The run's model as one of transformers', what it is asked for comparison, and what the run's own answers."""
    merged, kind = run.classifier(), _AUTO.get(run.model.task.PIPELINE)
    if kind is None:
        raise _refused(run)
    inputs, scaled = examples(run), run.config.data.scale if run.model.task.READS.label == "number" else None
    if isinstance(merged, PreTrainedModel):
        model = merged
        _describe(model, run)
        if scaled is not None:
            _in_label_units(model, *scaled)
        return model, inputs, logits_of(model, inputs)
    wanted, form = logits_of(merged, inputs), run.model.image
    model = _rebuilt(run, merged, kind)
    _describe(model, run)
    return model, inputs if form is None else {"pixel_values": _preprocessed(inputs["pixel_values"], form)}, wanted


def _rebuilt(run: FinishedRun, merged: Any, kind: Any) -> PreTrainedModel:
    """The backbone and the linear head of confide in the class that transformers has for the task, as far as it has the
    same parts; whether it computes the same is seen afterwards."""
    tower = merged.image_encoder.tower if run.model.task.READS.images else merged.backbone
    config = copy.deepcopy(tower.config)
    config.num_labels = merged.head.out_features
    try:
        if getattr(run.model.image, "channels", None) == 1:
            config.num_channels = len(_GREY)
        model = kind.from_config(config, trust_remote_code=False)
        shapes = {name: array.shape for name, array in model.base_model.state_dict().items()}
        model.base_model.load_state_dict({k: _of_grey(v, shapes.get(k)) for k, v in tower.state_dict().items()})
        (head,) = (part for part in model.children() if isinstance(part, nn.Linear))
        head.load_state_dict(merged.head.state_dict())
    except (AttributeError, RuntimeError, ValueError):  # no such class, other parts, no single head
        raise _refused(run) from None
    return model.eval()


def _of_grey(array: torch.Tensor, wanted: torch.Size | None) -> torch.Tensor:
    """(O, 1, h, w) that reads one channel → (O, 3, h, w) that reads the grey of three; others as they are."""
    if array.ndim != 4 or wanted is None or array.shape[1] != 1 or wanted[1] != len(_GREY):
        return array
    return array * torch.tensor(_GREY)[None, :, None, None]


def _describe(model: PreTrainedModel, run: FinishedRun) -> None:
    """The names of the classes and what ends a text into the configuration, and one type for all weights."""
    config, reads = model.config, run.model.task.READS
    names = run.labels or ([run.config.data.label] if reads.label == "number" else [])
    if names:
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    if (problem := _PROBLEMS.get(str(reads.label))) is not None:
        config.problem_type = problem
    if reads.text and config.pad_token_id is None:
        config.pad_token_id = run.model.pad
    if len({p.dtype for p in model.parameters()}) > 1:  # modules that were trained whole are float32
        model.float()
    outputs = model.get_output_embeddings()
    if outputs is not None and outputs.weight is not model.get_input_embeddings().weight:
        config.tie_word_embeddings = False  # so they were trained
        model.all_tied_weights_keys = {}
    if run.model.task.EXPORT == "text" and model.generation_config is not None:
        generator = Generator.of(model, run.tokenizer, run.config.data, run.config.model.max_length, CONTINUED)
        if generator.chat is not None:
            model.generation_config.eos_token_id = generator.ends
        written = {"max_new_tokens": generator.tokens, **choice(None), **dict.fromkeys(_OF_DRAWING)}
        for name, value in written.items():
            setattr(model.generation_config, name, value)  # as `confide predict` writes


@torch.no_grad()
def _in_label_units(model: PreTrainedModel, mean: float, deviation: float) -> None:
    """A model whose one output is in standard deviations of the labels gives the labels' own numbers. Raises
    ConfigError where its last layer has no bias that could hold the mean."""
    layer = [part for part in model.modules() if isinstance(part, nn.Linear) and part.out_features == 1][-1]
    if layer.bias is None:
        raise ConfigError(
            f"--format: 'transformers' received for {type(model).__name__}, whose head has no bias for the mean of the "
            "labels; ship it as hub"
        )
    layer.weight.mul_(deviation)
    layer.bias.mul_(deviation).add_(mean)


def examples(run: FinishedRun) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and perhaps token_type_ids (2, T), or pixel_values (2, C, H, W) from 0 to 255."""
    if (form := run.model.image) is not None:
        images = np.random.default_rng(0).integers(0, 256, (2, form.channels, form.height, form.width))
        return {"pixel_values": torch.from_numpy(images).float()}
    found = run.tokenizer(_TEXTS, _TEXTS[::-1] if run.model.two_texts else None)
    ids, mask = padded(found["input_ids"], run.model.pad)
    more = {"token_type_ids": padded(found["token_type_ids"], 0)[0]} if run.model.segments else {}
    given = {"input_ids": ids, "attention_mask": mask, **more}
    return {name: torch.from_numpy(values) for name, values in given.items()}


def _preprocessed(images: torch.Tensor, form: ImageForm) -> torch.Tensor:
    mean, deviation = (torch.tensor(values)[None, :, None, None] for values in (form.mean, form.deviation))
    return ((images / 255 - mean) / deviation).expand(-1, len(_GREY), -1, -1)


@torch.no_grad()
def logits_of(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of the positions that are read."""
    found = model(**inputs).logits.float()
    return found[inputs["attention_mask"].bool()] if found.ndim == 3 else found


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, relative to the largest number that is wanted."""
    if found.shape != wanted.shape:
        return math.inf
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))


def write_reader(run: FinishedRun, place: Path) -> None:
    """The tokenizer, with the template of the run's conversations, or how images are scaled."""
    if (form := run.model.image) is not None:
        facts = {
            "image_processor_type": "ViTImageProcessor",
            **{f"do_{name}": True for name in ("convert_rgb", "resize", "rescale", "normalize")},
            "size": {"height": form.height, "width": form.width},
            "resample": 2,  # bilinear
            "rescale_factor": 1 / 255,
            "image_mean": form.mean * (len(_GREY) // form.channels),
            "image_std": form.deviation * (len(_GREY) // form.channels),
        }
        (place / "preprocessor_config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        return
    tokenizer = copy.deepcopy(run.tokenizer)
    if not run.model.segments and _reads_types(run):  # which the tokenizer would give: the run's were none
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    length = run.model.positions if run.model.task.EXPORT == "text" else run.model.max_length
    tokenizer.model_max_length = length or tokenizer.model_max_length
    if run.model.task.EXPORT == "logits":
        tokenizer.padding_side = "right"  # as the run's batches are
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if run.config.data.messages is not None and run.config.data.template is not None:
        tokenizer.chat_template = run.config.data.template
    tokenizer.save_pretrained(place)


def _reads_types(run: FinishedRun) -> bool:
    """Whether types of tokens that are all zero change the answers, or cannot be given: for most models they are what
    is taken without any."""
    if "token_type_ids" not in run.tokenizer.model_input_names:
        return False
    inputs, model = examples(run), run.classifier()
    try:
        told = logits_of(model, {**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])})
    except TypeError:
        return True
    return not torch.allclose(told, logits_of(model, inputs), rtol=PARITY, atol=PARITY)


def _refused(run: FinishedRun) -> ConfigError | ModelError:
    task, model = run.model.task, run.config.model
    if isinstance(run.model.module.get_base_model(), PreTrainedModel):
        return ModelError("the folder's model answers otherwise than the run's; ship it as hub, and report this")
    ways = (
        ["give --format sentence-transformers"]
        if isinstance(run.model.module.get_base_model(), PooledClassifier)
        else []
    )
    ways += [_REMEDIES[task.PIPELINE]] if task.PIPELINE in _REMEDIES else []
    ways += ["ship it as ONNX: confide compress RUN, then --format hub"] if task.EXPORT == "logits" else []
    return ConfigError(
        f"--format: 'transformers' received for a run of task '{model.task}' with model.pooling = '{model.pooling}'; "
        f"no auto class of transformers computes what it learned; {'; or '.join(ways)}"
    )
