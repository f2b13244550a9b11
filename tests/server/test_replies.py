"""The gate before every aggregation: what a Byzantine or faulty site sends is left out, with its name, and no more."""

import re
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from confide.common import wire
from confide.common.types import Update, joined
from confide.server.replies import Replies, capped

EXPECTED = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32)}
NAMES = {11: "site-1", 12: "site-2", 13: "site-3"}


def content(arrays: dict[str, np.ndarray] | None = None, weight: float = 5.0) -> RecordDict:
    arrays = {name: np.ones_like(array) for name, array in EXPECTED.items()} if arrays is None else arrays
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    site = ConfigRecord({"name": "whatever it says", "steps": 3})
    return RecordDict({wire.ARRAYS: record, wire.METRICS: MetricRecord({wire.WEIGHT: weight}), wire.SITE: site})


def reply(node: int, answer: RecordDict | Error) -> Message:
    """A site's answer to a message that it was sent."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    question = Message(RecordDict(), node, "train")
    question.metadata.__dict__["_message_id"] = "q"
    TaskIdentity.node_id = node
    return Message(answer, reply_to=question)


def replies(max_norm: float | None = None) -> Replies:
    return Replies(dict(NAMES), EXPECTED, lambda: None, lambda site, update: None, max_norm)


def accepted(gate: Replies, *messages: Message) -> dict[str, Update]:
    return {site: update for site, update, _ in gate.accept(messages)}


ones = {name: np.ones_like(array) for name, array in EXPECTED.items()}
LIES: dict[str, tuple[Callable[[], RecordDict], str]] = {
    "not a number": (lambda: content({**ones, "b": np.array([1, np.nan, 1, 1], np.float32)}), "not finite"),
    "infinite": (lambda: content({**ones, "b": np.array([1, np.inf, 1, 1], np.float32)}), "not finite"),
    "another shape": (lambda: content({**ones, "b": np.ones(5, np.float32)}), r"b: shape \(5,\) received, expected"),
    "another name": (lambda: content({"a": ones["a"], "c": ones["b"]}), "not the 2 that this run trains"),
    "one more": (lambda: content({**ones, "c": np.ones(10**6, np.float32)}), "3 arrays received"),
    "one less": (lambda: content({"a": ones["a"]}), "1 arrays received"),
    "integers": (lambda: content({**ones, "b": np.ones(4, np.int64)}), "dtype int64 received"),
    "no weight": (lambda: content(weight=0.0), "weight 0.0 received"),
    "an endless weight": (lambda: content(weight=float("inf")), "weight inf received"),
    "nothing": (RecordDict, "lacks a part"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_left_out_and_the_site_named(lie: str) -> None:
    gate = replies()
    make, why = LIES[lie]
    updates = accepted(gate, reply(11, content()), reply(12, make()), reply(13, content()))
    gate.close()
    assert sorted(updates) == gate.sites == ["site-1", "site-3"]
    ((failure),) = gate.failed
    assert failure["site"] == "site-2"
    assert re.search(why, failure["reason"]), failure["reason"]


def test_a_second_answer_and_an_uninvited_one_do_not_count() -> None:
    gate = replies()
    first, again = reply(11, content()), reply(11, content({**ones, "b": 9 * ones["b"]}))
    updates = accepted(gate, first, again, first, reply(99, content()))
    assert list(updates) == ["site-1"]
    np.testing.assert_array_equal(updates["site-1"].delta["b"], ones["b"])
    gate.close()
    assert [failure["site"] for failure in gate.failed] == ["site-2", "site-3"]  # no reply


def test_an_answer_counts_for_the_node_that_sent_it() -> None:
    """Whatever name the update carries."""
    assert list(accepted(replies(), reply(13, content()))) == ["site-3"]


def test_long_updates_are_shortened() -> None:
    (update,) = accepted(replies(max_norm=0.5), reply(11, content())).values()
    assert np.linalg.norm(joined(update.delta)) == pytest.approx(0.5, rel=1e-6)
    (update,) = accepted(replies(max_norm=100.0), reply(11, content())).values()
    np.testing.assert_array_equal(update.delta["b"], ones["b"])


def test_errors_say_whether_something_was_charged() -> None:
    gate = replies()
    accepted(gate, reply(11, Error(wire.REFUSED, "no")), reply(12, Error(wire.FAILED, "halfway")), reply(13, Error(0)))
    assert gate.refused == ["site-1"]
    assert [failure["reason"] for failure in gate.failed] == ["no", "halfway", "no reason given"]


def test_claims_beyond_the_cap_are_named() -> None:
    assert capped({"a": 100.0, "b": 120.0, "c": 1e9}) == ["c"]
    assert capped({"a": 100.0, "b": 500.0}) is None
    assert capped({}) is None
