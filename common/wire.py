"""Our types ⇄ Flower records: the only file of common/ that imports flwr.

A task travels as arrays + config, an update as arrays + metrics + site. Arrays are numpy's own format without pickle.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict

from .. import __version__
from .errors import WireError
from .ledger.chain import Head
from .secagg.facts import to_sealed
from .types import Adapter, RoundTask, Update

ARRAYS, CONFIG, METRICS, SITE, DEALT, MASKED = "arrays", "config", "metrics", "site", "dealt", "masked"
QUERIES, TEXTS = "queries", "texts"
WEIGHT = "num-examples"  # the name that Flower's strategies look for
PUBLIC_KEY, SEQ, HASH, COMMITMENT = "public-key", "ledger-seq", "ledger-hash", "commitment"
SINCE, MOST_SINCE = "since", 5000
"""heads of a site's ledger that are remembered between two checks; of more, every other one"""
ROUND, STEPS_BEFORE, VERSION, PROXIMAL_MU = "server-round", "steps-before", "version", "proximal-mu"
CLIP = "clip"
EVALUATE, EVALUATED, COUNTS = "evaluate", "evaluated", "counts"

REFUSED = 100
"""error code of a site that declined before it touched data: nothing was charged"""
FAILED = 101
"""error code of a site that failed on the way: what was reserved stays charged"""

DECLINED = 102
"""error code of a site whose policy, budget or ledger forbids the run: it need not be asked again"""

KEYS_LOST = 103
"""error code of a site that holds no keys for secure sums, and charged nothing: it comes back with the next set-up"""

_UNREACHABLE = (3, 4, 5)
"""Flower's codes for a message, a reply and a node that are not available; a test compares them with Flower's own"""


def unreachable(error: Error) -> bool:
    """Whether Flower says in its own name that a site could not be reached: it may come back."""
    return error.code in _UNREACHABLE


def arrays_to_record(adapter: Adapter, dtype: str = "float32") -> ArrayRecord:
    """Raises WireError when a value does not survive the narrowing to `dtype`."""
    record = ArrayRecord()
    for name, array in adapter.items():
        with np.errstate(over="ignore"):  # the check below says it with a name
            narrow = array.astype(dtype)
        if not np.isfinite(narrow).all():
            raise WireError(f"{name}: a value is not finite as {dtype}; use server.upload_dtype = float32")
        record[name] = Array(narrow)
    return record


def record_to_arrays(record: ArrayRecord, expected: Adapter | None = None) -> Adapter:
    """float32 arrays. Raises WireError: other names or shapes than `expected`, not floats, not finite."""
    if expected is not None and record.keys() != expected.keys():
        raise WireError(f"{len(record)} arrays received, not the {len(expected)} that this run trains")
    arrays: Adapter = {}
    for name, value in record.items():
        array = value.numpy()
        if array.dtype not in (np.float32, np.float16):
            raise WireError(f"{name}: dtype {array.dtype} received; allowed: float32, float16")
        if expected is not None and array.shape != expected[name].shape:
            raise WireError(f"{name}: shape {array.shape} received, expected {expected[name].shape}")
        if not np.isfinite(array).all():
            raise WireError(f"{name}: values that are not finite")
        arrays[name] = array.astype(np.float32)
    return arrays


def byte_count(content: RecordDict) -> int:
    """Bytes of the arrays in a message; records of a few numbers do not count."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def task_config() -> ConfigRecord:
    """The part of a task that is the same for every site and round; a strategy adds the round."""
    return ConfigRecord({VERSION: __version__})


def decode_task(content: RecordDict) -> tuple[RoundTask, int]:
    """The task, and the steps that the server has already asked of this site in this run.

    Raises WireError for a task of another version of confide, or one that lacks a part.
    """
    try:
        config = content.config_records[CONFIG]
        version, number = config[VERSION], int(cast(int, config[ROUND]))
        adapter = record_to_arrays(content.array_records[ARRAYS])
        steps_before = int(cast(int, config.get(STEPS_BEFORE, 0)))
        proximal_mu = float(cast(float, config.get(PROXIMAL_MU, 0.0)))
        clip = None if CLIP not in config else float(cast(float, config[CLIP]))
        evaluate, evaluated = bool(config.get(EVALUATE, False)), int(cast(int, config.get(EVALUATED, 0)))
        asked = content.config_records[QUERIES][TEXTS] if QUERIES in content.config_records else []
        dealt = to_sealed(content.config_records[DEALT]) if DEALT in content.config_records else None
    except KeyError as missing:
        raise WireError(f"the task lacks {missing}") from None
    check_version(str(version), "the server")
    if clip is not None and not 0 < clip < float("inf"):
        raise WireError(f"clip norm {clip} received; allowed: a finite number above 0")
    if not isinstance(asked, list) or not all(isinstance(text, str) for text in asked):
        raise WireError("the task's queries are not texts")
    queries = tuple(map(str, asked))
    return RoundTask(number, adapter, proximal_mu, clip, queries, dealt, evaluate, evaluated), steps_before


def task_digest(task: RoundTask) -> bytes:
    """SHA-256 of what decides the answer to a task; what was dealt with it, and steps asked, do not count."""
    digest = hashlib.sha256(
        f"{task.round} {task.proximal_mu!r} {task.clip!r} {task.queries!r} {task.evaluate}".encode()
    )
    for name in sorted(task.adapter):
        digest.update(f"{name} {task.adapter[name].shape}".encode())
        digest.update(np.ascontiguousarray(task.adapter[name]).tobytes())
    return digest.digest()


def check_version(version: str, whose: str) -> None:
    """Raises WireError unless both sides installed the same version."""
    if version != __version__:
        raise WireError(f"version {version} at {whose}, {__version__} here; install the same version on both sides")


def head_facts(head: Head | None) -> dict[str, str | int]:
    """A ledger's head as values of a record; nothing for a ledger in memory."""
    return {} if head is None else {SEQ: head.seq, HASH: head.hash}


