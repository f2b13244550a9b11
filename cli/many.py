"""`confide compare` of finished runs, and `confide seeds` of one recipe."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .recipe import Sets

app = typer.Typer(suggest_commands=False)


@app.command("compare")
def compare_(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of two or more finished runs.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write compare.html and compare.csv here.")
    ] = None,
) -> None:
    """Put finished runs side by side: main figure, ε, cost, and the configuration keys that differ. Nothing is trained;
    to train one recipe in several ways, see `confide simulate` with a recipe that has [compare]."""
    from ..common.whole import require_writable
    from ..server.report import together

    if out is not None:
        require_writable(out, "--out")
    facts = together.side_by_side(runs)
    _print_runs(facts)
    if out is not None:
        together.write(out, facts)
        typer.echo(f"wrote {out / together.PAGE} and {out / together.TABLE}")


def _print_runs(facts: dict[str, Any]) -> None:
    from ..server.report.together import in_words
    from ..server.report.verdict import told
    from .terminal import new_table, show

    main = facts["rows"][0]["main"]
    columns = (f">{main['name']}", ">95 % interval", ">against the first", ">ε", ">rounds", ">MB up", ">MB down", ">s")
    table = new_table("finished runs", "run", *columns)
    for row in facts["rows"]:
        found, first = row["main"], row is facts["rows"][0]
        table.add_row(
            row["name"],
            told(found, found["value"]),
            f"{told(found, found['low'])} to {told(found, found['high'])}",
            "–" if first else in_words(found, row["difference"]) or "other test records",
            "none" if row["epsilon"] is None else f"{row['epsilon']:.2f}",
            str(row["rounds"]),
            *(f"{row[key] / 1e6:.2f}" for key in ("bytes_up", "bytes_down")),
            f"{row['seconds']:.0f}",
        )
    show(table)
    if not facts["keys"]:
        show("the configurations are the same")
        return
    table = new_table("in what they differ", "key", *(row["name"] for row in facts["rows"]))
    for key, values in facts["keys"].items():
        table.add_row(key, *("–" if value is None else str(value) for value in values))
    show(table)


@app.command("seeds")
def seeds_(
    recipe: Annotated[str, typer.Argument(help="The run to repeat: a .toml file or a shipped recipe.")],
    count: Annotated[int, typer.Option("--n", min=2, help="How many seeds, from run.seed on.")] = 5,
    sets: Sets = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; otherwise run.output with -seeds.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results that are in the folder.")] = False,
) -> None:
    """Play a recipe with several seeds, and say how far its main figure spreads. The same command goes on where it was
    stopped."""
    from ..common.config.run import load_content
    from ..common.errors import StoppedError
    from ..simulations.recipes import find_recipe
    from ..simulations.studies import seeds
    from .progress import watch

    content = load_content(find_recipe(recipe), sets)
    try:
        folder = seeds.play(content, count, out, watch, overwrite=overwrite)
    except KeyboardInterrupt:
        raise StoppedError("stopped; the same command goes on with the next seed") from None
    _print_seeds(folder)


def _print_seeds(folder: Path) -> None:
    import json

    from ..server.report.verdict import told
    from .terminal import new_table, show

    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    table = new_table(f"{len(report['runs'])} seeds", "seed", f">{report['main']['name']}", ">ε", ">s")
    for row in report["runs"]:
        epsilon = "none" if row["epsilon"] is None else f"{row['epsilon']:.2f}"
        table.add_row(str(row["seed"]), told(report["main"], row["value"]), epsilon, f"{row['seconds']:.0f}")
    show(table)
    show(report["sentence"])
    show(f"report: {folder / 'report.html'}")
