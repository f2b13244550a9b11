"""The `confide` command. torch and its friends are imported inside commands: `confide --help` is immediate."""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from .arguments import DEBUG, read_arguments, with_named_paths
from .audit import app as audit_app
from .deployment import app as deployment_app
from .failures import say_failure
from .many import app as many_app
from .model import app as model_app
from .process import ended_like_ctrl_c, open_streams, threads_in_a_line
from .recipe import Sets, load_recipe
from .rows import data_app, label_app
from .terminal import write_any_text

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

app = typer.Typer(
    no_args_is_help=True,
    suggest_commands=False,  # click does already
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated, privacy-preserving fine-tuning: LoRA adapters travel, records stay.",
)
evaluate_app = typer.Typer(
    no_args_is_help=True, suggest_commands=False, help="Look at a finished run's model from other sides."
)
for part in (deployment_app, many_app, model_app):
    app.add_typer(part)  # without a name: its commands stand among these
for name, part in {"audit": audit_app, "evaluate": evaluate_app, "data": data_app, "label": label_app}.items():
    app.add_typer(part, name=name)


@app.command()
def simulate(
    recipe: Annotated[str | None, typer.Argument(help="A .toml file, or a shipped recipe: demo, sst2, …")] = None,
    sets: Sets = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; otherwise run.output.")] = None,
    ledger: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the simulated sites' ledgers and their site.toml here.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Continue the interrupted run in DIR.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in the folder.")] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also train each site alone, and all data in one place, to compare.")
    ] = False,
) -> None:
    """Fine-tune across simulated sites on this machine, and write a report."""
    from ..common.errors import ConfigError, StoppedError

    if (recipe is None) == (resume is None):
        raise ConfigError("simulate: give a RECIPE, or --resume DIR; not both")
    if resume is not None and (sets or out or ledger or overwrite or baselines):
        raise ConfigError(
            "--resume: takes no --set, --out, --ledger, --overwrite or --baselines; a run goes on as it was declared"
        )
    if baselines:
        sets = [*(f"baselines.{name}=true" for name in ("alone", "pooled", "pooled_private")), *(sets or ())]
    from .progress import print_summary, watch

    if recipe is not None and _plays_many(recipe, sets, out, ledger, overwrite):
        return
    config = None if resume else load_recipe(recipe or "", sets, out, ledger)
    folder = resume or (config.output if config else Path())
    try:
        with watch(folder):
            from ..simulations import api

            if config is None:
                api.resume(folder)
            else:
                api.simulate(config, overwrite=overwrite)
    except KeyboardInterrupt:
        raise StoppedError(f"stopped; go on after the last whole round: confide simulate --resume {folder}") from None

    print_summary(folder)


def _plays_many(recipe: str, sets: list[str] | None, out: Path | None, ledger: Path | None, overwrite: bool) -> bool:
    """Whether the recipe is one of many runs and one page; then it has been played."""
    import importlib

    from ..common.config.run import MANY, load_content
    from ..common.errors import ConfigError, StoppedError
    from ..simulations.recipes import find_recipe

    content = load_content(find_recipe(recipe), sets)
    kind = next((name for name in MANY if name in content), None)
    if kind is None:
        return False
    if ledger is not None:
        raise ConfigError(
            f"--ledger: a recipe with [{kind}] is many runs, which keep ledgers of their own; leave it out"
        )
    from . import printing as tables
    from .progress import watch

    player = importlib.import_module(f"..simulations.studies.{kind}", __package__)
    try:
        folder = player.play(content, out, watch, overwrite=overwrite)
    except KeyboardInterrupt:
        raise StoppedError("stopped; the same command goes on with the next run of the recipe") from None
    tables.print_many(kind, folder)
    return True


