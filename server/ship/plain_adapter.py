"""`confide export --format transformers --adapter`: what plain PEFT loads onto the backbone in its auto class.

Arrays get the names that they have in that class. A head, in the labels' own unit, and whatever no file of the backbone
holds are in it as a whole. What was written is loaded by PEFT and compared before it counts.
"""

import copy
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as hf_logging

from ...common.errors import ConfigError
from ...common.model.adapter import PEFT
from ...common.model.backbones import resolve_backbone
from ...common.model.lora import STAND_IN
from ...common.model.weights import drawn_arrays
from ..report import read_report
from .card import adapter_config, base_of
from .finished import FinishedRun

_LORA = re.compile(r"\.lora_(embedding_)?[AB](\.weight)?$")
_PREFIX = "base_model.model."
_BACKBONES = ("backbone.", "image_encoder.tower.")
"""where confide's own classes keep it"""


def require_adapter(run: FinishedRun, base: str | None) -> None:
    """Raises ConfigError for a run without LoRA, and where the backbone has no name under which people find it."""
    config = adapter_config(run.folder)
    if config["target_modules"] == [STAND_IN]:
        raise ConfigError("--adapter: received for a run whose adapter only confide.load_base fits; leave it out")
    if base_of(config, read_report(run.folder)["model"]["backbone"], base)[0] is None:
        raise ConfigError(
            "--base: nothing received with --adapter, and model.backbone is a folder of this machine; give the name "
            "under which people find it"
        )


def write_adapter(run: FinishedRun, model: PreTrainedModel, place: Path, base: str | None) -> None:
    """model: what the run's is in its auto class, with LoRA merged. base: as of `card`."""
    config, names = adapter_config(run.folder), {name: _renamed(name, model) for name in run.adapter}
    lora = {new: run.adapter[name] for name, new in names.items() if _LORA.search(new)}
    trained = {_module_of(new) for new in names.values() if not _LORA.search(new)}
    drawn = {_module_of(_renamed(name, model)) for name in drawn_arrays(run.model.module.get_base_model())}
    whole = _outermost(trained | drawn)
    lora = {name: array for name, array in lora.items() if not _within(_LORA.sub("", name), whole)}
    state = model.state_dict()
    arrays = {f"{_PREFIX}{name}": array for name, array in state.items() if _within(name, whole)}
    arrays |= {f"{_PREFIX}{name}": torch.from_numpy(array) for name, array in lora.items()}
    if names != {name: name.removeprefix(_PREFIX) for name in names} or drawn:
        config["target_modules"] = sorted({_LORA.sub("", name) for name in lora})
    name, revision = base_of(config, read_report(run.folder)["model"]["backbone"], base)
    kind = type(model)
    config |= {
        "auto_mapping": {"base_model_class": kind.__name__, "parent_library": kind.__module__},
        "base_model_name_or_path": name,
        "modules_to_save": sorted(whole) or None,
        "revision": revision,
    }
    place.mkdir()
    (place / PEFT).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    kept = {name: array.cpu().contiguous().clone() for name, array in arrays.items()}
    save_file(kept, place / "adapter_model.safetensors", metadata={"format": "pt"})


def with_adapter(run: FinishedRun, kind: Any, plain: Any, place: Path) -> nn.Module:
    """The backbone in its auto class, and the written adapter on it. plain: the configuration of the plain model."""
    path, config = resolve_backbone(run.config.model.backbone), copy.deepcopy(plain)
    options = {"dtype": config.dtype, "attn_implementation": plain._attn_implementation}
    with _without_report(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT's
        model = kind.from_pretrained(path, config=config, trust_remote_code=False, **options)
        return PeftModel.from_pretrained(model, str(place)).eval()


@contextmanager
def _without_report() -> Iterator[None]:
    """Within, transformers does not tell what a file lacks: a head, which the adapter brings."""
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)


def _renamed(name: str, model: PreTrainedModel) -> str:
    """Of an array of the run's model, its name in another that has the same parts, without PEFT's prefix."""
    bare = name.removeprefix(_PREFIX)
    for own in _BACKBONES:
        if bare.startswith(own):
            return f"{model.base_model_prefix}.{bare.removeprefix(own)}"
    if bare.startswith("head.") and not hasattr(model, "head"):
        (head,) = (part for part, module in model.named_children() if isinstance(module, nn.Linear))
        return f"{head}.{bare.removeprefix('head.')}"
    return bare


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _within(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _outermost(modules: set[str]) -> set[str]:
    return {one for one in modules if not _within(one, modules - {one})}
