"""The `confide` command. torch and its friends are imported inside commands: `confide --help` is immediate."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import __version__
from .cli_model import app as model_app

if TYPE_CHECKING:
    from .common.config import RunConfig
    from .server.runs import Runs

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated, privacy-preserving fine-tuning: LoRA adapters travel, records stay.",
)
app.add_typer(model_app)  # without a name: its commands stand among these
audit_app = typer.Typer(no_args_is_help=True, help="Check what was promised: ledgers, canaries, attacks.")
app.add_typer(audit_app, name="audit")
evaluate_app = typer.Typer(no_args_is_help=True, help="Look at a finished run's model from other sides.")
app.add_typer(evaluate_app, name="evaluate")
data_app = typer.Typer(no_args_is_help=True, help="Look at a site's rows before a run.")
app.add_typer(data_app, name="data")
label_app = typer.Typer(no_args_is_help=True, help="Active learning at a site: which rows to label next.")
app.add_typer(label_app, name="label")
server_app = typer.Typer(no_args_is_help=True, help="Run the server of a federation.")
app.add_typer(server_app, name="server")
site_app = typer.Typer(no_args_is_help=True, help="Join a federation with a data site.")
app.add_typer(site_app, name="site")
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. privacy.epsilon=3; empty unsets."),
]
Server = Annotated[
    str, typer.Option(metavar="DIR|URL", help="The server's folder, or the operators' front, https://HOST:PORT.")
]
Credentials = Annotated[
    Path, typer.Option(metavar="DIR", help="With a URL: the folder of ca.crt, operator.crt and operator.key.")
]


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
) -> None:
    """Fine-tune across simulated sites on this machine, and write a report."""
    from .common.errors import ConfigError, StoppedError

    if (recipe is None) == (resume is None):
        raise ConfigError("simulate: give a RECIPE, or --resume DIR; not both")
    if resume is not None and (sets or out or ledger or overwrite):
        raise ConfigError("--resume: takes no --set, --out, --ledger or --overwrite; a run goes on as it was declared")
    from .simulations.progress import print_summary, watch

    if recipe is not None and _plays_many(recipe, sets, out, ledger, overwrite):
        return
    config = None if resume else _load(recipe or "", sets, out, ledger)
    folder = resume or (config.output if config else Path())
    try:
        with watch(folder):
            from .simulations import run

            if config is None:
                run.resume(folder)
            else:
                run.simulate(config, overwrite=overwrite)
    except KeyboardInterrupt:
        raise StoppedError(f"stopped; go on after the last whole round: confide simulate --resume {folder}") from None

    print_summary(folder)


def _plays_many(recipe: str, sets: list[str] | None, out: Path | None, ledger: Path | None, overwrite: bool) -> bool:
    """Whether the recipe is one of many runs and one page; then it has been played."""
    import importlib

    from .common.config import MANY, load_content
    from .common.errors import ConfigError, StoppedError
    from .simulations.recipes import find_recipe

    content = load_content(find_recipe(recipe), sets)
    kind = next((name for name in MANY if name in content), None)
    if kind is None:
        return False
    if ledger is not None:
        raise ConfigError(
            f"--ledger: a recipe with [{kind}] is many runs, which keep ledgers of their own; leave it out"
        )
    from .simulations import tables
    from .simulations.progress import watch

    player = importlib.import_module(f".simulations.{kind}", __package__)
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
    plot: Annotated[Path, typer.Option(help="Where the picture of ε against rounds goes.")] = Path("explain.png"),
) -> None:
    """Say in words what the ε of a run protects, against whom, and what other rounds or noise would give."""
    from .common.errors import ConfigError
    from .common.explain import alternatives, calibrated, in_words
    from .common.models import model_of
    from .common.plan import privacy_plan
    from .common.resolve import resolve
    from .server.report.plots import epsilon_over_rounds
    from .simulations.tables import print_explanation

    folder = Path(run) / "config.toml"
    config = _load(str(folder) if folder.is_file() else run, sets)
    if not config.private:
        raise ConfigError(
            "privacy.mode: 'none' protects nothing: the server sees every update as it is; choose distributed or local"
        )
    config = resolve(config)
    plan = privacy_plan(config, model_of(config).count()[0])
    if plan is None:
        raise ConfigError("privacy: nothing declared")
    print_explanation(in_words(config, plan), alternatives(config, plan))
    targets = {f"ε = {target:g} after {config.run.rounds} rounds": target for target in (1.0, 3.0)}
    others = {name: found for name, target in targets.items() if (found := calibrated(plan, target, plan.steps))}
    plot.write_bytes(epsilon_over_rounds(plan, config.run.rounds, config.steps_per_round, others))
    typer.echo(f"plot: {plot}")


@app.command("run")
def run_(
    recipe: Annotated[str | None, typer.Argument(help="A .toml file, or a shipped recipe.")] = None,
    server: Server = "server",
    credentials: Credentials = Path("operator"),
    sets: Sets = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; otherwise runs/NAME, beside a server in its folder.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue the interrupted run in RUN.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the end.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in the folder.")] = False,
) -> None:
    """Fine-tune across the real sites of a federation, and write a report."""
    from .common.errors import ConfigError, StoppedError

    if (recipe is None) == (resume is None):
        raise ConfigError("run: give a RECIPE, or --resume RUN; not both")
    if resume is not None and (sets or out or overwrite):
        raise ConfigError("--resume: takes no --set, --out or --overwrite; a run goes on as it was declared")
    from .simulations.progress import print_summary, watch

    federation = _runs(server, credentials)
    if resume is not None:
        submitted = federation.proceed(resume)
    else:
        submitted = federation.start(_load(recipe or "", sets, out), overwrite=overwrite)
    if detach:
        typer.echo(f"submitted; its folder: {submitted.folder}; see: confide runs --server {server}")
        return
    try:
        with watch(submitted.folder):
            federation.follow(submitted)
    except KeyboardInterrupt:
        raise StoppedError(
            f"no longer followed, the run goes on; end it with: confide stop {submitted.name} --server {server}"
        ) from None
    print_summary(submitted.folder)


@app.command()
def runs(server: Server = "server", credentials: Credentials = Path("operator")) -> None:
    """List the runs of a federation."""
    from .simulations.tables import print_runs

    print_runs(_runs(server, credentials).rows())


@app.command()
def stop(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The run's name, as confide runs shows it.")],
    server: Server = "server",
    credentials: Credentials = Path("operator"),
) -> None:
    """End a run; what it has charged stays charged, and --resume continues it."""
    _runs(server, credentials).stop(name)
    folder = Path("runs") / name if _is_url(server) else Path(server) / "runs" / name
    typer.echo(f"stopped; go on with: confide run --server {server} --resume {folder}")


def _is_url(server: str) -> bool:
    return server.startswith("https://")


def _runs(server: str, credentials: Path) -> "Runs":
    """A federation's runs, beside the server or from another machine."""
    from .common.errors import ConfigError

    if _is_url(server):
        from .server.remote import RemoteRuns

        return RemoteRuns(server, credentials)
    if "://" in server:
        raise ConfigError(f"--server: received '{server}'; allowed: a server's folder, or https://HOST:PORT")
    from .server.runs import LocalRuns

    return LocalRuns(Path(server))


