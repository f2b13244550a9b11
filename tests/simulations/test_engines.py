"""In-process and Ray: the same run, the same adapter; the grid's other calls; a bundle without code."""

import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.numpy import load_file

from confide.common.bundle import write_bundle
from confide.common.config.run import RunConfig
from confide.common.errors import ConfideError, ConfigError
from confide.common.processes import last_error, tool
from confide.simulations import ray
from confide.simulations.app import client as app
from confide.simulations.local import LocalGrid
from confide.simulations.run import simulate


@pytest.mark.slow
def test_both_engines_give_the_same_adapter(make_config, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    adapters = []
    for kind in ("inprocess", "ray"):
        config = make_config(
            run={"rounds": 2, "output": str(tmp_path / kind)},
            training={"local_steps": 2},
            server={"cohort": 3},
            engine={"kind": kind},
        )
        adapters.append(load_file(simulate(config) / "adapter" / "adapter_model.safetensors"))
    first, second = adapters
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-5, atol=1e-6)


def test_a_bundle_carries_configuration_only(make_config, tmp_path: Path) -> None:
    config = make_config(model={"lora": {"targets": ("query",)}}, data={"labels": ("a", "b")})
    write_bundle(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]
    content = tomllib.loads((tmp_path / "pyproject.toml").read_text())
    assert content["project"]["dependencies"] == []
    app_section = content["tool"]["flwr"]["app"]
    assert app_section["components"]["clientapp"] == "confide.client.app:app"

    def flatten(nested: dict, prefix: str = "") -> dict:
        flat = {}
        for key, value in nested.items():
            flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return flat

    assert RunConfig.from_flat(flatten(app_section["config"])) == config


def test_a_superlink_that_does_not_start_is_reported(make_config, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("ray")
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(ray, "tool", lambda name: "/bin/false")
    with pytest.raises(ConfideError, match="did not start"):
        ray.run_on_ray(make_config())


def test_missing_commands_are_named(monkeypatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="Flower's command 'flwr' is missing"):
        tool("flwr")


def test_logs_end_in_their_most_telling_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("start\nRoundError: 0 sites answered\nbye\n")
    assert last_error(log) == "RoundError: 0 sites answered"
    log.write_text("")
    assert last_error(log) == "the log is empty"


def test_sites_side_by_side_give_the_same_bits(make_config, tmp_path: Path) -> None:
    adapters = []
    for workers in (1, 3):
        config = make_config(run={"output": str(tmp_path / str(workers))}, engine={"workers": workers})
        adapters.append((simulate(config) / "adapter" / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_clients_after_the_deadline_do_not_run(workers: int) -> None:
    slow, ran = ClientApp(), []

    @slow.query("wait")
    def wait(message: Message, context: Context) -> Message:
        ran.append(message.metadata.dst_node_id)
        time.sleep(0.3)
        return Message(RecordDict(), reply_to=message)

    grid = LocalGrid(slow, {}, 20, workers)
    messages = [grid.create_message(RecordDict(), "query.wait", node, "1") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages, timeout=0.2))
    assert [reply.metadata.src_node_id for reply in replies] == sorted(ran)
    assert 1 <= len(ran) <= workers


def test_messages_can_be_pushed_and_pulled(make_config) -> None:
    config = make_config(run={"id": "r"}, data={"partition": {"clients": 3}})
    grid = LocalGrid(app, config.to_flat(), 3)
    content = RecordDict({"c": ConfigRecord({"x": 1})})
    messages = [grid.create_message(content, "query.hello", node, "1") for node in grid.get_node_ids()]
    ids = list(grid.push_messages(messages))
    replies = list(grid.pull_messages(ids))
    assert [reply.content.config_records["site"]["name"] for reply in replies] == ["site-1", "site-2", "site-3"]
    assert list(grid.pull_messages(ids)) == []
    grid.set_run(grid.run)


def test_tasks_that_cannot_be_read_are_refused() -> None:
    grid = LocalGrid(app, {}, 1)
    for content, text in (
        (RecordDict(), "the task lacks 'config'"),
        (RecordDict({"config": ConfigRecord({"version": "0", "server-round": 1})}), "lacks 'arrays'"),
    ):
        (reply,) = grid.send_and_receive([Message(content, 2, "train")])
        assert reply.has_error()
        assert text in str(reply.error.reason)
