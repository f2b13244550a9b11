"""What leaves a site beside what passed the mechanism: nothing that depends on its records.

The mechanism's release is replaced by a constant. Whatever a site still sends must then be the same for any records:
two runs over different data are compared message by message. What differs between two runs over the *same* data (random
keys, masks, the time) cannot be compared so; these values are named below, and each is looked at by itself.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message

from confide.common.privacy.mechanism import PoissonMechanism
from confide.simulations.local import LocalGrid
from confide.simulations.run import simulate
from confide.tests.tiny import sentences, write_csv


@pytest.fixture
def recorded(make_config, local, tmp_path: Path, monkeypatch):
    """Runs of one configuration over the given training rows; every message that a site sent, as flat dictionaries."""

    def constant(self, clipped_sum: np.ndarray, clip: float) -> np.ndarray:
        self._awaiting_release = False
        return np.full(self.plan.coordinates, 1000)  # a round that moves nothing is void

    def run(name: str, rows: list, mode: str, share=constant) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        handle = LocalGrid._handle

        def watched(self, message: Message) -> Message:
            reply = handle(self, message)
            sent.append(flat(reply))
            return reply

        privacy = {**local, "mode": mode}
        if mode == "client":
            del privacy["declared_examples"]
        config = make_config(
            run={"output": str(tmp_path / name), "id": "the-same", "rounds": 2},
            data={"train": str(write_csv(tmp_path / "train.csv", rows)), "labels": ["negative", "positive"]},
            privacy=privacy,
            engine={"workers": 1},
        )
        with monkeypatch.context() as patched:
            patched.setattr(LocalGrid, "_handle", watched)
            patched.setattr(PoissonMechanism, "share", share)
            simulate(config)
        return sent

    return run


def flat(message: Message) -> dict[str, Any]:
    """Every value of a message under its path."""
    assert message.has_content()
    found: dict[str, Any] = {"type": message.metadata.message_type}
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            found |= {f"{name}.{key}": array.data for key, array in record.items()}
        else:
            found |= {f"{name}.{key}": value for key, value in record.items()}
    return found


def differing(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> set[str]:
    assert [message.keys() for message in one] == [message.keys() for message in other]
    return {key for a, b in zip(one, other, strict=True) for key in a if a[key] != b[key]}


SECRETS = {"keys", "locks", "pads", "sealed", "signature", "fact-keys", "fact-channel"}
"""fresh public keys of a set-up, shares sealed for other sites, signatures over them: made before a record is read"""
UNPREDICTABLE = {
    "local": set(),
    "distributed": {f"site.{name}" for name in SECRETS} | {"arrays.masked"},  # uniform: tests of secagg
    "client": {f"site.{name}" for name in SECRETS} | {"arrays.masked"},
}
DATA = {
    "first": sentences(240, 1),
    "second": [("the story was gloomy and sad " * 4, "negative")] * 240,
}


@pytest.mark.parametrize("mode", ["local", "distributed", "client"])
def test_messages_do_not_depend_on_records(recorded, mode: str) -> None:
    first, again, second = (recorded(n, DATA[d], mode) for n, d in (("a", "first"), ("b", "first"), ("c", "second")))
    assert len(first) > 8
    random = differing(first, again)
    assert differing(first, second) <= random
    assert random <= UNPREDICTABLE[mode], json.dumps(sorted(random))


def test_the_comparison_would_see_a_leak(recorded) -> None:
    """Without the constant, updates follow the records."""

    def plain(self, clipped_sum: np.ndarray, clip: float) -> np.ndarray:
        self._awaiting_release = False
        return np.rint(clipped_sum * 1000).astype(np.int64)

    first, second = (recorded(name, DATA[name], "local", plain) for name in ("first", "second"))
    assert any(".lora_" in key or ".head." in key for key in differing(first, second))
