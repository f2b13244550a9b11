"""Empirical audit in one run: canaries whose presence was decided by committed coins, guesses, and lower bounds on ε.

Steinke, Nasr, Jagielski: "Privacy Auditing with One (1) Training Run", NeurIPS 2023 (Theorem 5.2, Algorithm 1).
Mahloujifar, Melis, Chaudhuri: "Auditing f-Differential Privacy in One Run", 2024 (Algorithm 3), here for Gaussian DP.

m canaries, each in with probability ½; the r canaries with the highest scores are guessed to be in, v guesses are
right. Rule and r are fixed before training. A lower bound that is low proves nothing about safety.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, norm

from ..config.run import RunConfig
from ..errors import ConfigError
from ..types import Adapter, Rows

CONFIDENCE = 0.95
SCOPES = {
    "gradient": "Gradient canaries are added after the clip. They show a wrong sampling rate, missing or short noise, "
    "and wrong composition; they cannot show anything about clipping, per-record gradients, or coupling between "
    "records.",
    "clipped_records": "Canary records pass forward, backward and clip like any other, and are scored on every update. "
    "They show what gradient canaries show, and a clip that does not bound or a record that is counted twice; they "
    "cannot show how other records change when a canary is there (coupling): only a comparison of neighbouring data "
    "sets does, which is the neighbour sensitivity, and tests/test_neighbours.py of this project.",
    "records": "The same canary records, scored on the final model alone. They show what the model memorised of them; "
    "they cannot show an error that leaves no trace in the loss of those records, which is most errors.",
    "sensitivity": "The clipped sum of one site's records with and without a canary record, at the first round's "
    "weights, everybody drawn, no noise. It shows a clip that does not bound, and coupling: whatever else in the sum "
    "changes with one record, in reading, copies or batches; it cannot show anything about sampling, noise or "
    "composition, later weights, or records unlike these.",
}
"""what each part of an audit can show, and what it cannot"""
CANARY_KINDS = {
    "words": "random words",
    "random": "a short prompt with rare tokens",
    "in-distribution": "records of the test set with a random number",
}
"""what canary records are, by `audit.kind`"""
_LARGEST = 64.0


def steinke_bound(m: int, r: int, v: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """Lower bound on ε of any (ε, δ)-DP mechanism, from v right of r guesses on m canaries.

    sup{ε : p(ε) ≤ 1 − confidence}; p(ε) = min(1, β + 2mδa) with s = 1/(1+e^−ε), β = P[Bin(r, s) ≥ v] and
    a = max_{1≤i≤v} P[v−i ≤ Bin(r, s) < v] / i.
    """
    _check(m, r, v)

    def p_value(epsilon: float) -> float:
        s = 1 / (1 + math.exp(-epsilon))
        beta = float(binom.sf(v - 1, r, s))
        i = np.arange(1, v + 1)
        between = binom.cdf(v - 1, r, s) - binom.cdf(v - i - 1, r, s)  # P[v − i ≤ Bin < v]
        alpha = float((between / i).max()) if v else 0.0
        return min(1.0, beta + 2 * m * delta * alpha)

    return _largest_rejected(lambda epsilon: p_value(epsilon) <= 1 - confidence)


def gdp_bound(m: int, r: int, v: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """The same from the f-DP of a Gaussian mechanism: tighter, and conditional on that hypothesis."""
    _check(m, r, v)

    def rejected(epsilon: float) -> bool:
        if epsilon == 0:
            return _gdp_rejects(m, r, v, 0.0, 1 - confidence)
        return _gdp_rejects(m, r, v, gdp_mu(epsilon, delta), 1 - confidence)

    return _largest_rejected(rejected)


@lru_cache(maxsize=65536)
def gdp_mu(epsilon: float, delta: float) -> float:
    """μ of the Gaussian DP that is exactly (ε, δ)-DP: δ = Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2)."""

    def excess(mu: float) -> float:
        tail = math.exp(epsilon + norm.logcdf(-epsilon / mu - mu / 2))
        return float(norm.cdf(-epsilon / mu + mu / 2) - tail) - delta

    return float(brentq(excess, 1e-6, 60.0, xtol=1e-9))  # pyright: ignore[reportArgumentType]  # stubs want an array


def _gdp_rejects(m: int, r: int, v: int, mu: float, tau: float) -> bool:
    def g(x: float) -> float:
        return float(norm.cdf(norm.ppf(x) - mu))

    right, wrong = tau * v / m, tau * (r - v) / m  # R and H
    for i in range(v - 1, -1, -1):
        wrong_next = max(wrong, g(right))
        if wrong_next == wrong:
            # the recursion stands still: R cannot grow any more
            break
        right = min(1.0, right + i / (r - i) * (wrong_next - wrong))
        wrong = wrong_next
    return right + wrong > r / m


def _largest_rejected(rejected, step: float = 1e-3) -> float:
    """sup of the ε that the observation rules out; 0 when it rules out none."""
    if not rejected(0.0):
        return 0.0
    low, high = 0.0, _LARGEST
    while high - low > step:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def _check(m: int, r: int, v: int) -> None:
    if not 0 <= v <= r <= m or r < 1:
        raise ValueError(f"guesses: {v} right of {r} on {m} canaries; allowed: 0 ≤ right ≤ guesses ≤ canaries, 1 guess")


def top_guesses(scores: np.ndarray, coins: np.ndarray, r: int) -> int:
    """v: how many of the r canaries with the highest scores are in. scores, coins: (m,)."""
    return int(coins[np.argsort(scores, kind="stable")[-r:]].sum())


def bounds(m: int, r: int, v: int, delta: float) -> dict[str, float | int]:
    """The lower bounds, and the ceilings: what r right guesses of r would have shown."""
    return {
        "canaries": m,
        "guesses": r,
        "correct": v,
        "epsilon_steinke": steinke_bound(m, r, v, delta),
        "epsilon_gdp": gdp_bound(m, r, v, delta),
        "ceiling_steinke": steinke_bound(m, r, r, delta),
        "ceiling_gdp": gdp_bound(m, r, r, delta),
    }


def commitment(seed: bytes) -> str:
    """What a site writes into its ledger before training; the 32-byte seed is revealed after it."""
    return hashlib.sha256(b"confide audit coins\0" + seed).hexdigest()


def coins(seed: bytes, kind: str, count: int) -> np.ndarray:
    """(count,) bool, each with probability ½: bits of SHAKE-256 over the seed."""
    stream = hashlib.shake_256(kind.encode() + b"\0" + seed).digest(count // 8 + 1)
    return np.unpackbits(np.frombuffer(stream, np.uint8))[:count].astype(bool)


def public_seed(config: RunConfig, kind: str, site: str) -> list[int]:
    """Decides what a site's canaries look like, which everybody may know."""
    named = hashlib.sha256(f"{kind}/{site}".encode()).digest()
    return [config.run.seed, int.from_bytes(named[:8], "little")]


