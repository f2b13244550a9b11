"""`confide evaluate lm`: a finished run's language model under tasks of lm-eval (EleutherAI's LM Evaluation Harness),
before and after.

Tasks are public: the server's own files, or data sets of a hub. A folder of task files is a program of whoever wrote it
(they may name Python functions); data sets with code of their own are not run.
"""

import importlib
import json
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..common.errors import ConfigError, DataError, first_line
from ..common.model.adapter import plain
from ..common.types import Adapter
from .ship.finished import FinishedRun, writers

RESULTS = "lm_eval.json"
"""in the run's folder"""
_TOKENS = 4096
"""of a batch, as for generation"""


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
    manager = _manager(tasks, include)
    run = FinishedRun(folder, *writers())
    found: dict[str, Any] = {"lm_eval": version("lm-eval"), "tasks": list(tasks), "limit": limit}
    for number, (when, adapter) in enumerate((("before", run.model.initial), ("after", run.adapter))):
        progress(f"lm-eval, {when}", number, 2)
        found[when] = _scores(run, adapter, tasks, manager, limit)
    (folder / RESULTS).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _manager(tasks: Sequence[str], include: Path | None) -> Any:
    """What knows the tasks: those of the folder alone where it has all of them, since lm-eval's own are thousands."""
    try:
        manager_of = importlib.import_module("lm_eval.tasks").TaskManager
    except ImportError:
        raise ConfigError("evaluate lm: lm-eval is not installed; pip install 'confide[lm-eval]'") from None
    if include is not None and not include.is_dir():
        raise ConfigError(f"--include: no folder '{include}'; give one with task files (YAML) of lm-eval")
    managers = [manager_of(include_path=str(include), include_defaults=False)] if include is not None else []
    if managers and set(tasks) <= set(managers[0].all_tasks):
        return managers[0]
    manager = manager_of(include_path=None if include is None else str(include))
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        own = f"; in {include}: {', '.join(managers[0].all_tasks) or 'none'}" if managers else ""
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
