"""Secure sums: exactness over random schedules of dropouts, cost, growth, and what they add to a round.

    python -m benchmarks.secagg [exact] [privacy] [cost] [large] [rounds] [audit]      (default: all)

The last two need SST-2 as csv files: ../shared/data, or the folder in CONFIDE_DATA.

Protocol figures are of one process that plays all parties one after the other; "a client" is the slowest of them.
Writes its part of RESULTS.md.
"""

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from opacus.accountants import PRVAccountant
from scipy.optimize import brentq

from benchmarks.run import DATA, Table, python, write_part
from confide.common.errors import SecureSumError
from confide.common.ledger.chain import SiteKey
from confide.common.privacy.mechanism import PoissonMechanism, PrivacyPlan, noise_multiplier
from confide.common.privacy.noise import secure_generator
from confide.common.secagg import facts
from confide.common.secagg.keys import Session
from confide.common.secagg.masks import bits_needed
from confide.common.secagg.params import Parameters
from confide.common.secagg.protocol import Answer, Roster, SecureSite, Sum
from confide.simulations.recipes import find_recipe

SCHEDULES = 1000
MARK = "# Secure sums"
SST2 = {
    "data.train": DATA / "sst2" / "train.csv",
    "data.test": DATA / "sst2" / "validation.csv",
    "data.limit": 8000,
    "privacy.declared_examples": 8000,
    "privacy.sampling_rate": 0.05,
    "server.evaluation_limit": 10,
}


