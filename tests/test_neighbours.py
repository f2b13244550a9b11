"""The test that docs/explanation/neighbours.md tells of: a site's rows, and the same rows without one of them.

From the file to what is released, through the real path of a real site, with the noise off and the coins fixed: a
record that was drawn moves a step's sum by at most C, one that was not drawn or cannot be used by nothing at all, and
the replies are the same. `tests/neighbours` has the rows, the site and the cases.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from confide.common.errors import ConfigError, ModelError
from confide.common.model.loading import load_model
from confide.common.tasks import sequence_classification
from confide.tests import brought_page
from confide.tests.architectures import ALL, ODD
from confide.tests.neighbours.cases import (
    CLIP,
    SLACK,
    VIEWS,
    WRITING,
    Case,
    adapter_of,
    cells,
    check,
    check_distillation,
    host_of,
    named,
    refusal,
    run_of,
)
from confide.tests.neighbours.page import PAGE, cell_of, parse, render, short
from confide.tests.neighbours.rows import PROMPTED, TALKED, TWO, Row, Table, table_of, words
from confide.tests.neighbours.site import Observer, Sites, Told, ask, everybody

slow = pytest.mark.slow
SLOW_ROWS = ("over-long", "no tokens", "shortest")
pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered in cast"),  # a number beyond float32, on purpose
    pytest.mark.usefixtures("real_proofs"),
]
_TASKS = (
    "sequence-classification",
    TWO,
    "multi-label-classification",
    "token-classification",
    "regression",
    "causal-lm",
    PROMPTED,
    TALKED,
    "preference",
    "masked-lm",
    "image-classification",
    "image-text-classification",
)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    return Sites(tmp_path_factory.mktemp("sites"))


@pytest.fixture
def watch() -> Iterator[Observer]:
    with Observer() as watch:
        yield watch


# Each architecture once, and each task, part, view, mode and format where it risks most; the rows that are removed
# beside the first, the middle and the last.
FAST: list[tuple[Case, str]] = [
    (Case("bert", views="words", turn=4), "unknown class, shortest, over-long"),
    (Case("roberta", "regression", train="full", views="characters"), "huge, nan, longest"),
    (named(Case("deberta-v3", "token-classification")), "unknown tag, a tag too few"),
    (Case("electra", train="full", batch_rows=3), "no tokens, broken bytes, twin"),
    (named(Case("albert", "regression", views="pgd")), "large, no tokens, empty"),
    (named(Case("distilbert", "token-classification", form="jsonl")), "a tag too many, blank"),
    (named(Case("mpnet", mode="distributed", views="words")), "no class, its twin"),
    (named(Case("modernbert", views="freelb", turn=9)), "over-long, a column too few"),
    (Case("xlm-r", train="head", steps=2, pooling="first"), "no tokens, a column too many"),
    (Case("longformer", "regression", train="head"), "over-long, 1e999"),
    (Case("gpt2", "causal-lm", train="full"), "shortest, over-long, no tokens"),
    (Case("gpt-neox", PROMPTED, form="jsonl"), "no response, shortest, over-long"),
    (Case("opt", "causal-lm", mode="distributed"), "blank, longest"),
    (Case("llama", TALKED, form="jsonl"), "unknown role, refused by the template, over-long"),
    (named(Case("mistral", pooling="last", steps=2, views="characters")), "unknown class, no tokens"),
    (named(Case("qwen3", "causal-lm", batch_rows=64, rate=1.0)), "over-long, empty"),
    (Case("gemma3", "causal-lm"), "longest, a column too few"),
    (named(Case("phi3", "regression", train="lora", pooling="last")), "inf, measles, huge"),
    (named(Case("vit", "image-classification", views="images")), "gone, broken, unknown class"),
    (Case("clip-vision", "image-classification", train="head", form="jsonl"), "short, no image"),
    (Case("bert", "image-text-classification", images="vit", train="full"), "folder, empty text"),
    (Case("bert", "masked-lm", form="jsonl"), "shortest, no tokens"),
    (Case("electra", TWO, mode="distributed", turn=2), "no second, over-long, no tokens"),
    (named(Case("distilbert", "multi-label-classification", form="jsonl", views="words")), "a number, no class, twin"),
    (Case("llama", "preference", turn=3), "no rejected, shortest, over-long"),
    (Case("bert", "token-classification", dtype="bfloat16", rate=1.0), "longest, unknown tag"),
    (Case("qwen2", "causal-lm", weights="nf4", again=True, turn=6), "blank, over-long"),
    (Case("bert", mode="distributed", dtype="bfloat16", weights="int8"), "unknown class, no tokens"),
]

# Which repeat what others of them show, so that the fast form stays below a minute.
MORE: list[tuple[Case, str]] = [
    (Case("llama", PROMPTED, views="freelb"), "over-long, no tokens"),
    (Case("qwen2", "causal-lm", views="pgd", turn=11), "shortest, broken bytes"),
    (Case("gpt2", "preference", mode="distributed", form="jsonl"), "no chosen, longest"),
    (Case("llama", PROMPTED, dtype="bfloat16", turn=2), "no response, over-long"),
]


def test_the_fast_form_has_every_architecture_and_every_task() -> None:
    tried = [case for case, _ in FAST]
    assert {case.architecture for case in tried} == set(ALL)
    assert {case.task for case in tried} == set(_TASKS)
    assert {case.views for case in tried} == set(VIEWS)
    assert {case.train for case in tried} == {"lora", "head", "full"}


@pytest.mark.parametrize(("case", "names"), FAST, ids=lambda value: str(value) if isinstance(value, Case) else "")
def test_neighbours(sites: Sites, watch: Observer, case: Case, names: str) -> None:
    check(sites, watch, replace(case, max_length=20), names.split(", "), whole=False)  # two shapes


@slow
@pytest.mark.parametrize(("case", "names"), MORE, ids=lambda value: str(value) if isinstance(value, Case) else "")
def test_more_neighbours(sites: Sites, watch: Observer, case: Case, names: str) -> None:
    check(sites, watch, replace(case, max_length=20), names.split(", "), whole=False)


def every_combination() -> list[Case]:
    """Task × part × view × mode, on one architecture each; where a combination is refused, the test says so."""
    found = []
    for task in _TASKS:
        case = Case("llama" if task in WRITING else "bert", task)
        if task == "image-classification":
            case = named(Case("vit", task))
        elif task.startswith("image-"):
            case = replace(case, images="vit")
        for train in ("lora", "head", "full"):
            for views in VIEWS:
                part = replace(case, train=train, views=views, targets=case.targets if train == "lora" else None)
                found += [part] if train != "lora" else [part, replace(part, steps=2, turn=5, form="jsonl")]
                found += [replace(part, mode="distributed", turn=9)] if views in ("none", "words") else []
    return found


def in_bfloat16() -> list[Case]:
    """Each task, and each architecture with its head for tokens or classes."""
    tasks = [
        replace(case, dtype="bfloat16")
        for case, _ in [*FAST, *MORE]
        if case.train == "lora" and case.dtype == "float32"
    ]
    return [*tasks, *(replace(case, batch_rows=64, rate=1.0, turn=7) for case in tasks)]


def in_few_bits() -> list[Case]:
    """Of the same, every way to hold weights, with activations that are kept and that are computed again."""
    tasks = [case for case in in_bfloat16() if case.weights == "full" and not case.again and case.batch_rows < 64]
    ways = itertools.cycle([("int8", False), ("nf4", True), ("full", True), ("nf4", False), ("int8", True)])
    return [
        replace(case, dtype=dtype, weights=weights, again=again and case.architecture != "mpnet")  # it names no layers
        for case in tasks
        for dtype, (weights, again) in zip(("float32", "bfloat16"), ways, strict=False)
    ]


COMBINATIONS = [*every_combination(), *in_bfloat16(), *in_few_bits()]


@slow
@pytest.mark.parametrize("case", COMBINATIONS, ids=str)
def test_every_combination(sites: Sites, watch: Observer, case: Case) -> None:
    """Combinations that a run cannot have are left out by the check that every run passes."""
    try:
        run_of(sites, case, 1)
    except ConfigError as error:
        pytest.skip(str(error))
    if (case.task, case.train) == ("masked-lm", "full"):  # words are guessed with the table that embeds them
        with pytest.raises(ModelError, match="word_embeddings: the per-record gradient differs"):
            check(sites, watch, case)
        return
    check(sites, watch, case)


@slow
@pytest.mark.parametrize("rate", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("batch_rows", [1, 2, 5, 64])
@pytest.mark.parametrize("architecture", ["bert", "modernbert", "llama"])
def test_shapes_of_batches(sites: Sites, watch: Observer, architecture: str, batch_rows: int, rate: float) -> None:
    case = named(Case(architecture, batch_rows=batch_rows, rate=rate, pooling="last", turn=batch_rows))
    check(sites, watch, case, ["shortest", "over-long", "no tokens"])


@slow
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_on_two_threads(sites: Sites, watch: Observer, architecture: str) -> None:
    torch.set_num_threads(2)
    try:
        check(sites, watch, named(Case(architecture, pooling="last", views="words")), ["over-long"])
    finally:
        torch.set_num_threads(1)


def one_row(case: Case, name: str) -> Table:
    table = table_of(case.task)
    return Table(table.columns, tuple(row for row in table.rows if row.name == name))


@pytest.mark.parametrize("name", ["last", "over-long", "unknown class", "empty", "broken bytes", "no tokens"])
def test_a_site_with_one_row_and_with_none(sites: Sites, watch: Observer, name: str) -> None:
    case = Case("bert")
    config, replies = run_of(sites, case, 1), []
    for table in (one_row(case, name), one_row(case, "nobody")):
        host = host_of(sites, case, table)
        (told,) = ask(watch, host, config, adapter_of(host, config), [everybody])
        replies.append(told)
    one, nobody = replies
    assert one.reply == nobody.reply
    assert not nobody.sums[0].any()
    assert np.linalg.norm(one.sums[0]) <= CLIP + SLACK
    assert bool(one.sums[0].any()) == (name in ("last", "over-long", "no tokens"))


@pytest.mark.parametrize("case", [Case("bert", train="head"), Case("roberta", views="words", turn=6)], ids=str)
def test_teachers(sites: Sites, watch: Observer, case: Case) -> None:
    names = ["first", "over-long", "unknown class", "no tokens", "last"]
    check_distillation(sites, watch, case, names)


@slow
@pytest.mark.parametrize("mode", ["local", "distributed"])
@pytest.mark.parametrize("views", ["none", "characters", "words"])
@pytest.mark.parametrize("train", ["head", "lora", "full"])
def test_teachers_of_every_kind(sites: Sites, watch: Observer, train: str, views: str, mode: str) -> None:
    for architecture in ("bert", "electra"):
        check_distillation(sites, watch, Case(architecture, train=train, views=views, mode=mode))


def whole_site(sites: Sites, watch: Observer, case: Case, table: Table) -> Told:
    config = run_of(sites, case, 1)
    host = host_of(sites, case, table)
    peer = host_of(sites, case, table_of(case.task), "site-2")
    (told,) = ask(watch, host, config, adapter_of(host, config), [everybody], peer)
    return told


@pytest.mark.parametrize(
    "case",
    [
        Case("bert", mode="client", steps=3),
        Case("bert", "regression", mode="client", steps=2, views="words"),
        named(Case("vit", "image-classification", mode="client", views="images")),
    ],
    ids=str,
)
def test_a_site_moves_the_sum_by_no_more_than_the_clip_norm(sites: Sites, watch: Observer, case: Case) -> None:
    """Mode client: what is removed is a site. Its contribution is bounded, whatever its rows are, and so is the reply's
    form; other sites' contributions are made without it."""
    table = table_of(case.task)
    good = Table(table.columns, tuple(row for row in table.rows if row.kind == "good"))
    whole = whole_site(sites, watch, case, table)
    assert not whole.gave_up or case.task == "regression"
    for told in (whole, whole_site(sites, watch, case, good), whole_site(sites, watch, case, Table(table.columns, ()))):
        assert told.reply == whole.reply
        (total,), (clip,) = told.sums, told.clips
        assert clip == CLIP
        assert np.linalg.norm(total) <= CLIP + SLACK
    if case.task != "regression":
        assert whole.sums[0].any()


