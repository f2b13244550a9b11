"""What a real site refuses, whatever the server says, and what it keeps between messages."""

import gc
import io
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity

from confide.client.deploy.connection import check_bundle
from confide.client.deploy.folder import approve, load_site, local_path
from confide.client.deploy.host import DeployedHost
from confide.client.deploy.setup import add_peers, check_site, init_site
from confide.client.handlers import handle
from confide.common import wire
from confide.common.bundle import write_bundle
from confide.common.config.run import RunConfig, load
from confide.common.credentials import SiteLine, expiry, fingerprint, issue, make_ca, parse_line
from confide.common.errors import ConfigError, DeploymentError, WireError
from confide.common.modes.distillation import ANSWERS
from confide.server.deploy import deployment
from confide.server.deploy.runs import declare
from confide.tests.federation import Federation, run_content, write_run
from confide.tests.tiny import merged, save_bert


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    federation = Federation(tmp_path_factory.mktemp("federation"), 2)
    federation.make()
    return federation


def local_run(federation: Federation, **changes: dict) -> RunConfig:
    content = merged(run_content(2, 2), {"privacy": {"mode": "local"}, "run": {"id": "r1"}})
    return declare(federation.server, load(write_run(federation.folder, merged(content, changes))))


def message(kind: str, content: RecordDict) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    made = Message(content, 1, kind)
    made.metadata.__dict__["_message_id"] = "1"
    return made


def a_task(host: DeployedHost, config: RunConfig, number: int = 1) -> Message:
    arrays = wire.arrays_to_record(host.enter(config.to_flat()).worker().model.initial)
    facts = wire.task_config()
    facts[wire.ROUND] = number
    return message("train", RecordDict({wire.ARRAYS: arrays, wire.CONFIG: facts}))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def used(host: DeployedHost, run: str) -> int:
    return host.site.ledger.charge("default", run).used


def test_a_round_asked_again_gets_the_same_answer_and_is_charged_once(federation: Federation) -> None:
    config = local_run(federation)
    host = DeployedHost(federation.site("site-1"))
    task = a_task(host, config)
    first = handle(task, host.enter(config.to_flat()))
    assert not first.has_error(), first.error.reason
    again = handle(task, DeployedHost(federation.site("site-1")).enter(config.to_flat()))  # a restarted worker
    one, two = (reply.content.array_records[wire.ARRAYS] for reply in (first, again))
    assert all((one[name].numpy() == two[name].numpy()).all() for name in one)
    assert used(host, "r1") == 1
    assert not handle(a_task(host, config, 2), host.enter(config.to_flat())).has_error()
    assert used(host, "r1") == 2
    refused = handle(task, host.enter(config.to_flat()))  # its answer is forgotten, the run's steps are taken
    assert refused.error.code == wire.DECLINED


def an_evaluation(host: DeployedHost, config: RunConfig, number: int) -> Message:
    task = a_task(host, config, number)
    task.content.config_records[wire.CONFIG][wire.EVALUATE] = True
    return task


