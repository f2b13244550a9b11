"""Commands for a site's rows before a run: `confide data …` and `confide label …`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..common.errors import harmless
from .recipe import Sets, load_recipe

if TYPE_CHECKING:
    from ..simulations.preview import Preview

data_app = typer.Typer(no_args_is_help=True, suggest_commands=False, help="Look at rows before a run.")
label_app = typer.Typer(
    no_args_is_help=True, suggest_commands=False, help="Active learning at a site: which rows to label next."
)


@data_app.command("check")
def data_check(
    source: Annotated[
        str, typer.Argument(help="csv, jsonl, parquet or conll file, SQL url#table, or a site's folder.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the page, the cleaned copy and the log; stays here.")] = Path(
        "data-check"
    ),
    text: Annotated[str, typer.Option(help="Column of the texts (a site's folder: as in site.toml).")] = "text",
    pair: Annotated[
        str | None, typer.Option("--text-pair", help="Column of the second texts: rows are compared by both.")
    ] = None,
    label: Annotated[str, typer.Option(help="Column of the classes; empty: there are none.")] = "label",
    test: Annotated[str | None, typer.Option(help="The public test set: rows must not stand in both.")] = None,
    dataset: Annotated[str, typer.Option(help="With a site's folder: which data set.")] = "default",
    backbone: Annotated[
        str, typer.Option(help="Hub id or folder: embeddings help to judge labels and find outliers; empty: without.")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    drop_labels: Annotated[
        bool,
        typer.Option(
            "--drop-labels", help="Leave out rows whose label looks wrong, too; not where labels cannot be judged."
        ),
    ] = False,
    label_cut: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="COUNT",
            help="How many labels are named as wrong: the first of labels.csv. Omitted: the estimated number.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Empty rows, copies, leaks, doubtful labels, outliers, personal details: a page and a cleaned copy, both local."""
    from ..common.errors import ConfigError

    try:
        from ..client.check.run import check_source
    except ModuleNotFoundError as error:
        raise ConfigError(f"data check needs {error.name}; pip install 'confide[data]'") from None
    from ..client.check.page import cards, verdict
    from .progress import bar

    with bar() as progress:
        outcome = check_source(
            source,
            out,
            text=text,
            pair=pair,
            label=label or None,
            test=test,
            dataset=dataset,
            backbone=backbone or None,
            drop_labels=drop_labels,
            label_cut=label_cut,
            overwrite=overwrite,
            progress=lambda stage: progress(stage, 0, 1),
        )
    typer.echo(f"{len(outcome.checked.texts):,} rows in {outcome.seconds:.0f} s")
    for name, count in cards(outcome.checked):
        typer.echo(f"{count:>9,}  {name}")
    if told := verdict(outcome.checked):
        typer.echo(told)
    typer.echo(f"left out of {out / 'cleaned.csv'}: {len(outcome.left_out):,} rows (dropped.csv says why)")
    typer.echo(f"page: {outcome.page}; it quotes records and stays here")


@data_app.command("show")
def data_show(
    recipe: Annotated[str, typer.Argument(metavar="RUN.toml", help="A .toml file, or a shipped recipe.")],
    records: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    source: Annotated[
        str | None, typer.Option(help="train, validation or test; otherwise train, where the run names it, or test.")
    ] = None,
    sets: Sets = None,
) -> None:
    """Print records as the model gets them: special tokens, what is learned of each, and what had to be cut off."""
    from ..simulations.preview import previews

    for one in previews(load_recipe(recipe, sets), source, records):
        _print_preview(one)


def _print_preview(one: "Preview") -> None:
    terminal = sys.stdout.isatty()
    counts = [f"{one.tokens:,} tokens", *([] if one.learned is None else [f"{one.learned:,} learned"])]
    counts += [told for told in (one.answer, "cut to model.max_length" if one.cut else None) if told is not None]
    typer.echo(f"{one.where}: {harmless(', '.join(counts))}")
    typer.echo("".join(_marked(harmless(text), learned, terminal) for text, learned in one.parts) + "\n")


def _marked(text: str, learned: bool, terminal: bool) -> str:
    if not learned:
        return text
    return typer.style(text, bold=True, underline=True) if terminal else f"⟦{text}⟧"


@label_app.command("suggest")
def label_suggest(
    pool: Annotated[str, typer.Argument(help="The unlabelled rows: csv, jsonl, parquet or SQL url#table.")],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="The adapter folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="The csv for the annotators.")] = Path("to-label.csv"),
    count: Annotated[int, typer.Option(min=1, help="How many rows.")] = 50,
    strategy: Annotated[str, typer.Option(help="random, entropy, margin, bald, coreset or badge.")] = "margin",
    labelled: Annotated[str | None, typer.Option(help="Rows that have labels already (coreset keeps away).")] = None,
    text: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    site: Annotated[Path | None, typer.Option(metavar="DIR", help="The site's folder, for backbones it names.")] = None,
) -> None:
    """Choose the rows of a pool whose labels would teach the current global model most; nothing leaves the site."""
    from typing import cast

    from ..client.labelling import suggest
    from ..common.data.active import SCORED, STRATEGIES, Strategy
    from ..common.errors import ConfigError

    if strategy not in STRATEGIES:
        raise ConfigError(f"--strategy: received '{strategy}'; allowed: {', '.join(STRATEGIES)}")
    chosen = suggest(
        pool, adapter, out, strategy=cast(Strategy, strategy), count=count, labelled=labelled, text=text, site=site
    )
    typer.echo(f"{chosen} rows to label: {out}; it quotes records and stays here")
    if strategy not in SCORED:
        typer.echo(
            f"'{strategy}': one row of the pool may decide on many others; what a private run spends on the rows "
            f"chosen says nothing about the pool's; strategies with a bound: {', '.join(SCORED)}",
            err=True,
        )
    typer.echo(f"then: confide label import {out} --pool {pool} --adapter {adapter} --out NEXT")


@label_app.command("import")
def label_import(
    answers: Annotated[Path, typer.Argument(help="The csv that suggest wrote, its column label filled.")],
    pool: Annotated[str, typer.Option(help="The pool that suggest read.")],
    out: Annotated[Path, typer.Option(help="New folder: train.csv and the smaller pool.csv.")],
    train: Annotated[str | None, typer.Option(help="Rows that were labelled before.")] = None,
    adapter: Annotated[Path | None, typer.Option(metavar="ADAPTER", help="The run whose classes are allowed.")] = None,
    text: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    label: Annotated[str, typer.Option(help="Column of the classes.")] = "label",
) -> None:
    """Put labels that came back to the rows they were asked for; existing files stay as they are."""
    from ..client.labelling import POOL, TRAIN, import_labels

    found = import_labels(answers, pool, out, train=train, adapter=adapter, text=text, label=label)
    typer.echo(f"{found.added} labels added: {out / TRAIN}; {found.left} rows are left: {out / POOL}")
