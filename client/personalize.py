"""`confide site personalize`: a head of the site's own on a finished model. Nothing leaves the site."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ..common.config.tables import DataSection, ModelSection
from ..common.errors import ConfigError, ModelError
from ..common.model.adapter import CARD, read_adapter, reads_two_texts
from ..common.model.backbones import Folders
from ..common.model.loading import FineTuneModel, load_model
from ..common.model.personal_head import PersonalHead, personal_head
from ..common.types import Adapter
from .deploy.folder import data_section, load_site, named_dataset, own_backbones, write_private

HEADS = "heads"


@dataclass(frozen=True)
class SiteHead:
    found: PersonalHead
    records: int
    path: Path


@dataclass(frozen=True)
class FinishedModel:
    """What an adapter folder holds, on its backbone."""

    section: ModelSection
    labels: list[str]
    model: FineTuneModel
    adapter: Adapter


def load_finished(folder: Path, folders: Folders) -> FinishedModel:
    """folder: the adapter folder of a finished run. folders: backbones of the site's own. Raises ConfigError,
    ModelError."""
    try:
        content, labels, arrays = read_adapter(folder)
    except ModelError as error:
        raise ConfigError(str(error)) from None
    section = ModelSection.parse(content, str(folder / CARD))
    model = load_model(section, len(labels), 0, folders=folders, two_texts=reads_two_texts(folder))
    return FinishedModel(section, labels, model, arrays)


def personalize_site(folder: Path, adapter: Path, dataset: str) -> SiteHead:
    """Fits a head to the site's records and keeps it in heads/DATASET.safetensors, mode 0600.

    adapter: the adapter folder of a finished run. Raises ConfigError, DataError, ModelError.
    """
    config, _ = load_site(folder)
    named = named_dataset(folder, config, dataset)
    finished = load_finished(adapter, own_backbones(folder, config))
    model = finished.model
    data = data_section(folder, named, DataSection(name=dataset, test="", labels=finished.labels))
    if model.two_texts and data.text_pair is None:
        raise ConfigError(
            f'{folder}: the model reads two texts a record; set text_pair = "…" in [datasets.{dataset}] of site.toml'
        )
    rows = model.rows(data.training, data)
    records = model.encode(rows)
    found = personal_head(model, finished.adapter, records, np.arange(len(records)), 0)
    path = folder / HEADS / f"{dataset}.safetensors"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_private(path, save(found.arrays))
    return SiteHead(found, len(records), path)
