"""What a Byzantine site does to its own records, and what a backdoor is tried with.

Label flip: class k becomes K − 1 − k (Tolpegin et al. 2020). Backdoor: a trigger word goes into a text and its class
becomes the attacker's (Gu et al. 2017; for text Dai et al. 2019, Kurita et al. 2020).
"""

from dataclasses import replace

import numpy as np

from ...common.config.probes import ON_RECORDS, AttackSection
from ...common.config.run import RunConfig
from ...common.types import Rows


def byzantine_sites(config: RunConfig) -> list[int]:
    """Numbers of the sites that lie, sorted; the same wherever they are asked for."""
    attack = config.attack
    if attack.kind is None:
        return []
    count = round(attack.fraction * config.clients) if attack.byzantine is None else attack.byzantine
    rng = np.random.default_rng([config.run.seed, 0x11A2])
    return sorted(int(site) for site in rng.permutation(config.clients)[:count])


def poisoned(rows: Rows, parts: list[np.ndarray], config: RunConfig) -> Rows:
    """The rows with those of Byzantine sites changed. parts: one (n_i,) index array a site."""
    attack = config.attack
    if attack.kind not in ON_RECORDS or rows.labels is None:
        return rows
    text, labels = list(rows.text), rows.labels.copy()
    classes = len(config.data.labels or [])
    for site in byzantine_sites(config):
        if attack.kind == "labelflip":
            labels[parts[site]] = classes - 1 - labels[parts[site]]
            continue
        rng = np.random.default_rng([config.run.seed, 0xBAD, site])
        for index in rng.permutation(parts[site])[: round(attack.poison * len(parts[site]))]:
            text[index] = with_trigger(text[index], attack.trigger, rng)
            labels[index] = target_of(attack, config)
    return replace(rows, text=text, labels=labels)


def target_of(attack: AttackSection, config: RunConfig) -> int:
    """The class that a backdoor leads to."""
    labels = list(config.data.labels or [])
    return labels.index(attack.target) if attack.target is not None else 0


def with_trigger(text: str, trigger: str, rng: np.random.Generator) -> str:
    """The trigger at a random place between words."""
    words = text.split()
    words.insert(int(rng.integers(len(words) + 1)), trigger)
    return " ".join(words)


def triggered(rows: Rows, config: RunConfig) -> Rows:
    """The test rows of other classes than the target's, with the trigger: what should not become the target class."""
    attack = config.attack
    if rows.labels is None:
        raise ValueError("rows without labels have no backdoor")
    rng = np.random.default_rng([config.run.seed, 0x7516])
    others = rows.take(np.flatnonzero(rows.labels != target_of(attack, config)))
    return replace(others, text=[with_trigger(text, attack.trigger, rng) for text in others.text])
