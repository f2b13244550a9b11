"""`confide export --format sentence-transformers`: a folder that `SentenceTransformer(folder)` loads, and nothing of
confide: a backbone with LoRA merged, how its tokens become one vector, and the head as a Dense module.

The files are written here, in the layout that the library has read since its version 2, so no export needs the library.
The backbone stands in a folder of its own, and its configuration names no classes: `pipeline` on it would put a random
head there, and fails instead. What was written is read again and compared with the run's model before it counts.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ...common.errors import ConfigError, ModelError
from ...common.model.pooling import PooledClassifier, pooled
from ...common.tasks import task_names
from ...common.whole import require_new, whole_folder
from .card import card, written
from .finished import FinishedRun
from .plain import PARITY, apart, examples, logits_of, write_reader

NAME = "sentence-transformers"
_TRANSFORMER, _POOLING, _DENSE = "0_Transformer", "1_Pooling", "2_Dense"
_WEIGHTS = "model.safetensors"
_MODES = {
    "first": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
    "mean": "pooling_mode_mean_tokens",
}
"""how the library says `model.pooling`"""


def export_sentences(
    folder: Path, out: Path, *, base: str | None = None, intended: str | None = None, licence: str | None = None
) -> list[str]:
    """Writes the three modules, tokenizer and README.md; returns the files' names.

    `encode` gives (N, K) logits, or the labels' own numbers; the names of the classes are `labels` in the backbone's
    configuration. base, intended, licence: as of `card`. Raises ConfigError for a run whose model is no head over
    pooled texts, ModelError when the folder's model answers otherwise; nothing is left then.
    """
    require_new(out)
    run = FinishedRun(folder, *task_names(), two_texts=True)
    merged, inputs = _pooled(run), examples(run)
    wanted, (weight, bias) = logits_of(merged, inputs), _head(merged, run)
    if run.config.data.scale is not None:
        mean, deviation = run.config.data.scale
        wanted = wanted * deviation + mean
    with whole_folder(out) as place:
        _write_backbone(merged.backbone, run, place / _TRANSFORMER)
        write_reader(run, place / _TRANSFORMER)
        _write(place / _TRANSFORMER / "sentence_bert_config.json", {"max_seq_length": run.model.max_length})
        _write_pooling(merged, place / _POOLING)
        _write_dense(weight, bias, place / _DENSE)
        _write_modules(place)
        found = _answers(type(merged.backbone), merged.pooling, place, inputs)
        if not apart(found, wanted) <= PARITY:
            raise ModelError("the folder's model answers otherwise than the run's; ship it as hub, and report this")
        text = card(folder, [], base=base, intended=intended, licence=licence, library=NAME)
        (place / "README.md").write_text(text, encoding="utf-8")
    return written(out)


def _pooled(run: FinishedRun) -> PooledClassifier:
    """The run's model, LoRA merged."""
    if run.model.spelling is not None:
        raise ConfigError(
            f"--format: '{NAME}' received for a run with model.spelling = '{run.config.model.spelling}'; texts are "
            "corrected before they become tokens, which the library does not do; ship it as hub"
        )
    merged = run.classifier()
    if not isinstance(merged, PooledClassifier):
        raise ConfigError(
            f"--format: '{NAME}' received for a run of task '{run.config.model.task}' with model.pooling = "
            f"'{run.config.model.pooling}'; it is for one answer a text by a head over pooled vectors; try --format "
            "transformers"
        )
    return merged


def _head(merged: PooledClassifier, run: FinishedRun) -> tuple[torch.Tensor, torch.Tensor]:
    """(K, h) and (K,), in the labels' own unit."""
    weight, bias = (merged.head.get_parameter(name).detach().clone() for name in ("weight", "bias"))
    if run.config.data.scale is None:
        return weight, bias
    mean, deviation = run.config.data.scale
    return weight * deviation, bias * deviation + mean


def _write_backbone(backbone: PreTrainedModel, run: FinishedRun, place: Path) -> None:
    """Whole, with zeros for a part that its class has and no run reads (a BERT's pooler): whoever loads a file that
    lacks it draws it anew, and reports that."""
    config = copy.deepcopy(backbone.config)
    config.id2label, config.label2id = {}, {}
    config.labels = run.labels or [run.config.data.label]
    if config.pad_token_id is None:
        config.pad_token_id = run.model.pad
    whole: PreTrainedModel = type(backbone)._from_config(config)
    read = whole.load_state_dict(backbone.state_dict(), strict=False)
    for name in read.missing_keys:
        whole.get_parameter(name).data.zero_()
    whole.save_pretrained(place)


def _write_pooling(merged: PooledClassifier, place: Path) -> None:
    width = merged.head.get_parameter("weight").shape[1]
    modes = {mode: name == merged.pooling for name, mode in _MODES.items()}
    _write(place / "config.json", {"word_embedding_dimension": width, **modes})


def _write_dense(weight: torch.Tensor, bias: torch.Tensor, place: Path) -> None:
    outputs, width = weight.shape
    identity = "torch.nn.modules.linear.Identity"
    facts = {"in_features": width, "out_features": outputs, "bias": True, "activation_function": identity}
    _write(place / "config.json", facts)
    save_file({"linear.weight": weight.contiguous(), "linear.bias": bias.contiguous()}, place / _WEIGHTS)


def _write_modules(place: Path) -> None:
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{path[2:]}"}
        for i, path in enumerate((_TRANSFORMER, _POOLING, _DENSE))
    ]
    _write(place / "modules.json", modules)
    _write(place / "config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": None})


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def _answers(kind: type[PreTrainedModel], pooling: str, place: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, K) of the folder, by its own files."""
    backbone = kind.from_pretrained(place / _TRANSFORMER, trust_remote_code=False)
    head = load_file(place / _DENSE / _WEIGHTS)
    return F.linear(pooled(backbone, pooling, **inputs), head["linear.weight"], head["linear.bias"])
