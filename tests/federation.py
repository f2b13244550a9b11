"""A whole federation as real processes on this machine, over TLS with authentication: for tests and the soak."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import tomli_w

from confide.client.deploy.folder import load_site
from confide.client.deploy.setup import add_peers, init_site
from confide.common.ledger.verify import audit
from confide.common.processes import end_group, free_port
from confide.server.deploy import deployment
from confide.tests import tiny

BACKBONE = "tiny/bert"
PERSON = "patient"


class Federation:
    """One server and `count` sites with csv, parquet and SQLite in turn; ended by `close`."""

    def __init__(
        self, folder: Path, count: int, rows: int = 120, prefix: list[list[str]] | None = None, *, persons: int = 0
    ) -> None:
        """prefix: a command before each process, the server's first: ["ip", "netns", "exec", …]. persons: at each site,
        among whom the rows are dealt, and whom site.toml names; 0: a row is nobody's."""
        self.folder, self.names = folder, [f"site-{i + 1}" for i in range(count)]
        self.server = folder / "server"
        self._prefix = prefix or [[] for _ in range(count + 1)]
        self._processes: dict[str, subprocess.Popen] = {}
        tiny.save_bert(folder / "bert")
        tiny.save_data(folder)
        self.host = "127.0.0.1"
        self.port, self.operator_port = free_port(), free_port()
        self._count, self._rows, self._persons = count, rows, persons

    def make(self, epsilon: float = 50.0, poll: float = 0.2, **policy: Any) -> None:
        """All folders, as operators would make them."""
        deployment.init_server(self.server, [self.host], self.port)
        text = (self.server / "server.toml").read_text()
        text = text.replace("internal_port = 8000", f"internal_port = {free_port()}")
        text = text.replace('host = "0.0.0.0"', f'host = "{self.host}"')
        text = text.replace("# operator_port = 8444", f"operator_port = {self.operator_port}")
        (self.server / "server.toml").write_text(text + f'[backbones]\n"{BACKBONE}" = "../bert"\n')
        for number, name in enumerate(self.names):
            self._make_site(number, name, epsilon, poll, policy)
        publics = {name: (self.site(name) / "site.pub").read_text() for name in self.names}
        for name, line in publics.items():
            add_peers(self.site(name), list(publics.values()))
            deployment.add_site(self.server, name, line)

    def _make_site(self, number: int, name: str, epsilon: float, poll: float, policy: dict[str, Any]) -> None:
        rows = [(*row, *self._whose(i)) for i, row in enumerate(tiny.sentences(self._rows, 10 + number))]
        source = write_source(self.folder, number, rows)
        init_site(self.site(name), name, f"{self.host}:{self.port}", self.server / "ca.crt", "default", source, epsilon)
        config, _ = load_site(self.site(name))
        content = config.model_dump(mode="json", exclude_none=True)
        content["backbones"] = {BACKBONE: "../bert"}
        content["policy"] |= {"modes": ["none", "local", "distributed", "client"], **policy}
        content["site"]["poll"] = poll
        if self._persons:
            content["datasets"]["default"]["person"] = PERSON
        if "none" in policy.get("modes", ()):
            del content["datasets"]["default"]["epsilon"]
        (self.site(name) / "site.toml").write_text(tomli_w.dumps(content))

    def _whose(self, row: int) -> list[str]:
        return [f"p{row % self._persons}"] if self._persons else []

    def site(self, name: str) -> Path:
        return self.folder / name

    def start(self, name: str) -> subprocess.Popen:
        """'server', or a site's name."""
        what = ["server", "run", str(self.server)] if name == "server" else ["site", "run", str(self.site(name))]
        prefix = self._prefix[0 if name == "server" else self.names.index(name) + 1]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "confide.cli.main", *what],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes[name] = process
        return process

    def start_all(self) -> None:
        self.start("server")
        self.wait_for_server()
        for name in self.names:
            self.start(name)

    def wait_for_server(self, seconds: float = 60.0) -> None:
        until = time.monotonic() + seconds
        while not deployment.server_status(self.server).healthy_gateway:
            assert time.monotonic() < until, self.log("server")
            time.sleep(0.3)

    def kill(self, name: str) -> None:
        """As a power cut would."""
        process = self._processes.pop(name)
        children = descendants(process.pid)
        for pid in (process.pid, *children):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()

    def stop(self, name: str) -> int:
        """As an operator would; the exit status."""
        process = self._processes.pop(name)
        process.terminate()
        return process.wait(timeout=30)

    def runs(self, name: str) -> bool:
        """Whether it was started, and not ended since."""
        return name in self._processes

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text()[-5000:] if path.is_file() else ""

    def pids(self, name: str) -> list[int]:
        """The process and its descendants."""
        process = self._processes[name]
        return [process.pid, *descendants(process.pid)]

    def close(self) -> None:
        for process in self._processes.values():
            children = descendants(process.pid)
            end_group(process)
            for pid in children:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def spent(self) -> dict[str, dict[str, Any]]:
        """The newest run in each site's ledger, by site; every ledger must hold."""
        found = {}
        for name in self.names:
            outcome = audit(self.site(name) / "ledger" / "ledger.db")
            assert outcome.holds, outcome.findings
            found[name] = outcome.datasets[0]["runs"][-1]
        return found

    def command(self, *arguments: str, timeout: float = 300.0) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "confide.cli.main", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env={**os.environ, "COLUMNS": "200"},
        )

    def report(self, run: str) -> dict[str, Any]:
        return json.loads((self.server / "runs" / run / "report.json").read_text())


