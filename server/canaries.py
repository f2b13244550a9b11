"""The auditor's side of a one-run audit: scores while the updates come in, guesses when the coins are revealed.

The adversary of the audit is the server: it sees every update, knows every canary, and not the coins.
"""

from typing import Any

import numpy as np

from ..common.audit import CONFIDENCE, GradientCanaries, bounds, coins, commitment, step_likelihood, top_guesses
from ..common.config import RunConfig
from ..common.mechanism import PrivacyPlan
from ..common.models import FineTuneModel, canary_records
from .checkpoint import Checkpoint
from .evaluation import record_losses
from .start import initial_adapter

_ONE_IN = 20
"""guesses unless declared: one canary in twenty"""


class CanaryScores:
    """Folds each update into one score a canary; scores and commitments live in the checkpoint."""

    def __init__(self, config: RunConfig, model: FineTuneModel, plan: PrivacyPlan, state: Checkpoint) -> None:
        self._config, self._model, self._plan, self._state = config, model, plan, state
        self._canaries: dict[str, GradientCanaries] = {}

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
        # scaled so that a canary that was drawn adds 1
        observed = self._canaries[site].scores(released) * (self._plan.denominator / self._plan.clip)
        observed = step_likelihood(observed, self._plan.sampling_rate, self._plan.noise_multiplier)
        state.scores[site] = state.scores.get(site, np.zeros(len(observed))) + observed


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
        scores = {name: state.scores[name] for name in seeds}
        kinds["gradient"] = _guess(config, "gradient", scores, seeds)
    if config.audit.records:
        kinds["records"] = _guess(config, "records", _record_scores(config, model, state, list(seeds)), seeds)
    return {
        "adversary": "the server: it sees every update, knows every canary and not the coins",
        "confidence": CONFIDENCE,
        "delta": config.privacy.delta,
        # a coin that is not shown as it was committed cannot be guessed: those canaries count for nothing
        "excluded": sorted(state.commitments.keys() - seeds.keys()),
        "noise": not config.audit.control,
        **{kind: found for kind, found in kinds.items() if found},
    }


def _guess(
    config: RunConfig, kind: str, scores: dict[str, np.ndarray], seeds: dict[str, bytes]
) -> dict[str, float | int] | None:
    """None where no canary is left."""
    m = sum(len(own) for own in scores.values())
    if not m:
        return None
    tossed = np.concatenate([coins(seeds[name], kind, len(own)) for name, own in scores.items()])
    r = min(config.audit.guesses or max(1, m // _ONE_IN), m)
    return bounds(m, r, top_guesses(np.concatenate(list(scores.values())), tossed, r), config.privacy.delta)


def _record_scores(
    config: RunConfig, model: FineTuneModel, state: Checkpoint, sites: list[str]
) -> dict[str, np.ndarray]:
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
