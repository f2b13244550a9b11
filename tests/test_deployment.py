"""A federation of real processes: TLS, authentication, three kinds of data sources, crashes. Long form: make soak."""

import json
import shutil
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from confide.client.deploy.node import Node, known_to_server
from confide.client.deploy.setup import check_site, init_site
from confide.common.config.run import RunConfig
from confide.common.credentials import issue, make_ca, parse_line
from confide.common.errors import ConfigError, DeploymentError
from confide.common.ledger.verify import audit
from confide.server.deploy import deployment
from confide.server.deploy.control import Control
from confide.server.deploy.gateway import FLEET
from confide.server.deploy.remote import RemoteRuns
from confide.server.deploy.serving import run_server
from confide.tests.federation import Federation, descendants, run_content, running, write_run
from confide.tests.tiny import merged

ROUNDS, SITES = 3, 3


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with running(tmp_path_factory.mktemp("federation"), SITES) as federation:
        yield federation
        check_no_code(federation)  # again, after all runs of the module
        check_logs(federation)


def wait_for_rounds(federation: Federation, run: str, count: int, seconds: float = 180.0) -> None:
    metrics = federation.server / "runs" / run / "metrics.jsonl"
    until = time.monotonic() + seconds
    while not metrics.is_file() or len(metrics.read_text().splitlines()) < count:
        assert time.monotonic() < until, federation.log("server") + federation.log("site-1")
        time.sleep(0.2)


def wait_until_known(site: Path, seconds: float = 120.0) -> None:
    """A site that runs connects again after a while."""
    until = time.monotonic() + seconds
    while True:
        try:
            known_to_server(site)
            return
        except DeploymentError:
            assert time.monotonic() < until
            time.sleep(0.5)


def test_a_run_is_trained_and_charged(federation: Federation) -> None:
    content = run_content(1, SITES)
    content["run"]["name"] = "short"
    finished = federation.command("run", str(write_run(federation.folder, content)), "--server", str(federation.server))
    assert finished.returncode == 0, finished.stderr + federation.log("site-1")
    report = federation.report("short")
    assert [len(row["sites"]) for row in report["rounds"]] == [SITES]
    assert {name: run["used"] for name, run in federation.spent().items()} == dict.fromkeys(federation.names, 1)
    assert report["privacy"]["epsilon_spent"] == pytest.approx(8.0, abs=0.01)
    assert (federation.server / "runs" / "short" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_run_survives_the_death_of_its_server_and_charges_each_round_once(federation: Federation) -> None:
    run = write_run(federation.folder, run_content(ROUNDS, SITES))
    submitted = federation.command("run", str(run), "--server", str(federation.server), "--detach")
    assert submitted.returncode == 0, submitted.stderr
    wait_for_rounds(federation, "tiny", 1)
    federation.kill("server")
    federation.start("server")
    federation.wait_for_server()
    folder = federation.server / "runs" / "tiny"
    finished = federation.command("run", "--server", str(federation.server), "--resume", str(folder))
    assert finished.returncode == 0, finished.stderr + federation.log("site-1")
    report = federation.report("tiny")
    assert [len(row["sites"]) for row in report["rounds"]] == [SITES] * ROUNDS
    assert not any("void" in row for row in report["rounds"])
    assert {name: run["used"] for name, run in federation.spent().items()} == dict.fromkeys(federation.names, ROUNDS)
    assert report["privacy"]["epsilon_spent"] == pytest.approx(8.0, abs=0.01)
    assert (folder / "report.html").is_file()
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    listed = federation.command("runs", "--server", str(federation.server))
    assert "finished" in listed.stdout
    assert "tiny" in listed.stdout


@pytest.mark.slow
def test_a_site_that_was_removed_returns_with_another_key(tmp_path: Path) -> None:
    """Beside a running server and a restarted one; its ledger goes on, and nobody else is kept from the server."""
    with running(tmp_path, 2) as federation:
        server, site = federation.server, federation.site("site-1")
        old = (site / "site.pub").read_text()
        assert deployment.remove_site(server, "site-1")
        with pytest.raises(DeploymentError, match="comes back no more; at the site: confide site new-key"):
            deployment.add_site(server, "site-1", old)
        # as an older version, or somebody with an editor, would have left it: the server starts, the others are known
        broken = json.loads((server / "sites.json").read_text())
        broken["site-1"] = {"node": parse_line(old, "x").node, "identity": parse_line(old, "x").identity}
        (server / "sites.json").write_text(json.dumps(broken))
        federation.kill("server")
        federation.start("server")
        federation.wait_for_server()
        assert "site 'site-1' is left out" in federation.log("server")
        wait_until_known(federation.site("site-2"))
        federation.kill("site-1")
        with pytest.raises(DeploymentError, match="does not know this site"):
            known_to_server(site)
        changed = federation.command("site", "new-key", str(site))
        assert changed.returncode == 0, changed.stderr
        new = (site / "site.pub").read_text()
        assert parse_line(new, "x").identity == parse_line(old, "x").identity
        assert parse_line(new, "x").node != parse_line(old, "x").node
        assert (site / "node.key").stat().st_mode & 0o777 == 0o600
        deployment.remove_site(server, "site-1")
        deployment.add_site(server, "site-1", new)
        known_to_server(site)
        federation.start("site-1")
        wait_until_known(site)
        content = run_content(1, 2)
        done = federation.command("run", str(write_run(federation.folder, content)), "--server", str(server))
        assert done.returncode == 0, done.stderr + federation.log("site-1")
        assert [len(row["sites"]) for row in federation.report("tiny")["rounds"]] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["distributed", "local"])
