"""What is tried: architectures × tasks × what is trained × views × modes; and the property that each must have."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from confide.client.deploy.host import DeployedHost
from confide.common.config.run import RunConfig
from confide.common.errors import ModelError
from confide.common.model.loading import load_model
from confide.common.modes import mode_of
from confide.common.modes.distillation import ANSWERS, answers_shape
from confide.common.types import Adapter
from confide.tests.architectures import DECODERS, ENCODERS, IMAGES, TARGETS
from confide.tests.neighbours.rows import CLASSES, PROMPTED, TAGS, TALKED, TEMPLATE, TWO, Form, Row, Table, table_of
from confide.tests.neighbours.site import QUERIES, Draw, Observer, Sites, Told, all_but, ask, everybody, only
from confide.tests.tiny import merged

CLIP = 0.5
SLACK = 1e-9
"""of a sum in float64"""
TEXT_TASKS = ("sequence-classification", "token-classification", "regression", "masked-lm")
WRITING = ("causal-lm", PROMPTED, TALKED, "preference")
VIEWS: dict[str, dict[str, Any]] = {
    "none": {},
    "characters": {"training": {"augmentation": 0.3, "views": 3}},
    "words": {"data": {"augmentation": {"swap": 0.4, "delete": 0.3, "insert": 0.4, "punctuation": 0.4}}},
    "images": {"data": {"augmentation": {"flip": True, "shift": 1, "noise": 0.1}}, "training": {"views": 4}},
    "pgd": {"training": {"adversarial": 0.3}},
    "freelb": {"training": {"adversarial": 0.3, "adversarial_kind": "freelb", "adversarial_steps": 2}},
}


@dataclass(frozen=True)
class Case:
    """One run at a site."""

    architecture: str
    task: str = "sequence-classification"
    train: str = "lora"
    targets: tuple[str, ...] | None = None
    views: str = "none"
    mode: str = "local"
    images: str | None = None
    """the tower that reads images, beside one that reads texts"""
    form: Form = "csv"
    pooling: str = "mean"
    steps: int = 1
    batch_rows: int = 16
    rate: float = 0.5
    turn: int = 0
    """of the rows, see `table_of`"""
    max_length: int = 24
    dtype: str = "float32"
    weights: str = "full"
    again: bool = False
    """whether activations are computed again"""

    def __str__(self) -> str:
        default = Case(self.architecture)
        parts = [self.architecture, self.task]
        parts += [f"{key}={getattr(self, key)}" for key in _SHOWN if getattr(self, key) != getattr(default, key)]
        return " ".join(parts)


_SHOWN = (
    "train",
    "targets",
    "views",
    "mode",
    "images",
    "form",
    "pooling",
    "steps",
    "batch_rows",
    "rate",
    "turn",
    "max_length",
    "dtype",
    "weights",
    "again",
)


_ROUNDS = 64
"""of runs a multiple: the same for most, which are then accounted for once"""


def named(case: Case) -> Case:
    """With LoRA on named layers."""
    return replace(case, targets=TARGETS[case.architecture])


def run_of(sites: Sites, case: Case, rounds: int) -> RunConfig:
    """The configuration that a server would send."""
    model: dict[str, Any] = {
        "backbone": sites.backbone(case.architecture),
        "task": {PROMPTED: "causal-lm", TALKED: "causal-lm", TWO: "sequence-classification"}.get(case.task, case.task),
        "max_length": case.max_length,
        "train": case.train,
        "pooling": case.pooling,
        "dtype": case.dtype,
        "weights": case.weights,
        "checkpointing": case.again,
        "lora": {"rank": 2, "alpha": 4},
    }
    if case.targets is not None:
        model["lora"]["targets"] = list(case.targets)
    if case.images is not None:
        model["image_backbone"] = sites.backbone(case.images)
    privacy: dict[str, Any] = {"mode": case.mode, "epsilon": 8.0, "clip": CLIP, "sampling_rate": case.rate}
    if case.mode != "client":
        privacy["declared_examples"] = 48
    content = {
        "run": {"rounds": rounds, "seed": 3, "id": "neighbours"},
        "model": model,
        "data": {"test": "public.csv", "partition": {"clients": 2}},
        "privacy": privacy,
        "training": {
            "batch_size": case.batch_rows,
            "batch_tokens": case.batch_rows * case.max_length,
            "local_steps": case.steps,
            "learning_rate": 0.05,
        },
        "server": {"setup_rounds": 128},
    }
    if case.task == TALKED:
        content["data"] |= {"messages": "messages", "template": TEMPLATE}
    if case.task in ("preference", TWO):
        content["data"] |= _columns(case)
    if case.task == "token-classification":
        content["data"]["labels"] = TAGS
    elif model["task"].endswith("-classification"):
        content["data"]["labels"] = CLASSES
    return RunConfig.parse(merged(content, VIEWS[case.views]), "test")


def host_of(sites: Sites, case: Case, table: Table, site: str = "site-1") -> DeployedHost:
    return sites.host(table, case.form, site, **_columns(case))


def _columns(case: Case) -> dict[str, str]:
    """Keys of [data], and of a data set in site.toml, that name columns otherwise than the task does by itself."""
    known = {PROMPTED: ("prompt", "response"), TALKED: ("messages",), "preference": ("prompt", "chosen", "rejected")}
    known[TWO] = ("text_pair",)
    return {name: name for name in known.get(case.task, ())}


def adapter_of(host: DeployedHost, config: RunConfig) -> Adapter:
    """The weights of every round: not the first, whose LoRA is zero. Raises what the site refuses the run with."""
    initial = host.enter(config.to_flat()).worker().model.initial
    if mode_of(config).TEACHERS:
        return {ANSWERS: np.zeros(answers_shape(config))}
    rng = np.random.default_rng(5)
    return {name: (a + 0.1 * rng.normal(size=a.shape)).astype(np.float32) for name, a in initial.items()}


def refusal(sites: Sites, case: Case) -> str | None:
    """Why a site refuses the run before anything is read or charged; None: it does not."""
    host = host_of(sites, case, table_of(case.task))
    try:
        adapter_of(host, run_of(sites, case, 1))
    except ModelError as error:
        load_model.cache_clear()  # a model that was refused may be left with hooks
        return str(error)
    return None


def check(
    sites: Sites,
    watch: Observer,
    case: Case,
    names: Iterable[str] | None = None,
    *,
    whole: bool = True,
    table: Table | None = None,
) -> None:
    """The property, for modes whose unit is a record.

    names: of the rows that are removed, beside the first, the middle and the last; omitted: every row. table: the rows;
    omitted: those of the task. whole: all of them, and every record is also drawn alone, and all their parts added up;
    False: some ten rows.
    Raises ModelError where the site refuses the run, AssertionError where the property does not hold.
    """
    table = table or table_of(case.task, case.turn)
    if not whole:
        table = table.shorter(set(names or ()))
    config = run_of(sites, case, -(-3 * len(table.rows) // _ROUNDS) * _ROUNDS)
    host = host_of(sites, case, table)
    adapter = adapter_of(host, config)
    peer = host_of(sites, case, table_of(case.task), "site-2") if config.secure else None
    (told,) = ask(watch, host, config, adapter, [everybody], peer)
    assert not told.gave_up, "the site gives up, and answers with noise alone"
    assert told.kept != config.secure
    assert set(told.clips) == {CLIP}
    assert len(told.sums) == case.steps, told.reply
    asked = 1

    def again(draw: Draw) -> Told:
        nonlocal asked
        asked += 1
        return ask(watch, host, config, adapter, [draw], first=asked)[0]

    alone: dict[int, Told] = {}
    if whole:
        alone = {place: again(only(place)) for place in range(len(told.keys))}
        _check_sum(told, list(alone.values()))
    for row in _removed(table, names):
        (fewer,) = ask(watch, host_of(sites, case, table.without(row)), config, adapter, [everybody], peer)
        place = _check_same(row, told, fewer)
        if place is not None:
            _check_moved(row, told, fewer, again(all_but(place)), alone.get(place))


def _removed(table: Table, names: Iterable[str] | None) -> list[Row]:
    count = len(table.rows)
    wanted = None if names is None else set(names)
    assert wanted is None or wanted <= {row.name for row in table.rows}
    always = {0, count // 2, count - 1}
    return [row for i, row in enumerate(table.rows) if wanted is None or i in always or row.name in wanted]


def _check_sum(whole: Told, alone: list[Told]) -> None:
    """Each record's part of a sum is bounded, and its own: the parts add up to the sum."""
    for step, total in enumerate(whole.sums):
        parts = [told.sums[step] for told in alone]
        assert np.isfinite([total, *parts]).all()
        assert max(np.linalg.norm(part) for part in parts) <= CLIP + SLACK
        apart = float(np.linalg.norm(total - np.sum(parts, axis=0)))
        assert apart <= SLACK, f"the sum is not that of its records alone: {apart / CLIP:.2g} C apart"


