"""Deployment, measured with real processes: `python -m benchmarks.deployment [accuracy] [network] [soak] [latency]`.

`network` needs root: it makes network namespaces, and removes them. `soak` takes SOAK_ROUNDS (500) rounds.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.run import Table, play
from confide.client.deploy.resident import ask
from confide.client.deploy.worker_process import WorkerProcess
from confide.common import wire
from confide.common.bundle import write_bundle
from confide.common.config.run import load
from confide.server.deploy.runs import declare
from confide.simulations.run import simulate
from confide.tests.federation import Federation, run_content, write_run
from confide.tests.tiny import merged, sentences, write_csv

SITES, ROWS = 5, 400
NETWORK = "10.77.0"
DELAY, LOSS = 0.05, 0.01


def wait_for(federation: Federation, run: str, rounds: int, seconds: float = 3600.0) -> None:
    metrics = federation.server / "runs" / run / "metrics.jsonl"
    until = time.monotonic() + seconds
    while not metrics.is_file() or len(metrics.read_text().splitlines()) < rounds:
        if time.monotonic() > until:
            raise SystemExit(federation.log("server") + federation.log("site-1"))
        time.sleep(0.5)


def finish(federation: Federation, run: str, seconds: float = 3600.0) -> dict:
    """The report of a run that was submitted detached."""
    until = time.monotonic() + seconds
    while not (federation.server / "runs" / run / "report.json").is_file():
        if time.monotonic() > until:
            raise SystemExit(federation.log("server") + federation.log("site-1"))
        time.sleep(0.5)
    return federation.report(run)


def submit(federation: Federation, content: dict, *arguments: str) -> None:
    path = write_run(federation.folder, content)
    done = federation.command("run", str(path), "--server", str(federation.server), "--detach", *arguments)
    if done.returncode:
        raise SystemExit(done.stderr)


def resume(federation: Federation, run: str) -> None:
    folder = federation.server / "runs" / run
    done = federation.command("run", "--server", str(federation.server), "--resume", str(folder), "--detach")
    if done.returncode:
        raise SystemExit(done.stderr)


def restart_server(federation: Federation, run: str) -> None:
    federation.kill("server")
    federation.start("server")
    federation.wait_for_server()
    resume(federation, run)


def accuracy(folder: Path) -> Table:
    """The same recipe as a deployment and as simulations; noise is fresh each time."""
    rounds = 30
    content = run_content(rounds, SITES, ROWS)
    content["privacy"]["epsilon"] = 8.0
    federation = Federation(folder, SITES, ROWS)
    federation.make()
    try:
        federation.start_all()
        submit(federation, content)
        report = finish(federation, "tiny")
        seconds = [row["seconds"] for row in report["rounds"]]
    finally:
        federation.close()
    rows = [row for number in range(SITES) for row in sentences(ROWS, 10 + number)]
    write_csv(folder / "all.csv", rows)
    simulated = merged(content, {"data": {"train": str(folder / "all.csv"), "partition": {"clients": SITES}}})
    simulated["model"]["backbone"] = str(folder / "bert")
    found = []
    for number in range(8):
        path = write_run(folder, simulated)
        simulate(load(path, [f"run.output={folder / f'sim-{number}'}"]))
        found.append(json.loads((folder / f"sim-{number}" / "report.json").read_text())["after"]["accuracy"])
    return [
        ("deployment: 5 sites (csv, parquet, SQLite), TLS, `distributed`, ε = 8, 30 rounds: accuracy",
         f"{report['after']['accuracy']:.3f}", ""),
        ("… 8 simulations of the same recipe: mean (lowest to highest)",
         f"{np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})", "the same within noise"),
        ("… seconds a round after the first, median (two exchanges, 2 cores for everything)",
         f"{np.median(seconds[1:]):.1f}", ""),
        ("… files of code in what was submitted", str(code_files(federation, content)), "0"),
    ]  # fmt: skip


def code_files(federation: Federation, content: dict) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        config = declare(federation.server, load(write_run(federation.folder, content)))
        write_bundle(config, Path(scratch))
        return sum(path.name != "pyproject.toml" for path in Path(scratch).rglob("*") if path.is_file())


def latency(folder: Path) -> Table:
    """What handing a message to the resident worker adds."""
    federation = Federation(folder, 1)
    federation.make()
    content = run_content(1, 1)
    content["privacy"] = {"mode": "none"}
    content["server"]["min_clients"] = 1
    config = declare(federation.server, load(write_run(federation.folder, content)))
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    worker = WorkerProcess(federation.site("site-1"))
    times = []
    try:
        worker.ensure()
        for _ in range(200):
            # a task's size: 300,000 numbers
            big = wire.arrays_to_record({"a": np.zeros(75_000, np.float32)})
            message = Message(RecordDict({wire.CONFIG: ConfigRecord({}), wire.ARRAYS: big}), 1, "query.hello")
            message.metadata.__dict__["_message_id"] = "1"
            started = time.perf_counter()
            reply = ask(str(worker.socket), message, config.to_flat(), 60.0, 2**28)
            times.append(time.perf_counter() - started)
            if reply.has_error():
                raise SystemExit(reply.error.reason)
    finally:
        worker.close()
    return [
        ("resident worker: what it adds to an exchange of 300 kB, median / 99 %",
         f"{1000 * np.median(times):.1f} ms / {1000 * np.quantile(times, 0.99):.1f} ms", "≤ 50 ms"),
    ]  # fmt: skip


def memory(federation: Federation, name: str) -> tuple[int, int]:
    """Resident bytes and open files of a process and its descendants; a run's own process at the server is left out,
    since it ends with the run."""
    total, files = 0, 0
    for pid in federation.pids(name):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
            if "flwr-serverapp" in command:
                continue
            status = Path(f"/proc/{pid}/status").read_text()
            total += int(status.split("VmRSS:")[1].split()[0]) * 1024
            files += len(os.listdir(f"/proc/{pid}/fd"))
        except (OSError, IndexError):
            continue
    return total, files


def soak(folder: Path) -> Table:
    """Memory and open files over many rounds."""
    rounds = int(os.environ.get("SOAK_ROUNDS", "500"))
    content = run_content(rounds, SITES, ROWS)
    content["server"] |= {"setup_rounds": 50, "evaluation_limit": 20}
    federation = Federation(folder, SITES, ROWS)
    federation.make()
    seen: dict[int, dict[str, tuple[int, int]]] = {}
    try:
        federation.start_all()
        submit(federation, content)
        started = time.monotonic()
        step = max(1, rounds // 20)
        for number in range(step, rounds, step):
            wait_for(federation, "tiny", number)
            seen[number] = {name: memory(federation, name) for name in ("server", *federation.names)}
            print(number, f"{time.monotonic() - started:.0f} s", seen[number], flush=True)
        report = finish(federation, "tiny")
        spent = federation.spent()
    finally:
        federation.close()
    early = seen[next(number for number in seen if number >= rounds // 10)]
    late = seen[max(seen)]
    void = sum("void" in row for row in report["rounds"])
    grown = {name: late[name][0] / early[name][0] - 1 for name in late}
    # connections under way come and go: the middle of the samples of each half
    later = [seen[number] for number in seen if number >= rounds // 10]
    half = len(later) // 2
    files = {
        name: tuple(int(np.median([one[name][1] for one in part])) for part in (later[:half], later[half:]))
        for name in late
    }
    opened = max(files[name][1] - files[name][0] for name in federation.names)
    worst = max(grown[name] for name in federation.names)
    used = {run["used"] for run in spent.values()}
    return [
        (f"soak, {rounds} rounds, {SITES} sites: void rounds; steps charged at each site",
         f"{void}; {', '.join(map(str, sorted(used)))}", f"0; {rounds}"),
        (f"… memory of the server from round {rounds // 10} to the end",
         f"{early['server'][0] / 2**20:.0f} → {late['server'][0] / 2**20:.0f} MiB ({100 * grown['server']:+.1f} %)",
         "≤ +10 %"),
        ("… memory of the site that grew most", f"{100 * worst:+.1f} %", "≤ +10 %"),
        ("… open files, middle of the first half → of the second: server; more at a site",
         f"{files['server'][0]} → {files['server'][1]}; {opened}", "no growth"),
    ]  # fmt: skip


def sh(command: str) -> int:
    return subprocess.run(["/bin/bash", "-c", command], check=False, capture_output=True).returncode


@contextmanager
def namespaces(count: int) -> Iterator[list[list[str]]]:
    """Server and sites in namespaces of their own, joined by a bridge in another; how to start a process in each."""
    names = ["cf-net", "cf-0", *(f"cf-{i + 1}" for i in range(count))]
    for name in names:
        sh(f"ip netns del {name}; ip netns add {name}; ip netns exec {name} ip link set lo up")
    sh("ip netns exec cf-net ip link add br0 type bridge; ip netns exec cf-net ip link set br0 up")
    for i in range(count + 1):
        sh(f"ip link add e0 netns cf-{i} type veth peer name v{i} netns cf-net")
        sh(f"ip netns exec cf-net ip link set v{i} master br0; ip netns exec cf-net ip link set v{i} up")
        sh(f"ip netns exec cf-{i} ip addr add {NETWORK}.{i + 1}/24 dev e0; ip netns exec cf-{i} ip link set e0 up")
    try:
        yield [["ip", "netns", "exec", f"cf-{i}"] for i in range(count + 1)]
    finally:
        for name in names:
            sh(f"ip netns del {name}")


def hamper(count: int) -> str:
    """50 ms and 1 % loss on every site's link, where the kernel can; says what was done."""
    rule = f"root netem delay {1000 * DELAY:.0f}ms loss {100 * LOSS:.0f}%"
    if sh(f"ip netns exec cf-net tc qdisc add dev v1 {rule}") == 0:
        for i in range(2, count + 1):
            sh(f"ip netns exec cf-net tc qdisc add dev v{i} {rule}")
        return "50 ms delay and 1 % loss by netem"
    return ""


