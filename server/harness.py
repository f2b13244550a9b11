"""`confide evaluate lm`: a finished run's language model under tasks of lm-eval (EleutherAI's LM Evaluation Harness),
before and after.

Tasks are public: the server's own files, or data sets of a hub. A folder of task files is a program of whoever wrote it
(they may name Python functions); data sets with code of their own are not run.
"""

import importlib
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..common.data.demo_facts import facts
from ..common.errors import ConfigError, DataError, first_line
from ..common.model.adapter import plain
from ..common.types import Adapter
from ..common.whole import write_whole
from .ship.finished import FinishedRun, writers

RESULTS = "lm_eval.json"
"""in the run's folder"""
DEMO = "demo_facts"
"""a task that comes with confide: which of four sentences says the facts, of `demo:facts/test`"""
_TOKENS = 4096
"""of a batch, as for generation"""
_DEMO_TASK = """task: demo_facts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{facts}}}}"
target_delimiter: ""
doc_to_choice: "{{{{sentences}}}}"
doc_to_target: right
metric_list: [{{metric: acc}}]
"""


def evaluate_lm(
    folder: Path,
    tasks: Sequence[str],
    include: Path | None = None,
    limit: int | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """{"before", "after"}: of each task its metrics, as lm-eval names them. Written to `lm_eval.json` in the folder.

    include: a folder with task files (YAML) beside those of lm-eval. limit: documents of a task, the first ones.
    Raises ConfigError: not a finished run of a language model; lm-eval is not installed; no such task. DataError: a
    task failed, as one does whose data cannot be had.
    """
    if not tasks:
        raise ConfigError("--tasks: no name received; give names of lm-eval's tasks, with commas between")
    if include is not None and not include.is_dir():
        raise ConfigError(f"--include: no folder '{include}'; give one with task files (YAML) of lm-eval")
    run = FinishedRun(folder, *writers())
    found: dict[str, Any] = {"tasks": list(tasks), "limit": limit}
    with tempfile.TemporaryDirectory(prefix="confide-tasks-") as scratch:
        own = [] if include is None else [str(include)]
        manager = _manager(tasks, [*own, *([_write_demo(Path(scratch))] if DEMO in tasks else [])])
        found["lm_eval"] = version("lm-eval")
        for number, (when, adapter) in enumerate((("before", run.model.initial), ("after", run.adapter))):
            progress(f"lm-eval, {when}", number, 2)
            found[when] = _scores(run, adapter, tasks, manager, limit)
    write_whole(folder / RESULTS, json.dumps(found, indent=1) + "\n")
    return found


def _write_demo(folder: Path) -> str:
    rows = facts("facts/test").to_pylist()
    told = [
        {"facts": row["facts"], "sentences": _four(rows, place), "right": place % 4} for place, row in enumerate(rows)
    ]
    data = folder / "facts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
    (folder / "demo_facts.yaml").write_text(_DEMO_TASK.format(data=data), encoding="utf-8")
    return str(folder)


def _four(rows: list[dict[str, str]], place: int) -> list[str]:
    """Of the row and of three others; the right one in the place that its number says."""
    return [rows[(place + other) % len(rows)]["text"] for other in np.roll(np.arange(4), place % 4)]


def _manager(tasks: Sequence[str], folders: list[str]) -> Any:
    """What knows the tasks: those of the folders alone where they have all, since lm-eval's own are thousands."""
    try:
        manager_of = importlib.import_module("lm_eval.tasks").TaskManager
    except ImportError:
        raise ConfigError("evaluate lm: lm-eval is not installed; pip install 'confide[lm-eval]'") from None
    own = manager_of(include_path=folders, include_defaults=False) if folders else None
    if own is not None and set(tasks) <= set(own.all_tasks):
        return own
    manager = manager_of(include_path=folders or None)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        own = f"; in {' and '.join(folders)}: {', '.join(own.all_tasks) or 'none'}" if own is not None else ""
        raise ConfigError(
            f"--tasks: lm-eval knows no task '{unknown[0]}'{own}; give names of its tasks, with commas between"
        )
    return manager


def _scores(
    run: FinishedRun, adapter: Adapter, tasks: Sequence[str], manager: Any, limit: int | None
) -> dict[str, dict[str, float]]:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    longest = run.model.positions or max(2 * run.config.model.max_length, 512)
    try:
        model = importlib.import_module("lm_eval.models.huggingface").HFLM(
            pretrained=plain(run.model, adapter).eval(),
            tokenizer=run.tokenizer,
            max_length=longest,
            batch_size=max(1, _TOKENS // longest),
            softmax_dtype="float32",
        )
        results = importlib.import_module("lm_eval").simple_evaluate(
            model, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=False
        )
    except Exception as error:  # of a task's file, its data, or the hub
        raise DataError(f"lm-eval: {type(error).__name__}: {first_line(error)}") from None
    return {
        task: {name.removesuffix(",none"): float(value) for name, value in row.items() if _is_metric(name, value)}
        for task, row in results["results"].items()
    }


def _is_metric(name: str, value: object) -> bool:
    return isinstance(value, int | float) and "stderr" not in name and name not in ("sample_len", "sample_count")