ServerDir = Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")]
SiteDir = Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")]
JsonLogs = Annotated[bool, typer.Option("--json-logs", help="One JSON object a line, for log collectors.")]


@server_app.command("init")
def server_init(
    folder: ServerDir,
    name: Annotated[list[str], typer.Option(help="DNS name or address by which sites reach it; may be repeated.")],
    port: Annotated[int, typer.Option(help="Public port.")] = 8443,
) -> None:
    """Make a server's folder: its CA, its certificates, its configuration."""
    from .common.credentials import expiry
    from .server.deployment import init_server

    init_server(folder, name, port)
    for file in ("ca.crt", "server.crt", "operator.crt"):
        typer.echo(f"{folder / file}: valid until {expiry(folder / file):%Y-%m-%d}")
    typer.echo(f"give {folder / 'ca.crt'} to every site, and the address {name[0]}:{port}")
    typer.echo(f"next: confide server run {folder}")


@server_app.command("run")
def server_run(
    folder: ServerDir,
    front: Annotated[bool, typer.Option(help="The embedded front; without it, nginx does its work.")] = True,
    json_logs: JsonLogs = False,
) -> None:
    """Run the server until it is stopped: the SuperLink on loopback, and the front that sites connect to."""
    from .common.logs import log_to
    from .server.serving import run_server

    log_to(folder / "server.log", as_json=json_logs)
    run_server(folder, front=front)


