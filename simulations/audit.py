"""`confide audit canary`: a run with canaries, the same run without noise as its control, one report.

Beside them, what no canary sees: the sum of one site's records with and without one of them.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..client.train import Work, _drawn_sum
from ..common.config.run import RunConfig, load
from ..common.data.augmentation import encode_with_copies
from ..common.data.partition import site_name
from ..common.data.record_keys import simulated_secret
from ..common.data.sources import training_rows
from ..common.errors import ConfigError, PrivacyError
from ..common.model.loading import FineTuneModel, model_of
from ..common.model.per_sample import hooked
from ..common.model.proof import proved_shapes
from ..common.modes import mode_of
from ..common.privacy.audit import SCOPES, rows_each
from ..common.privacy.mechanism import NoiselessControl
from ..common.privacy.noise import secure_generator
from ..common.privacy.plan import privacy_plan
from ..common.run_folder import CONFIG, PROGRESS
from ..common.types import Adapter, RoundTask, Rows
from ..server.record import write_progress
from ..server.report import amend_report, read_report
from ..server.start import initial_adapter
from .canaries import canary_rows_of
from .run import simulate
from .studies.runner import RoundCallback
from .unread import unread

CONTROL = "control"
_NEIGHBOURS, _AMONG = 8, 256
"""canary records that are taken out, one at a time, and records that they are among, at most"""
_FEWEST, _OPERATIONS = 32, 2e12
"""records, however large the model is; and floating-point operations of one sum: a minute on two cores"""


def _unwatched(folder: Path, title: str) -> AbstractContextManager[None]:
    return nullcontext()


def with_canaries(config: RunConfig, canaries: int, records: int, guesses: int | None) -> RunConfig:
    """The run, audited. Raises ConfigError where what is released is not what is scored."""
    audit = config.audit.model_dump() | {"canaries": canaries, "records": records, "guesses": guesses}
    audited = RunConfig.parse(config.model_dump() | {"audit": audit}, "audit")
    if canaries and not config.server_steps:
        raise ConfigError(
            f"training.local_steps: {config.training.local_steps} with '{config.server.aggregation}'; an audit scores "
            "the released gradients themselves; allowed: local_steps = 1 with fedavg or ffa"
        )
    return audited


def audit_canaries(
    config: RunConfig, *, control: bool = True, overwrite: bool = False, watch: RoundCallback = _unwatched
) -> dict[str, Any]:
    """Runs, then runs again without noise in a scratch folder and in ledgers in memory, and completes the report.

    The control's model is thrown away: it is as private as no privacy. A run of mode `none` is its own control.
    watch: called with the folder of each run and a title, and entered while it goes on. Returns the facts of the audit.
    """
    with watch(config.output, ""):
        folder = simulate(config, overwrite=overwrite)
        found = read_report(folder)["audit"]
        if config.private and found.get("records"):
            found["sensitivity"] = _sensitivity_facts(load(folder / CONFIG, []), folder)
    if control and config.private:
        with tempfile.TemporaryDirectory(prefix="confide-control-") as scratch:
            plain = _control_of(load(folder / CONFIG, []), Path(scratch) / CONTROL)
            with watch(plain.output, "control without noise"):
                found[CONTROL] = read_report(simulate(plain))["audit"]
    amend_report(folder, "audit", found)
    return found


def _control_of(config: RunConfig, folder: Path) -> RunConfig:
    """config: resolved, with the classes of all public sets."""
    content = config.model_dump()
    unread(content)
    content["audit"]["control"] = True
    content["engine"]["ledger"], content["baselines"] = None, {}
    content["run"] |= {"output": str(folder), "id": None}
    return RunConfig.parse(content, "control")


def neighbour_sensitivity(
    config: RunConfig,
    model: FineTuneModel,
    adapter: Adapter,
    rows: Rows,
    removed: Sequence[int],
    progress: Callable[[int], None] = lambda done: None,
) -> float:
    """max over r in `removed` of ‖S(D) − S(D − r)‖/C, which must be at most 1.

    S: the clipped sum of a site that holds `rows`, by the code of training: rows are read into records (with their
    copies, where the run augments), all are drawn, and no noise is added. D − r is read anew, without row r, or, where
    the unit is the person, without all rows of whom r is; all rows of a person are read then.
    progress: told how many of the sums are done.
    Raises PrivacyError for a run that does not clip records.
    """
    plan = privacy_plan(config, model.count()[0])
    if plan is None or not mode_of(config).BY_RECORD:
        raise PrivacyError(f"mode '{config.privacy.mode}' clips no records: there is no sensitivity of one")
    if config.data.person is not None:  # which rows are drawn of many is chance, and would differ between the two
        data = config.data.model_copy(update={"person_rows": len(rows)})
        config = config.model_copy(update={"data": data})
    shapes = proved_shapes(config, model)  # as a site does before it reads a row; not within `hooked`
    everybody = replace(plan, sampling_rate=1.0)
    secret = simulated_secret(config)

    def clipped_sum(of: Rows) -> np.ndarray:
        records = encode_with_copies(config, model, of, secret)
        model.set(adapter)
        with hooked(model):
            work = Work(config, model, records, np.arange(len(of)), RoundTask(1, adapter))
            return _drawn_sum(work, NoiselessControl(everybody, secure_generator()), shapes)

    whole = clipped_sum(rows)
    unit = np.arange(len(rows)) if rows.person is None else rows.person
    apart = []
    for done, r in enumerate(removed, 1):
        progress(done)
        apart.append(np.linalg.norm(whole - clipped_sum(rows.take(np.flatnonzero(unit != unit[r])))))
    return float(np.max(apart)) / plan.clip  # NaN, if one of them is, which then does not hold


def _sensitivity_facts(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Of a site that holds a few canary records, and behind them the first of the run's rows. config: resolved. folder:
    where its progress is told."""
    model = model_of(config)
    canaries = canary_rows_of(config, model, site_name(0, config.clients))
    each = rows_each(config)
    canaries = canaries.take(np.arange(min(_NEIGHBOURS * each, len(canaries))))
    rows = training_rows(model.rows(config.data.training, config.data, whose=True), config.data, config.run.seed)
    rows = _joined(canaries, rows.take(np.arange(min(max(_among(model) - len(canaries), 1), len(rows)))))
    removed = range(0, len(canaries), each)

    def progress(done: int) -> None:
        state = {"stage": f"sums with and without a canary, of {len(rows)} records", "rounds": config.run.rounds}
        write_progress(folder, {**state, "round": config.run.rounds, "done": done, "asked": len(removed) + 1})

    progress(0)
    try:
        largest = neighbour_sensitivity(config, model, initial_adapter(config, model), rows, removed, progress)
    finally:
        (folder / PROGRESS).unlink(missing_ok=True)
    return {
        "largest": largest,
        "holds": largest <= 1,
        "canaries": len(removed),
        "records": len(rows),
        "scope": SCOPES["sensitivity"],
    }


def _among(model: FineTuneModel) -> int:
    """Records of a sum that is taken once for each canary: of a large model fewer."""
    each = 6.0 * model.count()[1] * model.max_length  # 2 forward and 4 backward for each number and token
    return int(np.clip(_OPERATIONS / each, _FEWEST, _AMONG))


def _joined(first: Rows, second: Rows) -> Rows:
    """One after the other."""

    def both(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
        return None if one is None or other is None else np.concatenate([one, other])

    return Rows(
        second.source,
        first.text + second.text,
        None if first.response is None or second.response is None else first.response + second.response,
        both(first.labels, second.labels),
        None if first.tags is None or second.tags is None else first.tags + second.tags,
        images=both(first.images, second.images),
        person=both(first.person, second.person),
        turns=None if first.turns is None or second.turns is None else first.turns + second.turns,
        template=second.template,
        rejected=None if first.rejected is None or second.rejected is None else first.rejected + second.rejected,
        pair=None if first.pair is None or second.pair is None else first.pair + second.pair,
    )
