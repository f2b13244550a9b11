"""`confide personalize`: for each site of a finished simulation, a head of its own beside the shared one, compared.

The comparison is on the public test set, weighed to each site's mix of classes: records that a head was fitted to would
flatter it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ..common.data.partition import site_name
from ..common.errors import ConfigError
from ..common.model.personal_head import personal_head
from ..common.types import Adapter
from ..common.whole import whole_file
from ..server.evaluation import predictions, read_public
from ..server.report import amend_report
from .attacks.robustness import Subject

HEADS = "heads"
"""folder of a run: the heads of its simulated sites, each of which a real site would keep to itself"""


def personalize(folder: Path, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Writes heads/SITE.safetensors and the report's part `personal`. progress: sites done, of how many.

    Raises ConfigError for a folder without a finished simulation of a task with classes.
    """
    subject = Subject(folder)
    config, model, adapter = subject.config, subject.model, subject.adapter
    data = subject.of_sites()
    if data is None:
        raise ConfigError(f"{folder}: a deployment's run holds no site's records; run confide site personalize there")
    public = read_public(config, model, config.data.test)
    shared = _by_class(adapter, subject, public)
    (folder / HEADS).mkdir(exist_ok=True)
    rows = []
    for number, part in enumerate(data.parts):
        progress(number, len(data.parts))
        found = personal_head(model, adapter, data.records, part, config.run.seed)
        name = site_name(number, len(data.parts))
        with whole_file(folder / HEADS / f"{name}.safetensors") as partial:
            save_file(found.arrays, partial)
        mix = np.bincount(data.records.targets[part], minlength=model.classes) / len(part)
        own = shared if found.strength is None else _by_class({**adapter, **found.arrays}, subject, public)
        rows.append(
            {
                "name": name,
                "records": len(part),
                "strength": found.strength,
                "shared": _weighed(shared, mix),
                "personal": _weighed(own, mix),
            }
        )
    facts = {
        "sites": rows,
        "shared": float(np.mean([row["shared"] for row in rows])),
        "personal": float(np.mean([row["personal"] for row in rows])),
    }
    amend_report(folder, "personal", facts)
    return facts


def _by_class(adapter: Adapter, subject: Subject, public) -> np.ndarray:
    """(K,) accuracy on each class of the public test set; NaN for a class that is not in it."""
    right = predictions(subject.model, adapter, public) == public.targets
    counts = np.bincount(public.targets, minlength=subject.model.classes)
    hits = np.bincount(public.targets, right, minlength=subject.model.classes)
    return np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)


def _weighed(accuracies: np.ndarray, mix: np.ndarray) -> float:
    """Accuracy where classes are as frequent as in `mix`, over the classes that the test set has."""
    there = ~np.isnan(accuracies)
    weight = mix[there].sum()
    return float((mix[there] * accuracies[there]).sum() / weight) if weight > 0 else float(np.nanmean(accuracies))