@server_app.command("renew")
def server_renew(folder: ServerDir) -> None:
    """Issue the server's and the operator's certificates anew, with the same CA: sites need not change anything."""
    from .common.credentials import expiry
    from .server.deployment import renew

    renew(folder)
    typer.echo(f"{folder / 'server.crt'}: valid until {expiry(folder / 'server.crt'):%Y-%m-%d}; restart the server")


@server_app.command("add-site")
def server_add_site(
    name: Annotated[str, typer.Argument(help="The site's name.")],
    public: Annotated[str, typer.Argument(metavar="PUBKEY", help="The line of its site.pub, or the file.")],
    server: Annotated[Path, typer.Option(metavar="DIR", help="The server's folder.")] = Path("server"),
) -> None:
    """Register a site: only registered sites may connect."""
    from .server.deployment import add_site

    is_line = " " in public.strip()
    line = public if is_line else _read_public(Path(public))
    site, running = add_site(server, name, line)
    when = "at once" if running else "when the server starts"
    typer.echo(f"registered {site.name}, identity {site.identity}; it may connect {when}")


@server_app.command("remove-site")
def server_remove_site(
    name: Annotated[str, typer.Argument(help="The site's name.")],
    server: Annotated[Path, typer.Option(metavar="DIR", help="The server's folder.")] = Path("server"),
) -> None:
    """Take a site out of the federation."""
    from .server.deployment import remove_site

    remove_site(server, name)
    typer.echo(f"removed {name}; it is refused from now on")


@server_app.command("status")
def server_status_(folder: ServerDir) -> None:
    """Show whether the server runs, its sites, and when certificates end; exit code 0 only when it is healthy."""
    from .server.deployment import server_status
    from .simulations.tables import print_server

    status = server_status(folder)
    print_server(status)
    if not (status.running and status.healthy_front):
        raise typer.Exit(1)


@server_app.command("nginx")
def server_nginx(folder: ServerDir) -> None:
    """Print an nginx configuration that does the front's work."""
    from .server.deployment import nginx_config

    typer.echo(nginx_config(folder), nl=False)


@site_app.command("init")
def site_init(
    folder: SiteDir,
    name: Annotated[str, typer.Option(help="The site's name in the federation.")],
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The federation's address.")],
    ca: Annotated[Path, typer.Option(help="The server's ca.crt.")],
    source: Annotated[str, typer.Option(help="The data: csv, jsonl, parquet, or an SQL url.")] = "train.csv",
    dataset: Annotated[str, typer.Option(help="Its name in runs (data.name).")] = "default",
    epsilon: Annotated[float, typer.Option(help="The data set's budget, over all runs.")] = 8.0,
) -> None:
    """Make a site's folder: keys, an empty ledger, and site.toml with every field commented."""
    from .client.setup import init_site

    line, path = init_site(folder, name, server, ca, dataset, source, epsilon)
    typer.echo(f"made {folder}; give {path} to the server's operator and to the other sites:")
    typer.echo(str(line))
    typer.echo(f"next: edit {folder / 'site.toml'}, then: confide site check {folder}")


@site_app.command("add-peer")
def site_add_peer(
    folder: SiteDir,
    publics: Annotated[list[Path], typer.Argument(metavar="SITE.PUB...", help="The other sites' site.pub.")],
) -> None:
    """List other sites' keys: secure sums are made with these and with nobody else."""
    from .client.setup import add_peers

    found = add_peers(folder, [_read_public(path) for path in publics])
    typer.echo(f"fingerprint of the list: {found}")
    typer.echo("compare it with the other sites by telephone: it must be the same everywhere")


@site_app.command("check")
def site_check(folder: SiteDir) -> None:
    """Look at everything a run needs, line by line; exit code 0 only when all passes."""
    from .client.setup import check_site
    from .simulations.tables import print_check

    checks = []
    for check in check_site(folder):
        print_check(check)
        checks.append(check)
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


