"""From a run to what ships: `python -m benchmarks.ship [PART …]`, the parts those of `PARTS`; needs ../shared/data.

RUN=folder: a finished run of SST-2 to go on from; otherwise `sst2` is played in mode none with 8,000 records. The other
59,000 texts of the training set, whose labels nobody reads, are the public text. SECONDS=60, CONNECTIONS=200.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np

from benchmarks.run import DATA, Table, play
from confide.common.config.run import load
from confide.common.data.sources import read_rows, training_rows
from confide.server.ship.attribute import TOLERANCE, Explainer
from confide.server.ship.compress import make_student, make_variants, measure
from confide.server.ship.distil import DistillationConfig
from confide.server.ship.finished import FinishedRun
from confide.server.ship.runtime import VARIANTS
from confide.simulations.recipes import find_recipe
from confide.simulations.run import simulate

SECONDS, CONNECTIONS = int(os.environ.get("SECONDS", "60")), int(os.environ.get("CONNECTIONS", "200"))
STEPS, LAYERS, MALFORMED = 1500, 3, 1000
PORT = 18_080


def the_run(scratch: Path) -> Path:
    if "RUN" in os.environ:
        return Path(os.environ["RUN"])
    sst2 = [f"data.train={DATA / 'sst2' / 'train.csv'}", f"data.test={DATA / 'sst2' / 'validation.csv'}"]
    settings = ["privacy.mode=none", "data.limit=8000", f"run.output={scratch / 'run'}", *sst2]
    return simulate(load(find_recipe("sst2"), settings))


def public_texts(folder: Path) -> list[str]:
    """What the run did not train on, and the test set does not hold."""
    run = FinishedRun(folder)
    data, model = run.config.data, run.model
    rows = model.rows(data.training, data)
    taken = {*training_rows(rows, data, run.config.run.seed).text}
    taken |= {*read_rows(data.test, data, run.labels).text}
    return [text for text in dict.fromkeys(rows.text) if text not in taken]


def variants(scratch: Path) -> Table:
    """Size, time, memory and accuracy of each."""
    folder = the_run(scratch)
    if not (folder / VARIANTS / f"student-{LAYERS}-int8").is_dir():
        make_student(folder, str(LAYERS), public_texts(folder), DistillationConfig(steps=STEPS))
    make_variants(folder)
    facts = measure(folder)
    rows = {row["name"]: row for row in facts["variants"]}
    table: Table = [
        (
            f"{name}: MB; one text, median (95 %); 32 texts; memory; accuracy; 10 % of characters perturbed",
            f"{row['mb']:.1f} MB; {row['ms_1']:.1f} ({row['p95_1']:.1f}) ms; {row['ms_32']:.0f} ms; "
            f"{row['memory_mb']:.0f} MB; {row['accuracy']:.4f}; {row['noisy']:.3f}",
            "",
        )
        for name, row in rows.items()
    ]
    whole, small, student = rows["torch"], rows["int8"], rows[f"student-{LAYERS}-int8"]
    lost = [100 * (whole["accuracy"] - row["accuracy"]) for row in (small, student)]
    table += [
        ("int8: times faster at batch 1", f"{whole['ms_1'] / small['ms_1']:.1f}", "≥ 2"),
        ("int8: times smaller", f"{whole['mb'] / small['mb']:.1f}", "≥ 3.5"),
        ("int8: points lost", f"{lost[0]:.1f}", "≤ 0.5"),
        (f"{LAYERS}-layer student, int8: times faster than int8", f"{small['ms_1'] / student['ms_1']:.1f}", "≥ 1.8"),
        (f"{LAYERS}-layer student, int8: points lost", f"{lost[1]:.1f}", "≤ 2"),
    ]
    return table


def explanations(scratch: Path) -> Table:
    """Whether maps add up, and whether they are faithful, over the validation set."""
    run = FinishedRun(the_run(scratch))
    explainer, texts = Explainer(run.merged()), run.rows().text
    deltas, areas = [], []
    started = time.perf_counter()
    for number, text in enumerate(texts):
        found = explainer.explain(text)
        deltas.append(found.delta)
        curves = explainer.curves(text, found, np.random.default_rng(number))
        areas.append([curves[name].mean() for name in ("deletion", "deletion_random", "insertion", "insertion_random")])
    seconds = (time.perf_counter() - started) / len(texts)
    held = float((np.asarray(deltas) <= TOLERANCE).mean())
    mean = np.mean(areas, axis=0)
    lower = float((np.asarray(areas)[:, 0] < np.asarray(areas)[:, 1]).mean())
    return [
        (f"maps of {len(texts)} texts that add up to within 1 %", f"{100 * held:.1f} %", "≥ 95 %"),
        ("mean probability while words go: by score, at random", f"{mean[0]:.3f}, {mean[1]:.3f}", "clearly lower"),
        ("… texts on which by score is lower", f"{100 * lower:.0f} %", ""),
        ("mean probability while words come: by score, at random", f"{mean[2]:.3f}, {mean[3]:.3f}", "higher"),
        ("seconds a text, checks included", f"{seconds:.2f}", ""),
    ]


def serving(scratch: Path) -> Table:
    """A server under many connections, then under nonsense."""
    folder = the_run(scratch)
    command = [sys.executable, "-m", "confide.cli.main", "serve", str(folder), "--port", str(PORT), "--rate", "100000"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            _wait()
            texts = FinishedRun(folder).rows().text
            asyncio.run(_load(texts, 3))
            before = _memory(server.pid)
            found = asyncio.run(_load(texts, SECONDS))
            after = _memory(server.pid)
            refused = asyncio.run(_nonsense())
            alive = httpx.get(f"http://127.0.0.1:{PORT}/health").status_code
        finally:
            server.terminate()
    times = np.asarray(found["times"])
    codes = ", ".join(f"{code}: {count}" for code, count in sorted(refused.items()))
    bad = sum(count for code, count in refused.items() if not 400 <= code < 500)
    return [
        (f"{CONNECTIONS} connections, {SECONDS} s: answers; errors", f"{len(times):,}; {found['errors']}", "0 errors"),
        (
            "… a second; median; 95 %",
            f"{len(times) / SECONDS:.0f}; {np.median(times):.0f} ms; {np.quantile(times, 0.95):.0f} ms",
            "",
        ),
        ("memory before and after", f"{before:.0f} → {after:.0f} MB", "flat"),
        (f"{MALFORMED} malformed or oversized requests: status", codes, "all 4xx"),
        ("… others than 4xx; health afterwards", f"{bad}; {alive}", "0; 200"),
    ]


def _wait() -> None:
    for _ in range(600):
        try:
            httpx.get(f"http://127.0.0.1:{PORT}/health")
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the server did not start")


def _memory(pid: int) -> float:
    """MB resident now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1000


