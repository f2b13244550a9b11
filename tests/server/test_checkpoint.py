"""A checkpoint is whole or absent, and gives back what was saved."""

from pathlib import Path

import numpy as np
import pytest

from confide.common.errors import ConfigError
from confide.server.checkpoint import Checkpoint, arrays_of, load_latest, restore_arrays, save


def checkpoint(number: int) -> Checkpoint:
    return Checkpoint(
        number,
        "digest",
        {"a": np.arange(3, dtype=np.float32)},
        {"a/exp_avg": np.ones(3, np.float32), "a/step": np.array(2.0, np.float32)},
        {"site-1": number},
        [{"round": number}],
        {"accuracy": 0.5},
    )


def test_round_trip_and_the_last_two_are_kept(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        save(tmp_path, checkpoint(number))
    assert len(list(tmp_path.glob("*"))) == 2
    loaded = load_latest(tmp_path, "digest")
    expected = checkpoint(3)
    for key in ("round", "asked", "history", "before"):
        assert getattr(loaded, key) == getattr(expected, key)
    np.testing.assert_array_equal(loaded.adapter["a"], expected.adapter["a"])
    assert loaded.strategy["a/step"].shape == ()


def test_what_cannot_be_resumed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint to resume from"):
        load_latest(tmp_path, "digest")
    save(tmp_path, checkpoint(1))
    with pytest.raises(ConfigError, match="another configuration"):
        load_latest(tmp_path, "other")
    (tmp_path / "round-00009.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ConfigError, match="not a checkpoint"):
        load_latest(tmp_path, "digest")


def test_a_write_that_was_cut_off_is_not_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, checkpoint(1))
    (tmp_path / "round-00002.partial").write_bytes(b"half")
    assert load_latest(tmp_path, "digest").round == 1


def test_state_of_an_object_of_arrays() -> None:
    class Holder:
        def __init__(self) -> None:
            self.m: dict | None = {"a": np.ones(2)}
            self.v: list | None = [np.zeros(1), np.ones(3)]
            self.rate = 0.1

    full, empty = Holder(), Holder()
    empty.m = empty.v = None
    restore_arrays(empty, arrays_of(full))
    np.testing.assert_array_equal(vars(empty)["m"]["a"], np.ones(2))
    assert [len(array) for array in vars(empty)["v"]] == [1, 3]
