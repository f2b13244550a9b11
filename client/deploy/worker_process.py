"""The process that works for a site: started, watched, restarted."""

import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ...common.errors import WorkerError

log = logging.getLogger("confide.site")
_WORKER_START_SECONDS = 120.0


class WorkerProcess:
    """The resident worker of `resident.py`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._home = Path(tempfile.mkdtemp(prefix="confide-"))  # mode 0700
        self.socket = self._home / "worker.sock"
        self._process: subprocess.Popen | None = None

    def ensure(self) -> None:
        """Raises WorkerError when it does not start."""
        if self.alive:
            return
        if self._process is not None:
            log.error("the worker ended with status %s; it is restarted", self._process.returncode)
        self.socket.unlink(missing_ok=True)
        environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
        command = [
            sys.executable,
            "-m",
            "confide.client.deploy.resident",
            str(self._folder.resolve()),
            str(self.socket),
            str(os.getpid()),
        ]
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)  # noqa: S603
        until = time.monotonic() + _WORKER_START_SECONDS
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise WorkerError("the worker does not start; its own words are above, or in the service's log")
            time.sleep(0.05)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def close(self) -> None:
        self.stop()
        self.socket.unlink(missing_ok=True)
        self._home.rmdir()
