"""`confide evaluate robustness`: how far a finished run's model falls under noise, checks, attackers, and from site to
site.

Reads the run's public test set and, of a simulation, each site's records. The outcome becomes part of the run's report.
"""

from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...client.worker import SiteData
from ...common.config.probes import AttackSection
from ...common.config.run import RunConfig
from ...common.data.partition import site_name
from ...common.data.perturbations import PERTURBATIONS, STRENGTHS, names_swapped, negated
from ...common.model.embeddings import ascended, embedding_layer, moved
from ...common.stages import Stages
from ...common.tasks.sequence_classification import calibration_error
from ...common.types import ProgressCallback, Rows
from ...server.evaluation import evaluate
from ...server.report import amend_report
from ...server.ship.finished import FinishedRun
from ..sites import simulated_data
from . import blackbox

NOISE, SITES, QUERIES, EMBEDDINGS = "noise and checks", "sites", "attack by queries", "attack on embeddings"
"""stages"""
RADII = (0.01, 0.02, 0.05, 0.1)
"""of PGD on embeddings, relative to each token's norm"""
_PGD_STEPS, _EXAMPLES = 10, 6
_PASSES_OF_QUERIES, _PASSES_OF_A_STEP = 20, 3
"""passes of a text: that an attack by queries takes, more or less; of a step of PGD, forward and backward"""


@dataclass(frozen=True)
class Extent:
    """How much is looked at. What fewer rows and draws leave open: docs/how-to/robustness.md."""

    rows: int = 200
    """of the test set, for noise and checks"""
    attacked: int = 30
    """of these, how many are attacked"""
    budget: int = 200
    """questions an attacker may ask about a text"""
    seeds: int = 2
    """times that noise is drawn"""
    of_a_site: int = 100
    """records of each simulated site"""


WHOLE = Extent(rows=500, attacked=100, seeds=3, of_a_site=200)


class Subject(FinishedRun):
    """A finished run's model, asked about texts. LoRA is merged into a copy of the weights: a pass takes a tenth less,
    and answers the same but for rounding."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError as `FinishedRun`."""
        super().__init__(folder)
        self.model = self.model.copy(share=False)
        self.model.set(self.adapter)
        self.model.module.merge_adapter()
        self._known: dict[bytes, np.ndarray] = {}

    def ask(self, texts: list[str]) -> np.ndarray:
        """(N, K) probabilities. Texts of the same tokens, of which changed case and marks make many, are read once."""
        rows = Rows("texts", texts, labels=np.zeros(len(texts), dtype=np.int64))
        records = self.model.tokenised(rows)
        keys = [records.tokens[a:b].tobytes() for a, b in pairwise(records.offsets)]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        if new:
            which = np.array(sorted(new.values()))
            found = self.model.scores(records, which)["probabilities"]
            self._known |= {keys[i]: row for i, row in zip(which, found, strict=True)}
        return np.stack([self._known[key] for key in keys])

    def of_sites(self) -> SiteData | None:
        """A simulation's records as they were before anybody lied, and who holds which; None: of a deployment."""
        if self.config.data.train is None:
            return None
        return simulated_data(self.config.model_copy(update={"attack": AttackSection()}), self.model)


def evaluate_robustness(folder: Path, progress: ProgressCallback, extent: Extent = Extent()) -> dict[str, Any]:
    """Becomes part of the run's report, too."""
    subject = Subject(folder)
    sample = subject.rows(extent.rows)
    labels = np.asarray(sample.labels)
    stages = Stages(progress, _passes(len(sample), extent, subject.config))
    clean = subject.ask(sample.text)
    stages.done(NOISE, 0, 1)  # what is measured from here on has been done once
    right = np.flatnonzero(clean.argmax(1) == labels)[: extent.attacked]
    facts = {
        "rows": len(sample),
        "seeds": extent.seeds,
        "clean": float((clean.argmax(1) == labels).mean()),
        "spelling": _spelling(subject, sample.text),
        "perturbations": _perturbations(subject, sample, labels, extent.seeds, stages),
        "checks": _checks(subject, sample, clean.argmax(1)),
        "slices": _slices(subject, sample, labels, clean),
        "sites": _sites(subject, extent.of_a_site, stages),
        "blackbox": _black_box(subject, sample, labels, right, extent.budget, stages),
        "embeddings": _white_box(subject, sample, right, stages),
    }
    amend_report(folder, "robustness", facts)
    return facts


def _passes(rows: int, extent: Extent, config: RunConfig) -> dict[str, float]:
    """How many times a text passes through the model in each stage, more or less."""
    attacked = min(rows, extent.attacked)
    return {
        NOISE: rows * (len(PERTURBATIONS) * len(STRENGTHS) * extent.seeds + 4),
        SITES: 0 if config.data.train is None else config.clients * extent.of_a_site,
        QUERIES: attacked * min(extent.budget, _PASSES_OF_QUERIES),
        EMBEDDINGS: attacked * len(RADII) * _PGD_STEPS * _PASSES_OF_A_STEP,
    }


def _spelling(subject: Subject, texts: list[str]) -> dict[str, Any] | None:
    """What words are read as, and how many of texts as they are become others; None: no word does."""
    spelling = subject.model.spelling
    if spelling is None:
        return None
    pairs = [pair for text in texts for pair in zip(text.split(), spelling.read(text).split(), strict=True)]
    return {"words": spelling.words, "changed": sum(a != b for a, b in pairs) / max(1, len(pairs))}


