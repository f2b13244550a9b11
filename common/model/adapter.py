"""An adapter on its own: written with what it takes to load it again, read back, and merged into its backbone."""

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.torch import load_file as read_drawn
from safetensors.torch import save_file
from torch import nn

from ..config.tables import ModelSection
from ..data.spelling import Spelling, Words
from ..errors import ModelError
from ..run_folder import own_file
from ..tasks import load_task
from ..types import Adapter
from .backbones import resolve_backbone
from .building import build
from .loading import FineTuneModel
from .lora import STAND_IN
from .reading import reader_of
from .weights import drawn_arrays

CARD, DRAWN, PEFT = "confide.json", "drawn.safetensors", "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


def export_adapter(model: FineTuneModel, section: ModelSection, labels: list[str], folder: Path) -> None:
    """Writes what `peft.PeftModel.from_pretrained(load_base(folder), folder)` reads, and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Could not find a config file.*")  # offline: the vocabulary check
        warnings.filterwarnings("ignore", message=".*Unable to fetch remote file.*")
        model.module.save_pretrained(str(folder), save_embedding_layers=False)
    drawn = drawn_arrays(model.module.get_base_model())
    if drawn:
        save_file({name: array.cpu().contiguous().clone() for name, array in drawn.items()}, folder / DRAWN)
    config = json.loads((folder / PEFT).read_text(encoding="utf-8"))
    if drawn or not is_whole(config):
        config["base_model_name_or_path"] = None
        (folder / PEFT).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if model.reader is not None:
        model.reader.save_pretrained(str(folder))
    card = {"model": section.model_dump(mode="json"), "labels": labels, "two_texts": model.two_texts}
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    asked = asked_text(section.spelling)
    readme = _ADAPTER_README.replace(asked_text("none"), f"{asked}, {asked}" if model.two_texts else asked)
    (folder / "README.md").write_text(readme, encoding="utf-8")


def is_whole(config: dict[str, Any]) -> bool:
    """Whether the adapter of an adapter_config.json is all that its backbone needs. It may name the backbone then: with
    a name, `pipeline` puts a head on the backbone by itself, which knows neither names nor number of the classes, and
    what neither of the two holds is random."""
    library = (config.get("auto_mapping") or {}).get("parent_library", "")
    headless = not config.get("modules_to_save") and config.get("target_modules") != [STAND_IN]
    return headless and library.startswith("transformers.")


def read_adapter(folder: Path) -> tuple[dict[str, Any], list[str], Adapter]:
    """What `export_adapter` wrote: the content of [model], the classes, and the arrays. Raises ModelError."""
    return *_read_card(folder), read_arrays(folder)


def reads_two_texts(folder: Path) -> bool:
    """Of an adapter's folder that `read_adapter` reads: whether a record has a second text."""
    return bool(json.loads(own_file(folder / CARD).read_text(encoding="utf-8")).get("two_texts"))


def read_arrays(folder: Path) -> Adapter:
    """The arrays of an adapter's folder. Raises ModelError for a file that is not there, cut, or holds what no training
    leaves: whole numbers, NaN or infinite values."""
    path = folder / _WEIGHTS
    try:
        arrays = load_file(own_file(path))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; give a finished run, or its folder adapter/") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(
            f"{path}: not readable, or cut ({type(error).__name__}); copy the run's folder again"
        ) from None
    for name, array in arrays.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ModelError(
                f"{path}: {name} holds NaN, infinite or whole numbers, which no training leaves; copy the run's folder "
                "again, or train anew"
            )
    return arrays


def _read_card(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The content of [model], and the classes. Raises ModelError."""
    try:
        card = json.loads(own_file(folder / CARD).read_text(encoding="utf-8"))
        section, labels = card["model"], card["labels"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ModelError(f"{folder}: no adapter of confide; give the adapter folder of a finished run") from None
    if not isinstance(section, dict) or not isinstance(labels, list) or not all(isinstance(x, str) for x in labels):
        raise ModelError(f"{folder / CARD}: not as confide wrote it; copy the run's folder again")
    return section, labels


_ADAPTER_README = """# LoRA adapter and head, trained with confide

```python
import confide
from peft import PeftModel
from transformers import AutoTokenizer

folder = "adapter"
model = PeftModel.from_pretrained(confide.load_base(folder), folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
logits = model(**tokenizer("a text", return_tensors="pt")).logits
```

`confide.json` names backbone, pooling and classes; `load_base` builds the base model from it. Where there is a
`drawn.safetensors`, it holds layers that the backbone's file lacks: they were drawn when the run began.
"""


def asked_text(spelling: Words) -> str:
    """The text of an example of use, as code, for a model that reads texts so."""
    return '"a text"' if spelling == "none" else 'confide.load_spelling(folder).read("a text")'


def load_base(folder: str | Path) -> nn.Module:
    """The base model that the adapter in `folder` belongs to, for `peft.PeftModel.from_pretrained`.

    Raises ModelError when the folder holds no `confide.json` or the backbone cannot be found.
    """
    section, labels = _card_of(Path(folder))
    base = build(load_task(section.task), resolve_backbone(section.backbone), section, len(labels))
    if (file := Path(folder) / DRAWN).is_file():
        try:
            base.load_state_dict(read_drawn(file), strict=False)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ModelError(
                f"{file}: not readable, or another model's ({type(error).__name__}); copy it again"
            ) from None
    return base.eval()


def load_spelling(folder: str | Path) -> Spelling | None:
    """How the model in `folder` reads misspelled words: its texts pass through `read` before they are cut into tokens.
    None: they are taken as they are. Raises ModelError when the folder holds no `confide.json`."""
    section, _ = _card_of(Path(folder))
    if section.spelling == "none":
        return None
    return reader_of(str(folder), section).spelling


def _card_of(folder: Path) -> tuple[ModelSection, list[str]]:
    section, labels = _read_card(folder)
    return ModelSection.parse(section, str(folder / CARD)), labels


def plain(model: FineTuneModel, adapter: Adapter) -> nn.Module:
    """A base model of its own with the adapter in it: LoRA merged into the weights in float32, PEFT gone.

    Raises ModelError for another model's adapter.
    """
    own = model.copy(share=False)  # merging changes the weights
    own.set(adapter)
    _untie(own.module)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no longer tied.*")  # as they were trained
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")  # they are not any more
        merged = own.module.merge_and_unload()
    if hasattr(merged, STAND_IN):
        delattr(merged, STAND_IN)
    return merged


def _untie(module: PeftModel) -> None:
    """Gives each layer under LoRA a weight of its own, where another layer has the same: merged into the table that a
    language model both reads and writes by, what was learned of the one would change the other."""
    holders = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    for part in module.modules():
        layer = part.get_base_layer() if isinstance(part, BaseTunerLayer) else None
        weight = getattr(layer, "weight", None)
        if layer is not None and isinstance(weight, nn.Parameter) and holders[id(weight)] > 1:
            layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
