"""What a Ray cluster cannot do is told at once, before anything is loaded or written."""

import importlib.util
import os
import socket
import time
from pathlib import Path

import pytest

from confide.common.config.tables import EngineSection
from confide.common.errors import ConfigError
from confide.simulations import ray_cluster
from confide.simulations.ray_cluster import cluster_address, require_cluster


@pytest.fixture(autouse=True)
def _as_if_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)


def refused(**engine: object) -> str:
    with pytest.raises(ConfigError) as caught:
        require_cluster(EngineSection.model_validate({"kind": "ray", **engine}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_more_cores_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = os.cpu_count() or 1
    require_cluster(EngineSection(kind="ray", cpus_per_client=cores))
    told = f"engine.cpus_per_client: received {cores + 1}; allowed: at most {cores}, the cores of this machine"
    assert refused(cpus_per_client=cores + 1).startswith(told)
    monkeypatch.setattr(ray_cluster, "_require_answer", lambda address: None)
    monkeypatch.setattr(ray_cluster, "_cores", lambda address: [2.0, 4.0])
    require_cluster(EngineSection(kind="ray", cpus_per_client=4, address="h:1"))
    assert "at most 4, the cores of the largest machine of h:1" in refused(cpus_per_client=5, address="h:1")


def test_a_dead_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        dead = f"127.0.0.1:{taken.getsockname()[1]}"
        assert "where nothing answers (Connection refused)" in refused(address=dead)
        assert "where nothing answers" in refused(address=f"ray://{dead}")
        monkeypatch.setenv("RAY_ADDRESS", dead)
        assert "where nothing answers" in refused()


@pytest.mark.parametrize("named", [None, ""])
def test_without_an_address_a_cluster_of_its_own(named: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if named is not None:
        monkeypatch.setenv("RAY_ADDRESS", named)
    require_cluster(EngineSection(kind="ray"))
    assert cluster_address(EngineSection(kind="ray")) == "local"  # and not what ray's own file of this machine says
    assert cluster_address(EngineSection(kind="ray", address="h:1")) == "h:1"
    assert "allowed: HOST:PORT" in refused(address="somewhere")
    assert "where nothing answers" in refused(address="127.0.0.1:99999999")


def test_something_else_that_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_PROBE", "print('imported', flush=True); import time; time.sleep(60)")
    monkeypatch.setattr(ray_cluster, "_ANSWER_SECONDS", 0.5)
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "not as a cluster" in refused(address=f"127.0.0.1:{server.getsockname()[1]}")
    assert time.monotonic() - started < 10


def test_a_long_or_missing_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    assert "set RAY_TMPDIR to a shorter folder" in refused()
    monkeypatch.setenv("RAY_TMPDIR", "/nosuch")
    assert refused().startswith("RAY_TMPDIR: received /nosuch")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # noqa: S108
    require_cluster(EngineSection(kind="ray"))


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "needs ray" in refused()