def _check_same(row: Row, whole: Told, told: Told) -> int | None:
    """All that must be the same without the row; its place among the records, where it is one."""
    assert told.reply == whole.reply, f"'{row.name}': the reply tells of it"
    assert not told.gave_up
    place = _missing(whole.keys, told.keys)
    assert place is not None or row.kind != "good", f"'{row.name}' is lost"
    assert place is None or row.kind != "bad", f"'{row.name}' contributes"
    if place is None:
        for total, smaller in zip(whole.sums, told.sums, strict=True):
            assert np.array_equal(total, smaller), f"'{row.name}' contributes nothing, and changes others"
    return place


def _check_moved(row: Row, whole: Told, told: Told, undrawn: Told, alone: Told | None) -> None:
    """told: without the row. undrawn: with it, and everybody else drawn. alone: with it, and nobody else drawn."""
    for step, (total, smaller, kept) in enumerate(zip(whole.sums, told.sums, undrawn.sums, strict=True)):
        moved, apart = float(np.linalg.norm(total - smaller)), float(np.linalg.norm(kept - smaller))
        assert moved <= CLIP + SLACK, f"'{row.name}' moves the sum by {moved / CLIP:.3g} C"
        assert np.array_equal(kept, smaller), f"'{row.name}' was not drawn, and moves the sum by {apart / CLIP:.2g} C"
        assert row.kind != "good" or moved > 0, f"'{row.name}' counts as zero"
        if alone is not None:
            left = np.linalg.norm(total - smaller - alone.sums[step])
            assert left <= SLACK, f"'{row.name}' moves the sum by others' parts"


