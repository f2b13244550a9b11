"""The commands of a deployment as their operators use them, without a server that runs."""

import errno
import json
import logging
import shutil
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from confide.cli.main import main
from confide.common.config.run import SiteConfig
from confide.common.credentials import expiry, issue
from confide.common.logs import log_to
from confide.server.deploy.deployment import ServerFile


@pytest.fixture(name="confide")
def confide_in_a_folder(confide, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs a line in a folder of its own; returns exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    return lambda line: confide(*line.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's and two sites' folders, with data, as the commands make them; each test gets a copy."""
    place = tmp_path_factory.mktemp("made")
    lines = ["demo-data data --sites 2", "server init server --name 127.0.0.1 --port 9"]
    lines += [
        f"site init site-{i} --name site-{i} --server 127.0.0.1:9 --ca server/ca.crt --dataset demo "
        f"--source ../data/train-{i}.csv"
        for i in (1, 2)
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        for line in lines:
            patched.setattr(sys, "argv", ["confide", *line.split()])
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code, line
    return place


@pytest.fixture
def folders(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)


def test_the_walk_up_to_the_first_connection(confide, folders, tmp_path: Path) -> None:
    code, out, _ = confide("site add-peer site-1 site-1/site.pub site-2/site.pub")
    assert code == 0
    printed = out.splitlines()[0].removeprefix("fingerprint of the list: ")
    for i in (1, 2):
        code, out, err = confide(f"server add-site site-{i} site-{i}/site.pub --server server")
        assert code == 0, err
        assert "when the server starts" in out
    code, out, _ = confide("server status server")
    assert code == 1
    assert "SuperLink: not running" in out
    assert "site site-1: unknown: the server does not run" in out
    assert printed in out.replace("\n", " ")  # the same fingerprint at the server
    code, out, _ = confide("site check site-1")
    assert code == 1
    assert "passed  data set demo: 8,000 rows" in out
    assert "failed  server: 127.0.0.1:9: no connection" in out.replace("\n", " ")
    code, out, _ = confide("site status site-1")
    assert code == 0
    assert "site-1: not running" in out
    code, out, _ = confide("runs --server server")
    assert code == 0
    assert confide("server remove-site site-2 --server server")[0] == 0
    assert set(json.loads((tmp_path / "server" / "sites.json").read_text())) == {"site-1"}


@pytest.mark.parametrize(
    ("line", "code", "what"),
    [
        ("server init server --name other", 1, "is not empty"),
        ("site init site-1 --name a --server h:1 --ca server/ca.crt", 1, "is not empty"),
        ("site init site-3 --name a/b --server h:1 --ca server/ca.crt", 2, "site.name"),
        ("site init site-3 --name a --server h --ca server/ca.crt", 2, "site.server"),
        ("site init site-3 --name a --server h:1 --ca data/test.csv", 1, "not a readable certificate"),
        ("site init site-3 --name a --server h:1 --ca nowhere", 1, "not a readable certificate"),
        ("server add-site site-2 site-1/site.pub --server server", 2, "of site 'site-1', not 'site-2'"),
        ("server add-site site-1 nowhere --server server", 2, "cannot be read"),
        ("server add-site site-1 site-1/site.toml --server server", 2, "site.pub"),
        ("server add-site site-1 site-1/site.pub --server nowhere", 1, "confide server init"),
        ("server remove-site nobody --server server", 2, "no site 'nobody'"),
        ("server status nowhere", 2, "confide server init"),
        ("site status nowhere", 2, "site.toml"),
        ("site run nowhere", 2, "nowhere: no such folder"),
        ("server run nowhere", 2, "nowhere: no such folder"),
        ("site approve site-1 nowhere.toml", 2, "no such file"),
        ("run demo --server server", 1, "no site is registered"),
        ("run --server server", 2, "give a RECIPE, or --resume RUN"),
        ("run --resume nowhere --server server", 2, "holds no config.toml"),
        ("run --resume nowhere --out x --server server", 2, "as it was declared"),
        ("stop nothing --server server", 2, "no run there"),
    ],
)
def test_what_cannot_be_is_one_clear_line(confide, folders, line: str, code: int, what: str) -> None:
    found, out, err = confide(line)
    assert found == code, out + err
    assert what in err
    assert err.startswith("confide: ")
    assert err.count("\n") == 1
    assert not Path("site-3").exists()
    assert not Path("nowhere").exists()


def test_a_run_needs_a_server_that_runs_and_writes_nothing_without(confide, folders) -> None:
    confide("server add-site site-1 site-1/site.pub --server server")
    confide("server add-site site-2 site-2/site.pub --server server")
    code, _, err = confide("run demo --server server")
    assert code == 1
    assert "confide server run" in err
    assert not Path("server/runs/demo").exists()
    code, _, err = confide("run demo --server server --set audit.canaries=10")
    assert code == 2
    assert "audit" in err


def test_certificates_are_renewed_with_the_same_ca(confide, folders, tmp_path: Path) -> None:
    ca = (tmp_path / "server" / "ca.crt").read_bytes()
    issue(tmp_path / "server", "server", ["127.0.0.1"], days=-1)
    code, _, err = confide("server run server")
    assert code == 1
    assert "confide server renew" in err
    assert confide("server renew server")[0] == 0
    assert expiry(tmp_path / "server" / "server.crt") > datetime.now(UTC) + timedelta(days=300)
    assert (tmp_path / "server" / "ca.crt").read_bytes() == ca
    assert confide("server nginx server")[1].count("location = ") == 11


def test_server_toml_is_checked(confide, folders, tmp_path: Path) -> None:
    path = tmp_path / "server" / "server.toml"
    path.write_text(path.read_text().replace("port = 9", "prot = 9"))
    code, _, err = confide("server status server")
    assert code == 2
    assert "prot" in err
    assert ServerFile.model_fields["port"].default == 8443
    path.write_text("port = 9\n")
    assert confide("server status server")[2].endswith("names: nothing received; it is required; set it in the file\n")


@pytest.mark.parametrize("host", ["::1", "[::1]", "127.0.0.1:99999", "nope.invalid", "a b", "é"])
def test_the_status_of_a_server_with_any_host(confide, folders, tmp_path: Path, host: str) -> None:
    """An address of IPv6, and what no url can hold, were a fault of confide."""
    path = tmp_path / "server" / "server.toml"
    path.write_text(path.read_text().replace('host = "0.0.0.0"', f'host = "{host}"'))
    assert ServerFile.load(tmp_path / "server").host == host
    code, out, err = confide("server status server")
    assert (code, err) == (1, "")
    assert "not running" in out


def test_a_part_of_a_site_that_is_a_folder_or_any_bytes_fails_its_line_alone(confide, folders, tmp_path: Path) -> None:
    (tmp_path / "site-1" / "site.pub").write_bytes(b"\xff\xfe")
    lock = tmp_path / "site-2" / "ledger" / "ledger.lock"
    lock.unlink()
    lock.mkdir()
    for site, line in (("site-1", "failed  node key"), ("site-2", "failed  ledger")):
        code, out, err = confide(f"site check {site}")
        assert (code, err, line in out, "failed  server" in out) == (1, "", True, True), out


@pytest.fixture
def logs_end() -> Iterator[None]:
    """The log of a server that did not start is closed."""
    kept = logging.getLogger().handlers
    yield
    for handler in logging.getLogger().handlers:
        handler.close()
    logging.getLogger().handlers = kept


@pytest.mark.parametrize("key", ["port", "internal_port", "operator_port"])
def test_a_busy_port_is_told_before_anything_starts(confide, folders, logs_end, tmp_path: Path, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free, busy = probe.getsockname()[1], taken.getsockname()[1]
        probe.close()
        ports = {"port": free, "internal_port": free + 1, key: busy}
        lines = ['names = ["127.0.0.1"]', 'host = "127.0.0.1"', *(f"{name} = {port}" for name, port in ports.items())]
        (tmp_path / "server" / "server.toml").write_text("\n".join(lines) + "\n")
        code, _, err = confide("server run server")
    assert code == 1
    told = f"server.toml: {key}: cannot listen on 127.0.0.1:{busy} (something listens there already)"
    assert told in err.splitlines()[-1]
    assert not (tmp_path / "server" / "logs" / "superlink.out").exists()


def test_a_host_that_is_none_of_this_machine_is_told(confide, folders, logs_end, tmp_path: Path) -> None:
    (tmp_path / "server" / "server.toml").write_text('names = ["127.0.0.1"]\nhost = "192.0.2.77"\nport = 9443\n')
    code, _, err = confide("server run server")
    assert (code, "cannot listen on 192.0.2.77:9443" in err) == (1, True)


def test_sources_and_names_of_any_letters(confide, folders, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source, dataset = '../data/é ü\'s "rows" \\ 😀.csv', "données du site"
    assert confide("site init site-é --name é --server h:1 --ca server/ca.crt")[0] == 2
    arguments = ["site", "init", "site-é", "--name", "e", "--server", "h:1", "--ca", "server/ca.crt"]
    monkeypatch.setattr(sys, "argv", ["confide", *arguments, "--source", source, "--dataset", dataset])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert SiteConfig.load(tmp_path / "site-é" / "site.toml").datasets[dataset].source == source


def test_a_server_is_made_whole_or_not_at_all(confide, tmp_path: Path) -> None:
    for line, told in (("--name h --port 99999", "less than or equal to 65535"), ("--name bücher.de", "xn--")):
        code, _, err = confide(f"server init made {line}")
        assert (code, told in err) == (2, True), err
        assert list(tmp_path.iterdir()) == []


def test_a_renewal_that_fails_keeps_the_old_pair(folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = tmp_path / "server"
    before = {path.name: path.read_bytes() for path in server.iterdir() if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "x")

    monkeypatch.setattr("confide.common.credentials.write_secret", full)
    with pytest.raises(OSError, match=r"server\.crt"):
        issue(server, "server", ["h"])
    assert {path.name: path.read_bytes() for path in server.iterdir() if path.is_file()} == before


def test_logs_are_private_rotate_and_speak_json(tmp_path: Path) -> None:
    kept = logging.getLogger().handlers
    try:
        log_to(tmp_path / "a.log", as_json=True)
        logging.getLogger("confide.site").info("hello %s", "there")
        logging.getLogger("somebody").info("not ours")
        lines = (tmp_path / "a.log").read_text().splitlines()
        assert [json.loads(line)["message"] for line in lines] == ["hello there"]
        assert (tmp_path / "a.log").stat().st_mode & 0o777 == 0o600
    finally:
        for handler in logging.getLogger().handlers:
            handler.close()
        logging.getLogger().handlers = kept
