"""Labels → one index array a client. Every function is deterministic in its generator.

`iid` and `shards` as in McMahan et al. 2017 (section 3), `dirichlet` as in Hsu, Qi, Brown 2019, `natural` by a column.
"""

import numpy as np

from ..config.tables import PartitionSection
from ..errors import DataError


def partition(
    section: PartitionSection,
    size: int,
    labels: np.ndarray | None,
    group: np.ndarray | None,
    seed: int,
    person: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Splits records 0 … size−1 among the clients; every record goes to exactly one.

    labels: (size,) int64, needed by `dirichlet` and `shards`. group: (size,) strings, needed by `natural`. person:
    (size,) strings; a person's records stay together, dealt out by the class that most of them have.
    Returns one sorted (n_i,) int64 array a client. Raises DataError when a client is left empty and
    `section.empty` is "refuse", or when the records do not suffice.
    """
    if person is not None:
        return _of_persons(section, labels, group, seed, person)
    rng = np.random.default_rng([seed, 0x9A47])
    if section.kind == "natural":
        if group is None:
            raise DataError("data.partition.kind: 'natural' needs the values of data.partition.column")
        parts = _natural(group, section)
    else:
        clients = section.clients or 0
        if size < clients:
            raise DataError(
                f"data.train: {size} records cannot be split among {clients} clients; allowed: at most one client a "
                "record; lower data.partition.clients"
            )
        if section.kind == "iid":
            parts = [np.asarray(part) for part in np.array_split(rng.permutation(size), clients)]
        else:
            if labels is None:
                raise DataError(f"data.partition.kind: '{section.kind}' needs a label column; set data.label")
            split = _dirichlet if section.kind == "dirichlet" else _shards
            parts = split(labels, clients, section, rng)
    return [np.sort(part).astype(np.int64) for part in _without_empty(parts, section)]


def _of_persons(
    section: PartitionSection, labels: np.ndarray | None, group: np.ndarray | None, seed: int, person: np.ndarray
) -> list[np.ndarray]:
    """Persons are dealt out as records are. Raises DataError as `partition`, and for one whom a column splits."""
    persons, first, owner = np.unique(person, return_index=True, return_inverse=True)
    if group is not None and (group != group[first][owner]).any():
        raise DataError(
            f"data.partition.column: column '{section.column}' sends rows of one person to several sites, and ε is for "
            "a person at one site; correct the rows, or choose another partition"
        )
    if section.kind != "natural" and len(persons) < (section.clients or 0):
        raise DataError(
            f"data.train: {len(persons)} persons cannot be split among {section.clients} clients; allowed: at most one "
            "client a person; lower data.partition.clients"
        )
    common = None
    if labels is not None and labels.dtype.kind == "i":
        counts = np.zeros((len(persons), int(labels.max(initial=0)) + 1), dtype=np.int64)
        np.add.at(counts, (owner, labels), 1)
        common = counts.argmax(1)
    parts = partition(section, len(persons), common, None if group is None else group[first], seed)
    return [np.flatnonzero(np.isin(owner, part)) for part in parts]


def _natural(group: np.ndarray, section: PartitionSection) -> list[np.ndarray]:
    values = np.unique(group)
    if section.clients is not None and section.clients != len(values):
        raise DataError(
            f"data.partition.clients: received {section.clients}, but column '{section.column}' has {len(values)} "
            "values; unset it or make them agree"
        )
    return [np.flatnonzero(group == value) for value in values]


def _dirichlet(
    labels: np.ndarray, clients: int, section: PartitionSection, rng: np.random.Generator
) -> list[np.ndarray]:
    """Each class is dealt out in proportions drawn from Dirichlet(α, …, α) over the clients."""
    pieces: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(clients, section.alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for client, piece in enumerate(np.split(members, cuts)):
            pieces[client].append(piece)
    return [np.concatenate(client) for client in pieces]


def _shards(labels: np.ndarray, clients: int, section: PartitionSection, rng: np.random.Generator) -> list[np.ndarray]:
    """Records sorted by label, cut into clients × shards_per_client pieces, dealt at random."""
    order = np.argsort(labels + rng.random(len(labels)) * 0.5, kind="stable")  # random within a label
    shards = np.array_split(order, clients * section.shards_per_client)
    dealt = rng.permutation(len(shards)).reshape(clients, section.shards_per_client)
    return [np.concatenate([shards[i] for i in row]) for row in dealt]


def _without_empty(parts: list[np.ndarray], section: PartitionSection) -> list[np.ndarray]:
    empty = [client for client, part in enumerate(parts) if len(part) == 0]
    if empty and section.empty == "refuse":
        raise DataError(
            f"data.partition: {len(empty)} of {len(parts)} clients are left without records (the first is {empty[0]}); "
            "raise data.partition.alpha, lower data.partition.clients, or set data.partition.empty=redistribute"
        )
    for client in empty:
        largest = max(range(len(parts)), key=lambda i: len(parts[i]))
        parts[client], parts[largest] = parts[largest][-1:], parts[largest][:-1]
    return parts


def site_name(site: int, sites: int) -> str:
    """site-01 … site-10: a simulated site's name, sorts as it counts."""
    return f"site-{site + 1:0{len(str(sites))}d}"
