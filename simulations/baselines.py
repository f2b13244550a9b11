"""`[baselines]`: what a simulation is compared with. The same records, learned by each site alone and all in one place.

They are played after the run, one after the other, by the same rounds with one site each; nothing of them is written
but what they reach on the test set. Byzantine sites and canaries are left out.
"""

import hashlib
import uuid
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import RecordDict

from ..client.site import Site
from ..client.worker import SiteData, Worker
from ..common.config.run import RunConfig
from ..common.config.tables import GIVEN_STRATEGY
from ..common.errors import ConfideError, RoundError
from ..common.modes import mode_of
from ..common.privacy.plan import privacy_plan
from ..common.types import Adapter
from ..server.callbacks import Callback, EarlyStopping, RunState
from ..server.checkpoint import Checkpoint
from ..server.evaluation import evaluate, subset
from ..server.handshake import handshake
from ..server.ledger_heads import Heads
from ..server.record import write_progress
from ..server.rounds import RoundResult, result_row, run_rounds
from ..server.start import initial_adapter
from ..server.testing import BASELINES, Baseline
from .answering import client_app
from .local import LocalGrid, kept_identity
from .sites import SimulatedHost, SimulatedSites, simulated_data, worker_for

_TRAINED = BASELINES[2:]
_ONE_SITE = ("groups", "cohort", "min_survivors", "secure_aggregation", "byzantine", "mixing", "momentum", "max_norm")
"""keys of [server] that say something of several sites"""


_HOW = {
    "alone": "each site by itself, with the run's rounds and settings, {terms}; the mean over the sites",
    "pooled": "all records in one place, with the run's rounds and settings, without privacy",
    "pooled_private": "all records in one place, with the run's rounds and settings, {terms}",
}


class Baselines(Callback):
    """Measured once all rounds are over."""

    def finished(self, run: RunState) -> dict[str, Any]:
        return {"baselines": {name: _measured(run, name) for name in _TRAINED}}


def _measured(run: RunState, name: str) -> Baseline | str:
    config = run.config
    if not getattr(config.baselines, name):
        return f"not asked for (baselines.{name})"
    if (reason := _impossible(config, name)) is not None:
        return reason
    data = _clean_data(run)
    portions = [[number] for number in range(len(data.parts))] if name == "alone" else [list(range(len(data.parts)))]
    figures = []
    for done, portion in enumerate(portions):
        progress = {"stage": f"baseline: {name.replace('_', ' ')}", "round": config.run.rounds}
        write_progress(run.folder, {**progress, "rounds": config.run.rounds, "done": done, "asked": len(portions)})
        try:
            figures.append(run.test.figure(_trained(run, name, _only(data, portion))))
        except ConfideError as error:
            return f"it could not be trained: {error}"
    terms = f"with ε = {config.privacy.epsilon:g}" if config.private else "without privacy, like the run"
    return Baseline(_HOW[name].format(terms=terms), figures)


def _impossible(config: RunConfig, name: str) -> str | None:
    """Why a run of this kind has no such baseline; None where it has."""
    if mode_of(config).TEACHERS:
        return "sites train teachers of their own, and no model is averaged"
    if name == "pooled_private" and not config.private:
        return "the run has no privacy: pooled is the same"
    if name != "pooled" and config.privacy.mode == "client":
        return "ε is for a whole site, and such a run has one site"
    return None


def _clean_data(run: RunState) -> SiteData:
    """The sites' records without what Byzantine sites made of theirs."""
    if run.config.attack.kind is None:
        return worker_for(run.config.to_flat()).data
    return simulated_data(_without(run.config, "attack"), run.model)


def _only(data: SiteData, sites: list[int]) -> SiteData:
    """One site that holds what these held."""
    held = np.sort(np.concatenate([data.parts[number] for number in sites]))
    contents = data.contents[sites[0]] if len(sites) == 1 else hashlib.sha512(b"".join(data.contents)).digest()
    return replace(data, parts=[held], contents=[contents])


