"""A real site that is asked for one round after another, and what would have left it had there been no noise.

Everything runs as in production, from the file to the reply: `DeployedHost`, `handle`, a copy of one site's folder for
every data set, so that keys and secrets are the same. Replaced are the noise (what is released is a constant, so that
all steps of a round see the same weights), the draw (as the test says), and the coins of a step (one fixed salt).
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from confide.client import teach
from confide.client.deploy.folder import load_site
from confide.client.deploy.host import DeployedHost
from confide.client.deploy.setup import add_peers, init_site
from confide.client.handlers import handle
from confide.client.train import Work
from confide.client.worker import Worker
from confide.common import wire
from confide.common.config.run import RunConfig
from confide.common.credentials import make_ca
from confide.common.model.loading import FineTuneModel
from confide.common.modes import mode_of
from confide.common.privacy.mechanism import PoissonMechanism, PrivacyPlan
from confide.common.privacy.plan import privacy_plan
from confide.common.types import Adapter
from confide.tests import architectures
from confide.tests.neighbours.rows import Form, Table, write_images

RELEASED = 200
"""grid steps that stand in for every released number"""
QUERIES = ("a good film", "the story was dark", "sad", "it was quite warm and lovely", "film actor")
_UNPREDICTABLE = ("site.ledger-hash", "arrays.masked")
"""what differs between two runs over the same rows: the hash of an entry (its time), a masked input"""

_plans: dict[tuple[str, int], PrivacyPlan | None] = {}
"""a site's own plan, which follows from the run's declaration alone; once for all data sets"""

Draw = Callable[[int], np.ndarray]
"""number of records → positions of those that are drawn"""


def everybody(count: int) -> np.ndarray:
    return np.arange(count)


def only(position: int) -> Draw:
    return lambda count: np.arange(count)[position : position + 1]


def all_but(position: int) -> Draw:
    return lambda count: np.delete(np.arange(count), position)


@dataclass(frozen=True)
class Votes:
    """Of one teacher."""

    keys: tuple[int, ...]
    answers: tuple[int, ...] | None
    """None: it said nothing"""


@dataclass
class Told:
    """What came of one message."""

    reply: dict[str, Any]
    """type, length and, where it can be predicted, content of every value, by its path"""
    sums: list[np.ndarray] = field(default_factory=list)
    """(d,) clipped sum of each step, before noise"""
    clips: list[float] = field(default_factory=list)
    """the bound on a unit that each was released under"""
    keys: tuple[int, ...] = ()
    """of the records that the site trains on, in their order"""
    held_out: tuple[int, ...] = ()
    """of those that it counts"""
    kept: bool = False
    """whether an answer of noise alone was kept before a row was read"""
    gave_up: bool = False
    """whether it answered with noise alone, without its records"""
    votes: dict[int, Votes] = field(default_factory=dict)
    """of each teacher with records, where a run distils"""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class Observer:
    """What the site does inside, seen through what `watched` puts in place of the noise, the draw and the coins."""

    def __init__(self) -> None:
        self.draw: Draw = everybody
        self.told = Told({})

    def __enter__(self) -> "Observer":
        self._patched = pytest.MonkeyPatch()
        patch, watch = self._patched.setattr, self
        plan, draw, work, alone = privacy_plan, PoissonMechanism.draw, Worker._work, Worker._noise_alone
        dealt, train, scores = teach.dealt, teach.train_plain, FineTuneModel.scores
        teachers: list[int] = []

        def drawn(self: PoissonMechanism, population: int) -> np.ndarray:
            draw(self, population)  # with its checks
            return watch.draw(population) if population else np.empty(0, dtype=np.int64)

        def share(self: PoissonMechanism, clipped_sum: np.ndarray, clip: float) -> np.ndarray:
            assert clipped_sum.shape == (self.plan.coordinates,)
            assert self._awaiting_release
            self._awaiting_release = False
            watch.told.sums.append(clipped_sum.copy())
            watch.told.clips.append(clip)
            return np.full(self.plan.coordinates, RELEASED, dtype=np.int64)

        def noted(self: Worker, *arguments: Any) -> Work:
            made = work(self, *arguments)
            keys = made.records.keys
            watch.told.keys = () if keys is None else tuple(keys[made.indices].tolist())
            watch.told.held_out = () if keys is None else tuple(keys[made.held_out].tolist())
            return made

        def noise_alone(self: Worker, *arguments: Any) -> Any:
            told = watch.told
            if not self.config.secure and not told.kept:  # for a worker that does not live to answer
                told.kept, watch.told = True, Told({})
                try:
                    return alone(self, *arguments)
                finally:
                    watch.told = told
            told.gave_up = True
            return alone(self, *arguments)

        def parts(indices: np.ndarray, keys: np.ndarray, count: int) -> list[np.ndarray]:
            found = dealt(indices, keys, count)
            teachers[:] = [number for number, part in enumerate(found) if len(part)]
            watch.told.votes.clear()
            return found

        def taught(made: Work, rng: np.random.Generator) -> Any:
            keys = made.records.keys
            watch.told.votes[teachers[len(watch.told.votes)]] = Votes(
                () if keys is None else tuple(keys[made.indices].tolist()), None
            )
            return train(made, rng)

        def answered(self: FineTuneModel, *arguments: Any) -> dict[str, np.ndarray]:
            found = scores(self, *arguments)
            if watch.told.votes:
                number = teachers[len(watch.told.votes) - 1]
                watch.told.votes[number] = Votes(watch.told.votes[number].keys, tuple(found["predicted"].tolist()))
            return found

        def planned(config: RunConfig, trained: int) -> PrivacyPlan | None:
            key = config.digest(), trained
            if key not in _plans:
                _plans[key] = plan(config, trained)
            return _plans[key]

        patch("confide.client.worker.privacy_plan", planned)
        patch(PoissonMechanism, "draw", drawn)
        patch(PoissonMechanism, "share", share)
        patch(Worker, "_work", noted)
        patch(Worker, "_noise_alone", noise_alone)
        patch(teach, "dealt", parts)
        patch(teach, "train_plain", taught)
        patch(FineTuneModel, "scores", answered)
        for module in ("train", "worker"):  # what is drawn beside the records; noise is gone already
            patch(f"confide.client.{module}.secure_generator", lambda: np.random.default_rng(11))
        return self

    def __exit__(self, *_: object) -> None:
        self._patched.undo()


class Sites:
    """Two sites that know each other, and every backbone; copied for each data set."""

    def __init__(self, root: Path) -> None:
        self.root, self._count = root, 0
        make_ca(root)
        write_images(root / "images")
        self.names = ("site-1", "site-2")
        backbones = {f"tiny/{name}": f"../models/{name}" for name in architectures.ALL | architectures.WIDE}
        for name in self.names:
            init_site(root / name, name, "127.0.0.1:9", root / "ca.crt", "default", "data.csv", 1e9)
            config, _ = load_site(root / name)
            content: dict[str, Any] = config.model_dump(mode="json", exclude_none=True) | {"backbones": backbones}
            content["policy"]["templates"] = True
            (root / name / "site.toml").write_text(tomli_w.dumps(content))
        lines = [(root / name / "site.pub").read_text() for name in self.names]
        for name in self.names:
            add_peers(root / name, lines)

    def backbone(self, name: str) -> str:
        """Its name in a run; the weights are made at the first call."""
        folder = self.root / "models" / name
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            architectures.save_architecture(name, folder)
        return f"tiny/{name}"

    def host(self, table: Table, form: Form = "csv", site: str = "site-1", **dataset: str) -> DeployedHost:
        """A site that starts with these rows. dataset: further keys of its table in site.toml."""
        self._count += 1
        folder = self.root / f"{site}-{self._count}"
        shutil.copytree(self.root / site, folder)
        table.write(folder, form)
        keys = "".join(f'{key} = "{value}"\n' for key, value in dataset.items())
        text = (folder / "site.toml").read_text().replace('source = "data.csv"\n', f'source = "data.{form}"\n{keys}')
        (folder / "site.toml").write_text(text)
        return DeployedHost(folder)


def ask(
    watch: Observer,
    host: DeployedHost,
    config: RunConfig,
    adapter: Adapter,
    draws: list[Draw],
    peer: DeployedHost | None = None,
    first: int = 1,
) -> list[Told]:
    """One round a draw. peer: the other site, where sums are secure and none was set up. first: number of the round."""
    dealt = None if peer is None else _set_up(host, peer, config)
    found = []
    for number, draw in enumerate(draws, start=first):
        watch.draw, watch.told = draw, Told({})
        facts = wire.task_config()
        facts[wire.ROUND] = number
        if config.evaluated_in(number):
            facts[wire.EVALUATE] = True
        content = RecordDict({wire.ARRAYS: wire.arrays_to_record(adapter), wire.CONFIG: facts})
        if dealt is not None and number == first:
            content[wire.DEALT] = ConfigRecord(dealt)
        if mode_of(config).TEACHERS:
            content[wire.QUERIES] = ConfigRecord({wire.TEXTS: list(QUERIES)})
        reply = handle(message("train", content), host.enter(config.to_flat()))
        watch.told.reply = _shown(reply)
        if not reply.has_error():
            arrays = reply.content.array_records[wire.ARRAYS]
            watch.told.arrays = {name: array.numpy() for name, array in arrays.items()}
        found.append(watch.told)
    return found


def message(kind: str, content: RecordDict) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    made = Message(content, 1, kind)
    made.metadata.__dict__["_message_id"] = "1"
    return made


def _set_up(host: DeployedHost, peer: DeployedHost, config: RunConfig) -> dict[str, Any]:
    """What the peer dealt to the site, after an exchange of keys and shares that the server would carry."""
    from confide.common.secagg import facts

    hosts = {"site-1": host, "site-2": peer}

    def asked(name: str, stage: str, question: dict[str, Any]) -> ConfigRecord:
        content = RecordDict({wire.CONFIG: ConfigRecord(question)})
        reply = handle(message(f"query.{stage}", content), hosts[name].enter(config.to_flat()))
        assert not reply.has_error(), reply.error.reason
        return reply.content.config_records[wire.SITE]

    adverts = [facts.to_advert(asked(name, "keys", {"first-round": 1})) for name in sorted(hosts)]
    columns = facts.from_adverts(adverts)
    shares = {name: facts.to_sealed(asked(name, "shares", columns)) for name in hosts}
    return facts.from_sealed({"site-2": shares["site-2"]["site-1"]})


def _shown(reply: Message) -> dict[str, Any]:
    if reply.has_error():
        return {"error": (reply.error.code, reply.error.reason)}
    found: dict[str, Any] = {"type": reply.metadata.message_type}
    for name, record in reply.content.items():
        for key, value in record.items():
            path = f"{name}.{key}"
            content: Any = value
            if isinstance(record, ArrayRecord):
                content = value.data  # pyright: ignore[reportAttributeAccessIssue]
                found[f"{path} has"] = value.dtype, value.shape, value.stype  # pyright: ignore[reportAttributeAccessIssue]
            known = path not in _UNPREDICTABLE
            found[path] = content if known else (type(content), len(content))  # pyright: ignore[reportArgumentType]
    return found
