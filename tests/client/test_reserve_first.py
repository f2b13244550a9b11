"""A real site charges first and reads then; and whatever its records are, what the server sees is the same."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from confide.client.deploy import contents
from confide.client.deploy import host as deployed
from confide.client.deploy.folder import CONTENTS, data_section, load_site
from confide.client.deploy.host import DeployedHost
from confide.client.deploy.setup import check_site
from confide.client.handlers import handle
from confide.client.train import Work
from confide.common import wire
from confide.common.config.run import RunConfig, load
from confide.common.config.tables import DataSection
from confide.common.errors import ConfigError, DeploymentError, PolicyError
from confide.common.privacy.mechanism import PoissonMechanism
from confide.server.deploy.runs import declare
from confide.tests.federation import Federation, run_content, write_run
from confide.tests.tiny import merged, sentences, write_csv

LABELS = ["negative", "positive"]
SITE = "site-1"  # the one that reads a csv


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    federation = Federation(tmp_path, 1)
    federation.make()
    return federation


def local_run(federation: Federation, run: str = "r1", **changes: dict) -> RunConfig:
    content = run_content(2, 1) | {"server": {"min_clients": 1}}
    content = merged(content, {"privacy": {"mode": "local"}, "run": {"id": run}, "data": {"labels": LABELS}})
    return declare(federation.server, load(write_run(federation.folder, merged(content, changes))))


def message(kind: str, content: RecordDict) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    made = Message(content, 1, kind)
    made.metadata.__dict__["_message_id"] = "1"
    return made


def ask(host: DeployedHost, config: RunConfig, number: int = 1) -> Message:
    host.enter(config.to_flat())
    facts = wire.task_config()
    facts[wire.ROUND] = number
    arrays = wire.arrays_to_record(host.worker().model.initial)
    return handle(message("train", RecordDict({wire.ARRAYS: arrays, wire.CONFIG: facts})), host)


def changed(run: RunConfig, changes: dict) -> RunConfig:
    return RunConfig.parse(merged(run.model_dump(mode="json", exclude_none=True), changes), "test")


def reason(reply: Message) -> str:
    assert reply.has_error()
    return str(reply.error.reason)


def shown(reply: Message) -> dict[str, dict[str, Any]]:
    """All that a reply tells but the noised numbers themselves and the ledger's signatures."""
    assert not reply.has_error(), reply.error.reason
    found: dict[str, dict[str, Any]] = {}
    for name, record in reply.content.array_records.items():
        found[name] = {key: (value.shape, value.dtype) for key, value in record.items()}
    for name, record in [*reply.content.config_records.items(), *reply.content.metric_records.items()]:
        told = {key: value for key, value in record.items() if "hash" not in key and "signature" not in key}
        found[name] = dict(told)
    return found


def source(federation: Federation) -> Path:
    return federation.folder / "data-0.csv"


def test_no_row_is_read_for_a_task_before_it_is_charged(federation: Federation, monkeypatch) -> None:
    config, host = local_run(federation), DeployedHost(federation.site(SITE))
    charged: list[int] = []
    real = deployed.read_checked

    def watched(*args, **kwargs):
        charged.append(host.site.ledger.charge("default", "r1").steps)
        return real(*args, **kwargs)

    monkeypatch.setattr(deployed, "read_checked", watched)
    monkeypatch.setattr(contents, "source_contents", lambda *_: pytest.fail("read for a task"))
    for kind in ("hello", "reveal", "holds"):  # nor for questions
        handle(message(f"query.{kind}", RecordDict()), host.enter(config.to_flat()))
    assert charged == []
    shown(ask(host, config))
    assert charged == [2]


def test_a_run_that_is_refused_reads_nothing(federation: Federation, monkeypatch) -> None:
    host = DeployedHost(federation.site(SITE))
    monkeypatch.setattr(deployed, "read_checked", lambda *_, **__: pytest.fail("read"))
    reply = ask(host, local_run(federation, privacy={"epsilon": 60.0}))
    assert reply.error.code == wire.DECLINED


