"""Runs of which only the model, or an audit, is read: reference models, controls."""

from typing import Any

_LOOKED_AT = 8
"""rows of the public sets that are still looked at"""


def unread(content: dict[str, Any]) -> None:
    """Takes out of a run's content, in place, what it measures on public sets for people alone: evaluation between
    rounds, before and after, what it writes, and baselines. What is trained stays the same; where early stopping
    (`server.patience`) decides by the validation set when a run ends, that set is read as it was."""
    content["evaluation"] = {"limit": _LOOKED_AT, "generate": 0}
    content["baselines"] = {}
    if content["server"]["patience"] is None:
        content["data"]["validation"] = None
        content["server"]["evaluation_limit"] = _LOOKED_AT
