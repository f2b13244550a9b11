"""The auditor's side of a one-run audit: scores while the updates come in, guesses when the coins are revealed.

The adversary of the audit is the server: it sees every update, knows every canary, and not the coins. It computes the
canary records' gradients with a clip of its own: what a site really did with them is what is audited.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..common.config.run import RunConfig
from ..common.data.augmentation import Draw, view_losses
from ..common.model.loading import FineTuneModel, canary_records
from ..common.model.per_sample import hooked, record_gradients
from ..common.privacy.audit import (
    CONFIDENCE,
    SCOPES,
    GradientCanaries,
    bounds,
    coins,
    commitment,
    record_likelihood,
    step_likelihood,
    top_guesses,
)
from ..common.privacy.mechanism import PrivacyPlan
from ..common.types import Records
from .checkpoint import Checkpoint
from .evaluation import record_losses
from .start import initial_adapter

_ONE_IN = 20
"""guesses unless declared: one canary in twenty"""
_HELD, _TOGETHER = 2**26, 1024
"""numbers of canary records' gradients that are held at once (256 MiB), and records; more are scored part by part"""
_GRADIENT, _CLIPPED, _RECORDS = "gradient", "clipped_records", "records"
"""kinds of scores, as the report names them"""


class CanaryScores:
    """Folds each update into one score a canary; scores and commitments live in the checkpoint, by kind/site.

    A canary record costs a forward and a backward pass in every round that its site takes part in.
    """

    def __init__(self, config: RunConfig, model: FineTuneModel, plan: PrivacyPlan, state: Checkpoint) -> None:
        self._config, self._plan, self._state = config, plan, state
        self._model = model.copy()  # sites of this process may be training with the given one
        self._canaries: dict[str, GradientCanaries] = {}
        self._records: dict[str, Records] = {}

    def observe(self, site: str, committed: str | None, released: np.ndarray) -> None:
        """One site's part in a release. A site that commits to nothing, or to something new, spoils its canaries.

        released: (d,) the mean gradient, of the site alone or of the sum that it is in.
        """
        state = self._state
        if committed is None or state.commitments.setdefault(site, committed) != committed:
            state.commitments[site] = ""
            return
        if site not in self._canaries:
            self._canaries[site] = GradientCanaries.of_site(self._config, self._model.trained_initial, site)
            if self._config.server_steps and self._config.audit.records:
                self._records[site] = canary_records(self._config, self._model, site)
        plan = self._plan
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
                for part in _parts(len(records), size)
            ]
        )

    def _clipped(self, records: Records, which: np.ndarray) -> np.ndarray:
        """(k, d) float32: the gradients of the named records at the model's weights, clipped, in units of C.

        which: (k,) ascending.
        """
        config, found = self._config, np.empty((len(which), self._plan.coordinates), dtype=np.float32)
        batches, _ = records.by_length(which, config.training.physical_batch)
        draw = Draw.of(np.random.default_rng(0))  # no choice: canary records have no copies
        with hooked(self._model):
            for batch in batches:
                losses = view_losses(config, self._model, records, batch, self._state.round + 1, draw)
                gradients = torch.cat(record_gradients(self._model, losses), 1)  # (B, d)
                norms = gradients.double().norm(dim=1, keepdim=True)
                scaled = gradients / norms.clamp(min=self._plan.clip)
                scaled = torch.where(torch.isfinite(norms), scaled, 0.0)
                found[np.searchsorted(which, batch)] = scaled.float().cpu().numpy()
        return found


def _parts(count: int, size: int) -> Iterator[np.ndarray]:
    for start in range(0, count, size):
        yield np.arange(start, min(count, start + size))


def conclude(
    config: RunConfig, model: FineTuneModel, state: Checkpoint, revealed: dict[str, dict[str, Any]]
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
        "noise": not config.audit.control,
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
    """How much the loss of each canary record fell from the initial to the final model: black box."""
    scores: dict[str, np.ndarray] = {}
    start = initial_adapter(config, model)
    for site in sites:
        records = canary_records(config, model, site)
        if len(records):
            everything = np.arange(len(records))
            before = record_losses(model, start, records, everything)
            scores[site] = before - record_losses(model, state.adapter, records, everything)
    return scores