@pytest.mark.parametrize("name", ODD)
def test_a_model_whose_layers_read_no_batch(
    sites: Sites, watch: Observer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right, or refused with the layer's name before a row is read."""
    monkeypatch.setattr(sequence_classification, "build", lambda path, model, classes: ODD[name](classes))
    load_model.cache_clear()
    case = Case("bert", targets=("mixing",))
    if name == "one layer twice, with another shape":
        check(sites, watch, case, ["over-long"], whole=False)
        return
    with pytest.raises(ModelError, match="mixing"):
        check(sites, watch, case, [])


@slow
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_without_padding(sites: Sites, watch: Observer, seed: int) -> None:
    """Texts that are cut fill their rows; where all of a batch do, attention needs no mask, and takes another kernel.
    One shorter text in the batch must not change that for the others."""
    rows = [Row(f"full {i}", "good", (words(90, 10 * seed + i), "positive")) for i in range(7)]
    rows.insert(3, Row("shorter", "good", (words(55, seed), "negative")))
    case = Case("wide llama", "causal-lm", max_length=63, rate=1.0)
    check(sites, watch, case, ["shorter"], table=Table(("text", "label"), tuple(rows)))


@pytest.mark.parametrize(
    "case",
    [
        Case("deberta-v3"),
        named(Case("deberta-v3")),
        Case("mpnet", train="full"),
        Case("albert"),
        Case("longformer", "regression", train="head"),
        named(Case("longformer")),
        Case("opt", "causal-lm", train="full"),
        Case("bert", "masked-lm", train="full"),
        Case("gemma3", "causal-lm", train="full"),
    ],
    ids=str,
)
def test_the_page_says_what_a_site_answers(sites: Sites, case: Case) -> None:
    assert parse(PAGE.read_text(encoding="utf-8"))[cell_of(case)] == short(refusal(sites, case))


def test_the_page_is_generated() -> None:
    page = PAGE.read_text(encoding="utf-8")
    outcomes = parse(page)
    assert list(outcomes) == list(dict.fromkeys(cell_of(case) for case in cells()))
    assert page == render(outcomes, brought_page.parse(page)), "python -m confide.tests.neighbours.page"


@slow
@pytest.mark.parametrize("case", cells(), ids=str)
def test_every_architecture(sites: Sites, watch: Observer, case: Case) -> None:
    """What is refused is on the page; what is not has the property."""
    reason = None
    try:
        names = ("unknown class", "gone") if case.task.startswith("image-") else SLOW_ROWS
        check(sites, watch, case, names)
    except ModelError as error:
        reason = str(error)
        load_model.cache_clear()
    assert parse(PAGE.read_text(encoding="utf-8"))[cell_of(case)] == short(reason)