@site_app.command("run")
def site_run(folder: SiteDir, json_logs: JsonLogs = False) -> None:
    """Take part in the federation until it is stopped; one outgoing connection, which is made again for ever."""
    from .client.node import run_site
    from .common.logs import log_to

    log_to(folder / "site.log", as_json=json_logs)
    run_site(folder)


@site_app.command("status")
def site_status_(folder: SiteDir) -> None:
    """Show budgets, runs, and the last error."""
    from .client.setup import site_status
    from .simulations.tables import print_site

    print_site(site_status(folder))


@site_app.command("personalize")
def site_personalize(
    folder: SiteDir,
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="The adapter folder of a finished run.")],
    dataset: Annotated[str, typer.Option(help="The data set of site.toml that the head is fitted to.")] = "default",
) -> None:
    """Fit a head of the site's own on a finished model, and keep it here: nothing leaves the site."""
    from .client.personal import personalize_site

    head = personalize_site(folder, adapter, dataset)
    if head.found.strength is None:
        typer.echo(f"on {head.records} records no head of its own beats the shared one, which is kept: {head.path}")
        return
    typer.echo(
        f"{head.records} records: the shared head has {100 * head.found.shared:.1f} % right, the site's own "
        f"{100 * head.found.validated:.1f} % of records that were left out of the fit: {head.path}"
    )


@site_app.command("approve")
def site_approve(
    folder: SiteDir,
    run: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run's config.toml, or a file of pending/.")],
) -> None:
    """Allow this exact run configuration, where the policy asks for approval by hand."""
    from .client.setup import approve_file

    typer.echo(f"approved {approve_file(folder, run)[:16]}")