def test_persons_over_tls(tmp_path: Path, mode: str) -> None:
    """Rows of csv, parquet and SQLite belong to persons; a site whose policy asks for them admits no other unit."""
    persons = 40
    with running(tmp_path, SITES, persons=persons, units=["person"]) as federation:
        content = run_content(2, SITES)
        by_record = merged(content, {"run": {"name": "by-record"}, "privacy": {"mode": mode}})
        refused = federation.command(
            "run", str(write_run(federation.folder, by_record)), "--server", str(federation.server)
        )
        assert refused.returncode != 0
        assert "unit of privacy example; allowed: person" in refused.stderr
        privacy = {"mode": mode, "declared_persons": persons * SITES, "sampling_rate": 0.2}
        mine = merged(by_record, {"run": {"name": "persons"}, "data": {"person": "whose", "person_rows": 2}})
        mine["privacy"] = {"epsilon": 8.0, **privacy}
        finished = federation.command(
            "run", str(write_run(federation.folder, mine)), "--server", str(federation.server)
        )
        assert finished.returncode == 0, finished.stderr + federation.log("site-1")
        report = federation.report("persons")
        assert [len(row["sites"]) for row in report["rounds"]] == [SITES] * 2
        assert "person" in report["privacy"]["unit"]
        assert report["privacy"]["epsilon_spent"] == pytest.approx(8.0, abs=0.01)
        for name in federation.names:
            outcome = audit(federation.site(name) / "ledger" / "ledger.db")
            assert outcome.holds, outcome.findings
            assert outcome.datasets[0]["unit"] == ["person"]


@pytest.mark.slow
def test_a_site_killed_in_a_round_comes_back_for_the_next(federation: Federation) -> None:
    content = run_content(ROUNDS, SITES)
    content["run"]["name"] = "local"
    content["privacy"]["mode"] = "local"
    content["server"]["deadline"] = 60.0  # how long a round waits for what was killed in it
    run = write_run(federation.folder, content)
    federation.command("run", str(run), "--server", str(federation.server), "--detach")
    wait_for_rounds(federation, "local", 1)
    federation.kill("site-2")
    federation.start("site-2")
    folder = federation.server / "runs" / "local"
    until = time.monotonic() + 300
    while not (folder / "report.json").is_file():
        assert time.monotonic() < until, federation.log("server")
        time.sleep(0.5)
    report = federation.report("local")
    assert "site-2" in report["rounds"][-1]["sites"]
    used = federation.spent()
    assert used["site-1"]["used"] == used["site-3"]["used"] == ROUNDS
    assert used["site-2"]["used"] <= ROUNDS
    assert used["site-2"]["steps"] == ROUNDS  # what was reserved stays charged


