"""What a run starts from: the adapter that its seed decides, or that of a finished run."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..common.config.run import RunConfig
from ..common.errors import ConfigError, ModelError
from ..common.model.adapter import read_adapter
from ..common.model.loading import FineTuneModel
from ..common.run_folder import own_file
from ..common.types import Adapter

_SAME = ("backbone", "lora")


def initial_adapter(config: RunConfig, model: FineTuneModel) -> Adapter:
    """Copies of the first round's arrays. With `model.init_from`: LoRA of that run, whatever its task was, and its head
    where it tells the same classes apart.

    Raises ConfigError: no finished run there, another backbone or LoRA.
    """
    # not `model.get()`: whoever shares this process' model may have trained it
    adapter = {name: array.copy() for name, array in model.initial.items()}
    if config.model.init_from is None:
        return adapter
    folder = Path(config.model.init_from) / "adapter"
    try:
        section, labels, old = read_adapter(folder)
    except ModelError:
        raise ConfigError(f"model.init_from: {folder} holds no adapter; give the folder of a finished run") from None
    now = config.model.model_dump(mode="json")
    for key in _SAME:
        if section.get(key) != now[key]:
            raise ConfigError(
                f"model.init_from: {key} {section.get(key)} there, {now[key]} here; they must be the same"
            )
    by_tail = {_tail(name): array for name, array in old.items()}
    same_classes = labels == list(config.data.labels or [])
    for name in adapter:
        lora = ".lora_" in name
        found = by_tail.get(_tail(name)) if lora else old.get(name) if same_classes else None
        if found is not None and found.shape == adapter[name].shape:
            adapter[name] = found.astype(np.float32)
        elif lora:
            raise ConfigError(f"model.init_from: {folder} holds no {name} of this shape; the runs' models differ")
    return adapter


def _tail(name: str) -> str:
    """An array's name inside the backbone, which tasks wrap under names of their own."""
    return name.split(".", 3)[-1]


def start_facts(config: RunConfig) -> dict[str, Any] | None:
    """For the report: the run that this one starts from, and what it spent; None when it starts from the seed."""
    if config.model.init_from is None:
        return None
    try:
        report = json.loads(own_file(Path(config.model.init_from) / "report.json").read_text(encoding="utf-8"))
        privacy = report["privacy"]
        facts = {"name": report["name"], "mode": privacy["mode"], "epsilon": privacy.get("epsilon_spent")}
        return {"folder": config.model.init_from, **facts}
    except (OSError, ValueError, KeyError, TypeError):
        return {"folder": config.model.init_from, "name": None, "mode": None, "epsilon": None}
