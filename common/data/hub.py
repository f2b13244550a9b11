"""Data sets of the Hugging Face hub, or of its cache."""

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_SPLIT = re.compile(r"[\w.\[\]:%+-]*")
"""also of parts, such as train[:10%]+test; anything else is a mistyped url"""


def rows_of(source: str) -> pa.Table:
    """Of `NAME[:SPLIT]` on the Hugging Face hub, or from its cache; the split is `train` unless given."""
    from datasets import Dataset, load_dataset

    name, _, split = source.partition(":")
    usual = _ID.fullmatch(name) and _SPLIT.fullmatch(split)
    if not usual or find_spec(f"datasets.packaged_modules.{name.lower()}") is not None:
        # `datasets` would read files of this folder by the reader of this name, one of which unpickles
        raise DataError(
            f"{source}: neither a file nor a data set of the hub; allowed: a path, OWNER/NAME, or NAME:SPLIT"
        )
    try:
        dataset = load_dataset(name, split=split or "train")
    except Exception as error:
        raise DataError(
            f"{source}: no file of a known kind, nor a data set of the hub that can be reached or is "
            f"cached ({type(error).__name__}); check the name and the network"
        ) from None
    if not isinstance(dataset, Dataset):
        raise DataError(f"{source}: the hub gave no table; name one split as NAME:SPLIT")
    return with_class_names(dataset).data.table.combine_chunks()


def with_class_names(dataset: "Dataset") -> "Dataset":
    """Class numbers become the names that the data set declares; −1 and nothing stay without one."""
    for column, feature in dataset.features.items():
        inner = getattr(feature, "feature", feature)  # of a list, its elements
        if hasattr(inner, "names"):
            named = [_named(inner, value) for value in dataset[column]]
            dataset = dataset.remove_columns(column).add_column(column, named)
    return dataset


def _named(feature: Any, value: Any) -> Any:
    if isinstance(value, list):
        return [_named(feature, one) for one in value]
    return feature.int2str(value) if value is not None and value >= 0 else None