def test_sites_count_what_they_hold_out(federation: Federation) -> None:
    """Through the secure sum, in a round that trains and in the one after the last; the ledgers say both."""
    content = run_content(1, SITES)
    content["run"]["name"] = "counted"
    content["evaluation"] = {"sites": True, "holdout": 0.3, "every": 1}
    finished = federation.command("run", str(write_run(federation.folder, content)), "--server", str(federation.server))
    assert finished.returncode == 0, finished.stderr + federation.log("site-1")
    report = federation.report("counted")
    found = report["evaluation"]["sites"]
    assert [one["sites"] for one in (*found["rounds"], found["last"])] == [SITES, SITES]
    assert abs(found["after"]["records"] - 0.3 * 120 * SITES) < 6 * (found["after"]["noise"] + 5)
    for run in federation.spent().values():
        assert (run["used"], run["evaluated"], run["evaluations"], run["event"]["type"]) == (1, 2, 2, "apart")
    verified = federation.command("audit", "ledger", str(federation.site("site-1") / "ledger"))
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.slow
def test_a_server_that_dies_while_the_final_model_is_measured_asks_again(federation: Federation) -> None:
    """Sites give the same answer to the same question, and charge it once."""
    content = run_content(1, SITES)
    content["run"]["name"] = "measured"
    content["privacy"]["mode"] = "local"
    content["evaluation"] = {"sites": True, "holdout": 0.3}
    run = write_run(federation.folder, content)
    federation.command("run", str(run), "--server", str(federation.server), "--detach")
    folder = federation.server / "runs" / "measured"
    until = time.monotonic() + 180
    while not (folder / "checkpoints" / "evaluated.json").is_file():
        assert time.monotonic() < until, federation.log("server")
        time.sleep(0.01)
    federation.kill("server")
    federation.start("server")
    federation.wait_for_server()
    if not (folder / "report.json").is_file():
        finished = federation.command("run", "--server", str(federation.server), "--resume", str(folder))
        assert finished.returncode == 0, finished.stderr + federation.log("site-1")
    found = federation.report("measured")["evaluation"]["sites"]
    assert found["last"]["sites"] == SITES
    for charged in federation.spent().values():
        assert (charged["used"], charged["evaluated"]) == (1, 1)


def test_sites_reach_the_fleet_paths_only(federation: Federation) -> None:
    verify = ssl.create_default_context(cafile=str(federation.server / "ca.crt"))
    with httpx.Client(base_url=f"https://127.0.0.1:{federation.port}", verify=verify) as client:
        assert client.get("/health").status_code == 200
        for path in (
            *(
                "/v1/control/start-run",
                "/v1/control/register-node",
                "/v1/control/list-runs",
                "/v1/runtime/pull-messages",
            ),
            *("/v1/fleet/register-node", "/v1/fleet/unregister-node", "/docs", "/openapi.json", "/"),
            *("/v1/fleet/../control/list-runs", "/v1/fleet/%2e%2e/control/list-runs", "/v1/fleet//pull-messages"),
            "/v1%2fcontrol/list-runs",
        ):
            assert client.post(path, content=b"").status_code == 403, path
        for path in sorted(FLEET):
            assert client.post(path, content=b"").status_code not in (200, 403), path
            assert client.get(path).status_code == 403, path
        assert client.post(sorted(FLEET)[0], content=b"x" * (64 * 2**20 + 1)).status_code == 413


