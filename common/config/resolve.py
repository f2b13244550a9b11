"""A declared configuration → the one that runs: everything it depends on, stated."""

import uuid
from collections.abc import Sequence
from pathlib import Path

from ..data.classes import bio_names, class_counts, has_lists, label_names, number_scale
from ..data.sources import read_table
from ..errors import ConfigError, ModelError
from ..model.backbones import Folders, resolve_backbone
from ..model.weights import with_type
from ..tasks import load_task
from .run import RunConfig
from .tables import DataSection, ModelSection


def public_sources(config: RunConfig) -> list[str]:
    """What the server evaluates on."""
    return [source for source in (config.data.test, config.data.validation) if source]


def learned_from(config: RunConfig) -> list[str]:
    """Of the public sets, those whose labels training may depend on: not the test set, unless there is no other."""
    return [config.data.validation or config.data.test]


def resolve(config: RunConfig, folders: Folders = ()) -> RunConfig:
    """Everything a run depends on, stated: classes come from the public sets, the number of `natural` clients from its
    column, paths become absolute, the run gets its id, and the weights their type.

    folders: where backbones are that the caller keeps. Raises ConfigError, DataError.
    """
    config = with_several(config)
    task = load_task(config.model.task)
    data = config.data
    changes: dict = {
        key: _absolute(source) for key in ("train", "validation", "test") if (source := getattr(data, key)) is not None
    }
    if task.CLASSES and data.labels is None:
        changes["labels"] = label_names(public_sources(config), data, task.READS.label)
    elif task.READS.label == "tags" and data.labels is not None:
        changes["labels"] = bio_names(data.labels, "data.labels")
        changes["numbered_tags"] = data.numbered_tags or data.labels
    if task.CLASSES:
        _require_classes(changes.get("labels", data.labels), config)
    if config.training.class_weights == "balanced":
        changes["class_shares"] = _class_shares(config, data.model_copy(update=changes))
    if task.READS.label == "number" and data.scale is None:
        changes["scale"] = number_scale(learned_from(config), data)
    if data.partition.kind == "natural" and data.partition.clients is None:
        values = read_table(data.training, data)
        column = data.partition.column or ""
        if column in values.column_names:  # a missing column is reported when the rows are read
            changes["partition"] = data.partition.model_copy(update={"clients": len(values[column].unique())})
    absolute = {
        key: _absolute_folder(name)
        for key in ("backbone", "image_backbone", "init_from")
        if (name := getattr(config.model, key))
    }
    resolved = config.model_copy(
        update={
            "data": data.model_copy(update=changes),
            "model": _typed(config.model, folders).model_copy(update=absolute),
            "distill": config.distill.model_copy(
                update={
                    "public": _absolute(config.distill.public) if config.distill.public else None,
                    "backbones": tuple(map(_absolute_folder, config.distill.backbones)),
                }
            ),
            "run": config.run.model_copy(
                update={"output": str(config.output.resolve()), "id": config.run.id or uuid.uuid4().hex}
            ),
            "engine": config.engine.model_copy(
                update={"ledger": str(Path(config.engine.ledger).resolve()) if config.engine.ledger else None}
            ),
        }
    )
    return RunConfig.parse(resolved.model_dump(), "configuration")


def with_several(config: RunConfig) -> RunConfig:
    """With the task for several classes a record, where the public sets have lists of them. Raises DataError."""
    other = getattr(load_task(config.model.task), "SEVERAL", None)
    if other is None or not has_lists(public_sources(config), config.data):
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"task": other})})


def _require_classes(labels: Sequence[str], config: RunConfig) -> None:
    """Raises ConfigError for fewer than two: every answer would be right, and every ε be spent on nothing."""
    if len(set(labels)) > 1:
        return
    where = "received" if config.data.labels is not None else f"found in {', '.join(public_sources(config))}"
    raise ConfigError(
        f"data.labels: {len(set(labels))} class {where} ({', '.join(map(repr, labels))}); allowed: two and more; "
        "correct the column data.label, or state all classes in data.labels"
    )


def _class_shares(config: RunConfig, data: DataSection) -> tuple[float, ...]:
    """How often each class is expected, by public values alone. data: with its labels. Raises ConfigError for a class
    without a share: its weight would be infinite."""
    labels = data.labels or []
    if data.class_shares is not None:
        if len(data.class_shares) != len(labels):
            raise ConfigError(
                f"data.class_shares: {len(data.class_shares)} shares received for {len(labels)} classes "
                f"({', '.join(labels)}); give one each, in this order"
            )
        return data.class_shares
    counts = class_counts(learned_from(config), data, load_task(config.model.task).READS.label)
    if missing := [name for name, count in zip(labels, counts, strict=True) if not count]:
        raise ConfigError(
            f"training.class_weights: 'balanced' received, and no row of {', '.join(learned_from(config))} has the "
            f"class '{missing[0]}', so its weight would be infinite; state data.class_shares"
        )
    return tuple(float(count) / float(counts.sum()) for count in counts)


def _typed(model: ModelSection, folders: Folders) -> ModelSection:
    """With `dtype` stated; as it is where there is no backbone: loading it says so."""
    try:
        return with_type(model, resolve_backbone(model.backbone, folders))
    except ModelError:
        return model


def _absolute(source: str) -> str:
    return str(Path(source).resolve()) if Path(source).is_file() else source


def _absolute_folder(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else name