def _missing(keys: tuple[int, ...], fewer: tuple[int, ...]) -> int | None:
    """The position of the one key that is left out. Raises AssertionError where others have changed."""
    if keys == fewer:
        return None
    place = next((i for i, (a, b) in enumerate(zip(keys, fewer, strict=False)) if a != b), len(fewer))
    assert keys[:place] + keys[place + 1 :] == fewer, "one record more changes others' keys or their order"
    return place


def distillation(sites: Sites, case: Case, teachers: int = 4) -> RunConfig:
    """The same as a run whose sites answer questions."""
    content = run_of(sites, replace(case, mode="none"), 1).model_dump(mode="json", exclude_none=True)
    privacy = {"mode": case.mode, "epsilon": 8.0, "clip": CLIP}
    distill = {"public": "public.csv", "queries": len(QUERIES), "teachers": teachers, "train": case.train}
    content["privacy"] = privacy
    return RunConfig.parse(merged(content, {"distill": distill, "model": {"train": "lora"}}), "test")


def check_distillation(sites: Sites, watch: Observer, case: Case, names: Iterable[str] | None = None) -> None:
    """One teacher's votes change, no other's, and the sum by at most C."""
    table, config = table_of(case.task, case.turn), distillation(sites, case)
    host = host_of(sites, case, table)
    peer = host_of(sites, case, table_of(case.task), "site-2") if config.secure else None
    (whole,) = ask(watch, host, config, adapter_of(host, config), [everybody], peer)
    assert not whole.gave_up
    assert len(whole.sums) == 1, whole.reply
    for row in table.rows if names is None else [r for r in table.rows if r.name in set(names)]:
        smaller = host_of(sites, case, table.without(row))
        (told,) = ask(watch, smaller, config, adapter_of(smaller, config), [everybody], peer)
        assert told.reply == whole.reply, f"'{row.name}': the reply tells of it"
        place = _missing(whole.keys, told.keys)
        changed = {n for n in whole.votes | told.votes if whole.votes.get(n) != told.votes.get(n)}
        if place is None:
            assert row.kind != "good"
            assert not changed
            assert np.array_equal(whole.sums[0], told.sums[0])
            continue
        (teacher,) = changed  # its records are others; its answers may be
        assert whole.keys[place] in whole.votes[teacher].keys
        moved = float(np.linalg.norm(whole.sums[0] - told.sums[0]))
        assert moved <= CLIP + SLACK, f"'{row.name}' moves the answers by {moved / CLIP:.3g} C"


def cells() -> list[Case]:
    """Architecture × task × training part: the table of docs/reference/architectures.md, row by row."""
    found: list[Case] = []
    for name in ENCODERS:
        found += _parts(Case(name), TEXT_TASKS)
        found += _parts(Case(name, pooling="model"), ("sequence-classification", "masked-lm"))
    for name in DECODERS:
        found += _parts(Case(name, pooling="last"), ("causal-lm", PROMPTED, "sequence-classification"))
        found += _parts(Case(name, pooling="model"), ("sequence-classification",))
    for name in IMAGES:
        found += _parts(Case(name), ("image-classification",))
        found += _parts(Case("bert", images=name), ("image-text-classification",))
    return found


def _parts(case: Case, tasks: tuple[str, ...]) -> list[Case]:
    found = []
    for task in tasks:
        one = replace(case, task=task)
        found += [one, named(one), replace(one, train="head"), replace(one, train="full")]
    return [one for one in found if one.train != "head" or one.task not in WRITING]
