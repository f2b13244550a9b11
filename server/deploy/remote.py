"""A federation's runs from another machine: the other end of `operators.py`.

The folder of credentials holds ca.crt, operator.crt and operator.key, copied from the server's.
"""

import base64
import json
import ssl
import time
from pathlib import Path
from typing import Any

import httpx

from ... import __version__
from ...common.config.run import RunConfig
from ...common.errors import ConfideError, ConfigError, DeploymentError
from ...common.run_folder import PROGRESS, make_room, require_room
from ...common.whole import whole_file
from .operators import SENT, VERSION
from .runs import RunRow, Submitted

_POLL_SECONDS, _CALL_SECONDS = 1.0, 60.0
_PATIENCE_SECONDS = 600.0
"""how long a run is followed although the server does not answer"""


class RemoteRuns:
    """`Runs` over the operators' gateway."""

    def __init__(self, url: str, credentials: Path) -> None:
        """Raises DeploymentError when the credentials cannot be read."""
        self._url = url.rstrip("/")
        try:
            context = ssl.create_default_context(cafile=str(credentials / "ca.crt"))
            context.load_cert_chain(credentials / "operator.crt", credentials / "operator.key")
        except OSError as error:
            raise DeploymentError(
                f"{credentials}: the operator's credentials cannot be read ({error.strerror or type(error).__name__}); "
                "copy ca.crt, operator.crt and operator.key of the server's folder there, or name another with "
                "--credentials"
            ) from None
        self._context = context

    def _call(self, method: str, path: str, content: Any = None) -> Any:
        """Raises the server's own error, or _ServerAwayError."""
        answer = self._request(method, path, content)
        try:
            return answer.json()
        except ValueError:
            raise DeploymentError(f"{self._url}: answers what is no JSON; is this the operators' gateway?") from None

    def _request(self, method: str, path: str, content: Any = None) -> httpx.Response:
        try:
            answer = httpx.request(
                method,
                self._url + path,
                json=content,
                verify=self._context,
                timeout=_CALL_SECONDS,
                headers={VERSION: __version__},
            )
        except (httpx.HTTPError, OSError) as error:
            raise _ServerAwayError(
                f"{self._url} does not answer ({type(error).__name__}: {str(error)[:100]}); is operator_port set in "
                "server.toml, and is operator.crt of this server?"
            ) from None
        if answer.status_code == 400:
            said = answer.json()
            raise (ConfigError if said.get("exit") == 2 else DeploymentError)(str(said.get("error")))
        if answer.status_code != 200:
            raise DeploymentError(f"{self._url}{path}: HTTP {answer.status_code}")
        return answer

    def start(self, config: RunConfig, *, overwrite: bool = False) -> Submitted:
        folder = config.output
        require_room(folder, overwrite=overwrite)
        files = {}
        for key, table in SENT.items():
            source = getattr(getattr(config, table), key)
            if source is not None and Path(source).is_file():
                content = base64.b64encode(Path(source).read_bytes()).decode()
                files[key] = {"name": Path(source).name, "content": content}
        submission = {"configuration": config.to_toml(), "files": files, "overwrite": overwrite}
        answer = self._call("POST", "/runs", submission)
        make_room(folder)
        return Submitted(str(answer["name"]), folder)

    def proceed(self, run: Path) -> Submitted:
        answer = self._call("POST", f"/runs/{run.name}/resume")
        run.mkdir(parents=True, exist_ok=True)
        return Submitted(str(answer["name"]), run)

    def follow(self, run: Submitted) -> None:
        """The progress is mirrored in the run's folder; at the end the results come there."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                state = self._call("GET", f"/runs/{run.name}")
                until = time.monotonic() + _PATIENCE_SECONDS
            except _ServerAwayError:
                if time.monotonic() > until:
                    raise
            else:
                if state["over"]:
                    break
                if state["progress"] is not None:
                    _put(run.folder / PROGRESS, json.dumps(state["progress"]).encode())
            time.sleep(_POLL_SECONDS)
        (run.folder / PROGRESS).unlink(missing_ok=True)
        if state["reason"] is not None:
            raise ConfideError(str(state["reason"]))
        self._fetch(run)

    def _fetch(self, run: Submitted) -> None:
        for name in self._call("GET", f"/runs/{run.name}/results"):
            path = run.folder / str(name)
            if not path.resolve().is_relative_to(run.folder.resolve()):
                raise DeploymentError(f"{self._url}: names a result outside the run's folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            _put(path, self._request("GET", f"/runs/{run.name}/results/{name}").content)

    def rows(self) -> list[RunRow]:
        return [RunRow(**row) for row in self._call("GET", "/runs")]

    def stop(self, name: str) -> None:
        self._call("POST", f"/runs/{name}/stop")


class _ServerAwayError(DeploymentError):
    """No answer: it may come back."""


def _put(path: Path, content: bytes) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(content)