def _perturbations(
    subject: Subject, sample: Rows, labels: np.ndarray, seeds: int, stages: Stages
) -> list[dict[str, Any]]:
    found = []
    cells = list(product(PERTURBATIONS.items(), STRENGTHS))
    for done, ((name, perturb), strength) in enumerate(cells):
        accuracies = []
        for seed in range(seeds):
            rng = np.random.default_rng([seed, 0x9E7])
            texts = [perturb(text, strength, rng) for text in sample.text]
            accuracies.append(float((subject.ask(texts).argmax(1) == labels).mean()))
        mean, spread = float(np.mean(accuracies)), (max(accuracies) - min(accuracies)) / 2
        found.append({"name": name, "strength": strength, "accuracy": mean, "spread": spread})
        stages.done(NOISE, done + 1, len(cells), name)
    return found


def _checks(subject: Subject, sample: Rows, predicted: np.ndarray) -> list[dict[str, Any]]:
    """Share of predictions that change: by another name they should not, by "not" an opinion's should."""
    rng = np.random.default_rng(0xC4EC)
    pairs = [names_swapped(text, rng) for text in sample.text]
    one, other = (subject.ask([pair[side] for pair in pairs]).argmax(1) for side in (0, 1))
    found = [{"name": "another name", "rows": len(pairs), "changed": float((one != other).mean()), "should": False}]
    with_verb = [(i, text) for i, original in enumerate(sample.text) if (text := negated(original)) is not None]
    if with_verb:
        indices = np.array([i for i, _ in with_verb])
        answers = subject.ask([text for _, text in with_verb]).argmax(1)
        changed = float((answers != predicted[indices]).mean())
        found.append({"name": "negation", "rows": len(with_verb), "changed": changed, "should": True})
    return found


def _slices(subject: Subject, sample: Rows, labels: np.ndarray, clean: np.ndarray) -> list[dict[str, Any]]:
    """Parts of the test set: each class, and the shortest and longest texts; how sure the model is beside how right."""
    lengths = np.array([len(text.split()) for text in sample.text])
    low, high = np.quantile(lengths, (0.25, 0.75))
    parts = {f"class {name}": labels == number for number, name in enumerate(subject.config.data.labels or [])}
    parts |= {f"{low:.0f} words and fewer": lengths <= low, f"{high:.0f} words and more": lengths >= high}
    return [
        {
            "name": name,
            "rows": int(part.sum()),
            "accuracy": float((clean[part].argmax(1) == labels[part]).mean()),
            "calibration_error": calibration_error(clean[part], labels[part]),
        }
        for name, part in parts.items()
        if part.any()
    ]


def _sites(subject: Subject, most: int, stages: Stages) -> list[dict[str, Any]] | None:
    """Of a simulation, which knows all records: accuracy on each site's own. A deployment would have to release it."""
    data = subject.of_sites()
    if data is None:
        return None
    found = []
    for number, part in enumerate(data.parts):
        rows = np.random.default_rng([number, 0x517E]).permutation(part)[:most]
        metrics = evaluate(subject.model, subject.adapter, data.records, np.sort(rows)).metrics
        name = site_name(number, len(data.parts))
        found.append({"name": name, "rows": len(rows), "records": len(part), "accuracy": metrics["accuracy"]})
        stages.done(SITES, number + 1, len(data.parts))
    return found


def _black_box(
    subject: Subject, sample: Rows, labels: np.ndarray, right: np.ndarray, budget: int, stages: Stages
) -> dict[str, Any]:
    attempts = blackbox.attack_all(
        [sample.text[index] for index in right],
        [int(labels[index]) for index in right],
        subject.ask,
        budget,
        [np.random.default_rng([int(index), 0xDEE9]) for index in right],
        lambda done: stages.done(QUERIES, done, len(right)),
    )
    won = [attempt for attempt in attempts if attempt.success]
    return {
        "attacked": len(attempts),
        "budget": budget,
        "success": len(won) / len(attempts) if attempts else 0.0,
        "queries": float(np.mean([attempt.queries for attempt in attempts])) if attempts else 0.0,
        "examples": [blackbox.marked(attempt.text, attempt.changed) for attempt in won[:_EXAMPLES]],
    }


def _white_box(subject: Subject, sample: Rows, right: np.ndarray, stages: Stages) -> list[dict[str, Any]]:
    """Success of PGD on embeddings among texts that are classified right."""
    model = subject.model
    records = model.encode(sample)
    model.set(subject.adapter)
    layer = embedding_layer(model)
    found = []
    for done, radius in enumerate(RADII):
        stages.done(EMBEDDINGS, done, len(RADII))
        fooled = 0
        for part in np.array_split(right, max(1, -(-len(right) // 32))):
            if not len(part):
                continue
            batch = model.batch(records, part)
            delta = ascended(model, batch, radius, _PGD_STEPS)[-1]
            with torch.no_grad(), moved(layer, delta):
                predicted = model.task.score(model.module, batch)["predicted"]
            fooled += int((predicted != records.targets[part]).sum())
        found.append({"radius": radius, "steps": _PGD_STEPS, "success": fooled / max(1, len(right))})
    return found