def write_source(folder: Path, number: int, rows: list[tuple[str, ...]]) -> str:
    """csv, parquet or SQLite, by turns; the source as site.toml names it. rows: text, label and, maybe, whose it is."""
    path = folder / f"data-{number}"
    header = ("text", "label", PERSON)[: len(rows[0])]
    if number % 3 == 0:
        tiny.write_csv(path.with_suffix(".csv"), rows, header)
        return f"../{path.name}.csv"
    if number % 3 == 1:
        columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
        pyarrow.parquet.write_table(pa.table(columns), path.with_suffix(".parquet"))
        return f"../{path.name}.parquet"
    with sqlite3.connect(path.with_suffix(".db")) as database:
        database.execute(f"create table messages ({', '.join(f'{name} text' for name in header)})")
        places = "insert into messages values (?, ?, ?)" if PERSON in header else "insert into messages values (?, ?)"
        database.executemany(places, rows)
    return f"sqlite:///../{path.name}.db#messages"


def descendants(pid: int) -> list[int]:
    """Processes below one, from /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def run_content(rounds: int, sites: int, rows: int = 120) -> dict[str, Any]:
    """A small distributed run."""
    return {
        "run": {"name": "tiny", "rounds": rounds, "seed": 3},
        "model": {"backbone": BACKBONE, "max_length": 32, "lora": {"rank": 2, "alpha": 4}},
        "data": {"test": "test.csv"},
        "privacy": {
            "mode": "distributed",
            "epsilon": 8.0,
            "sampling_rate": 0.1,
            "declared_examples": rows * sites,
        },
        "training": {"learning_rate": 0.02, "batch_size": 16},
        "server": {"deadline": 60.0},
    }


def write_run(folder: Path, content: dict[str, Any]) -> Path:
    content = {**content, "data": {**content["data"], "test": str(folder / content["data"]["test"])}}
    path = folder / f"{content['run']['name']}.toml"
    path.write_text(tomli_w.dumps(content))
    return path


@contextmanager
def running(folder: Path, count: int, **options: Any) -> Iterator[Federation]:
    """A federation that is up."""
    federation = Federation(folder, count, persons=options.pop("persons", 0))
    federation.make(**options)
    try:
        federation.start_all()
        yield federation
    finally:
        federation.close()