@app.command()
def explain(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, a .toml file or a shipped recipe.")],
    sets: Sets = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Where the image of ε against rounds goes; otherwise a new file: epsilon.png in a run's folder, "
            "or, of a recipe, NAME-epsilon.png here."
        ),
    ] = None,
) -> None:
    """Say in words what the ε of a run protects, against whom, and what other rounds or noise would give."""
    from ..common.config.resolve import resolve
    from ..common.errors import ConfigError
    from ..common.model.loading import model_of
    from ..common.privacy.explain import alternatives, calibrated, in_words, meanings
    from ..common.privacy.plan import privacy_plan
    from ..common.whole import new_file, require_image, whole_file
    from ..server.report.drawing import png
    from ..server.report.plots import epsilon_over_rounds
    from .printing import print_explanation
    from .progress import bar

    if plot is not None:
        require_image(plot, "--plot")  # before anything is computed, and before the recipe is read
    file = Path(run) / "config.toml"
    config = load_recipe(str(file) if file.is_file() else run, sets)
    if plot is None:
        plot = new_file(file.with_name("epsilon.png") if file.is_file() else Path(f"{config.run.name}-epsilon.png"))
        require_image(plot, "--plot")
    if not config.private:
        raise ConfigError(
            "privacy.mode: 'none' protects nothing: the server sees every update as it is; choose distributed or local"
        )
    config = resolve(config)
    with bar() as progress:  # of a thousand rounds ε takes minutes
        plan = privacy_plan(config, model_of(config).count()[0])
        if plan is None:
            raise ConfigError("privacy: nothing declared")
        progress("what ε means", 0, 3)
        told = in_words(config, plan), meanings(config, plan)
        progress("other rounds and noise", 1, 3)
        choices = alternatives(config, plan)
        progress("plot", 2, 3)
        targets = {f"ε = {target:g} after {config.run.rounds} rounds": target for target in (1.0, 3.0)}
        others = {name: found for name, target in targets.items() if (found := calibrated(plan, target, plan.steps))}
        with whole_file(plot) as partial:
            partial.write_bytes(png(epsilon_over_rounds(plan, config.run.rounds, config.steps_per_round, others)))
    print_explanation(*told, choices)
    typer.echo(f"plot: {plot}")


@app.command()
def personalize(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished simulation.")],
) -> None:
    """For each simulated site a head of its own, which stays there, compared with the shared one."""
    from ..common.whole import require_writable
    from ..simulations.personalized import personalize as personalize_
    from .printing import print_personal
    from .progress import bar

    require_writable(run, "RUN")
    with bar() as progress:
        facts = personalize_(run, lambda done, total: progress("heads of the sites", done, total))
    print_personal(facts)
    typer.echo(f"report: {run / 'report.html'}")


@evaluate_app.command("robustness")
def evaluate_robustness_(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    rows: Annotated[
        int | None, typer.Option(min=1, help="Test texts for noise and checks; otherwise 200 (--full: 500).")
    ] = None,
    attacked: Annotated[
        int | None, typer.Option(min=1, help="Of these, how many are attacked; otherwise 30 (--full: 100).")
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Questions an attacker may ask the model about one text.")] = 200,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Times that noise is drawn; otherwise 2 (--full: 3).")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="All that belongs in a report: about five times as long.")
    ] = False,
) -> None:
    """Accuracy under noise, checks that should (not) matter, attacks by queries and on embeddings."""
    from dataclasses import replace

    from ..common.whole import require_writable
    from ..simulations.attacks.robustness import WHOLE, Extent, evaluate_robustness
    from .printing import print_robustness
    from .progress import bar

    require_writable(run, "RUN")
    given = {"rows": rows, "attacked": attacked, "seeds": seeds, "budget": budget}
    extent = replace(WHOLE if full else Extent(), **{key: value for key, value in given.items() if value is not None})
    what = f"noise on {extent.rows} texts, {extent.seeds} times, and attacks on {extent.attacked} of them"
    with bar(what if full else f"{what} (--full: more of each)") as progress:
        facts = evaluate_robustness(run, progress, extent)
    print_robustness(facts)
    typer.echo(f"report: {run / 'report.html'}")


@evaluate_app.command("lm")
def evaluate_lm_(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run of a language model.")],
    tasks: Annotated[str, typer.Option(help="Names of lm-eval's tasks, with commas between.")],
    include: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Task files (YAML) of your own; they may run code.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents of a task; otherwise all.")] = None,
) -> None:
    """Tasks of the LM Evaluation Harness (lm-eval), before and after."""
    from ..common.whole import require_writable
    from ..server.harness import evaluate_lm
    from .printing import print_harness
    from .progress import bar

    require_writable(run, "RUN")
    with bar() as progress:
        found = evaluate_lm(run, [name.strip() for name in tasks.split(",") if name.strip()], include, limit, progress)
    print_harness(found)