def _trained(run: RunState, name: str, data: SiteData) -> Adapter:
    """What one site with these records learns by itself in as many rounds."""
    config = _alone(run.config, name, data)
    worker, sites = Worker(config, lambda *_: data), SimulatedSites(config)
    app = client_app(lambda flat, number, state: _Lone(flat, number, state, worker, sites.site(number)))
    with kept_identity():
        grid = LocalGrid(app, config.to_flat(), 1)
        state = Checkpoint(0, config.digest(), initial_adapter(config, worker.model))
        plan = privacy_plan(config, worker.model.count()[0])
        rounds = replace(run, config=config, plan=plan, state=state)
        stopping = EarlyStopping()
        stopping.started(rounds)
        watched = subset(run.test.watched, config.server.evaluation_limit, config.run.seed)

        def round_done(result: RoundResult) -> None:
            state.history.append(result_row(result))
            if config.server.patience is not None:
                found = evaluate(run.model, state.adapter, run.test.watched, watched).metrics
                state.history[-1] |= found
                stopping.round_done(state.history[-1])

        run_rounds(
            grid,
            config,
            state,
            plan=plan,
            trained=list(worker.model.trained),
            sites=handshake(grid, config, Heads(None)).sites,
            callback=Callback(),
            charged=lambda: None,
            round_done=round_done,
        )
    if all("void" in row for row in state.history):
        raise RoundError(state.history[-1]["void"])
    return state.best or state.adapter


def _alone(config: RunConfig, name: str, data: SiteData) -> RunConfig:
    """The run of one site. Raises ConfigError for settings that one site cannot have."""
    content = _without(config, "attack", "audit", "baselines", "evaluation").model_dump(mode="json", exclude_none=True)
    content["engine"].pop("ledger", None)
    content["run"]["id"] = uuid.uuid4().hex
    content["data"]["partition"] = {"clients": 1}
    server = content["server"]
    for key in _ONE_SITE:
        server.pop(key, None)
    server["min_clients"] = 1
    if config.server.robust or config.server.aggregation == GIVEN_STRATEGY:
        server["aggregation"] = "fedavg"
    privacy, size = config.privacy, len(data.parts[0])
    if name == "pooled" or not config.private:
        content["privacy"] = {}
        content["data"].pop("person", None)
        if config.private and mode_of(config).BY_STEP and privacy.sampling_rate is not None:
            content["training"]["batch_size"] = max(1, round(privacy.sampling_rate * size))
        elif name == "pooled":
            content["training"]["batch_size"] *= config.clients
    else:
        kept = {key: getattr(privacy, key) for key in ("epsilon", "delta", "clip", "sampling_rate")}
        content["privacy"] = {"mode": "local", **kept}
        person = data.records.person
        units = size if person is None else len(np.unique(person[data.parts[0]]))
        declared = "declared_examples" if person is None else "declared_persons"
        # the same for every site, as in the run: batches keep their shapes, in which the model has been proved
        share = max(1, round(getattr(privacy, declared) / (config.clients if name == "alone" else 1)))
        content["privacy"][declared] = share
        if config.training.optimizer != "adam":  # which alone does not care what a sum is divided by
            content["training"]["learning_rate"] *= share / units
    return RunConfig.parse(content, "baselines")


def _without(config: RunConfig, *sections: str) -> RunConfig:
    """With the defaults of these tables."""
    return config.model_copy(update={name: type(getattr(config, name))() for name in sections})


class _Lone(SimulatedHost):
    """The one site, with a worker of its own."""

    def __init__(self, run_config: dict, number: int, state: RecordDict, worker: Worker, site: Site) -> None:
        super().__init__(run_config, number, state)
        self._worker, self._site = worker, site

    @property
    def site(self) -> Site:
        return self._site

    def worker(self) -> Worker:
        return self._worker