async def _load(texts: list[str], seconds: int) -> dict:
    """Each connection asks again as soon as it is answered. Raw sockets: the client must not be what is measured."""
    end, times, errors = time.monotonic() + seconds, [], 0

    async def ask(number: int) -> None:
        nonlocal errors
        rng = np.random.default_rng(number)
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        while time.monotonic() < end:
            body = json.dumps({"texts": [texts[int(rng.integers(len(texts)))]]}).encode()
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            started = time.perf_counter()
            try:
                writer.write(head + body)
                answer = await reader.readuntil(b"\r\n\r\n")
                size = next(
                    int(line[15:]) for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:")
                )
                await reader.readexactly(size)
                errors += not answer.startswith(b"HTTP/1.1 200")
                times.append(1000 * (time.perf_counter() - started))
            except (OSError, asyncio.IncompleteReadError):
                errors += 1
                return
        writer.close()

    await asyncio.gather(*(ask(number) for number in range(CONNECTIONS)))
    return {"times": times, "errors": errors}


async def _nonsense() -> Counter:
    rng, codes = np.random.default_rng(0), Counter()
    shapes: list[Callable[[], bytes]] = [
        lambda: rng.bytes(int(rng.integers(1, 2000))),
        lambda: b'{"texts": ["' + b"x" * int(rng.integers(250_000, 400_000)) + b'"]}',
        lambda: json.dumps({"texts": ["a"] * int(rng.integers(65, 500))}).encode(),
        lambda: json.dumps({"texts": rng.integers(9, size=3).tolist()}).encode(),
        lambda: b"[" * int(rng.integers(1, 5000)),
        lambda: json.dumps({"words": ["a"]}).encode(),
        lambda: b'{"texts": ["' + b"y" * 20_000 + b'"]}',
    ]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", timeout=30) as client:
        for number in range(MALFORMED):
            reply = await client.post("/predict", content=shapes[number % len(shapes)]())
            codes[reply.status_code] += 1
    return codes


PARTS: dict[str, Callable[[Path], Table]] = {"variants": variants, "explanations": explanations, "serving": serving}


def _how(part: str) -> str:
    return f"`python -m benchmarks.ship {part}`, SST-2, MiniLM, {os.cpu_count()} cores."


if __name__ == "__main__":
    play("What ships", PARTS, sys.argv[1:], _how)