def test_what_fails_after_an_evaluation_was_charged_is_told_as_in_any_round(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round after the last takes no step: it was told as refused, uncharged, with the exception and its place."""
    config = local_run(federation, run={"id": "counts"}, evaluation={"sites": True, "every": 2})
    host = DeployedHost(federation.site("site-1"))

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(DeployedHost, "remember", full)
    for number, charged in ((1, (1, 1)), (3, (1, 2))):
        failed = handle(an_evaluation(host, config, number), host.enter(config.to_flat()))
        assert failed.error == Error(wire.FAILED, "the site could not answer; its worker.log says why")
        charge = host.site.ledger.charge("default", "counts")
        assert (charge.used, charge.evaluated) == charged
    refused = handle(an_evaluation(host, config, 3), host.enter(config.to_flat()))
    assert refused.error.code == wire.DECLINED  # nothing was charged: the reason is told
    assert "spent 2 evaluations, asked 1, limit 2, remaining 0" in (refused.error.reason or "")


def test_teachers_of_the_sites_own_backbone_answer_once(federation: Federation) -> None:
    """Federated distillation at a real site: the backbone is named in its site.toml, the queries come from the
    server, and the answers are charged as one step."""
    folder, other = federation.site("site-2"), federation.folder / "other"
    other.mkdir()
    save_bert(other)
    policy = (folder / "site.toml").read_text()
    changed = policy.replace("[datasets.default]", '[datasets.default]\nteacher = "own/bert"')
    changed = changed.replace("[backbones]", '[backbones]\n"own/bert" = "../other"')
    assert changed.count("own/bert") == 2
    (folder / "site.toml").write_text(changed)
    try:
        content = merged(run_content(1, 2), {"privacy": {"mode": "local"}, "run": {"id": "teach"}})
        for key in ("sampling_rate", "declared_examples"):
            content["privacy"].pop(key)
        content["distill"] = {"public": "public.csv", "queries": 5, "teachers": 2}
        config = declare(federation.server, load(write_run(federation.folder, content)))
        host = DeployedHost(folder)
        worker = host.enter(config.to_flat()).worker()
        facts = wire.task_config()
        facts[wire.ROUND] = 1
        task = message(
            "train",
            RecordDict(
                {
                    wire.ARRAYS: wire.arrays_to_record({ANSWERS: np.zeros((5, 2))}),
                    wire.CONFIG: facts,
                    wire.QUERIES: ConfigRecord({wire.TEXTS: ["a good film"] * 5}),
                }
            ),
        )
        reply = handle(task, host)
        assert not reply.has_error(), reply.error.reason
        assert reply.content.array_records[wire.ARRAYS][ANSWERS].numpy().shape == (5, 2)
        assert used(host, "teach") == 1
        assert list(worker._others) == ["own/bert"]
    finally:
        (folder / "site.toml").write_text(policy)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": {"backbone": "/etc"}}, "is a path"),
        ({"model": {"backbone": "../bert"}}, "is a path"),
        ({"data": {"train": "/etc/passwd"}}, "the site's to name"),
        (
            {
                "run": {"rounds": 1},
                "privacy": {"sampling_rate": None, "declared_examples": None},
                "distill": {"public": "p.csv", "backbones": ["tiny/bert"]},
            },
            "not a run's",
        ),
        ({"data": {"name": "other"}}, "data set other"),
        ({"run": {"rounds": 200_000}}, "max_rounds"),
        ({"privacy": {"epsilon": 1000.0}}, "asked"),
    ],
)
def test_the_server_names_no_path_no_data_and_no_limit(federation: Federation, changes: dict, why: str) -> None:
    content = merged(local_run(federation).model_dump(mode="json", exclude_none=True), {"run": {"id": "r2"}})
    config = RunConfig.parse(merged(content, changes), "test")
    host = DeployedHost(federation.site("site-2"))
    task = a_task(host, local_run(federation, run={"id": "r2"}))
    reply = handle(task, host.enter(config.to_flat()))
    assert reply.error.code == wire.DECLINED, reply.error.reason
    assert why in (reply.error.reason or "")


def test_the_server_learns_no_file_and_no_column(federation: Federation, caplog: pytest.LogCaptureFixture) -> None:
    """Rows that cannot be read are no reason to answer otherwise than usual: noise, charged, and a line at the site."""
    folder = federation.site("site-2")
    before = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(before.replace('text = "text"', 'text = "secret-column"'))
    try:
        config = local_run(federation, run={"id": "r6"})
        host = DeployedHost(folder)
        reply = handle(a_task(host, config), host.enter(config.to_flat()))
        assert used(host, "r6") == 1
    finally:
        (folder / "site.toml").write_text(before)
    assert not reply.has_error()
    assert "secret-column" in caplog.text  # for the site's operator


def test_approval_by_hand(federation: Federation) -> None:
    folder = federation.site("site-2")
    before = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(before.replace("approval = false", "approval = true"))
    try:
        config = local_run(federation, run={"id": "r3"})
        host = DeployedHost(folder)
        ask = message("query.reveal", RecordDict())
        refused = handle(ask, host.enter(config.to_flat()))
        assert refused.error.code == wire.DECLINED
        assert "confide site approve" in (refused.error.reason or "")
        pending = folder / "pending" / f"{config.digest()[:16]}.toml"
        approve(folder, load(pending))
        assert not pending.exists()
        assert "no canaries" in (handle(ask, host.enter(config.to_flat())).error.reason or "")
        other = local_run(federation, run={"id": "r4"}, training={"learning_rate": 0.5})
        assert handle(ask, host.enter(other.to_flat())).error.code == wire.DECLINED
    finally:
        (folder / "site.toml").write_text(before)


def test_a_thousand_mutated_messages_charge_nothing_they_should_not_and_crash_nothing(federation: Federation) -> None:
    """Bytes flipped, cut and repeated in a real task, then read as a message and handled."""
    config = local_run(federation, run={"id": "r5"})
    host = DeployedHost(federation.site("site-2"))
    task = a_task(host, config)
    good = message_to_proto(task).SerializeToString()
    head = good[:600], good[-1500:]  # numbers in the middle are only numbers
    rng = np.random.default_rng(7)
    handled, memory = 0, []
    for number in range(1000):
        if number % 100 == 0:
            gc.collect()
            memory.append(resident_bytes())
        content = bytearray(good)
        for _ in range(int(rng.integers(1, 4))):
            near = int(rng.integers(0, len(head[0]))) if rng.random() < 0.5 else len(good) - int(rng.integers(1, 1500))
            kind = rng.integers(3)
            if kind == 0:
                content[near % len(content)] = int(rng.integers(256))
            elif kind == 1:
                del content[near % len(content) : near % len(content) + int(rng.integers(1, 40))]
            else:
                content[near:near] = content[near : near + int(rng.integers(1, 40))]
        try:
            mutated = message_from_proto(ProtoMessage.FromString(bytes(content)))
        except Exception:  # noqa: S112
            continue  # not a message of Flower's; the socket's reader drops it
        if not mutated.has_content():
            continue
        handled += 1
        reply = handle(mutated, host.enter(config.to_flat()))
        assert isinstance(reply, Message)
        if reply.has_error():
            assert isinstance(reply.error, Error)
            assert "\n" not in (reply.error.reason or "")
    assert handled > 100
    assert memory[-1] - memory[2] < 32 * 2**20  # flat once everything has been used
    assert used(host, "r5") <= config.run.rounds
    assert not handle(message("query.hello", RecordDict()), host).has_error()


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")
def test_a_bundle_with_anything_but_configuration_is_refused(federation: Federation, tmp_path: Path) -> None:
    write_bundle(local_run(federation), tmp_path / "app")
    ours = build_fab_from_disk(tmp_path / "app")
    check_bundle(ours)
    for name in ("confide/__init__.py", "evil.py", "../evil.py", "data.bin"):
        buffer = io.BytesIO(ours)
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(name, "print(1)")
        with pytest.raises(WireError, match="no code from outside"):
            check_bundle(buffer.getvalue())
    with pytest.raises(WireError, match="allowed"):
        check_bundle(b"x" * 2**21)


def test_kinds_of_messages_that_do_not_exist(federation: Federation) -> None:
    host = DeployedHost(federation.site("site-1"))
    assert "kind" in (handle(message("query.exec", RecordDict()), host).error.reason or "")
    broken = handle(message("query.ledger", RecordDict({"x": ConfigRecord()})), host.enter({}))
    assert broken.error.reason == "the question holds no facts"


def test_paths_are_relative_to_the_site(tmp_path: Path) -> None:
    assert local_path(tmp_path, "a.csv") == str(tmp_path / "a.csv")
    assert local_path(tmp_path, "sqlite:///a.db#t") == f"sqlite:///{tmp_path}/a.db#t"
    assert local_path(tmp_path, "sqlite:////x/a.db#t") == "sqlite:////x/a.db#t"
    assert local_path(tmp_path, "postgresql://h/d#t") == "postgresql://h/d#t"


def test_lines_and_certificates(tmp_path: Path) -> None:
    make_ca(tmp_path)
    issue(tmp_path, "server", ["example.org", "10.0.0.1"])
    for name in ("ca.key", "server.key"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert expiry(tmp_path / "server.crt") < expiry(tmp_path / "ca.crt")
    line, path = init_site(tmp_path / "s", "a", "example.org:1", tmp_path / "ca.crt", "default", "x.csv", 8.0)
    assert parse_line(path.read_text(), "test") == line
    assert (tmp_path / "s" / "node.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match=r"site\.pub"):
        parse_line("ssh-ed25519 AAAA a:b", "test")
    with pytest.raises(DeploymentError, match="not empty"):
        init_site(tmp_path / "s", "a", "example.org:1", tmp_path / "ca.crt", "default", "x.csv", 8.0)
    with pytest.raises(ConfigError, match="server"):
        init_site(tmp_path / "t", "a", "example.org", tmp_path / "ca.crt", "default", "x.csv", 8.0)
    assert not (tmp_path / "t").exists()
    other = SiteLine("b", line.node, "ab" * 32)
    assert add_peers(tmp_path / "s", [str(other)]) == fingerprint({"a": line.identity, "b": "ab" * 32})
    assert load_site(tmp_path / "s")[0].peers == {"a": line.identity, "b": "ab" * 32}
    with pytest.raises(ConfigError, match="another key"):
        add_peers(tmp_path / "s", [str(SiteLine("b", line.node, "cd" * 32))])


def test_check_says_what_is_missing(tmp_path: Path) -> None:
    make_ca(tmp_path)
    init_site(tmp_path / "s", "a", "127.0.0.1:9", tmp_path / "ca.crt", "default", "x.csv", 8.0)
    (tmp_path / "s" / "node.key").chmod(0o644)
    found = {check.what: check for check in check_site(tmp_path / "s")}
    assert {name for name, check in found.items() if not check.passed} == {
        *("node key", "data set default", "peers", "server"),
    }
    assert "chmod 600" in found["node key"].detail
    assert "no such file" in found["data set default"].detail
    assert "add-peer" in found["peers"].detail


def test_registering(federation: Federation, tmp_path: Path) -> None:
    server = tmp_path / "server"
    deployment.init_server(server, ["h"], 8443)
    line = (federation.site("site-1") / "site.pub").read_text()
    with pytest.raises(ConfigError, match="of site 'site-1'"):
        deployment.add_site(server, "other", line)
    assert not deployment.add_site(server, "site-1", line)[1]  # the server does not run
    deployment.add_site(server, "site-1", line)  # the same again: nothing changes
    renamed = SiteLine("site-9", parse_line(line, "t").node, "ab" * 32)
    with pytest.raises(DeploymentError, match="registered for site"):
        deployment.add_site(server, "site-9", str(renamed))
    with pytest.raises(DeploymentError, match="not empty"):
        deployment.init_server(server, ["h"], 8443)
    with pytest.raises(ConfigError, match="no site"):
        deployment.remove_site(server, "nobody")
    deployment.remove_site(server, "site-1")
    assert not deployment.registered(server)
    assert "proxy_pass" in deployment.nginx_config(server)
