"""`confide audit canary`: a run with canaries, the same run without noise as its control, one report."""

import tempfile
from pathlib import Path
from typing import Any

from ..common.config import RunConfig
from ..common.errors import ConfigError
from ..server.report import amend_report, read_report
from .run import simulate

CONTROL = "control"


def with_canaries(config: RunConfig, canaries: int, records: int, guesses: int | None) -> RunConfig:
    """The run, audited. Raises ConfigError for mode `none`, and where what is released is not what is scored."""
    audit = {"canaries": canaries, "records": records, "guesses": guesses}
    audited = RunConfig.parse(config.model_dump() | {"audit": audit}, "audit")
    if canaries and not config.server_steps:
        raise ConfigError(
            f"training.local_steps: {config.training.local_steps} with '{config.server.aggregation}'; an audit scores "
            "the released gradients themselves; allowed: local_steps = 1 with fedavg or ffa"
        )
    return audited


def audit_canaries(config: RunConfig, *, control: bool = True, overwrite: bool = False) -> dict[str, Any]:
    """Runs, then runs again without noise in a scratch folder and in ledgers in memory, and completes the report.

    The control's model is thrown away: it is as private as no privacy. Returns the facts of the audit.
    """
    folder = simulate(config, overwrite=overwrite)
    found = read_report(folder)["audit"]
    if control:
        with tempfile.TemporaryDirectory(prefix="confide-control-") as scratch:
            plain = _control_of(config, Path(scratch) / CONTROL)
            found[CONTROL] = read_report(simulate(plain))["audit"]
    amend_report(folder, "audit", found)
    return found


def _control_of(config: RunConfig, folder: Path) -> RunConfig:
    content = config.model_dump()
    content["audit"]["control"] = True
    content["engine"]["ledger"] = None
    content["run"] |= {"output": str(folder), "id": None}
    return RunConfig.parse(content, "control")
