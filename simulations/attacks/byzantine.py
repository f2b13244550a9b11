"""Byzantine sites that forge their updates, as a Flower Grid around a simulation's: what they send is replaced.

They know each other and every honest update of the round: the strongest adversary that the defences are claimed for.
Written without regard to any defence. Poisoned records are in `poison.py`.

| kind | what a Byzantine site sends | source |
|---|---|---|
| `random` | noise as long as the honest mean, times the strength | |
| `scaled` | its own update, times the strength | |
| `signflip` | its own update, backwards, times the strength | Li et al. 2019 |
| `innerproduct` | the honest mean, backwards, times the strength | Xie et al. 2020 |
| `alie` | the honest mean less z standard deviations, z as large as still hides | Baruch et al. 2019 |
| `minmax` | the honest mean, pushed back until it stands out (below) | Shejwalkar and Houmansadr 2021 |
| `mimic` | the update of one honest site, all of them the same | Karimireddy et al. 2022 |
| `freerider` | nothing | |
| `overclaim` | its own update backwards, with a weight of 10⁹ | |
| `notfinite` | its own update with one value that is no number | |

`minmax`: as far as no Byzantine site is further from an honest update than two honest ones are apart.
"""

from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType
from flwr.serverapp import Grid
from scipy.stats import norm

from ...common import wire
from ...common.config.probes import ON_RECORDS
from ...common.config.run import RunConfig
from ...common.types import Adapter, joined, split
from ...server.grids import Cohort
from .poison import byzantine_sites

STRENGTHS = {"random": 10.0, "scaled": 10.0, "signflip": 4.0, "innerproduct": 5.0}
_HALVINGS = 40

Forgery = Callable[[np.ndarray, np.ndarray, float, np.random.Generator, int], np.ndarray]
"""(honest (h, d), own (d,), strength, generator, number of Byzantine sites) → (d,)"""


def random_update(honest: np.ndarray, own: np.ndarray, strength: float, rng: np.random.Generator, f: int) -> np.ndarray:
    noise = rng.normal(size=own.shape)
    return strength * noise * (np.linalg.norm(honest.mean(0)) / np.linalg.norm(noise))


def scaled(honest: np.ndarray, own: np.ndarray, strength: float, rng: np.random.Generator, f: int) -> np.ndarray:
    return strength * own


def sign_flip(honest: np.ndarray, own: np.ndarray, strength: float, rng: np.random.Generator, f: int) -> np.ndarray:
    return -strength * own


def inner_product(honest: np.ndarray, own: np.ndarray, strength: float, rng: np.random.Generator, f: int) -> np.ndarray:
    return -strength * honest.mean(0)


def alie(honest: np.ndarray, own: np.ndarray, strength: float, rng: np.random.Generator, f: int) -> np.ndarray:
    """z: so many honest updates lie further out that, with the Byzantine sites, they are a majority."""
    n = len(honest) + f
    supporters = n // 2 + 1 - f
    z = norm.ppf(np.clip((n - f - supporters) / (n - f), 0.5, 1 - 1e-9))
    return honest.mean(0) - strength * max(float(z), 0.1) * honest.std(0)


def min_max(honest: np.ndarray, own: np.ndarray, strength: float, rng: np.random.Generator, f: int) -> np.ndarray:
    mean, direction = honest.mean(0), honest.std(0)
    apart = max(float(np.linalg.norm(honest - row, axis=1).max()) for row in honest)
    low, high = 0.0, 1e4
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reach = float(np.linalg.norm(honest - (mean - middle * direction), axis=1).max())
        low, high = (middle, high) if reach <= apart else (low, middle)
    return mean - strength * low * direction


def mimic(honest: np.ndarray, own: np.ndarray, strength: float, rng: np.random.Generator, f: int) -> np.ndarray:
    """The site that lies furthest along the direction in which honest updates differ most."""
    centred = honest - honest.mean(0)
    direction = np.linalg.svd(centred @ centred.T)[0][:, 0]
    return honest[int(np.abs(direction).argmax())]


def free_rider(honest: np.ndarray, own: np.ndarray, strength: float, rng: np.random.Generator, f: int) -> np.ndarray:
    return np.zeros_like(own)


def not_finite(honest: np.ndarray, own: np.ndarray, strength: float, rng: np.random.Generator, f: int) -> np.ndarray:
    return np.concatenate([[np.nan], own[1:]])


FORGERIES: dict[str, Forgery] = {
    "random": random_update,
    "scaled": scaled,
    "signflip": sign_flip,
    "innerproduct": inner_product,
    "alie": alie,
    "minmax": min_max,
    "mimic": mimic,
    "freerider": free_rider,
    "overclaim": sign_flip,
    "notfinite": not_finite,
}
_CLAIM = 1e9


class ByzantineGrid(Cohort):
    """A simulation's grid in which some sites' updates are replaced."""

    def __init__(self, grid: Grid, config: RunConfig) -> None:
        super().__init__(grid, list(grid.get_node_ids()))
        self._config = config
        self._byzantine = {self._nodes[number] for number in byzantine_sites(config)}
        self._rounds = 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        replies = self._grid.send_and_receive(messages, timeout=timeout)
        training = any(message.metadata.message_type == MessageType.TRAIN for message in messages)
        if not training or self._config.attack.kind in ON_RECORDS:
            return replies
        return self._forged([reply for reply in replies if not reply.has_error()])

    def _forged(self, replies: list[Message]) -> list[Message]:
        """Honest replies as they are; Byzantine sites' with a forged update."""
        self._rounds += 1
        byzantine = self._byzantine_among([reply.metadata.src_node_id for reply in replies])
        attack = self._config.attack
        kind = attack.kind or ""
        strength = STRENGTHS.get(kind, 1.0) if attack.strength is None else attack.strength
        updates = {reply.metadata.src_node_id: _update(reply) for reply in replies}
        honest = np.stack([joined(update) for node, update in updates.items() if node not in byzantine])
        for reply in replies:
            node = reply.metadata.src_node_id
            if node not in byzantine:
                continue
            rng = np.random.default_rng([self._config.run.seed, 0x11E, self._rounds, node])
            forged = FORGERIES[kind](honest, joined(updates[node]), strength, rng, len(byzantine))
            reply.content[wire.ARRAYS] = _record(split(forged, updates[node]))
            if kind == "overclaim":
                reply.content.metric_records[wire.METRICS][wire.WEIGHT] = _CLAIM
        return replies

    def _byzantine_among(self, asked: list[int]) -> set[int]:
        """`drawn`: those of the population that were drawn. `fixed`: as many of each round's sites."""
        attack = self._config.attack
        if attack.participation == "drawn":
            return self._byzantine & set(asked)
        rng = np.random.default_rng([self._config.run.seed, 0xF1, self._rounds])
        return (
            {asked[i] for i in rng.permutation(len(asked))[: len(self._byzantine)]}
            if self._cohorts
            else self._byzantine
        )

    @property
    def _cohorts(self) -> bool:
        cohort = self._config.server.cohort
        return cohort is not None and cohort < self._config.clients


def _update(reply: Message) -> Adapter:
    return {name: array.numpy().astype(np.float32) for name, array in reply.content.array_records[wire.ARRAYS].items()}


def _record(arrays: Adapter) -> ArrayRecord:
    """Without the checks of an honest site."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = Array(array)
    return record
