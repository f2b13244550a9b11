"""`confide data check`, whole: reads, looks, and writes a folder that stays at the site."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from ...common.config.tables import DataSection
from ...common.data.columns import columns_told
from ...common.data.sources import read_table
from ...common.errors import ConfigError, DataError
from ...common.model.backbones import resolve_backbone
from ...common.model.reading import tokenizer_of
from ...common.whole import require_writable, whole_folder
from ..deploy.folder import POLICY, data_section, load_site, named_dataset
from .clean import write_clean
from .look import Findings, StageCallback, check_rows
from .page import write_page

_BOTH = "both texts"
_LENGTH, _BATCH = 48, 128
"""tokens that an embedding reads, and texts at a time"""


@dataclass(frozen=True)
class Outcome:
    checked: Findings
    left_out: dict[int, str]
    page: Path
    seconds: float


def check_source(
    source: str,
    out: Path,
    *,
    text: str = "text",
    pair: str | None = None,
    label: str | None = "label",
    test: str | None = None,
    dataset: str = "default",
    backbone: str | None = None,
    drop_labels: bool = False,
    label_cut: int | None = None,
    overwrite: bool = False,
    seed: int = 0,
    progress: StageCallback = lambda _: None,
) -> Outcome:
    """source: a file, an SQL url, or the folder of a site, whose `dataset` is looked at (its columns are in site.toml).
    pair: the column of a second text: rows are then compared by both.

    Raises ConfigError, DataError, ModelError; nothing is written then.
    """
    started = time.monotonic()
    data = DataSection(test=source, text=text)
    if (Path(source) / POLICY).is_file():
        config, _ = load_site(Path(source))
        named = named_dataset(Path(source), config, dataset)
        data = data_section(Path(source), named, DataSection(name=dataset, test=""))
        text, label, pair = data.messages or data.text, label and data.label, data.text_pair
    require_writable(out, "--out")
    if out.exists() and not overwrite and any(out.iterdir()):
        raise ConfigError(f"{out}: is not empty; give another folder with --out, or --overwrite")
    progress("reading")
    table, tests = read_table(data.test, data, label=label), read_table(test, data, label=label) if test else None
    embed = None if backbone is None else Embedder(backbone)
    try:
        read = [one if one is None or pair is None else _with_both(one, text, pair) for one in (table, tests)]
        column = text if pair is None else _BOTH
        # one premise with several hypotheses is nearly the same text, and no copy
        checked = check_rows(read[0], column, label, read[1], embed, seed, progress, label_cut, nearly=pair is None)
    except DataError as error:
        raise DataError(f"{data.test}: {error}") from None
    with whole_folder(out) as place:
        left_out = write_clean(place, _as_text(table), checked, drop_labels=drop_labels)
        seconds = time.monotonic() - started
        page = write_page(place, data.test, checked, left_out, seconds)
    return Outcome(checked, left_out, out / page.name, seconds)


def _as_text(table: pa.Table) -> pa.Table:
    """Columns that a csv can hold."""
    columns = {
        name: table[name] if pa.types.is_primitive(table[name].type) or pa.types.is_string(table[name].type)
        else pa.array([str(value) for value in table[name].to_pylist()])
        for name in table.column_names
    }  # fmt: skip
    return pa.table(columns)


def _with_both(table: pa.Table, text: str, pair: str) -> pa.Table:
    """With a column of both texts of a row, one below the other: a copy is one in both. Nothing where one is missing.
    Raises DataError."""
    for name in (text, pair):
        if name not in table.column_names:
            raise DataError(f"column '{name}' is missing; {columns_told(table.column_names)}")
    both = zip(*(map(_read, table[name].to_pylist()) for name in (text, pair)), strict=True)
    texts = [f"{one}\n{two}" if one and two else None for one, two in both]
    return table.append_column(_BOTH, pa.array(texts, pa.string()))


def _read(value: object) -> str:
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")).strip()


class Embedder:
    """Texts → mean of the backbone's last hidden states."""

    def __init__(self, backbone: str) -> None:
        """Raises ModelError."""
        from transformers import AutoModel

        path = resolve_backbone(backbone)
        self._tokenizer = tokenizer_of(path)
        self._model = AutoModel.from_pretrained(path, dtype=torch.float32, trust_remote_code=False).eval()
        pad = self._tokenizer.pad_token or self._tokenizer.eos_token
        self._tokenizer.pad_token = pad

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> np.ndarray:
        """(N, h) float32, batched by length."""
        if not texts:
            return np.zeros((0, 1), dtype=np.float32)
        ids = self._tokenizer(texts, truncation=True, max_length=_LENGTH, padding=False)["input_ids"]
        order = np.argsort([len(one) for one in ids], kind="stable")
        result = np.empty((0, 0), dtype=np.float32)
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            batch = self._tokenizer.pad({"input_ids": [ids[i] for i in part]}, return_tensors="pt")
            hidden = self._model(**batch).last_hidden_state
            weights = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            pooled = ((hidden * weights).sum(1) / weights.sum(1).clamp(min=1)).numpy()
            if not len(result):
                result = np.empty((len(texts), pooled.shape[1]), dtype=np.float32)
            result[part] = pooled
        return result
