"""Commands of a federation of real sites: its runs, its server, its sites. `cli` adds them to its own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .recipe import Sets, load_recipe

if TYPE_CHECKING:
    from ..server.deploy.runs import Runs

app = typer.Typer()
server_app = typer.Typer(no_args_is_help=True, suggest_commands=False, help="Run the server of a federation.")
app.add_typer(server_app, name="server")
site_app = typer.Typer(no_args_is_help=True, suggest_commands=False, help="Join a federation with a data site.")
app.add_typer(site_app, name="site")
Server = Annotated[
    str, typer.Option(metavar="DIR|URL", help="The server's folder, or the operators' gateway, https://HOST:PORT.")
]
Credentials = Annotated[
    Path, typer.Option(metavar="DIR", help="With a URL: the folder of ca.crt, operator.crt and operator.key.")
]


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
    from ..common.errors import ConfigError, StoppedError

    if (recipe is None) == (resume is None):
        raise ConfigError("run: give a RECIPE, or --resume RUN; not both")
    if resume is not None and (sets or out or overwrite):
        raise ConfigError("--resume: takes no --set, --out or --overwrite; a run goes on as it was declared")
    from .progress import print_summary, watch

    federation = _runs(server, credentials)
    if resume is not None:
        submitted = federation.proceed(resume)
    else:
        submitted = federation.start(load_recipe(recipe or "", sets, out), overwrite=overwrite)
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
    from .printing import print_runs

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
    from ..common.errors import ConfigError

    if _is_url(server):
        from ..server.deploy.remote import RemoteRuns

        return RemoteRuns(server, credentials)
    if "://" in server:
        raise ConfigError(f"--server: received '{server}'; allowed: a server's folder, or https://HOST:PORT")
    from ..server.deploy.runs import LocalRuns

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
    from ..common.credentials import expiry
    from ..server.deploy.deployment import init_server

    init_server(folder, name, port)
    for file in ("ca.crt", "server.crt", "operator.crt"):
        typer.echo(f"{folder / file}: valid until {expiry(folder / file):%Y-%m-%d}")
    typer.echo(f"give {folder / 'ca.crt'} to every site, and the address {name[0]}:{port}")
    typer.echo(f"next: confide server run {folder}")


@server_app.command("run")
def server_run(
    folder: ServerDir,
    gateway: Annotated[bool, typer.Option(help="The embedded gateway; without it, nginx does its work.")] = True,
    json_logs: JsonLogs = False,
) -> None:
    """Run the server until it is stopped: the SuperLink on loopback, and the gateway that sites connect to."""
    from ..common.logs import log_to
    from ..server.deploy.serving import run_server

    log_to(folder / "server.log", as_json=json_logs)
    run_server(folder, gateway=gateway)


@server_app.command("renew")
def server_renew(folder: ServerDir) -> None:
    """Issue the server's and the operator's certificates anew, with the same CA: sites need not change anything."""
    from ..common.credentials import expiry
    from ..server.deploy.deployment import renew

    renew(folder)
    typer.echo(f"{folder / 'server.crt'}: valid until {expiry(folder / 'server.crt'):%Y-%m-%d}; restart the server")


@server_app.command("add-site")
def server_add_site(
    name: Annotated[str, typer.Argument(help="The site's name.")],
    public: Annotated[str, typer.Argument(metavar="PUBKEY", help="The line of its site.pub, or the file.")],
    server: Annotated[Path, typer.Option(metavar="DIR", help="The server's folder.")] = Path("server"),
) -> None:
    """Register a site: only registered sites may connect."""
    from ..server.deploy.deployment import add_site

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
    from ..server.deploy.deployment import remove_site

    remove_site(server, name)
    typer.echo(f"removed {name}; it is refused from now on")


@server_app.command("status")
def server_status_(folder: ServerDir) -> None:
    """Show whether the server runs, its sites, and when certificates end; exit code 0 only when it is healthy."""
    from ..server.deploy.deployment import server_status
    from .printing import print_server

    status = server_status(folder)
    print_server(status)
    if not (status.running and status.healthy_gateway):
        raise typer.Exit(1)


@server_app.command("nginx")
def server_nginx(folder: ServerDir) -> None:
    """Print an nginx configuration that does the gateway's work."""
    from ..server.deploy.deployment import nginx_config

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
    from ..client.deploy.setup import init_site

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
    from ..client.deploy.setup import add_peers

    found = add_peers(folder, [_read_public(path) for path in publics])
    typer.echo(f"fingerprint of the list: {found}")
    typer.echo("compare it with the other sites by telephone: it must be the same everywhere")


@site_app.command("new-key")
def site_new_key(folder: SiteDir) -> None:
    """Replace the site's node key: after it was removed and returns, or when the key may have been copied."""
    from ..client.deploy.setup import new_key

    typer.echo(f"{new_key(folder)}")
    typer.echo(
        f"give {folder / 'site.pub'} to the server's operator, who says: confide server remove-site, then add-site; "
        "and restart this site. Other sites list its identity, which stays"
    )


@site_app.command("check")
def site_check(
    folder: SiteDir,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN.toml", help="Also say how many records this run's model would cut.")
    ] = None,
) -> None:
    """Look at everything a run needs, line by line; exit code 0 only when all passes."""
    from ..client.deploy.setup import check_site
    from .printing import print_check

    checks = []
    for check in check_site(folder, run):
        print_check(check)
        checks.append(check)
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


@site_app.command("run")
def site_run(folder: SiteDir, json_logs: JsonLogs = False) -> None:
    """Take part in the federation until it is stopped; one outgoing connection, which is made again for ever."""
    from ..client.deploy.node import run_site
    from ..common.logs import log_to

    log_to(folder / "site.log", as_json=json_logs)
    run_site(folder)


@site_app.command("status")
def site_status_(folder: SiteDir) -> None:
    """Show budgets, runs, and the last error."""
    from ..client.deploy.setup import site_status
    from .printing import print_site

    print_site(site_status(folder))


@site_app.command("personalize")
def site_personalize(
    folder: SiteDir,
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="The adapter folder of a finished run.")],
    dataset: Annotated[str, typer.Option(help="The data set of site.toml that the head is fitted to.")] = "default",
) -> None:
    """Fit a head of the site's own on a finished model, and keep it here: nothing leaves the site."""
    from ..client.personalize import personalize_site

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
    from ..client.deploy.setup import approve_file

    typer.echo(f"approved {approve_file(folder, run)[:16]}")


def _read_public(path: Path) -> str:
    from ..common.errors import ConfigError

    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give a site's site.pub") from None
