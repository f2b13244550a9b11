"""A one-run audit: canaries among the records of simulated sites, scores while the updates come in, and guesses when
the coins are revealed.

The adversary of the audit is the server: it sees every update, knows every canary, and not the coins. It computes the
canary records' gradients with a clip of its own: what a site really did with them is what is audited.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..client.site import SiteAccount
from ..common.config.run import RunConfig
from ..common.data.augmentation import Draw, view_losses
from ..common.data.partition import site_name
from ..common.model.loading import FineTuneModel
from ..common.model.per_sample import hooked, record_gradients
from ..common.privacy.audit import (
    CONFIDENCE,
    SCOPES,
    GradientCanaries,
    bounds,
    canary_rows,
    coins,
    commitment,
    record_likelihood,
    rows_each,
    step_likelihood,
    top_guesses,
)
from ..common.privacy.mechanism import PrivacyPlan
from ..common.types import Records, Rows, Update, joined
from ..server.callbacks import Callback, RunState
from ..server.checkpoint import Checkpoint
from ..server.evaluation import record_losses
from ..server.start import initial_adapter
from .memorised import secret_rows, secrets_alone

_ONE_IN = 20
"""guesses unless declared: one canary in twenty"""
_HELD, _TOGETHER = 2**26, 1024
"""numbers of canary records' gradients that are held at once (256 MiB), and records; more are scored part by part"""
_GRADIENT, _CLIPPED, _RECORDS = "gradient", "clipped_records", "records"
"""kinds of scores, as the report names them"""


class Planted:
    """An audit's canaries at the sites of a process; each is in or out by its site's coin."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def among(self, records: Records, model: FineTuneModel) -> Records:
        """The records, and behind them each site's share of canary records."""
        if self._config.audit.records:
            for number in range(self._config.clients):
                name = site_name(number, self._config.clients)
                canaries = canary_records(self._config, model, name)
                if records.person is not None:
                    own = np.arange(len(canaries)) // rows_each(self._config)
                    nobodys = -1 - own - number * len(canaries)  # nobody's among the records
                    canaries = replace(canaries, person=nobodys)
                records = records.joined(canaries)
        return records

    def of_site(
        self, account: SiteAccount, model: FineTuneModel, number: int, before: int
    ) -> tuple[np.ndarray, GradientCanaries]:
        """What the site's coins put in: numbers of its canary records, and its gradient canaries.

        number: of the site. before: records in front of the canary records.
        """
        config, seed = self._config, account.site.coin_seed(self._config)
        count, each = config.audit.records // config.clients, rows_each(config)
        chosen = number * count + np.flatnonzero(coins(seed, "records", count))
        rows = before + (chosen[:, None] * each + np.arange(each)).ravel()
        canaries = GradientCanaries.of_site(config, model.trained_initial, account.site.name)
        return rows, canaries.only(coins(seed, "gradient", len(canaries)))


class CanaryAudit(Callback):
    """Scores the canaries of a run, and guesses at its end which were in."""

    def started(self, run: RunState) -> None:
        self._commitments = run.state.commitments
        # without privacy an update is no sum of what is bounded, and the final model alone is scored
        self._scores = None if run.plan is None else CanaryScores(run.config, run.model, run.plan, run.state)

    def received(self, site: str, update: Update) -> None:
        if update.masked is None:
            self._observe(site, update.commitment, -joined(update.delta))

    def summed(self, change: np.ndarray, updates: Mapping[str, Update]) -> None:
        for site, update in updates.items():
            self._observe(site, update.commitment, -change)

    def _observe(self, site: str, committed: str | None, released: np.ndarray) -> None:
        """One site's part in a release. A site that commits to nothing, or to something new, spoils its canaries.

        released: (d,) the mean gradient, of the site alone or of the sum that it is in.
        """
        if committed is None or self._commitments.setdefault(site, committed) != committed:
            self._commitments[site] = ""
        elif self._scores is not None:
            self._scores.observe(site, released)

    def finished(self, run: RunState) -> dict[str, Any]:
        return {"audit": conclude(run.config, run.model, run.state, run.query("reveal"))}


