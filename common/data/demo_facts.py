"""Facts → a sentence, generated: visits at a clinic that does not exist, for tasks that write text.

`demo:facts/SPLIT`. Every sentence says all of its facts, in one of few ways that a model has to learn; nobody is meant.
"""

import numpy as np
import pyarrow as pa

from ..errors import DataError
from .demo import FIRST, LAST

SETS = {"train": (1200, 1), "test": (48, 2)}
"""rows and seed of each split"""
_REASONS = ["a cough", "back pain", "a check-up", "a vaccination", "a blood test", "an X-ray", "headaches", "a rash"]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
_NEW = "{name}, who is new here, comes for {reason} and sees Dr {doctor} on {day} at {time} in room {room}."
_KNOWN = "{name} comes back for {reason} and sees Dr {doctor} on {day} at {time} in room {room}."


def facts(spec: str) -> pa.Table:
    """Columns facts and text of facts/SPLIT. Raises DataError for another spec."""
    _, _, split = spec.partition("/")
    if split not in SETS:
        raise DataError(f"demo:{spec}: allowed: {', '.join(f'demo:facts/{one}' for one in SETS)}")
    rows, seed = SETS[split]
    rng = np.random.default_rng([seed, 0xFAC7])
    written = [_visit(rng) for _ in range(rows)]
    return pa.table({"facts": [row[0] for row in written], "text": [row[1] for row in written]})


def _visit(rng: np.random.Generator) -> tuple[str, str]:
    said = {
        "name": f"{rng.choice(FIRST)} {rng.choice(LAST)}",
        "reason": str(rng.choice(_REASONS)),
        "doctor": str(rng.choice(LAST)),
        "day": str(rng.choice(_DAYS)),
        "time": f"{rng.integers(8, 18)}:{rng.integers(0, 4) * 15:02d}",
        "room": str(rng.integers(1, 40)),
    }
    new = bool(rng.random() < 0.5)
    listed = {**said, "new": "yes" if new else "no"}
    return ", ".join(f"{key}[{value}]" for key, value in listed.items()), (_NEW if new else _KNOWN).format(**said)
