"""A rule of combination: which settings cannot hold together, why, and what to do instead."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..section import Section

if TYPE_CHECKING:
    from ..run import RunConfig

EXAMPLE_RUN = ("model.backbone=b", "data.train=train.csv", "data.test=test.csv", "data.partition.clients=9")
"""a run that every rule allows; each rule's example changes it into one that the rule refuses"""


@dataclass(frozen=True)
class Rule:
    """One combination that is refused, as data: the message and the reference's table are made of it.

    `reason` and `remedy` may name values of the run: `{c.data.partition.clients}`, or a property of `RunConfig`.
    """

    key: str
    """the setting that is refused, or the table of it"""
    when: str
    """what it was received with, in words"""
    refused: Callable[["RunConfig"], bool]
    reason: str
    remedy: str
    example: tuple[str, ...]
    """assignments, as of `--set`, that turn EXAMPLE_RUN into a run that this rule refuses, and no other rule"""

    def message(self, config: "RunConfig") -> str:
        """One line: what came, why it cannot be, what to do."""
        reason, remedy = (text.format(c=config) for text in (self.reason, self.remedy))
        return f"{self.key}: {_received(config, self.key)} received with {self.when}; {reason}; {remedy}"


def private(mode: str, *but: str) -> tuple[str, ...]:
    """Assignments for a run of a mode with a whole declaration. but: keys of [privacy] that stay unset."""
    declared = {"mode": mode, "epsilon": "8", "sampling_rate": "0.05"}
    if mode != "client":
        declared["declared_examples"] = "1000"
    return tuple(f"privacy.{key}={value}" for key, value in declared.items() if key not in but)


def shown(value: Any) -> str:
    """A setting as TOML has it; of a table, the keys that are not at their defaults."""
    if isinstance(value, Section):
        fields = type(value).model_fields
        value = {key: one for key in fields if (one := getattr(value, key)) != fields[key].get_default()}
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {shown(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def _received(config: "RunConfig", key: str) -> str:
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name)
    return "nothing" if value is None else shown(value)
