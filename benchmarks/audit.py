"""What one-run audits can be expected to show: the planning table of idealised canaries, and audits of a tiny model.

python -m benchmarks.audit
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from confide.common.config.run import RunConfig
from confide.common.privacy.audit import gdp_bound, gdp_mu, steinke_bound, top_guesses
from confide.server.report import read_report
from confide.simulations.audit import with_canaries
from confide.simulations.run import simulate
from confide.tests.tiny import LOCAL, merged, run_content, save_bert, save_data

DELTA = 1e-5


def planning_table(repeats: int = 400) -> dict[tuple[float, int], tuple[float, float, float]]:
    """(ε, m) → mean Steinke bound, mean GDP bound, and the standard deviation of one Steinke bound."""
    rng, table = np.random.default_rng(0), {}
    for epsilon in (1.0, 2.0, 4.0, 8.0):
        for m in (200, 1000, 5000):
            mu, r = gdp_mu(epsilon, DELTA), m // 20
            right = []
            for _ in range(repeats):
                coins = rng.integers(0, 2, m).astype(bool)
                right.append(top_guesses(rng.normal(size=m) + mu * coins, coins, r))
            found = {v: (steinke_bound(m, r, v, DELTA), gdp_bound(m, r, v, DELTA)) for v in set(right)}
            steinke, gdp = (np.array([found[v][i] for v in right]) for i in (0, 1))
            table[epsilon, m] = (float(steinke.mean()), float(gdp.mean()), float(steinke.std()))
    return table


def repeated_audits(times: int) -> list[float]:
    """Lower bounds of `times` audits of a tiny model at ε = 8, m = 1,000; the noise is fresh each time."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        content = run_content(save_bert(folder / "bert"), save_data(folder), folder / "out")
        changes = {"privacy": LOCAL, "model": {"lora": {"rank": 8}}, "run": {"rounds": 10}}
        config = with_canaries(RunConfig.parse(merged(content, changes), "audit"), 1000, 0, None)
        return [
            read_report(simulate(config, overwrite=True))["audit"]["gradient"]["epsilon_steinke"] for _ in range(times)
        ]


def main() -> None:
    started = time.perf_counter()
    print("true ε, m: mean Steinke / GDP bound, standard deviation of one Steinke bound")
    for (epsilon, m), (steinke, gdp, spread) in planning_table().items():
        print(f"{epsilon:g}, {m}: {steinke:.2f} / {gdp:.2f}, {spread:.2f}", flush=True)
    found = repeated_audits(50)
    print(f"50 audits of a tiny model at ε = 8: {min(found):.2f} to {max(found):.2f}, mean {np.mean(found):.2f}")
    assert max(found) <= 8
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