@audit_app.command("canary")
def audit_canary(
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
    from .simulations.audit import audit_canaries, with_canaries
    from .simulations.progress import print_summary, watch
    from .simulations.tables import print_audit

    config = with_canaries(_load(recipe, sets, out, ledger), canaries, records, guesses)
    with watch(config.output):
        audit_canaries(config, control=control, overwrite=overwrite)
    print_summary(config.output)
    print_audit(config.output)


@audit_app.command("leakage")
def audit_leakage(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run with data.limit.")],
    references: Annotated[int, typer.Option(help="Reference models of the likelihood-ratio attack.")] = 8,
) -> None:
    """Attack a finished run: membership inference on its model, gradient inversion on an update with and without DP."""
    from .simulations.leakage import audit_leakage as attack
    from .simulations.progress import watch
    from .simulations.tables import print_leakage

    outcome = attack(run, references, watch)
    print_leakage(outcome)
    typer.echo(f"report: {run / 'report.html'}")


@audit_app.command("ledger")
def audit_ledger(
    path: Annotated[Path, typer.Argument(metavar="LEDGER", help="A ledger.db, a site's folder, or a folder of sites.")],
    receipt: Annotated[Path | None, typer.Option(help="The kept head; otherwise receipt.json beside it.")] = None,
    public_key: Annotated[Path | None, typer.Option(help="The registered key; otherwise public.key beside it.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    report: Annotated[Path | None, typer.Option(metavar="RUN", help="Add the outcome to this run's report.")] = None,
) -> None:
    """Verify chain, signatures and head, and compute ε again by two accountants; exit code 0 only when all holds."""
    import json

    from .common.errors import ConfigError
    from .common.ledger_audit import audit, find_ledgers

    found = find_ledgers(path)
    if len(found) > 1 and (receipt or public_key):
        raise ConfigError("--receipt, --public-key: belong to one ledger; give its path instead of a folder of sites")
    audits = [audit(database, receipt, public_key) for database in found]
    if report is not None:
        from .server.report import amend_report

        amend_report(report, "ledger", [outcome.to_json() for outcome in audits])
    if json_:
        typer.echo(json.dumps([outcome.to_json() for outcome in audits], indent=2, allow_nan=False))
    else:
        from .simulations.tables import print_ledgers

        print_ledgers(audits)
    if not all(outcome.holds for outcome in audits):
        raise typer.Exit(1)


@audit_app.command("export")
def audit_export(
    folder: Annotated[Path, typer.Argument(metavar="SITE", help="The site's folder; its key signs.")],
    out: Annotated[Path, typer.Option(help="The signed account, JSON.")],
) -> None:
    """Write a signed account of what was spent: it can be verified with the site's public key alone."""
    from .common.chain import write_json
    from .common.ledger import Ledger
    from .common.ledger_audit import export

    write_json(out, export(Ledger.open(folder)))
    typer.echo(f"wrote {out}; check it with: confide audit verify {out} --public-key {folder / 'public.key'}")


@audit_app.command("verify")
def audit_verify(
    account: Annotated[Path, typer.Argument(metavar="ACCOUNT", help="What `confide audit export` wrote.")],
    public_key: Annotated[Path, typer.Option(help="The site's public key, as the site registered it.")],
) -> None:
    """Check a signed account with the public key alone, and compute its ε again from the events it lists."""
    from .common.chain import read_json, read_public_key
    from .common.ledger_audit import verify_account
    from .simulations.tables import print_account

    print_account(verify_account(read_json(account), read_public_key(public_key), str(account)))


@app.command()
def personalize(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished simulation.")],
) -> None:
    """For each simulated site a head of its own, which stays there, compared with the shared one."""
    from .simulations.personal import personalize as personalize_
    from .simulations.progress import bar
    from .simulations.tables import print_personal

    with bar() as tell:
        facts = personalize_(run, lambda done, total: tell("heads of the sites", done, total))
    print_personal(facts)
    typer.echo(f"report: {run / 'report.html'}")


@data_app.command("check")
def data_check(
    source: Annotated[
        str, typer.Argument(help="csv, jsonl, parquet or conll file, SQL url#table, or a site's folder.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the page, the cleaned copy and the log; stays here.")] = Path(
        "data-check"
    ),
    text: Annotated[str, typer.Option(help="Column of the texts (a site's folder: as in site.toml).")] = "text",
    label: Annotated[str, typer.Option(help="Column of the classes; empty: there are none.")] = "label",
    test: Annotated[str | None, typer.Option(help="The public test set: rows must not stand in both.")] = None,
    dataset: Annotated[str, typer.Option(help="With a site's folder: which data set.")] = "default",
    backbone: Annotated[
        str, typer.Option(help="Hub id or folder: embeddings help to judge labels and find outliers; empty: without.")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    drop_labels: Annotated[
        bool, typer.Option("--drop-labels", help="Leave out rows with doubtful labels, too.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Empty rows, copies, leaks, doubtful labels, outliers, personal details: a page and a cleaned copy, both local."""
    from .common.errors import ConfigError

    try:
        from .client.check.run import check_source
    except ModuleNotFoundError as error:
        raise ConfigError(f"data check needs {error.name}; pip install 'confide[data]'") from None
    from .client.check.page import cards
    from .simulations.progress import bar

    with bar() as tell:
        outcome = check_source(
            source,
            out,
            text=text,
            label=label or None,
            test=test,
            dataset=dataset,
            backbone=backbone or None,
            drop_labels=drop_labels,
            overwrite=overwrite,
            tell=lambda stage: tell(stage, 0, 1),
        )
    typer.echo(f"{len(outcome.checked.texts):,} rows in {outcome.seconds:.0f} s")
    for name, count in cards(outcome.checked):
        typer.echo(f"{count:>9,}  {name}")
    typer.echo(f"left out of {out / 'cleaned.csv'}: {len(outcome.left_out):,} rows (dropped.csv says why)")
    typer.echo(f"page: {outcome.page}; it quotes records and stays here")


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

    from .client.labelling import suggest
    from .common.active import STRATEGIES, Strategy
    from .common.errors import ConfigError

    if strategy not in STRATEGIES:
        raise ConfigError(f"--strategy: received '{strategy}'; allowed: {', '.join(STRATEGIES)}")
    chosen = suggest(
        pool, adapter, out, strategy=cast(Strategy, strategy), count=count, labelled=labelled, text=text, site=site
    )
    typer.echo(f"{chosen} rows to label: {out}; it quotes records and stays here")
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
    from .client.labelling import POOL, TRAIN, import_labels

    found = import_labels(answers, pool, out, train=train, adapter=adapter, text=text, label=label)
    typer.echo(f"{found.added} labels added: {out / TRAIN}; {found.left} rows are left: {out / POOL}")


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
    vocabulary: Annotated[int, typer.Option(min=100, help="Word pieces, at most.")] = 8000,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens a text is cut to.")] = 64,
    steps: Annotated[int, typer.Option(min=1)] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Texts in a step.")] = 64,
    learning_rate: Annotated[float, typer.Option()] = 1e-3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make a small BERT and its tokenizer from nothing but public text."""
    from .server.pretrain import PretrainSection, pretrain
    from .simulations.progress import bar

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
    with bar() as tell:
        found = pretrain(sources, out, section, text=text, tell=tell)
    typer.echo(
        f"{found.texts:,} texts, {found.parameters:,} parameters; hidden words of held-out texts guessed: "
        f"{100 * found.before:.1f} → {100 * found.after:.1f} %, perplexity {found.perplexity:.1f}"
    )
    typer.echo(
        f"use it with --set model.backbone={out}; its words and weights come from that text, which must be public"
    )


@evaluate_app.command("robustness")
def evaluate_robustness_(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    rows: Annotated[int, typer.Option(min=1, help="Test texts for noise and checks.")] = 500,
    attacked: Annotated[int, typer.Option(min=1, help="Of these, how many are attacked.")] = 100,
    budget: Annotated[int, typer.Option(min=1, help="Questions an attacker may ask the model about one text.")] = 200,
    seeds: Annotated[int, typer.Option(min=1, help="Times that noise is drawn.")] = 3,
) -> None:
    """Accuracy under noise, checks that should (not) matter, attacks by queries and on embeddings."""
    from .simulations.progress import bar
    from .simulations.robustness import evaluate_robustness
    from .simulations.tables import print_robustness

    with bar() as tell:
        facts = evaluate_robustness(run, tell, rows=rows, attacked=attacked, budget=budget, seeds=seeds)
    print_robustness(facts)
    typer.echo(f"report: {run / 'report.html'}")


@app.command()
def doctor(
    recipe: Annotated[str, typer.Argument(help="The run to check: a .toml file or a shipped recipe.")] = "demo",
    sets: Sets = None,
) -> None:
    """Check versions, device and memory, and whether this model can be trained privately; estimate time per round."""
    from .simulations.doctor import examine

    if not examine(_load(recipe, sets)):
        raise typer.Exit(1)


@app.command()
def demo_data(
    folder: Annotated[Path, typer.Argument(help="Where train.csv, validation.csv and test.csv go.")],
    sites: Annotated[int, typer.Option(min=1, help="Deal train.csv out as train-1.csv, train-2.csv, …")] = 1,
) -> None:
    """Write the demonstration's generated messages as csv files."""
    import pyarrow.csv

    from .common import demo

    folder.mkdir(parents=True, exist_ok=True)
    tables = {split: demo.table(split) for split in demo.SPLITS}
    if sites > 1:
        train = tables.pop("train")
        for number in range(sites):
            tables[f"train-{number + 1}"] = train.take(list(range(number, len(train), sites)))
    for name in sorted(tables):
        pyarrow.csv.write_csv(tables[name], folder / f"{name}.csv")
    typer.echo(f"wrote {', '.join(f'{name}.csv' for name in sorted(tables))} to {folder}")


def _read_public(path: Path) -> str:
    from .common.errors import ConfigError

    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give a site's site.pub") from None


def _load(recipe: str, sets: list[str] | None, out: Path | None = None, ledger: Path | None = None) -> "RunConfig":
    from .common.config import load
    from .simulations.recipes import find_recipe

    overrides = [*(sets or [])]
    if out is not None:
        overrides.append(f"run.output={out}")
    if ledger is not None:
        overrides.append(f"engine.ledger={ledger}")
    return load(find_recipe(recipe), overrides)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"confide {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: an error that is meant for the user is one line on standard error."""
    from .common.errors import ConfideError

    try:
        app()
    except ConfideError as error:
        typer.echo(f"confide: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
