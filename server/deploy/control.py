"""The operator's side of a SuperLink: runs are submitted, listed and stopped, sites registered."""

import hashlib
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor

from ...common.bundle import write_bundle
from ...common.config.run import RunConfig
from ...common.errors import DeploymentError


class RefusedError(DeploymentError):
    """The SuperLink is there, and says no."""


@dataclass(frozen=True)
class RunStatus:
    """One run as the SuperLink knows it."""

    number: int
    status: str
    """pending, starting, running, or finished with how it ended"""
    started: str

    @property
    def over(self) -> bool:
        return self.status.startswith("finished")


class Control:
    """A connection to a SuperLink's control interface."""

    def __init__(self, url: str, ca: Path) -> None:
        try:
            context = ssl.create_default_context(cafile=str(ca))
        except OSError as error:
            raise DeploymentError(f"{ca}: cannot be read: {error.strerror}") from None
        interceptors = [RuntimeVersionHttpInterceptor(component_name="flwr CLI")]
        self._url = url
        self._client = ControlHttpClient(url, interceptors=interceptors, verify=context, timeout=30.0)

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def _call(self, name: str, request: Any) -> Any:
        """Raises DeploymentError with the server's reason; RefusedError, where it is there."""
        try:
            return getattr(self._client, name)(request)
        except httpx.HTTPStatusError as error:
            raise RefusedError(
                f"the SuperLink at {self._url} refuses {name}: HTTP {error.response.status_code}"
            ) from None
        except (httpx.HTTPError, OSError) as error:
            raise DeploymentError(
                f"no SuperLink at {self._url} ({type(error).__name__}); start it with: confide server run"
            ) from None

    def submit(self, config: RunConfig) -> int:
        """Starts a run; its number at the SuperLink."""
        with tempfile.TemporaryDirectory(prefix="confide-") as scratch:
            write_bundle(config, Path(scratch))
            content = build_fab_from_disk(Path(scratch))
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        answer = self._call("StartRun", StartRunRequest(fab=fab_to_proto(fab)))
        if not answer.HasField("run_id"):
            raise DeploymentError("the SuperLink did not start the run")
        return int(answer.run_id)

    def runs(self, number: int | None = None) -> list[RunStatus]:
        """All runs, newest first; or one."""
        answer = self._call("ListRuns", ListRunsRequest(run_id=number))
        found = []
        for run in answer.run_dict.values():
            ended = f"{run.status.status}:{run.status.sub_status}" if run.status.sub_status else run.status.status
            found.append(RunStatus(int(run.run_id), ended, run.pending_at))
        return sorted(found, key=lambda run: run.started, reverse=True)

    def stop(self, number: int) -> None:
        self._call("StopRun", StopRunRequest(run_id=number))

    def nodes(self) -> dict[bytes, Any]:
        """Registered nodes by their public key."""
        answer = self._call("ListNodes", ListNodesRequest())
        return {node.public_key: node for node in answer.nodes_info if node.status != "unregistered"}

    def register(self, public_key: bytes, name: str) -> None:
        self._call("RegisterNode", RegisterNodeRequest(public_key=public_key, name=name))

    def unregister(self, number: int) -> None:
        self._call("UnregisterNode", UnregisterNodeRequest(node_id=number))