class Cast:
    """A set-up of n sites, played by one process, with the seconds and bytes of the slowest party."""

    def __init__(self, parameters: Parameters, length: int, bits: int, rounds: int = 1) -> None:
        self.session = Session("benchmark", 1, rounds, parameters, length, bits, "declared")
        self.names = [f"site-{i:04d}" for i in range(parameters.sites)]
        identities = {name: SiteKey.new() for name in self.names}
        registered = {name: key.public for name, key in identities.items()}
        self.seconds: dict[str, float] = {}
        self.up: dict[str, int] = {}
        self.sites: dict[str, SecureSite] = {}
        adverts = []
        for name in self.names:
            started = time.perf_counter()
            self.sites[name], advert = SecureSite.advertise(self.session, name, identities[name])
            self._took("set-up, client", started)
            adverts.append(advert)
        self.roster = Roster(self.session, adverts)
        for name, site in self.sites.items():
            started = time.perf_counter()
            sealed = site.deal(adverts, registered)
            self._took("set-up, client", started)
            self.roster.dealt(name, sealed)
            self._sent("set-up", facts.size(facts.from_sealed(sealed)) + facts.size(facts.from_advert(adverts[0])))
        for name, site in self.sites.items():
            site.accept(self.roster.shares_for(name))

    def _took(self, what: str, started: float) -> None:
        self.seconds[what] = max(self.seconds.get(what, 0.0), time.perf_counter() - started)

    def _sent(self, what: str, size: int) -> None:
        self.up[what] = max(self.up.get(what, 0), size)

    def play(self, number: int, values: dict[str, np.ndarray], missing: set[str], silent: set[str]) -> np.ndarray:
        """One round. missing: send no input; silent: do not help to open. Raises SecureSumError when it is void."""
        total = Sum(self.roster, number)
        server = 0.0
        for name, site in self.sites.items():
            if name not in missing:
                started = time.perf_counter()
                packed = site.mask(number, values[name])
                self._took("round, client", started)
                self._sent("round", len(packed))
                started = time.perf_counter()
                total.add(name, packed)
                server += time.perf_counter() - started
        answers: dict[str, Answer] = {}
        for name in total.survivors:
            if name not in silent:
                started = time.perf_counter()
                answers[name] = self.sites[name].open(number, total.survivors)
                self._took("unmasking, client", started)
                self._sent("unmasking", facts.size(facts.from_answer(answers[name])))
        started = time.perf_counter()
        opened = total.finish(answers)
        self.seconds["server"] = server + time.perf_counter() - started
        return opened

    def values(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        limit = 2 ** (self.session.bits - 1) // len(self.names)
        return {name: rng.integers(-limit, limit, self.session.length) for name in self.names}


def exact(scratch: Path) -> Table:
    """Random n from 2 to 200, dropouts up to 30 % over all stages; sums compared as integers."""
    rng = np.random.default_rng(1)
    opened = void = 0
    for _ in range(SCHEDULES):
        n = round(2 * 100 ** (rng.random() ** 2))  # small ones more often: a set-up costs n²
        tolerated = min(int(rng.integers(0, int(0.3 * n) + 1)), (n - 1) // 2)
        colluders = int(rng.integers(0, max(1, n - 2 * tolerated)))
        cast = Cast(Parameters(n, n - tolerated, min(colluders, n - tolerated - 1)), 16, int(rng.integers(12, 50)))
        gone = list(rng.permutation(cast.names)[: int(rng.integers(0, int(0.3 * n) + 1))])
        cut = int(rng.integers(0, len(gone) + 1))
        missing, silent = set(gone[:cut]), set(gone[cut:])
        values = cast.values(rng)
        try:
            found = cast.play(1, values, missing, silent)
        except SecureSumError:
            if len(gone) <= tolerated:
                raise
            void += 1
            continue
        if len(gone) > tolerated or not np.array_equal(found, sum(values[x] for x in cast.names if x not in missing)):
            raise AssertionError(f"n = {n}: a sum that is wrong, or should have been void")
        opened += 1
    return [
        ("random schedules, 2 to 200 sites, 0 to 30 % dropouts", f"{SCHEDULES}", "1,000"),
        ("… exact (integer equality), of those with no more dropouts than tolerated", f"{opened} of {opened}", "all"),
        ("… void, of those with more", f"{void} of {void}", "all"),
    ]


def cost(scratch: Path) -> Table:
    """75,000 coordinates of 30 bits, one site in ten vanishes, half of them after sending their input."""
    rng = np.random.default_rng(2)
    rows: Table = []
    for n in (10, 50, 100, 200, 500):
        cast = Cast(Parameters(n, n - n // 10, 1), 75_000, 30, rounds=32)
        values = cast.values(rng)
        gone = list(rng.permutation(cast.names)[: n // 10])
        for number in (1, 2):
            cast.seconds.pop("round, client", None)
            cast.seconds.pop("unmasking, client", None)
            found = cast.play(number, values, set(gone[: n // 20]), set(gone[n // 20 :]))
        assert np.array_equal(found, sum(values[x] for x in cast.names if x not in gone[: n // 20]))
        up = cast.up["round"] + cast.up["unmasking"]
        client = cast.seconds["round, client"] + cast.seconds["unmasking, client"]
        neighbours = cast.session.parameters.neighbours(n)
        limit = n == 100
        rows += [
            (
                f"{n} sites ({neighbours} neighbours): client, a round",
                f"{1e3 * client:.0f} ms",
                "≤ 250 ms" if limit else "",
            ),
            (f"{n} sites: up a client, a round", f"{up / 1e3:.0f} kB", "≤ 400 kB" if limit else ""),
            (f"{n} sites: server, a round", f"{cast.seconds['server']:.2f} s", "≤ 2 s" if limit else ""),
            (
                f"{n} sites: set-up for 32 rounds, client",
                f"{1e3 * cast.seconds['set-up, client']:.0f} ms, {cast.up['set-up'] / 1e3:.0f} kB up",
                "",
            ),
        ]
    return rows


class _Noise(dict[str, np.ndarray]):
    """What a site sends that draws nothing: its share of the noise, drawn when it is asked for."""

    def __init__(self, plan: PrivacyPlan, cast: Cast) -> None:
        self._plan, self._cast, self.total = plan, cast, np.zeros(plan.coordinates, dtype=np.int64)

    def __getitem__(self, name: str) -> np.ndarray:
        mechanism = PoissonMechanism(self._plan, secure_generator())
        mechanism.draw(0)
        zeros = np.zeros(self._plan.coordinates)
        started = time.perf_counter()
        share = mechanism.share(zeros, self._plan.clip)
        self._cast._took("noise and grid, client", started)
        self.total += share
        return share


def large(scratch: Path) -> Table:
    """5 sites that all answer, as LoRA on every linear layer of a model of 0.5 and of 8 billion weights (rank 16)."""
    rows: Table = []
    for size in (5_000_000, 42_000_000):
        plan = PrivacyPlan(0.05, 0.586, 1, 1.0, 1e-5, size, 1.0, shares=3, most_shares=4)
        noise = (5 * plan.variance / plan.shares) ** 0.5
        cast = Cast(Parameters(5, 4, 1), size, bits_needed(8000, 0.05, plan.grid + 1, noise, size))
        values = _Noise(plan, cast)
        found = cast.play(1, values, set(), set())
        assert np.array_equal(found, values.total)
        million, peak = size / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        drawn, masked = cast.seconds["noise and grid, client"], cast.seconds["round, client"]
        rows += [
            (f"{million:.0f} million: noise and grid, a client", f"{drawn:.1f} s, {drawn / million:.3f} a million", ""),
            ("… mask and pack, a client", f"{masked:.1f} s, {masked / million:.3f} a million", ""),
            (
                "… open the sum, the server",
                f"{cast.seconds['server']:.1f} s, {cast.seconds['server'] / million:.3f}",
                "",
            ),
            ("… up a client", f"{cast.up['round'] / 1e6:.0f} MB, {cast.session.bits} bits a number", ""),
            ("… peak of all parties in one process", f"{peak:.1f} GiB", ""),
        ]
    return rows


def rounds(scratch: Path) -> Table:
    """SST-2, 8 sites, in process: a round of mode `distributed` with secure sums, and of mode `local` without."""
    if not (DATA / "sst2").is_dir():
        return [("SST-2 rounds", f"not run: {DATA / 'sst2'} is missing", "")]
    seconds: dict[str, list[float]] = {"local": [], "distributed": []}
    for repeat in range(2):
        for mode, found in seconds.items():
            settings = [f"--set={key}={value}" for key, value in {**SST2, "run.rounds": 6}.items()]
            folder = scratch / f"{mode}{repeat}"
            python(
                "-W",
                "ignore",
                "-m",
                "confide.cli.main",
                "simulate",
                find_recipe("sst2"),
                *settings,
                f"--set=privacy.mode={mode}",
                "--out",
                folder,
            )
            found += [row["seconds"] for row in json.loads((folder / "report.json").read_text())["rounds"][1:]]
    plain, secure = (float(np.median(seconds[mode])) for mode in ("local", "distributed"))
    return [
        ("SST-2, 8 sites: seconds a round without secure sums (local)", f"{plain:.2f}", ""),
        ("SST-2, 8 sites: seconds a round with secure sums (distributed)", f"{secure:.2f}", ""),
        ("secure sums add", f"{100 * (secure / plain - 1):+.0f} %", "≤ 15 %"),
    ]


def audit(scratch: Path) -> Table:
    """The one-run audit with the sums that the server opens as what it attacks, and its control without noise."""
    if not (DATA / "sst2").is_dir():
        return [("audit of the sums", f"not run: {DATA / 'sst2'} is missing", "")]
    settings = {**SST2, "privacy.mode": "distributed", "privacy.epsilon": 8.0, "run.rounds": 30}
    folder = scratch / "audit"
    command = ("-W", "ignore", "-m", "confide.cli.main", "audit", "canary", find_recipe("sst2"), "--out", folder)
    python(*command, "--records", 0, "--guesses", 50, *(f"--set={key}={value}" for key, value in settings.items()))
    report = json.loads((folder / "report.json").read_text())
    found, control = report["audit"]["gradient"], report["audit"]["control"]["gradient"]
    return [
        ("audit of the sums, m = 1,000, 50 guesses: ε spent", f"{report['privacy']['epsilon_spent']:.2f}", ""),
        (
            "… audited, at least (Steinke / GDP)",
            f"{found['epsilon_steinke']:.2f} / {found['epsilon_gdp']:.2f}, {found['correct']} right",
            "< ε",
        ),
        (
            "… the same attack without noise, and the ceiling",
            f"{control['epsilon_steinke']:.2f} / {control['epsilon_gdp']:.2f}, ceiling {found['ceiling_steinke']:.2f}",
            "",
        ),
    ]


def privacy(scratch: Path) -> Table:
    """The calibrated noise multiplier beside that of Opacus' PRV accountant for a Gaussian."""
    rows: Table = []
    for epsilon in (1.0, 3.0, 8.0):
        for q, steps in ((0.05, 30), (0.03, 40), (0.02, 20)):
            ours = noise_multiplier(epsilon, 1e-5, q, steps, 75_000)
            found = brentq(lambda z, q=q, steps=steps, epsilon=epsilon: _prv(z, q, steps) - epsilon, 0.3, 3, xtol=1e-5)
            theirs = float(found)  # pyright: ignore[reportArgumentType]
            what = f"ε = {epsilon:g}, q = {q}, T = {steps}: z, and z by Opacus' PRV"
            rows.append((what, f"{ours:.4f}, {theirs:.4f}: {100 * (ours / theirs - 1):+.2f} %", "within 0.5 %"))
    return rows


def _prv(noise: float, rate: float, steps: int) -> float:
    """Opacus' estimate of ε: its upper bound less the error that it adds."""
    account = PRVAccountant()
    account.history = [(noise, rate, steps)]
    return account.get_epsilon(1e-5, eps_error=0.002) - 0.002


PARTS = {"exact": exact, "privacy": privacy, "cost": cost, "large": large, "rounds": rounds, "audit": audit}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="confide-secagg-") as scratch:
        for name in sys.argv[1:] or PARTS:
            rows = PARTS[name](Path(scratch))
            what = (PARTS[name].__doc__ or "").strip()
            write_part(
                f"{MARK}: {name}",
                [
                    f"`python -m benchmarks.secagg {name}`, {os.cpu_count()} cores. {what}",
                    "",
                    "| what | measured | target |",
                    "|---|---|---|",
                    *(f"| {what} | {measured} | {target} |" for what, measured, target in rows),
                ],
            )


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