def canary_rows_of(config: RunConfig, model: FineTuneModel, site: str) -> Rows:
    """A site's canary records as rows, before they are encoded. Raises ConfigError as `secret_rows`."""
    if config.canary_kind != "words":
        return secret_rows(config, model, site)
    reads, words = model.task.READS, []
    if reads.text:
        special = set(model.tokenizer.all_special_tokens)
        words = sorted(word for word in model.tokenizer.get_vocab() if word.isalpha() and word not in special)
    form = model.image if reads.images else None
    return canary_rows(
        config,
        words,
        site,
        classes=model.classes if model.task.CLASSES else 0,
        numbers=reads.label == "number",
        tags=reads.label == "tags",
        several=reads.label == "classes",
        image=None if form is None else (form.channels, form.height, form.width),
    )


def canary_records(config: RunConfig, model: FineTuneModel, site: str) -> Records:
    """An audit's canary records of one site; public, and the same at the site and at the server."""
    return model.with_features(model.encode(canary_rows_of(config, model, site)))


class CanaryScores:
    """Folds each update into one score a canary; scores and commitments live in the checkpoint, by kind/site.

    A canary record costs a forward and a backward pass in every round that its site takes part in.
    """

    def __init__(self, config: RunConfig, model: FineTuneModel, plan: PrivacyPlan, state: Checkpoint) -> None:
        self._config, self._plan, self._state = config, plan, state
        self._model = model.copy()  # sites of this process may be training with the given one
        self._canaries: dict[str, GradientCanaries] = {}
        self._records: dict[str, Records] = {}

    def observe(self, site: str, released: np.ndarray) -> None:
        """One site's part in a release, as `CanaryAudit` received it."""
        plan = self._plan
        if site not in self._canaries:
            self._canaries[site] = GradientCanaries.of_site(self._config, self._model.trained_initial, site)
            if self._config.server_steps and self._config.audit.records:
                self._records[site] = canary_records(self._config, self._model, site)
        seen = released * (plan.denominator / plan.clip)  # scaled so that a canary that was drawn adds 1
        scores = self._canaries[site].scores(seen)
        self._add(_GRADIENT, site, step_likelihood(scores, plan.sampling_rate, plan.noise_multiplier))
        if site in self._records:
            self._add(_CLIPPED, site, self._record_scores(self._records[site], seen))

    def _add(self, kind: str, site: str, scores: np.ndarray) -> None:
        key = f"{kind}/{site}"
        self._state.scores[key] = self._state.scores.get(key, np.zeros(len(scores))) + scores

    def _record_scores(self, records: Records, seen: np.ndarray) -> np.ndarray:
        """(k,) of a site's canary records. The state still holds the adapter that the round started from."""
        plan, size = self._plan, max(1, min(_TOGETHER, _HELD // len(seen)))
        self._model.set(self._state.adapter)
        return np.concatenate(
            [
                record_likelihood(
                    self._clipped(records, part), seen, plan.sampling_rate, plan.noise_multiplier, plan.denominator
                )
                for part in _parts(len(records) // rows_each(self._config), size)
            ]
        )

    def _clipped(self, records: Records, which: np.ndarray) -> np.ndarray:
        """(k, d) float32: the gradients of the named canaries at the model's weights, each the mean of its rows,
        clipped, in units of C.

        which: (k,) ascending.
        """
        each = rows_each(self._config)
        found = self._gradients(records, which * each)
        for row in range(1, each):
            found += self._gradients(records, which * each + row)
        found /= each
        norms = np.linalg.norm(found.astype(np.float64), axis=1, keepdims=True)
        return np.where(np.isfinite(norms), found / np.maximum(norms, self._plan.clip), 0.0).astype(np.float32)

    def _gradients(self, records: Records, which: np.ndarray) -> np.ndarray:
        """(k, d) float32: the gradients of the named records. which: (k,) ascending."""
        config, found = self._config, np.empty((len(which), self._plan.trained), dtype=np.float32)
        batches, _ = records.by_length(which, max(1, config.training.tokens // config.model.max_length))
        draw = Draw.of(np.random.default_rng(0))  # no choice: canary records have no copies
        with hooked(self._model):
            for batch in batches:
                losses = view_losses(config, self._model, records, batch, self._state.round + 1, draw)
                gradients = torch.cat(record_gradients(self._model, losses), 1)  # (B, d)
                found[np.searchsorted(which, batch)] = gradients.cpu().numpy()
        return found


def _parts(count: int, size: int) -> Iterator[np.ndarray]:
    for start in range(0, count, size):
        yield np.arange(start, min(count, start + size))


def conclude(
    config: RunConfig, model: FineTuneModel, state: Checkpoint, revealed: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Checks the coins against what was committed, guesses, and bounds ε from below.

    revealed: the answers of the sites, by name.
    """
    shown = {site: facts.get("seed") for site, facts in sorted(revealed.items())}
    seeds = {
        site: seed
        for site, seed in shown.items()
        if isinstance(seed, bytes) and commitment(seed) == state.commitments.get(site)
    }
    kinds: dict[str, Any] = {}
    if config.audit.canaries:
        kinds[_GRADIENT] = _guess(config, _GRADIENT, _kept(state, _GRADIENT, seeds), seeds)
    if config.audit.records:
        kinds[_CLIPPED] = _guess(config, _RECORDS, _kept(state, _CLIPPED, seeds), seeds)
        kinds[_RECORDS] = _guess(config, _RECORDS, _loss_scores(config, model, state, list(seeds)), seeds)
    return {
        "adversary": "the server: it sees every update, knows every canary and not the coins",
        "confidence": CONFIDENCE,
        "delta": config.privacy.delta,
        # a coin that is not shown as it was committed cannot be guessed: those canaries count for nothing
        "excluded": sorted(state.commitments.keys() - seeds.keys()),
        "noise": config.private and not config.audit.control,
        "kind": config.canary_kind,
        **{kind: {**found, "scope": SCOPES[kind]} for kind, found in kinds.items() if found},
    }


def _kept(state: Checkpoint, kind: str, seeds: dict[str, bytes]) -> dict[str, np.ndarray]:
    """The scores of one kind, by site, of the sites whose coins are known."""
    return {name: state.scores[f"{kind}/{name}"] for name in seeds if f"{kind}/{name}" in state.scores}


def _guess(
    config: RunConfig, kind: str, scores: dict[str, np.ndarray], seeds: dict[str, bytes]
) -> dict[str, float | int] | None:
    """kind: of the coins. None where no canary is left."""
    m = sum(len(own) for own in scores.values())
    if not m:
        return None
    tossed = np.concatenate([coins(seeds[name], kind, len(own)) for name, own in scores.items()])
    r = min(config.audit.guesses or max(1, m // _ONE_IN), m)
    return bounds(m, r, top_guesses(np.concatenate(list(scores.values())), tossed, r), config.privacy.delta)


def _loss_scores(config: RunConfig, model: FineTuneModel, state: Checkpoint, sites: list[str]) -> dict[str, np.ndarray]:
    """How much the loss of each canary record (of its secret) fell from the initial to the final model: black box."""
    scores: dict[str, np.ndarray] = {}
    start = initial_adapter(config, model)
    for site in sites:
        records = canary_records(config, model, site)
        if len(records):
            if config.canary_kind != "words":
                records = secrets_alone(config, model, site)
            everything = np.arange(len(records))
            before = record_losses(model, start, records, everything)
            fell = before - record_losses(model, state.adapter, records, everything)
            scores[site] = fell.reshape(-1, rows_each(config)).mean(1)
    return scores
