"""The state of a run after each round, so that an interrupted run goes on as if nothing had happened.

One safetensors file (arrays) whose header carries the rest as JSON: a checkpoint is one file, renamed into place, so it
is whole or absent. The last two are kept.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..common.errors import ConfigError
from ..common.json_file import read_object
from ..common.ledger.chain import write_json
from ..common.run_folder import own_file
from ..common.types import Adapter
from ..common.whole import whole_file

_KEPT = 2
_RESTORE = "restore it: what sites have been charged for stands in it"
_ASKED, _EVALUATED, _SECURE = "asked.json", "evaluated.json", "secure.json"


@dataclass(frozen=True)
class Counts:
    """What the sites' held-out records counted together."""

    round: int
    """rounds behind the model that they were counted with"""
    final: bool
    """whether it is the model that the run leaves"""
    counts: list[float] | None
    """(k,) sums, noise included; None: nothing came of it"""
    variance: float
    """of the noise in each"""
    sites: list[str]
    why: str = ""
    """nothing came of it"""


@dataclass
class Checkpoint:
    """Everything the loop needs to continue after `round`."""

    round: int
    config_digest: str
    adapter: Adapter
    strategy: Adapter = field(default_factory=dict)
    """the aggregation's own arrays, e.g. Adam's moments"""
    asked: dict[str, int] = field(default_factory=dict)
    """steps that each site has been asked for"""
    history: list[dict[str, Any]] = field(default_factory=list)
    """the rows of report.json's rounds[]"""
    before: dict[str, Any] = field(default_factory=dict)
    """the evaluation before training"""
    scores: Adapter = field(default_factory=dict)
    """an audit's scores so far, (canaries of the site,) by 'kind/site'"""
    commitments: dict[str, str] = field(default_factory=dict)
    """what each site committed its coins to; empty text where it broke its word"""
    declined: dict[str, str] = field(default_factory=dict)
    """sites that refused the run, and why"""
    clip: float | None = None
    """the next round's clip norm, where it adapts"""
    best: Adapter = field(default_factory=dict)
    """with `server.patience`: the adapter of the best round so far …"""
    best_round: int = 0
    """… and its number"""
    secure: dict[str, Any] | None = None
    """the set-up of secure sums; kept in a file of its own"""
    evaluated: dict[str, int] = field(default_factory=dict)
    """evaluations that each site has been asked for"""
    evaluations: list[Counts] = field(default_factory=list)
    """what came of them, in their order"""


def save(folder: Path, checkpoint: Checkpoint) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"adapter/{name}": array for name, array in checkpoint.adapter.items()}
    arrays |= {f"strategy/{name}": np.array(array, order="C") for name, array in checkpoint.strategy.items()}
    arrays |= {f"scores/{site}": array for site, array in checkpoint.scores.items()}
    arrays |= {f"best/{name}": array for name, array in checkpoint.best.items()}
    facts = {
        "round": checkpoint.round,
        "config_digest": checkpoint.config_digest,
        "asked": checkpoint.asked,
        "history": checkpoint.history,
        "before": checkpoint.before,
        "commitments": checkpoint.commitments,
        "declined": checkpoint.declined,
        "clip": checkpoint.clip,
        "best_round": checkpoint.best_round,
        "evaluated": checkpoint.evaluated,
        "evaluations": [asdict(one) for one in checkpoint.evaluations],
    }
    path = folder / f"round-{checkpoint.round:05d}.safetensors"
    with whole_file(path) as partial:  # a crash leaves the old file or the new one, never half of one
        save_file(arrays, partial, metadata={"confide": json.dumps(facts)})
        with partial.open("rb") as written:
            os.fsync(written.fileno())
    for old in sorted(folder.glob("round-*.safetensors"))[:-_KEPT]:
        old.unlink()


def save_asked(folder: Path, asked: dict[str, int], evaluated: dict[str, int]) -> None:
    """Keeps what is about to be asked of sites: a crash in the middle of a round leaves it charged."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _ASKED, asked)
    if evaluated:
        write_json(folder / _EVALUATED, evaluated)


def load_asked(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Steps and evaluations by site, as of the last `save_asked`; empty before the first."""
    asked, evaluated = (
        read_object(path, _RESTORE) if path.is_file() else {} for path in (folder / _ASKED, folder / _EVALUATED)
    )
    return asked, evaluated


def save_secure(folder: Path, state: dict[str, Any]) -> None:
    """Keeps the set-up of secure sums, so that a restarted server need not make another."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _SECURE, state)


def load_secure(folder: Path) -> dict[str, Any] | None:
    """As of the last `save_secure`; None before the first."""
    path = folder / _SECURE
    return read_object(path, _RESTORE) if path.is_file() else None


def load_latest(folder: Path, config_digest: str) -> Checkpoint:
    """The last whole round, with the steps that sites have been asked for since.

    Raises ConfigError: no checkpoint, one that cannot be read, or one of another configuration.
    """
    paths = sorted(folder.glob("round-*.safetensors"))
    if not paths:
        raise ConfigError(f"{folder}: no checkpoint to resume from; start the run without --resume")
    try:
        with safe_open(own_file(paths[-1]), framework="numpy") as stored:
            facts = json.loads((stored.metadata() or {})["confide"])
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # not a dictionary
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{paths[-1]}: not a checkpoint of confide ({type(error).__name__}); remove it") from None
    if facts["config_digest"] != config_digest:
        raise ConfigError(f"{paths[-1]}: belongs to another configuration; resume with the config.toml beside it")
    asked, evaluated = load_asked(folder)
    facts["asked"] |= asked
    facts["evaluated"] = facts.get("evaluated", {}) | evaluated
    facts["evaluations"] = [Counts(**one) for one in facts.get("evaluations", [])]
    parts = {part: _part(arrays, f"{part}/") for part in ("adapter", "strategy", "scores", "best")}
    return Checkpoint(**parts, **facts, secure=load_secure(folder))


def _part(arrays: Adapter, prefix: str) -> Adapter:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def arrays_of(holder: object) -> Adapter:
    """The numpy state in an object's attributes, dictionaries and lists of arrays, as Flower's strategies keep it."""
    state: Adapter = {}
    for attribute, value in vars(holder).items():
        if hasattr(value, "to_numpy_ndarrays"):
            continue  # the global arrays, which the loop sets anew every round
        if isinstance(value, dict) and value and all(isinstance(v, np.ndarray | np.generic) for v in value.values()):
            state |= {f"{attribute}/{key}": np.asarray(array) for key, array in value.items()}
        elif isinstance(value, list) and value and all(isinstance(v, np.ndarray) for v in value):
            state |= {f"{attribute}/#{i:05d}": array for i, array in enumerate(value)}
    return state


def restore_arrays(holder: object, state: Adapter) -> None:
    """Inverse of `arrays_of`."""
    grouped: dict[str, dict[str, np.ndarray]] = {}
    for path, array in state.items():
        attribute, key = path.split("/", 1)
        grouped.setdefault(attribute, {})[key] = array
    for attribute, parts in grouped.items():
        as_list = all(key.startswith("#") for key in parts)
        setattr(holder, attribute, [parts[key] for key in sorted(parts)] if as_list else parts)