def read_head(facts: Mapping[str, object]) -> Head | None:
    """Inverse of `head_facts`. Raises WireError for a head that is none."""
    if SEQ not in facts:
        return None
    seq, hash_ = facts[SEQ], facts.get(HASH)
    if not isinstance(seq, int) or seq < 0 or not isinstance(hash_, str) or len(hash_) != 64:
        raise WireError("the head of a ledger is a number and 64 hexadecimal digits")
    return Head(seq, hash_)


def ledger_facts(site: str, nonce: str, seq: int, hash_: str | None, head: Head) -> dict[str, str | int]:
    """What a site signs to show that its ledger continues the one that was seen: the hash of entry `seq` now."""
    return {"name": site, "nonce": nonce, "seq": seq, "hash": hash_ or "none", **head_facts(head)}


def digest_of(hashes: Sequence[str | None]) -> str:
    """One of the hashes of several entries of a ledger."""
    return hashlib.sha256(" ".join(one or "none" for one in hashes).encode()).hexdigest()


def encode_update(update: Update, dtype: str) -> RecordDict:
    site: dict[str, str | int | float] = {"name": update.site, "steps": update.steps, EVALUATED: update.evaluations}
    if update.epsilon is not None:
        site["epsilon"] = update.epsilon
    if update.commitment is not None:
        site[COMMITMENT] = update.commitment
    site |= head_facts(update.head)
    if update.masked is None:
        arrays = arrays_to_record(update.delta, dtype)
    else:
        arrays = ArrayRecord({MASKED: Array(np.frombuffer(update.masked, np.uint8))})
    content = RecordDict(
        {
            ARRAYS: arrays,
            METRICS: MetricRecord({WEIGHT: update.weight, **update.metrics}),
            SITE: ConfigRecord(dict(site)),
        }
    )
    if update.counts is not None:
        content[COUNTS] = ArrayRecord({COUNTS: Array(update.counts)})
    return content


def decode_update(content: RecordDict, expected: Adapter | None) -> Update:
    """Checks names, shapes, dtypes and finiteness against `expected`; None: a masked input. Raises WireError."""
    try:
        arrays, masked = content.array_records[ARRAYS], None
        if expected is None:
            delta, masked = {}, _masked(arrays)
        else:
            delta = record_to_arrays(arrays, expected)
        metrics = {name: float(cast(float, value)) for name, value in content.metric_records[METRICS].items()}
        site = content.config_records[SITE]
        weight = metrics.pop(WEIGHT)
        name, steps = str(site["name"]), int(cast(int, site["steps"]))
        epsilon = None if site.get("epsilon") is None else float(cast(float, site["epsilon"]))
        head, committed = read_head(site), site.get(COMMITMENT)
        evaluations = int(cast(int, site.get(EVALUATED, 0)))
        counts = content.array_records[COUNTS][COUNTS].numpy() if COUNTS in content.array_records else None
    except WireError:
        raise
    except Exception as error:  # of whatever a site sends
        raise WireError(f"the update lacks a part or holds another type ({type(error).__name__})") from None
    if not (np.isfinite(weight) and weight > 0):
        raise WireError(f"weight {weight} received; allowed: a finite number above 0")
    if min(steps, evaluations) < 0:
        raise WireError(f"{steps} steps and {evaluations} evaluations charged; allowed: 0 and more")
    if counts is not None and (counts.dtype != np.float64 or counts.ndim != 1 or not np.isfinite(counts).all()):
        raise WireError("counts of held-out records that are not finite numbers")
    return Update(
        name,
        delta,
        weight,
        steps,
        epsilon,
        metrics,
        head,
        None if committed is None else str(committed),
        masked,
        counts,
        evaluations,
    )


def _masked(record: ArrayRecord) -> bytes:
    array = record[MASKED].numpy()
    if array.dtype != np.uint8 or array.ndim != 1:
        raise WireError("the masked input is not a string of bytes")
    return array.tobytes()
