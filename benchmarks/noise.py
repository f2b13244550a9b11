"""The sampler's speed and memory, the noise that ε needs, and what taking noise off costs a round.

python -m benchmarks.noise
"""

import os
import time
import tracemalloc

import numpy as np

from benchmarks.run import Table, write_part
from confide.common.privacy.discrete_gaussian import add_noise, words_of
from confide.common.privacy.noise import secure_generator
from confide.common.privacy.pieces import Pieces

MARK = "# Noise: speed"
SIGMA = 4e4
_LARGE = 50_000_000


def main() -> None:
    rows = [*speed(), *memory(), *removal()]
    lines = [
        f"`python -m benchmarks.noise`, one core of {os.cpu_count()}, {_processor()}. Nanoseconds a coordinate, CPU "
        "time, the best of three; all rows of one run.",
        "",
        "| what | measured | target |",
        "|---|---|---|",
        *(f"| {what} | {measured} | {target} |" for what, measured, target in rows),
    ]
    print("\n".join(lines))
    write_part(MARK, lines)


def speed() -> Table:
    rows: Table = []
    rng = secure_generator()
    for size in (75_000, 1_000_000, _LARGE):
        values = np.zeros(size, dtype=np.int64)
        took = _best(lambda: add_noise(values, SIGMA**2, words_of(rng)))  # noqa: B023  # called at once
        rows.append((f"discrete Gaussian, σ = 4·10⁴, {size:,} coordinates", f"{1e9 * took / size:.1f} ns", "≤ 60 ns"))
    for sigma in (0.5, 500.0, 1e7):
        values = np.zeros(1_000_000, dtype=np.int64)
        took = _best(lambda: add_noise(values, sigma**2, words_of(rng)))  # noqa: B023
        rows.append((f"… σ = {sigma:g}, 1,000,000 coordinates", f"{1e9 * took / 1e6:.1f} ns", ""))
    took = _best(lambda: rng.poisson(SIGMA**2 / 2, 1_000_000) - rng.poisson(SIGMA**2 / 2, 1_000_000))
    rows.append(("for comparison: Skellam by numpy's Poisson, as before", f"{1e9 * took / 1e6:.1f} ns", ""))
    took = _best(lambda: rng.normal(0, SIGMA, 1_000_000))
    rows.append(("for comparison: a normal in doubles, same generator", f"{1e9 * took / 1e6:.1f} ns", ""))
    return rows


def memory() -> Table:
    values, words = np.zeros(_LARGE, dtype=np.int64), words_of(secure_generator())
    tracemalloc.start()
    add_noise(values, SIGMA**2, words)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return [(f"memory beside the vector, {_LARGE:,} coordinates (400 MB)", f"{peak / 1e6:.1f} MB", "constant")]


def removal() -> Table:
    """8 sites, 75,000 coordinates: a share in pieces, and what the server subtracts when all answer."""
    rows: Table = []
    for sites, survivors in ((8, 7), (50, 45)):
        pieces = Pieces.of(SIGMA**2 * 6, survivors - 1, sites - 1)
        seeds: list[bytes] = []
        values = np.zeros(75_000, dtype=np.int64)
        words = words_of(secure_generator())
        adding = _best(lambda: seeds.append(pieces.add(values, words)))  # noqa: B023  # called at once
        whole = _best(lambda: add_noise(values, sum(pieces.variances), words))  # noqa: B023
        released = pieces.released(seeds[0], 0)
        taking = _best(lambda: pieces.remove(values, released, 0))  # noqa: B023
        what = f"{sites} sites, {survivors} needed, 75,000 coordinates"
        rows += [
            (f"{what}: a site's share in {len(pieces.variances)} pieces", f"{1e3 * adding:.1f} ms", ""),
            ("… in one", f"{1e3 * whole:.1f} ms", ""),
            ("… the server takes off what is not needed, all sites", f"{1e3 * taking * sites:.0f} ms", ""),
            (
                "… noise of the sum over that of central training: all shares, what stays when all answer",
                f"{(sites * sum(pieces.variances) / SIGMA**2 / 6) ** 0.5:.3f}, "
                f"{(sites * pieces.kept(0) / SIGMA**2 / 6) ** 0.5:.3f}",
                "≤ 1.07 (8 sites)" if sites == 8 else "",
            ),
        ]
    return rows


def _best(act) -> float:
    """CPU seconds."""
    took = []
    for _ in range(3):
        started = time.process_time()
        act()
        took.append(time.process_time() - started)
    return min(took)


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        text = file.read()
    name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "?")
    return f"{name}{', AMX' if 'amx_bf16' in text else ''}"


if __name__ == "__main__":
    main()
