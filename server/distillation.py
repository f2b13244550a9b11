"""Federated distillation at the server: it asks public queries, and its model, the student, learns the answers.

The answers were noised before anybody saw them, so whatever is learned of them is post-processing. FedDF (Lin et al.
2020) takes means of logits; here they are shares of teachers, whose noise can be bounded.
"""

from typing import Any

import numpy as np
import torch

from ..common.config.run import RunConfig
from ..common.data.sources import read_texts
from ..common.errors import DataError
from ..common.model.loading import FineTuneModel
from ..common.model.optimizer import warmed_up
from ..common.modes.distillation import ANSWERS, answer_scale, answers_shape
from ..common.privacy.mechanism import PrivacyPlan
from ..common.privacy.noise import from_grid
from ..common.tasks import inputs_of
from ..common.types import Adapter, ProgressCallback, Records, Rows, shuffled_batches
from .start import initial_adapter

_WARMUP, _NORM = 0.1, 1.0
_CLEAR = 2.0
"""standard deviations of the noise on a difference by which the first answer leads the second where it counts as
decided"""


class Distillation:
    """The public queries of a run, and the student."""

    def __init__(self, config: RunConfig, model: FineTuneModel) -> None:
        """Raises DataError when there are too few texts."""
        self._config, self._model = config, model
        public, wanted = str(config.distill.public), config.distill.queries
        texts = [text for text in read_texts(public, config.data.text) if text.strip()]
        if len(texts) < wanted:
            raise DataError(
                f"{public}: {len(texts)} texts, distill.queries is {wanted}; lower it, or give more public texts"
            )
        chosen = np.random.default_rng([config.run.seed, 0xA5C]).permutation(len(texts))[:wanted]
        self.queries = tuple(texts[i] for i in chosen)
        self._learned: tuple[bytes, Adapter] | None = None

    def nothing(self) -> Adapter:
        """What stands in the place of the adapter before the answers are there."""
        return {ANSWERS: np.zeros(answers_shape(self._config), dtype=np.float32)}

    def shares(self, state: Adapter) -> np.ndarray:
        """(M, K): the noised share of all teachers behind each answer."""
        return state[ANSWERS].astype(np.float64) / answer_scale(self._config)

    def student(self, state: Adapter, progress: ProgressCallback = lambda *_: None) -> Adapter:
        """The student's adapter: untrained before the answers are there, and trained once after."""
        start = initial_adapter(self._config, self._model)
        if not state[ANSWERS].any():
            return start
        key = state[ANSWERS].tobytes()
        if self._learned is None or self._learned[0] != key:
            self._learned = key, self._trained(start, on_simplex(self.shares(state)), progress)
        return self._learned[1]

    def _trained(self, start: Adapter, goals: np.ndarray, progress: ProgressCallback) -> Adapter:
        """Cross-entropy with the shares. goals: (M, K) distributions."""
        config, model = self._config, self._model
        records = model.encode(Rows("the queries", list(self.queries), labels=goals.argmax(1)))
        records = model.with_features(records)
        model.set(start)
        rate, steps = config.distill.learning_rate or config.training.learning_rate, config.distill.steps
        trained = list(model.trained.values())
        optimizer, schedule = warmed_up(trained, rate, steps, max(1, round(_WARMUP * steps)))
        wanted = torch.from_numpy(goals).float().to(model.device)
        rng = np.random.default_rng([config.run.seed, 0x57D])
        parts = shuffled_batches(np.arange(len(records)), config.training.batch_size, rng)
        for step, part in zip(range(steps), parts, strict=False):
            loss = -(wanted[part] * self._logits(records, part).log_softmax(1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, _NORM)
            optimizer.step()
            schedule.step()
            progress("teaching the student", step + 1, steps)
        return model.get()

    def _logits(self, records: Records, part: np.ndarray) -> torch.Tensor:
        """(B, K)."""
        return self._model.module(**inputs_of(self._model.batch(records, part))).logits.float()

    def facts(self, state: Adapter, plan: PrivacyPlan | None) -> dict[str, Any]:
        """For the report."""
        config, shares = self._config, np.sort(self.shares(state), axis=1)
        noise = 0.0 if plan is None else answer_noise(config, plan)
        teachers = config.distill.teachers * config.clients
        leads = shares[:, -1] - shares[:, -2]
        return {
            "queries": len(self.queries),
            "public": config.distill.public,
            "teachers": teachers,
            "noise": noise * teachers,
            "lead": float(leads.mean()) * teachers,
            "decided": float((leads > _CLEAR * 2**0.5 * noise).mean()),
        }


def answer_noise(config: RunConfig, plan: PrivacyPlan) -> float:
    """Standard deviation of the noise on one share of all teachers that every site is there for."""
    of_sum = from_grid(np.sqrt(config.clients * plan.pieces.kept(0)), plan.clip, plan.grid)
    return float(of_sum) / (config.distill.teachers * config.clients) / answer_scale(config)


def on_simplex(rows: np.ndarray) -> np.ndarray:
    """Each row's nearest distribution (Duchi et al. 2008). rows: (M, K)."""
    falling = -np.sort(-rows, axis=1)
    excess = falling.cumsum(1) - 1
    kept = (falling * np.arange(1, rows.shape[1] + 1) > excess).sum(1)
    lowered = excess[np.arange(len(rows)), kept - 1] / kept
    return np.maximum(rows - lowered[:, None], 0)