def test_whoever_is_not_registered_is_refused(federation: Federation, tmp_path: Path) -> None:
    ca, address = federation.server / "ca.crt", f"127.0.0.1:{federation.port}"
    init_site(tmp_path / "stranger", "stranger", address, ca, "default", "x.csv", 1.0)
    with pytest.raises(DeploymentError, match="add-site"):
        known_to_server(tmp_path / "stranger")
    # the key of another site in a registered site's folder
    shutil.copytree(federation.site("site-1"), tmp_path / "site-1")
    shutil.copy(tmp_path / "stranger" / "node.key", tmp_path / "site-1" / "node.key")
    with pytest.raises(DeploymentError, match="add-site"):
        known_to_server(tmp_path / "site-1")
    failed = [check.what for check in check_site(tmp_path / "site-1") if not check.passed]
    assert {"node key", "registration"} <= set(failed)


def test_a_server_with_a_foreign_or_expired_certificate_is_refused(federation: Federation, tmp_path: Path) -> None:
    make_ca(tmp_path)
    shutil.copytree(federation.site("site-1"), tmp_path / "site-1")
    shutil.copy(tmp_path / "ca.crt", tmp_path / "site-1" / "ca.crt")
    with pytest.raises(DeploymentError, match="does not vouch"):
        known_to_server(tmp_path / "site-1")
    deployment.init_server(tmp_path / "server", ["127.0.0.1"], 8443)
    issue(tmp_path / "server", "server", ["127.0.0.1"], days=-1)
    with pytest.raises(DeploymentError, match="expired"):
        run_server(tmp_path / "server")


def test_control_is_for_the_loopback_side(federation: Federation) -> None:
    url = f"https://127.0.0.1:{federation.port}"
    with Control(url, federation.server / "ca.crt") as control, pytest.raises(DeploymentError, match="HTTP 403"):
        control.runs()


def operator(federation: Federation, folder: Path, certificate: str = "operator") -> Path:
    """An operator's credentials on another machine."""
    folder.mkdir()
    shutil.copy(federation.server / "ca.crt", folder / "ca.crt")
    for kind in ("crt", "key"):
        shutil.copy(federation.server / f"{certificate}.{kind}", folder / f"operator.{kind}")
    return folder