async def _relay(listen: int, host: str, port: int) -> None:
    """Hands bytes on DELAY seconds later, in order, in both directions."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, content = await queue.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if not content:
                    writer.close()
                    return
                writer.write(content)

        task = asyncio.create_task(deliver())
        try:
            while content := await reader.read(65536):
                queue.put_nowait((time.monotonic() + DELAY, content))
        except OSError:
            pass
        queue.put_nowait((time.monotonic() + DELAY, b""))
        await task

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(connected, "127.0.0.1", listen)
    await server.serve_forever()


def network(folder: Path) -> Table:
    """Separate addresses, delay and loss, a partition, a server killed twice, a site killed three times."""
    if os.geteuid() != 0:
        return [("network namespaces", "not run: needs root", "")]
    with namespaces(SITES) as prefix:
        how = hamper(SITES)
        arguments = [sys.executable, "-m", "benchmarks.deployment", "network-inside", str(folder), how]
        subprocess.run([*prefix[0], *arguments], check=True)
    return [tuple(row) for row in json.loads((folder / "network.json").read_text())]


def network_inside(folder: Path, how: str) -> None:
    """Runs in the server's namespace."""
    rounds = 40
    federation = Federation(folder / "fed", SITES, ROWS, [["ip", "netns", "exec", f"cf-{i}"] for i in range(SITES + 1)])
    federation.host = f"{NETWORK}.1"
    federation.make()
    relays: list[subprocess.Popen] = []
    if not how:  # no netem in this kernel: a relay in each site's namespace
        how = "50 ms delay by a relay (this kernel has no netem, so no loss)"
        for i, name in enumerate(federation.names, start=1):
            arguments = ["relay", "9443", federation.host, str(federation.port)]
            command = ["ip", "netns", "exec", f"cf-{i}", sys.executable, "-m", "benchmarks.deployment", *arguments]
            relays.append(subprocess.Popen(command))
            path = federation.site(name) / "site.toml"
            path.write_text(path.read_text().replace(f"{federation.host}:{federation.port}", "127.0.0.1:9443"))
    content = run_content(rounds, SITES, ROWS)
    content["server"] |= {"min_survivors": 4, "deadline": 45.0}
    content["privacy"]["colluders"] = 1
    try:
        federation.start_all()
        submit(federation, content)
        for number in (3, 9):
            wait_for(federation, "tiny", number)
            restart_server(federation, "tiny")
        for number in (13, 17, 21):
            wait_for(federation, "tiny", number)
            federation.kill("site-2")
            federation.start("site-2")
        wait_for(federation, "tiny", 25)
        for i in (4, 5):
            sh(f"ip netns exec cf-{i} ip link set e0 down")
        time.sleep(60)
        for i in (4, 5):
            sh(f"ip netns exec cf-{i} ip link set e0 up")
        report = finish(federation, "tiny")
        spent = federation.spent()  # every ledger holds, or this raises
    finally:
        federation.close()
        for relay in relays:
            relay.kill()
    void = sum("void" in row for row in report["rounds"])
    told = {site["site"]: site["steps"] for site in report["privacy"]["sites"]}
    last = report["rounds"][-1]["sites"]
    # the server learns what a site has charged with each answer, and until then counts what it has asked
    agree = all(
        spent[name]["used"] <= told[name] <= rounds and (name not in last or told[name] == spent[name]["used"])
        for name in federation.names
    )
    rows = [
        (f"5 sites in network namespaces, {how}; server killed twice, a site three times, two sites away for 60 s",
         "ended" if report["after"] else "?", "ends"),
        (f"… void rounds of {rounds}; sites in the last round; accuracy",
         f"{void}; {len(last)}; {report['after']['accuracy']:.3f}", ""),
        ("… ledgers that hold", f"{len(spent)} of {SITES}", "all"),
        ("… steps charged at the sites (never more than rounds), and whether the report agrees",
         f"{', '.join(str(spent[name]['used']) for name in federation.names)}; {'yes' if agree else 'NO'}",
         f"≤ {rounds}; yes"),
    ]  # fmt: skip
    (folder / "network.json").write_text(json.dumps(rows))


PARTS = {"latency": latency, "accuracy": accuracy, "network": network, "soak": soak}


def _how(part: str) -> str:
    return f"`python -m benchmarks.deployment {part}`, {os.cpu_count()} cores."


if __name__ == "__main__":
    if sys.argv[1:2] == ["relay"]:
        asyncio.run(_relay(int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
    elif sys.argv[1:2] == ["network-inside"]:
        network_inside(Path(sys.argv[2]), sys.argv[3])
    else:
        play("Deployment", PARTS, sys.argv[1:], _how)