def sums_of(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The clipped sums that are released from now on, before their noise."""
    sums: list[np.ndarray] = []
    real = PoissonMechanism.share
    monkeypatch.setattr(
        PoissonMechanism, "share", lambda self, total, clip: sums.append(total.copy()) or real(self, total, clip)
    )
    return sums


def test_rows_that_changed_are_answered_with_noise(federation: Federation, monkeypatch, caplog) -> None:
    """… which looks the same, is charged, and is written into the site's log."""
    folder, sums = federation.site(SITE), sums_of(monkeypatch)
    config = local_run(federation, privacy={"sampling_rate": 1.0})
    first = shown(ask(DeployedHost(folder), config))
    assert np.linalg.norm(sums[-1]) > 0
    write_csv(source(federation), sentences(119, 10))
    host = DeployedHost(folder)  # as after a restart of the worker: no new digest is taken
    second = ask(host, config, 2)
    assert {**shown(second)[wire.SITE], wire.ROUND: 1}.keys() == {**first[wire.SITE], wire.ROUND: 1}.keys()
    assert shown(second)[wire.ARRAYS] == first[wire.ARRAYS]
    assert np.linalg.norm(sums[-1]) == 0
    assert host.site.ledger.charge("default", "r1").used == 2
    assert "run: confide site check" in caplog.text
    checks = {check.what: check for check in check_site(folder)}
    assert checks["contents"].passed, checks["contents"].detail
    shown(ask(DeployedHost(folder), local_run(federation, "r2", privacy={"sampling_rate": 1.0})))
    assert np.linalg.norm(sums[-1]) > 0


def test_a_run_whose_rows_change_is_answered_with_noise(federation: Federation, caplog, monkeypatch) -> None:
    """An error would tell the server that a record came or went, and nothing would be charged for it."""
    folder, config = federation.site(SITE), local_run(federation, privacy={"sampling_rate": 1.0})
    sums = sums_of(monkeypatch)
    shown(ask(DeployedHost(folder), config))
    assert np.linalg.norm(sums[-1]) > 0
    write_csv(source(federation), sentences(119, 10))
    list(check_site(folder))
    shown(ask(DeployedHost(folder), config, 2))
    assert np.linalg.norm(sums[-1]) == 0
    assert "round 2 is answered with noise alone" in caplog.text
    assert "start a new run" in caplog.text


BAD_ROWS = {
    "a class that no run has": ("a story", "neither"),
    "no text": ("", "positive"),
    "a text beyond all positions": ("good film " * 400, "positive"),
    "no class": ("a story", ""),
}


BAD_LINES = {"broken bytes": b"caf\xe9,positive\n", "too many columns": b"a,b,c,d\n"}


@pytest.mark.parametrize("kind", [*BAD_ROWS, *BAD_LINES, "the file itself"])
def test_what_a_record_is_changes_no_answer(tmp_path: Path, kind: str) -> None:
    """An error, or its absence, read a site's labels out for ε = 0."""
    found = []
    for there in (False, True):
        (tmp_path / str(there)).mkdir()
        federation = Federation(tmp_path / str(there), 1)
        federation.make()
        rows = sentences(60, 10)
        path = write_csv(
            source(federation), [*rows[:30], *([BAD_ROWS[kind]] if there and kind in BAD_ROWS else []), *rows[30:]]
        )
        if there and kind not in BAD_ROWS:
            more = {"broken bytes": b"caf\xe9,positive\n", "too many columns": b"a,b,c,d\n", "the file itself": b"\n"}[
                kind
            ]
            path.write_bytes(b"" if kind == "the file itself" else path.read_bytes() + more)
        config, host = local_run(federation), DeployedHost(federation.site(SITE))
        replies = [shown(ask(host, config, number)) for number in (1, 2)]
        found.append([{**reply, wire.SITE: {**reply[wire.SITE]}} for reply in replies])
    assert repr(found[0]) == repr(found[1])


def test_an_error_in_training_is_no_error_to_the_server(federation: Federation, monkeypatch, caplog) -> None:
    host, config = DeployedHost(federation.site(SITE)), local_run(federation)
    usual = shown(ask(host, config))

    def fails(self, part, draw, length=None):
        raise RuntimeError("what the text of record 7 was")

    monkeypatch.setattr(Work, "losses", fails)
    failed = shown(ask(host, config, 2))
    assert failed[wire.ARRAYS] == usual[wire.ARRAYS]
    assert failed[wire.SITE].keys() == usual[wire.SITE].keys()
    assert "RuntimeError" in caplog.text
    assert "record 7" not in caplog.text


def test_two_names_for_the_same_rows_are_one_budget_or_none(federation: Federation) -> None:
    folder = federation.site(SITE)
    text = (folder / "site.toml").read_text()
    twin = '[datasets.twin]\nsource = "../copy.csv"\n'
    (federation.folder / "copy.csv").write_bytes(source(federation).read_bytes())
    (folder / "site.toml").write_text(text + twin)
    with pytest.raises(DeploymentError, match=r'hold the same rows.*same_as = "default"'):
        DeployedHost(folder)
    assert not {check.what: check for check in check_site(folder)}["contents"].passed
    (folder / "site.toml").write_text(text + twin + 'same_as = "default"\n')
    host = DeployedHost(folder)
    shown(ask(host, local_run(federation, data={"name": "twin"})))
    assert host.site.ledger.charge("default", "r1").used == 1


def test_rows_that_were_charged_under_another_name_are_found_before_a_task(federation: Federation) -> None:
    """In a task the refusal would depend on whether the rows are those of before, and nothing would be charged."""
    folder = federation.site(SITE)
    shown(ask(DeployedHost(folder), local_run(federation)))
    text = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(text.replace("[datasets.default]", "[datasets.ward]"))
    with pytest.raises(DeploymentError, match=r"'ward' holds the records that were charged as 'default'"):
        DeployedHost(folder)
    assert not {check.what: check for check in check_site(folder)}["contents"].passed
    (folder / "site.toml").write_text(text + '[datasets.ward]\nsame_as = "default"\nsource = "../copy.csv"\n')
    (federation.folder / "copy.csv").write_bytes(source(federation).read_bytes())
    shown(ask(DeployedHost(folder), local_run(federation, "r2", data={"name": "ward"})))


@pytest.mark.parametrize("other", ["text = 'label'", "prompt = 'label'\nresponse = 'text'"])
def test_two_names_for_one_file_are_one_budget_or_none(federation: Federation, other: str) -> None:
    """Read with other columns, they are still the same people's rows."""
    folder = federation.site(SITE)
    text = (folder / "site.toml").read_text()
    (federation.folder / "link.csv").symlink_to(source(federation))
    (folder / "site.toml").write_text(text + f'[datasets.twin]\nsource = "../link.csv"\n{other}\n')
    with pytest.raises(DeploymentError, match=r'hold the same rows.*same_as = "default"'):
        DeployedHost(folder)


def test_rules_hold_from_the_moment_they_are_written(federation: Federation) -> None:
    folder = federation.site(SITE)
    host, run = DeployedHost(folder), changed(local_run(federation), {"run": {"rounds": 2}})
    shown(ask(host, run, 1))
    text = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(text.replace("[policy]", "[policy]\nmin_noise_multiplier = 50.0"))
    facts = wire.task_config()
    facts[wire.ROUND] = 2
    arrays = wire.arrays_to_record(host.worker().model.initial)
    assert "noise multiplier" in reason(
        handle(message("train", RecordDict({wire.ARRAYS: arrays, wire.CONFIG: facts})), host)
    )
    assert host.site.ledger.charge("default", "r1").used == 1


def test_a_server_learns_no_folder_and_no_coins(federation: Federation) -> None:
    """A damaged file of the site's, a policy's list of folders, other data sets: the reason stays at the site."""
    folder = federation.site(SITE)
    host, run = DeployedHost(folder), local_run(federation)
    query = RecordDict({wire.CONFIG: ConfigRecord({"version": "0"})})
    reply = handle(message("query.reveal", query), host.enter(run.to_flat()))
    assert "no canaries" in reason(reply)
    (folder / CONTENTS).write_text("no json")
    host._workers.clear()
    reply = handle(message("query.reveal", query), host.enter(run.to_flat()))
    assert "DeploymentError at this site" in reason(reply)
    (folder / CONTENTS).unlink()
    host = DeployedHost(folder)
    text = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(text.replace("[policy]", '[policy]\nbackbones = ["/srv/secret"]'))
    reply = handle(message("query.reveal", query), host.enter(run.to_flat()))
    assert "its policy refuses the run: backbone" in reason(reply)
    assert "secret" not in reason(reply)


def test_a_worker_that_ends_has_kept_an_answer(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of 70 MB, or 6,000 rows where 20 were in time, was told to the server by an error: 0 steps of noise."""
    folder, config = federation.site(SITE), local_run(federation)

    class Ended(BaseException):
        """As if the process were gone."""

    def end(*_: object) -> None:
        raise Ended

    usual = shown(ask(DeployedHost(folder), changed(config, {"run": {"id": "r0"}})))
    with monkeypatch.context() as patched:
        patched.setattr("confide.client.worker.contain", end)
        patched.setattr("confide.client.handlers.contain", end)
        patched.setattr("confide.client.worker.Worker._work", end)
        host = DeployedHost(folder)
        with pytest.raises(Ended):
            ask(host, config)
    host = DeployedHost(folder)  # the next process
    again = shown(ask(host, config))
    assert again.keys() == usual.keys()
    assert host.site.ledger.charge("default", "r1").used == 1
    assert ask(host, config).content == ask(host, config).content


def test_an_answer_is_kept_whatever_the_clock_says(federation: Federation) -> None:
    """Set back, it would make the newest answer the oldest one, and a worker that died afterwards would show."""
    folder = federation.site(SITE)
    host, config = DeployedHost(folder), local_run(federation)
    (folder / "replies").mkdir()
    for number in range(20):
        old = folder / "replies" / f"{number}.train"
        old.write_bytes(b"")
        os.utime(old, (2**32 + number, 2**32 + number))
    answer = shown(ask(host, config))
    assert shown(ask(host, config)) == answer
    assert host.site.ledger.charge("default", "r1").used == 1
    assert len(list((folder / "replies").iterdir())) == deployed._REPLIES_KEPT
    newest = max((folder / "replies").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    assert newest == host._reply_path("train")


def test_an_answer_is_kept_for_its_own_run_alone(federation: Federation) -> None:
    """A run id that returns with another configuration gets no stored answer: it is refused."""
    host = DeployedHost(federation.site(SITE))
    shown(ask(host, local_run(federation)))
    reply = ask(host, local_run(federation, training={"learning_rate": 0.7}))
    assert "returns with another configuration" in reason(reply)


def test_a_folder_is_no_hub_id(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run named a folder below the worker's own; and made the site ask the hub."""
    folder = federation.site(SITE)
    monkeypatch.chdir(federation.folder)
    (federation.folder / "wards").mkdir()
    shutil.copytree(federation.folder / "bert", federation.folder / "wards" / "model")
    monkeypatch.setattr("confide.common.model.backbones._snapshot", no_network)
    run = local_run(federation)
    for name in ("wards/model", "somebody/model"):
        other = RunConfig.parse(
            merged(run.model_dump(mode="json", exclude_none=True), {"model": {"backbone": name}}), ""
        )
        with pytest.raises(PolicyError, match=r"is not at this site.*policy\.backbones"):
            DeployedHost(folder).enter(other.to_flat()).worker()


def no_network(hub_id: str, offline: bool) -> str:
    assert offline
    raise FileNotFoundError(hub_id)


def test_digests_are_kept_private_and_tell_nobody_anything(federation: Federation) -> None:
    folder = federation.site(SITE)
    DeployedHost(folder)
    path = folder / CONTENTS
    assert path.stat().st_mode & 0o777 == 0o600
    kept = json.loads(path.read_text())
    config, _ = load_site(folder)
    host = DeployedHost(folder)
    assert kept == {"default": contents.content_of(folder, host.site.ledger, "default").hex()}
    path.write_text("no json")
    with pytest.raises(DeploymentError, match="confide site check"):
        contents.take_digests(folder, config, host.site.ledger)


@pytest.mark.parametrize("named", ["rows", "owner/dataset", "rows.arrow", "rows.json"])
def test_a_source_whose_values_are_not_read_one_by_one_is_refused(federation: Federation, named: str) -> None:
    """A folder was read by a loader that infers types over columns: one label of 0.5 made 0.0 and 1.0 of all others."""
    folder = federation.site(SITE)
    text = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(re.sub(r'source = "[^"]*"', f'source = "{named}"', text))
    with pytest.raises(ConfigError, match=f"received '{named}'; allowed: a file .* or an SQL url"):
        data_section(folder, load_site(folder)[0].datasets["default"], DataSection(name="default", test=""))