@pytest.mark.slow
def test_a_run_from_another_machine(federation: Federation, tmp_path: Path) -> None:
    """The whole way with a URL: submitted with its test set, followed, its results fetched, listed, stopped."""
    url, mine = f"https://127.0.0.1:{federation.operator_port}", operator(federation, tmp_path / "operator")
    content = run_content(2, SITES)
    content["run"]["name"] = "remote"
    content["privacy"]["mode"] = "local"
    path = write_run(federation.folder, content)
    to = ["--server", url, "--credentials", str(mine)]
    done = federation.command("run", str(path), *to, "--out", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr + federation.log("server")
    assert "after" in done.stdout
    at_the_server = federation.report("remote")
    fetched = json.loads((tmp_path / "results" / "report.json").read_text())
    assert fetched == at_the_server
    assert (tmp_path / "results" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "results" / "progress.json").exists()
    assert fetched["config"]["data"]["test"].startswith(str(federation.server.resolve() / "public"))
    listed = federation.command("runs", *to)
    assert "remote" in listed.stdout
    assert "finished" in listed.stdout
    ended = federation.command("run", "--resume", str(tmp_path / "remote"), *to)
    assert ended.returncode == 2
    assert "has ended" in ended.stderr
    assert "no run 'nobody'" in federation.command("stop", "nobody", *to).stderr


def test_an_operator_elsewhere_names_no_path_and_brings_no_code(federation: Federation, tmp_path: Path) -> None:
    url, mine = f"https://127.0.0.1:{federation.operator_port}", operator(federation, tmp_path / "operator")
    runs = RemoteRuns(url, mine)
    content = run_content(2, SITES)
    content["run"] |= {"name": "paths", "output": str(tmp_path / "results")}
    for changes, why in (
        ({"data": {"test": "/etc/passwd.csv"}}, "which is no file of yours"),
        ({"data": {"test": "sqlite:////etc/x.db#t"}}, "which is no file of yours"),
        (
            {
                "data": {"test": "demo:test"},
                "distill": {"public": "/etc/passwd.csv"},
                "run": {"rounds": 1},
                "privacy": {"sampling_rate": None, "declared_examples": None},
            },
            "distill.public: received '/etc/passwd.csv', which is no file of yours",
        ),
        ({"model": {"backbone": "/etc"}}, "a path"),
        ({"model": {"backbone": "../bert"}}, "a path"),
    ):
        config = RunConfig.parse(merged(content, changes), "test")
        with pytest.raises(ConfigError, match=why):
            runs.start(config)
        assert not (tmp_path / "results").exists()
    for path in (
        "/runs/..%2f..",
        "/runs/../server.toml",
        "/runs/tiny/results/../../../ca.key",
        "/v1/control/start-run",
    ):
        with pytest.raises((ConfigError, DeploymentError)):
            runs._request("GET", path)


def test_operators_show_a_certificate_of_their_own(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"https://127.0.0.1:{federation.operator_port}"
    with pytest.raises(DeploymentError, match="does not answer"):  # the server's certificate is no operator's
        RemoteRuns(url, operator(federation, tmp_path / "server's", "server")).rows()
    with pytest.raises(DeploymentError, match="credentials cannot be read"):
        RemoteRuns(url, tmp_path / "nowhere")
    verify = ssl.create_default_context(cafile=str(federation.server / "ca.crt"))
    with httpx.Client(base_url=url, verify=verify) as client, pytest.raises(httpx.HTTPError):
        client.get("/runs")
    runs = RemoteRuns(url, operator(federation, tmp_path / "operator"))
    monkeypatch.setattr("confide.server.deploy.remote.__version__", "0.0")
    with pytest.raises(ConfigError, match="install the same version"):
        runs.rows()


def check_no_code(federation: Federation) -> None:
    for path in (federation.server / "flwr").rglob("*"):
        assert path.suffix not in (".py", ".so", ".pyc"), path


def test_a_bundle_carries_no_code(federation: Federation) -> None:
    check_no_code(federation)


def check_logs(federation: Federation) -> None:
    texts = [path.read_text(errors="replace") for path in federation.folder.rglob("*.log")]
    assert texts
    for text in texts:
        assert "gloomy" not in text
        assert "PRIVATE KEY" not in text


def test_logs_hold_no_record_and_no_secret(federation: Federation) -> None:
    check_logs(federation)


@pytest.mark.slow
def test_a_site_stops_cleanly(federation: Federation) -> None:
    """The federation is one site short afterwards."""
    until = time.monotonic() + 180.0
    while "connected to" not in federation.log("site-3") and time.monotonic() < until:
        time.sleep(0.2)  # this test may be the first of its process
    children = descendants(federation._processes["site-3"].pid)
    assert children
    assert federation.stop("site-3") == 0
    assert "stopped" in federation.log("site-3")
    time.sleep(0.5)
    for pid in children:
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_a_reply_counts_once_however_often_it_is_sent(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Site 3, which has stopped, comes back as one that sends every answer twice, and all its old ones again."""
    if federation.runs("site-3"):
        federation.stop("site-3")
    real, sent = Node._push, []

    def again(self, client, node, reply):
        sent.append(reply)
        for old in [*sent, reply]:
            real(self, client, node, old)

    monkeypatch.setattr(Node, "_push", again)
    node = Node(federation.site("site-3"))
    thread = threading.Thread(target=node.run)
    thread.start()
    try:
        content = run_content(2, SITES)
        content["run"]["name"] = "replayed"
        content["privacy"]["mode"] = "local"
        run = write_run(federation.folder, content)
        done = federation.command("run", str(run), "--server", str(federation.server))
        assert done.returncode == 0, done.stderr
    finally:
        node.stop()
        thread.join(timeout=60)
    assert len(sent) >= 4  # hello, ledger, two rounds
    report = federation.report("replayed")
    assert [row["sites"] for row in report["rounds"]] == [federation.names] * 2
    assert not any(row["failed"] for row in report["rounds"])
    assert {name: run["used"] for name, run in federation.spent().items()} == dict.fromkeys(federation.names, 2)
