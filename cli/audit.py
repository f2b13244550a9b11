"""`confide audit …`."""

from pathlib import Path
from typing import Annotated

import typer

from .recipe import Sets, load_recipe

app = typer.Typer(
    no_args_is_help=True, suggest_commands=False, help="Check what was promised: ledgers, canaries, attacks."
)


@app.command("canary")
def canary(
    recipe: Annotated[str, typer.Argument(help="The run to audit: a .toml file or a shipped recipe.")],
    sets: Sets = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; otherwise run.output.")] = None,
    ledger: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the sites' ledgers here.")] = None,
    canaries: Annotated[int, typer.Option(help="Scored on the released updates.")] = 1000,
    records: Annotated[int, typer.Option(help="Scored on the final model.")] = 1000,
    guesses: Annotated[int | None, typer.Option(help="How many to guess; otherwise 5 % of the canaries.")] = None,
    control: Annotated[bool, typer.Option(help="Run once more without noise, to see that the attack works.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in the folder.")] = False,
) -> None:
    """Fine-tune with canaries among the records, and measure from below how much privacy was really lost."""
    from ..simulations.audit import audit_canaries, with_canaries
    from .printing import print_audit
    from .progress import print_summary, watch

    config = with_canaries(load_recipe(recipe, sets, out, ledger), canaries, records, guesses)
    audit_canaries(config, control=control, overwrite=overwrite, watch=watch)
    print_summary(config.output)
    print_audit(config.output)


@app.command("leakage")
def leakage(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run with data.limit.")],
    references: Annotated[
        int | None,
        typer.Option(help="Reference models of the likelihood-ratio attack; otherwise 2 (--full: 8)."),
    ] = None,
    records: Annotated[
        int | None,
        typer.Option(min=1, help="Of members and of others, how many are scored; otherwise 1,000 (--full: all)."),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="All records, and 8 reference models: each is trained as the run was, and as long."
        ),
    ] = False,
) -> None:
    """Attack a finished run: membership inference on its model, gradient inversion on an update with and without DP."""
    from ..common.whole import require_writable
    from ..simulations.attacks.leakage import audit_leakage
    from .printing import print_leakage
    from .progress import bar, watching

    require_writable(run, "RUN")
    asked = (8 if full else 2) if references is None else references
    what = f"{asked} reference models are trained as the run was{'' if full else ' (--full: 8)'}"
    scored = records or (None if full else 1000)
    outcome = audit_leakage(run, asked, watching(what, asked), scored, bar)
    print_leakage(outcome)
    typer.echo(f"report: {run / 'report.html'}")


@app.command("ledger")
def ledger_(
    path: Annotated[Path, typer.Argument(metavar="LEDGER", help="A ledger.db, a site's folder, or a folder of sites.")],
    receipt: Annotated[Path | None, typer.Option(help="The kept head; otherwise receipt.json beside it.")] = None,
    public_key: Annotated[Path | None, typer.Option(help="The registered key; otherwise public.key beside it.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    report: Annotated[Path | None, typer.Option(metavar="RUN", help="Add the outcome to this run's report.")] = None,
) -> None:
    """Verify chain, signatures and head, and compute ε again by three accountants; exit code 0 only when all holds."""
    import json

    from ..common.errors import ConfigError
    from ..common.ledger.verify import audit, find_ledgers

    found = find_ledgers(path)
    if len(found) > 1 and (receipt or public_key):
        raise ConfigError("--receipt, --public-key: belong to one ledger; give its path instead of a folder of sites")
    audits = [audit(database, receipt, public_key) for database in found]
    if report is not None:
        from ..server.report import amend_report

        amend_report(report, "ledger", [outcome.to_json() for outcome in audits])
    if json_:
        typer.echo(json.dumps([outcome.to_json() for outcome in audits], indent=2, allow_nan=False))
    else:
        from .printing import print_ledgers

        print_ledgers(audits)
    if not all(outcome.holds for outcome in audits):
        raise typer.Exit(1)


@app.command("export")
def export_(
    folder: Annotated[Path, typer.Argument(metavar="SITE", help="The site's folder; its key signs.")],
    out: Annotated[Path, typer.Option(help="The signed account, JSON.")],
) -> None:
    """Write a signed account of what was spent: it can be verified with the site's public key alone."""
    from ..common.ledger.chain import write_json
    from ..common.ledger.ledger import Ledger
    from ..common.ledger.verify import export

    write_json(out, export(Ledger.open(folder)))
    typer.echo(f"wrote {out}; check it with: confide audit verify {out} --public-key {folder / 'public.key'}")


@app.command("verify")
def verify(
    account: Annotated[Path, typer.Argument(metavar="ACCOUNT", help="What `confide audit export` wrote.")],
    public_key: Annotated[Path, typer.Option(help="The site's public key, as the site registered it.")],
) -> None:
    """Check a signed account with the public key alone, and compute its ε again from the events it lists."""
    from ..common.ledger.chain import read_json, read_public_key
    from ..common.ledger.verify import verify_account
    from .printing import print_account

    print_account(verify_account(read_json(account), read_public_key(public_key), str(account)))
