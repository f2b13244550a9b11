"""The Python interface: simulate, resume, load, audit, and a finished `Run`. The command line goes through it.

Objects of the caller (tables, a model) are written into a folder beside the run's, and named in its configuration: what
is played, resumed and reported is always the configuration, and nothing else.
"""

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.config.run import MANY, RunConfig, load_content
from ..common.config.run import load as load_config
from ..common.config.section import assign
from ..common.config.tables import GIVEN_STRATEGY, DataSection, RunSection
from ..common.data.sources import read_table
from ..common.errors import ConfigError
from ..common.run_folder import CONFIG, METRICS, own_file, require_room
from ..server.callbacks import Callback
from ..server.report import read_report
from . import run as engine
from .recipes import find_recipe

if TYPE_CHECKING:
    import datasets
    import pandas
    from flwr.serverapp.strategy import Strategy
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Rows = pandas.DataFrame | datasets.Dataset
    """a table of the caller; class labels of a `datasets.Dataset` are read by their names"""

_SITE = "confide_site"
"""column that a partition function's answer is written to"""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path

    @cached_property
    def config(self) -> RunConfig:
        """What was played, with everything that was left to be found out."""
        return load_config(self.folder / CONFIG)

    @cached_property
    def report(self) -> dict[str, Any]:
        """report.json: `before`, `after`, `privacy`, `rounds`, `model`, …"""
        return read_report(self.folder)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A row for each round."""
        lines = own_file(self.folder / METRICS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    @cached_property
    def _model(self) -> Any:
        from ..server.ship.predict import load as load_model

        return load_model(self.folder)[0]

    def predict(
        self,
        texts: Sequence[str] = (),
        images: Sequence[str | Path | bytes] = (),
        *,
        text_pairs: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """An answer for each row, as `confide predict` gives it.

        texts, images (paths, or the bytes of files), text_pairs (the second texts): those that the run reads, one each
        a row.
        Raises ConfigError for others, and DataError for an image that cannot be read.
        """
        from ..common.data.images import read_image
        from ..common.types import Rows

        reads, form = self._model.reads, self._model.form
        given = {
            "texts": (reads.text, texts),
            "images": (reads.images, images),
            "text_pairs": (self._model.two_texts, text_pairs),
        }
        for name, (wanted, values) in given.items():
            if bool(len(values)) != wanted:
                raise ConfigError(
                    f"{name}: {len(values)} received; task '{self._model.task}' reads "
                    f"{' and '.join(key for key, (reads_it, _) in given.items() if reads_it)}"
                )
        count = len(texts) or len(images)
        for name, other in (("images", images), ("text_pairs", text_pairs)):
            if texts and other and len(texts) != len(other):
                raise ConfigError(f"{name}: {len(other)} received for {len(texts)} texts; give one each")
        pixels = None
        if form is not None and images:
            files = [image if isinstance(image, bytes) else str(image) for image in images]
            pixels = np.stack([read_image(one, Path(), form, f"image {n}") for n, one in enumerate(files, 1)])
        pair = list(text_pairs) if self._model.two_texts else None
        return self._model.answers(Rows("rows", list(texts) or [""] * count, images=pixels, pair=pair))


def load(folder: str | Path) -> Run:
    """A finished run. Raises ConfigError for a folder without one."""
    run = Run(Path(folder))
    _ = run.report
    return run


def simulate(
    config: "str | Path | Mapping[str, Any] | RunConfig",
    *,
    data: "Rows | None" = None,
    test: "Rows | None" = None,
    model: "PreTrainedModel | None" = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    callbacks: Sequence[Callback] = (),
    strategy: "Strategy | None" = None,
    partition: "Callable[[pandas.DataFrame], Sequence[Any]] | None" = None,
    overwrite: bool = False,
) -> Run:
    """Plays a simulation to its end.

    config: a recipe's name or path, the tables of one as nested dictionaries, or a RunConfig.
    data, test: instead of `data.train` and `data.test`, with the columns that `[data]` names.
    model, tokenizer: instead of `model.backbone`; both, or the model and its image processor for images.
    callbacks: see `Callback`. strategy: a Flower strategy instead of `server.aggregation`; modes none and local.
    partition: called with the training rows, gives each row's site, instead of `[data.partition]`.
    overwrite: replaces the run in the output folder. Objects are written to the folder OUTPUT.inputs beside it, so
    that the run can be resumed; it holds your rows, and is yours to delete.

    Raises ConfigError, DataError, ModelError: nothing of the run is written then.
    """
    content = _content(config)
    if strategy is not None:
        assign(content, "server.aggregation", GIVEN_STRATEGY)
    inputs = _Inputs(content, overwrite)
    try:
        if test is not None:
            inputs.table("test", _frame("test", test))
        if data is not None or partition is not None:
            inputs.training(data, partition)
        if model is not None:
            inputs.model(model, tokenizer)
        elif tokenizer is not None:
            raise ConfigError("tokenizer: received without a model; give both, or name a folder in model.backbone")
        parsed = RunConfig.parse(content, "confide.simulate")
        return Run(engine.simulate(parsed, overwrite=overwrite, callbacks=callbacks, strategy=strategy))
    finally:
        inputs.settle()


def resume(folder: str | Path, *, callbacks: Sequence[Callback] = (), strategy: "Strategy | None" = None) -> Run:
    """Continues an interrupted simulation after its last checkpoint; callbacks and strategy are to be given again.

    Raises ConfigError for a folder without a run.
    """
    return Run(engine.resume(Path(folder), callbacks=callbacks, strategy=strategy))


def audit(run: Run) -> dict[str, Any]:
    """The privacy of a finished simulation: `promised` and `spent` ε by site, the sites' `ledgers` verified (where
    `engine.ledger` names a folder), and what canaries `measured`, where some were planted.

    Raises LedgerError where ledgers are missing. Attacks on a finished run: `confide audit leakage`.
    """
    from ..common.ledger.verify import audit as verify
    from ..common.ledger.verify import find_ledgers

    privacy, folder = run.report["privacy"], run.config.engine.ledger
    found = [] if folder is None else [verify(path) for path in find_ledgers(Path(folder))]
    return {
        "promised": privacy.get("epsilon_planned"),
        "spent": {site["site"]: site.get("epsilon_spent") for site in privacy.get("sites", ())},
        "ledgers": [outcome.to_json() for outcome in found],
        "measured": run.report.get("audit"),
    }


def _content(config: "str | Path | Mapping[str, Any] | RunConfig") -> dict[str, Any]:
    if isinstance(config, RunConfig):
        return config.model_dump(mode="json", exclude_none=True)
    content = copy.deepcopy(dict(config)) if isinstance(config, Mapping) else load_content(find_recipe(str(config)))
    if many := [name for name in MANY if name in content]:
        raise ConfigError(f"[{many[0]}]: a recipe of many runs; play it with the command: confide simulate")
    return content


class _Inputs:
    """The caller's objects as files, and their names in a run's content. Those of the run that they may replace are
    moved aside until the new one has begun."""

    def __init__(self, content: dict[str, Any], overwrite: bool) -> None:
        self._content, self._overwrite = content, overwrite
        self._output = RunSection.parse(content.get("run", {}), "confide.simulate: run").folder.resolve()
        self._folder = self._output.with_name(f"{self._output.name}.inputs")
        self._aside = self._output.with_name(f"{self._output.name}.inputs.before")
        self._made, self._before = False, self._declared()

    def _declared(self) -> bytes | None:
        """The configuration that the output folder holds; every run's names an id of its own."""
        path = self._output / CONFIG
        return path.read_bytes() if path.is_file() else None

    def _place(self, name: str) -> Path:
        if not self._made:
            require_room(self._output, overwrite=self._overwrite)
            if self._folder.exists():
                shutil.rmtree(self._aside, ignore_errors=True)
                self._folder.rename(self._aside)
            self._folder.mkdir(parents=True, mode=0o700)
            self._made = True
        return self._folder / name

    def training(self, rows: "Rows | None", partition: "Callable[[pandas.DataFrame], Sequence[Any]] | None") -> None:
        frame = self._named_rows() if rows is None else _frame("data", rows)
        if partition is not None:
            sites = list(partition(frame.copy()))
            if len(sites) != len(frame):
                raise ConfigError(f"partition: {len(sites)} sites received for {len(frame)} rows; give each row's site")
            frame = frame.assign(**{_SITE: [str(site) for site in sites]})
            for key, value in {"kind": "natural", "column": _SITE, "clients": None}.items():
                assign(self._content, f"data.partition.{key}", value)
        self.table("train", frame)

    def _named_rows(self) -> "pandas.DataFrame":
        """Of `data.train`."""
        section = DataSection.parse(self._content.get("data", {}), "confide.simulate: data")
        return read_table(section.training, section).to_pandas()

    def table(self, key: str, frame: "pandas.DataFrame") -> None:
        path = self._place(f"{key}.parquet")
        try:
            frame.to_parquet(path, index=False)
        except (ValueError, TypeError, OverflowError) as error:  # pyarrow's own are ValueErrors and TypeErrors
            kind = type(error).__name__  # its text may quote a value
            raise ConfigError(f"{key}: its columns cannot be written as parquet ({kind}); give each one type") from None
        assign(self._content, f"data.{key}", str(path))

    def model(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None") -> None:
        if tokenizer is None:
            raise ConfigError("tokenizer: nothing received; give the model's tokenizer, or its image processor")
        path = self._place("backbone")
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        assign(self._content, "model.backbone", str(path))

    def settle(self) -> None:
        """Keeps what the run in the output folder reads: the new files where it has begun, else those of before."""
        if not self._made:
            return
        if self._declared() != self._before:
            shutil.rmtree(self._aside, ignore_errors=True)
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._aside.exists():
            self._aside.rename(self._folder)


def _frame(key: str, rows: "Rows") -> "pandas.DataFrame":
    import datasets
    import pandas

    from ..common.data.hub import with_class_names

    if isinstance(rows, datasets.Dataset):
        frame = with_class_names(rows).to_pandas()
        rows = frame if isinstance(frame, pandas.DataFrame) else pandas.concat(list(frame))
    if not isinstance(rows, pandas.DataFrame):
        raise ConfigError(f"{key}: {type(rows).__name__} received; allowed: a pandas.DataFrame or a datasets.Dataset")
    return rows