@app.command("pretrain")
def pretrain_(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Public text: csv, jsonl, parquet, hub id.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the model, for model.backbone.")],
    text: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    layers: Annotated[int, typer.Option(min=1)] = 4,
    width: Annotated[int, typer.Option(min=8)] = 256,
    heads: Annotated[int, typer.Option(min=1)] = 4,
    vocabulary: Annotated[int, typer.Option(min=100, help="Subwords, at most.")] = 8000,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens a text is cut to.")] = 64,
    steps: Annotated[int, typer.Option(min=1)] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Texts in a step.")] = 64,
    learning_rate: Annotated[float, typer.Option()] = 1e-3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make a small BERT and its tokenizer from nothing but public text."""
    from ..server.pretrain import PretrainSection, pretrain
    from .progress import bar

    given = {
        "layers": layers,
        "width": width,
        "heads": heads,
        "vocabulary": vocabulary,
        "max_length": max_length,
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    section = PretrainSection.parse(given, "pretrain")
    with bar() as progress:
        found = pretrain(sources, out, section, text=text, progress=progress)
    typer.echo(
        f"{found.texts:,} texts, {found.parameters:,} parameters; hidden words of held-out texts guessed: "
        f"{100 * found.before:.1f} → {100 * found.after:.1f} %, perplexity {found.perplexity:.1f}"
    )
    typer.echo(
        f"use it with --set model.backbone={out}; its words and weights come from that text, which must be public"
    )


@app.command()
def doctor(
    recipe: Annotated[str, typer.Argument(help="The run to check: a .toml file or a shipped recipe.")] = "demo",
    gpu: Annotated[
        float | None,
        typer.Option(min=1, max=10_000, help="Only plan memory, for a GPU of so many GiB that need not be here."),
    ] = None,
    sets: Sets = None,
) -> None:
    """Check versions and device, plan memory, and see whether this model can be trained privately; estimate time per
    round. Nothing is allocated beyond the plan."""
    from ..simulations.doctor import findings, plan_for_gpu, show
    from .progress import bar

    config = load_recipe(recipe, sets)
    if gpu:
        fits = plan_for_gpu(config, gpu)
    else:
        with bar() as progress:
            found = list(findings(config, progress))
        fits = show("confide doctor", found)
    if not fits:
        raise typer.Exit(1)


@app.command()
def demo_data(
    folder: Annotated[Path, typer.Argument(help="Where train.csv, validation.csv and test.csv go.")],
    sites: Annotated[int, typer.Option(min=1, help="Deal train.csv out as train-1.csv, train-2.csv, …")] = 1,
) -> None:
    """Write the demonstration's generated messages as csv files."""
    import pyarrow.csv

    from ..common.data import demo
    from ..common.whole import whole_folder

    folder.mkdir(parents=True, exist_ok=True)
    tables = {split: demo.table(split) for split in demo.SPLITS}
    if sites > 1:
        train = tables.pop("train")
        for number in range(sites):
            tables[f"train-{number + 1}"] = train.take(list(range(number, len(train), sites)))
    with whole_folder(folder) as place:
        for name in sorted(tables):
            pyarrow.csv.write_csv(tables[name], place / f"{name}.csv")
    typer.echo(f"wrote {', '.join(f'{name}.csv' for name in sorted(tables))} to {folder}")


def _quiet_libraries() -> None:
    """Before they are loaded, since some set up logging in their own way."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLEPROGRESS_BARS", "1")
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing", category=FutureWarning)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG, help="Show Python's traceback of what fails; it may quote records.")
    ] = False,
) -> None:
    """debug: taken out of the arguments by `read_arguments`, wherever it stands; declared here for --help."""
    if version:
        typer.echo(f"confide {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: whatever fails is one line on standard error, see `failures`."""
    open_streams()
    arguments, debug = read_arguments(sys.argv[1:])
    _quiet_libraries()
    write_any_text()
    command, code = with_named_paths(typer.main.get_command(app)), 0
    try:  # as click's own main, which would end silently where a pipe is closed
        with (
            ended_like_ctrl_c(),
            threads_in_a_line(debug=debug),
            command.make_context("confide", arguments) as context,
        ):
            command.invoke(context)
        sys.stdout.flush()
    except SystemExit:
        raise
    except typer.Exit as ended:
        code = ended.exit_code
    except BaseException as error:
        code = say_failure(error, debug=debug)
    sys.exit(code)


if __name__ == "__main__":
    main()
