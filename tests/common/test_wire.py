"""What comes off the wire is checked before it is used."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from confide import __version__
from confide.common import wire
from confide.common.errors import WireError
from confide.common.types import Update

EXPECTED = {"x": np.zeros((2, 3), np.float32)}


def update(**changes) -> Update:
    fields = {"site": "a", "delta": {"x": np.ones((2, 3), np.float32)}, "weight": 2.0, "steps": 4, "epsilon": 1.5}
    return Update(**{**fields, **changes})


def test_an_update_comes_back_as_it_was_sent() -> None:
    content = wire.encode_update(update(metrics={"loss": 0.5}), "float32")
    back = wire.decode_update(content, EXPECTED)
    np.testing.assert_array_equal(back.delta["x"], 1)
    assert (back.site, back.weight, back.steps, back.epsilon, back.metrics) == ("a", 2.0, 4, 1.5, {"loss": 0.5})
    assert wire.decode_update(wire.encode_update(update(epsilon=None), "float32"), EXPECTED).epsilon is None


def test_half_floats_are_half_the_bytes_and_overflow_is_refused() -> None:
    wide, narrow = (
        wire.encode_update(update(delta={"x": np.ones((50, 50), np.float32)}), d) for d in ("float32", "float16")
    )
    assert wire.byte_count(narrow) < 0.55 * wire.byte_count(wide)
    with pytest.raises(WireError, match="not finite as float16"):
        wire.encode_update(update(delta={"x": np.full((2, 3), 1e6, np.float32)}), "float16")


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        ({"y": np.ones((2, 3), np.float32)}, "not the 1 that this run trains"),
        ({"x": np.ones((3, 2), np.float32)}, r"shape \(3, 2\) received"),
        ({"x": np.ones((2, 3), np.float64)}, "dtype float64"),
        ({"x": np.full((2, 3), np.inf, np.float32)}, "not finite"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(delta: dict, text: str) -> None:
    content = wire.encode_update(update(), "float32")
    content["arrays"] = ArrayRecord({name: Array(array) for name, array in delta.items()})
    with pytest.raises(WireError, match=text):
        wire.decode_update(content, EXPECTED)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_are_finite_and_positive(weight: float) -> None:
    content = wire.encode_update(update(), "float32")
    content["metrics"] = MetricRecord({wire.WEIGHT: weight})
    with pytest.raises(WireError, match="weight"):
        wire.decode_update(content, EXPECTED)


@pytest.mark.parametrize("charged", [{"steps": -1}, {"evaluations": -1}])
def test_nobody_has_charged_less_than_nothing(charged: dict[str, int]) -> None:
    back = wire.decode_update(wire.encode_update(update(evaluations=2), "float32"), EXPECTED)
    assert (back.steps, back.evaluations) == (4, 2)
    with pytest.raises(WireError, match="charged; allowed: 0 and more"):
        wire.decode_update(wire.encode_update(update(**charged), "float32"), EXPECTED)


def test_updates_without_their_parts_are_refused() -> None:
    with pytest.raises(WireError, match="lacks a part"):
        wire.decode_update(RecordDict({"arrays": wire.arrays_to_record(EXPECTED)}), EXPECTED)


def test_tasks_carry_round_and_version() -> None:
    config = wire.task_config()
    config[wire.ROUND] = 3
    config[wire.PROXIMAL_MU] = 0.5
    content = RecordDict({"arrays": wire.arrays_to_record(EXPECTED), "config": config})
    task, before = wire.decode_task(content)
    assert (task.round, task.proximal_mu, before) == (3, 0.5, 0)
    content["config"] = ConfigRecord({wire.VERSION: "0.0.1", wire.ROUND: 1})
    with pytest.raises(WireError, match=f"version 0.0.1 at the server, {__version__} here"):
        wire.decode_task(content)


def test_the_codes_of_sites_that_cannot_be_reached_are_flowers() -> None:
    from flwr.app import Error
    from flwr.common.constant import ErrorCode

    codes = {name: code for name, code in vars(ErrorCode).items() if not name.startswith("_")}
    reached = {name for name, code in codes.items() if not wire.unreachable(Error(code, ""))}
    assert codes.keys() - reached == {"MESSAGE_UNAVAILABLE", "REPLY_MESSAGE_UNAVAILABLE", "NODE_UNAVAILABLE"}