@dataclass(frozen=True)
class GradientCanaries:
    """Records whose gradient has norm C and lies on a few coordinates that no other canary of the site has.

    Public, as everything of an audit but the coins. They pass the sampler, the sum and the noise like records.
    Supports are disjoint, so canaries do not disturb one another, and signs are random, so that what the other records
    do on these coordinates cancels. Only LoRA's coordinates are used: the head's carry large gradients of every record.
    """

    coordinates: np.ndarray
    """(k, w) positions in the flat vector of all released numbers"""
    directions: np.ndarray
    """(k, w) values there; each row has norm 1"""

    @classmethod
    def of_site(cls, config: RunConfig, arrays: Adapter, site: str) -> "GradientCanaries":
        """A site's equal share of audit.canaries, rounded down, in or out.

        arrays: the trained ones, in order. Raises ConfigError for more canaries than numbers.
        """
        count = config.audit.canaries // config.clients
        if count == 0:
            return NO_CANARIES
        lora = np.concatenate([np.full(array.size, ".lora_" in name) for name, array in arrays.items()])
        rng = np.random.default_rng(public_seed(config, "gradient", site))
        width = min(_WIDTH, int(lora.sum()) // count)
        if width == 0:
            raise ConfigError(f"audit.canaries: {count} at one site, but LoRA has {lora.sum()} numbers; lower it")
        places = rng.permutation(np.flatnonzero(lora))[: count * width].reshape(count, width)
        return cls(places, rng.choice([-1.0, 1.0], places.shape) / math.sqrt(width))

    def __len__(self) -> int:
        return len(self.directions)

    def add(self, total: np.ndarray, which: np.ndarray, clip: float) -> None:
        """Adds the named canaries' gradients to a clipped sum (d,) in place."""
        total[self.coordinates[which]] += clip * self.directions[which]

    def scores(self, released: np.ndarray) -> np.ndarray:
        """(k,) inner products with one released vector (d,)."""
        return (self.directions * released[self.coordinates]).sum(1)

    def only(self, which: np.ndarray) -> "GradientCanaries":
        """The named ones. which: (k,) bool."""
        return GradientCanaries(self.coordinates[which], self.directions[which])


_WIDTH = 64
"""coordinates of a canary, where there are enough"""
_ROWS_OF_A_PERSON = 3
_WORDS = 8
"""of a canary record"""
NO_CANARIES = GradientCanaries(np.empty((0, 1), dtype=np.int64), np.empty((0, 1)))


def rows_each(config: RunConfig) -> int:
    """Rows of a canary: of a person several, as persons have."""
    return 1 if config.data.person is None else min(config.data.person_rows, _ROWS_OF_A_PERSON)


def canary_rows(
    config: RunConfig,
    words: list[str],
    site: str,
    *,
    classes: int = 0,
    numbers: bool = False,
    tags: bool = False,
    several: bool = False,
    image: tuple[int, int, int] | None = None,
) -> Rows:
    """A site's share of audit.records: eight random words, random pixels, a random class, number or tag of each
    word; only their own presence predicts them. Where the unit is the person, each canary is one with `rows_each` rows.

    words: none where no text is read. classes: 0 where there are none. tags: whether words carry the classes.
    several: whether a row may have more than one. image: channels, height, width.
    """
    each = rows_each(config)
    count = config.audit.records // config.clients * each
    rng = np.random.default_rng(public_seed(config, "records", site))
    whose = np.array([f"canary {site} {row // each}" for row in range(count)], dtype=object)
    person = None if config.data.person is None else whose
    texts = [" ".join(rng.choice(words, _WORDS)) if words else "" for _ in range(count)]
    responses, rejected = (
        [" ".join(rng.choice(words, _WORDS)) for _ in range(count)] if column else None
        for column in (config.data.response or config.data.chosen, config.data.rejected)
    )
    if config.data.messages:
        answers = [" ".join(rng.choice(words, _WORDS)) for _ in texts]
        turns = [(("user", text), ("assistant", answer)) for text, answer in zip(texts, answers, strict=True)]
        template = config.data.template
        return Rows("canaries", [""] * count, person=person, turns=turns, template=template)
    if tags:
        return Rows("canaries", texts, tags=[*rng.integers(0, classes, (count, _WORDS))], person=person)
    labels = rng.integers(0, classes, count) if classes else rng.normal(size=count) if numbers else None
    if several:
        labels = rng.integers(0, 2, (count, classes), dtype=np.uint8)
    pair = [" ".join(rng.choice(words, _WORDS)) for _ in texts] if config.data.text_pair else None
    pixels = None if image is None else rng.integers(0, 256, (count, *image), dtype=np.uint8)
    return Rows("canaries", texts, responses, labels, images=pixels, person=person, rejected=rejected, pair=pair)


def step_likelihood(observed: np.ndarray, sampling_rate: float, noise_multiplier: float | np.ndarray) -> np.ndarray:
    """log of (density if the canary is in) ÷ (if it is out), for one step: the best score by Neyman and Pearson.

    observed: (k,) scores in units of what a drawn canary adds: N(1, z²) when drawn, with probability q, else N(0, z²).
    noise_multiplier: z, of all canaries or (k,) of each.
    """
    shift = (2 * observed - 1) / (2 * noise_multiplier**2)
    if sampling_rate == 1:
        return shift
    return np.logaddexp(math.log1p(-sampling_rate), math.log(sampling_rate) + shift)


def record_likelihood(
    gradients: np.ndarray, released: np.ndarray, sampling_rate: float, noise_multiplier: float, drawn: float
) -> np.ndarray:
    """As `step_likelihood`, for records whose gradients are not orthogonal and move the sum by less than C.

    gradients: (k, d) of the canaries at the step's weights, clipped, in units of C: the effect sizes. released: (d,)
    the step's noisy sum in units of C. drawn: D, the records that a step is expected to draw. Returns (k,).
    To canary i, everything else in the sum is noise. It is taken for Gaussian, with the covariance
    Σ₋ᵢ = σ²I + ρ·Σ_{j≠i} g_j g_jᵀ: ρ = q/2 + D/k, as if the other records were like the canaries. With
    Σ = Σ₋ᵢ + ρ g_i g_iᵀ and c_i = g_iᵀ Σ⁻¹ g_i the best linear statistic is g_iᵀ Σ⁻¹ released / c_i: N(1, 1/c_i − ρ)
    when i is drawn, else N(0, 1/c_i − ρ). One canary alone has variance σ²/‖g‖².
    σ and the unit are what the release shows where that is worse for privacy than what is claimed: otherwise missing
    noise would be scored as if it were there, and a clip that does not bound as if it did. A bound on ε holds whatever
    the score is: all this only decides how good the guesses are.
    """
    k = len(gradients)
    rho = sampling_rate / 2 + drawn / k
    products = (gradients @ gradients.T).astype(np.float64)  # (k, k)
    projected = (gradients @ released).astype(np.float64)  # (k,)
    scale, variance = _shown(products, projected, released, rho, noise_multiplier**2 + drawn / len(released))
    inverse = np.linalg.inv(variance * np.eye(k) + rho * products)  # GΣ⁻¹ = (σ²I + ρGGᵀ)⁻¹G
    precision = np.einsum("ij,ji->i", inverse, products)  # c
    moved = precision > _UNMOVED
    precision = np.where(moved, precision, 1.0)
    spread = np.sqrt(np.maximum(1 / precision - rho, variance))
    return np.where(moved, step_likelihood(inverse @ projected / scale / precision, sampling_rate, spread), 0.0)


def _shown(
    products: np.ndarray, projected: np.ndarray, released: np.ndarray, rho: float, claimed: float
) -> tuple[float, float]:
    """What a canary moves a release by, at least 1, and the variance elsewhere in that unit squared, at most `claimed`:
    estimated from the release's energy in the span of the canaries' gradients and outside it.

    products: (k, k) and projected: (k,) of the gradients with one another and with the release.
    """
    k, d = len(products), len(released)
    inside = float(projected @ np.linalg.solve(products + _RIDGE * np.eye(k), projected))
    outside = (float(released @ released) - inside) / max(1, d - k)
    draws = rho * k
    expected = draws * float(np.trace(products)) / k + draws**2 * float(products.mean())
    if d <= k or expected <= _UNMOVED or outside <= 0:
        return 1.0, claimed
    scale = math.sqrt(max(1.0, (inside - k * outside) / expected))
    return scale, min(claimed, outside / scale**2)


_UNMOVED = 1e-12
"""a canary that moves the sum by nothing that could be seen says nothing"""
_RIDGE = 1e-6
"""of squared norms of at most 1, in float32"""


def largest_rate(epsilon: float, delta: float, false_positive: float) -> float:
    """No attack on an (ε, δ)-DP model has more true positives (Kairouz, Oh, Viswanath 2015, Theorem 2.1)."""
    return float(
        min(
            1.0,
            np.exp(min(epsilon, 700.0)) * false_positive + delta,
            1 - np.exp(-epsilon) * (1 - delta - false_positive),
        )
    )
