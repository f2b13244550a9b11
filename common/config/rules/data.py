"""Rules of the rows: how they are divided among sites, and which are read."""

from pathlib import Path

from .rule import Rule

_TWO_TEXTS = ("multi-label-classification", "regression", "sequence-classification")


def same_source(one: str, other: str) -> bool:
    """Whether two sources are one, however a file is named."""
    return one == other or (Path(one).is_file() and Path(other).is_file() and Path(one).samefile(other))


DATA = (
    Rule(
        key="data.partition.column",
        when="kind 'natural'",
        refused=lambda c: c.data.partition.kind == "natural" and c.data.partition.column is None,
        reason="a natural partition reads the site of each row from a column",
        remedy="name the column",
        example=("data.partition.kind=natural",),
    ),
    Rule(
        key="data.partition.clients",
        when="data.train and a kind other than 'natural'",  # real sites are counted when the run starts
        refused=lambda c: (
            c.data.partition.kind != "natural" and c.data.partition.clients is None and c.data.train is not None
        ),
        reason="a simulation deals the rows out to a number of sites",
        remedy="set it, e.g. 8",
        example=("data.partition.clients=",),
    ),
    Rule(
        key="data.partition.kind",
        when="a task whose records have no class each",
        refused=lambda c: (
            c.model.task in ("multi-label-classification", "token-classification", "regression")
            and c.data.partition.kind in ("dirichlet", "shards")
        ),
        reason="records are dealt out by their class, and those of task {c.model.task} have not one each",
        remedy="allowed: iid, natural",
        example=("model.task=regression", "data.partition.kind=shards"),
    ),
    Rule(
        key="data.validation",
        when="the same source as data.test",
        refused=lambda c: c.data.validation is not None and same_source(c.data.validation, c.data.test),
        reason="what rounds, early stopping and temperature are chosen on would also measure the result",
        remedy="give it other public rows, or remove it",
        example=("data.validation=test.csv", "data.test=test.csv"),
    ),
    Rule(
        key="data.response",
        when="data.prompt",
        refused=lambda c: c.data.prompt is not None and c.data.response is None and c.model.task != "preference",
        reason="prompt and response go together",
        remedy="set both or neither",
        example=("model.task=causal-lm", "data.prompt=question"),
    ),
    Rule(
        key="data.prompt",
        when="data.response",
        refused=lambda c: c.data.prompt is None and c.data.response is not None,
        reason="prompt and response go together",
        remedy="set both or neither",
        example=("model.task=causal-lm", "data.response=answer"),
    ),
    Rule(
        key="data.prompt",
        when="a task other than causal-lm and preference",
        refused=lambda c: c.model.task not in ("causal-lm", "preference") and c.data.prompt is not None,
        reason="task {c.model.task} reads data.text",
        remedy="remove it",
        example=("data.prompt=question", "data.response=answer"),
    ),
    Rule(
        key="data.messages",
        when="a task other than causal-lm",
        refused=lambda c: c.model.task != "causal-lm" and c.data.messages is not None,
        reason="task {c.model.task} reads data.text",
        remedy="remove it",
        example=("data.messages=messages",),
    ),
    Rule(
        key="data.messages",
        when="data.prompt",
        refused=lambda c: c.data.messages is not None and c.data.prompt is not None,
        reason="a record is a conversation, or a prompt and its response",
        remedy="set one of the two",
        example=("model.task=causal-lm", "data.messages=messages", "data.prompt=question", "data.response=answer"),
    ),
    Rule(
        key="data.text_pair",
        when="a task without one answer for a text",
        refused=lambda c: c.data.text_pair is not None and c.model.task not in _TWO_TEXTS,
        reason="task {c.model.task} reads one text a record",
        remedy="remove it, or choose one of " + ", ".join(_TWO_TEXTS),
        example=("model.task=causal-lm", "data.text_pair=hypothesis"),
    ),
    Rule(
        key="data.template",
        when="no data.messages",
        refused=lambda c: c.data.template is not None and c.data.messages is None,
        reason="a chat template makes a text of messages",
        remedy="set data.messages, or remove it",
        example=("data.template=x",),
    ),
    Rule(
        key="data.reference",
        when="no data.limit",
        refused=lambda c: c.data.reference is not None and c.data.limit is None,
        reason="it draws N of the first 2N rows",
        remedy="set data.limit to N",
        example=("data.reference=1",),
    ),
)
