"""What a run's model would get of a site's rows: for its operator alone, since every number here is one of records."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ...common.config.resolve import public_sources, with_several
from ...common.config.run import RunConfig, SiteConfig
from ...common.data.sources import read_checked
from ...common.errors import ConfigError, DataError
from ...common.model.backbones import resolve_backbone
from ...common.model.reading import Reader, encoded, reader_of
from ...common.tasks import Task, load_task
from ...common.types import Records, Rows
from .folder import data_section, named_dataset, own_backbones


def as_read(folder: Path, config: SiteConfig, run: RunConfig) -> str:
    """How many records the run would train on, and how many of them are cut. Raises ConfigError, DataError,
    ModelError."""
    if all(Path(source).is_file() for source in public_sources(run)):  # they may be elsewhere
        run = with_several(run)
    task = load_task(run.model.task)
    if not task.READS.text:
        return "the run reads no text"
    if task.CLASSES and run.data.labels is None:
        raise ConfigError("--run: data.labels is not set; give the run's config.toml, or a file of pending/")
    data = data_section(folder, named_dataset(folder, config, run.data.name), run.data)
    reader = reader_of(resolve_backbone(run.model.backbone, own_backbones(folder, config)), run.model)
    reads = replace(task.READS, alone=run.data.text_pair is None)
    found = read_checked(data.training, data, run.data.labels if task.CLASSES else None, reads=reads)
    read = [_one(task, found.rows.take(np.array([place])), reader, run) for place in range(len(found.rows))]
    records = [one for one in read if one is not None]
    cut = sum(one.cut is not None and bool(one.cut[0]) for one in records)
    told = [f"{len(records):,} records, {cut:,} of them cut to {run.model.max_length} tokens (model.max_length)"]
    if refused := len(read) - len(records):
        told.append(f"rows that the chat template does not take, and that contribute nothing: {refused:,}")
    return ", ".join(told)


def _one(task: Task, row: Rows, reader: Reader, run: RunConfig) -> Records | None:
    try:
        return encoded(task, row, reader.tokenizer, reader.spelling, run.model.max_length)
    except DataError:
        return None
