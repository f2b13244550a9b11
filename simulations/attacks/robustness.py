"""`confide evaluate robustness`: how far a finished run's model falls under noise, checks, attackers, and from site to
site.

Reads the run's public test set and, of a simulation, each site's records. The outcome becomes part of the run's report.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...client.worker import SiteData
from ...common.config.probes import AttackSection
from ...common.data.partition import site_name
from ...common.data.perturbations import PERTURBATIONS, STRENGTHS, names_swapped, negated
from ...common.model.embeddings import ascended, embedding_layer, moved
from ...common.tasks.sequence_classification import calibration_error
from ...common.types import ProgressCallback, Rows
from ...server.evaluation import evaluate, probabilities
from ...server.report import amend_report
from ...server.ship.finished import FinishedRun
from ..sites import simulated_data
from . import blackbox

RADII = (0.01, 0.02, 0.05, 0.1)
"""of PGD on embeddings, relative to each token's norm"""
_PGD_STEPS, _EXAMPLES, _ROWS_OF_A_SITE = 10, 6, 200


class Subject(FinishedRun):
    """A finished run's model, asked about texts."""

    def ask(self, texts: list[str]) -> np.ndarray:
        """(N, K) probabilities."""
        rows = Rows("texts", texts, labels=np.zeros(len(texts), dtype=np.int64))
        records = self.model.encode(rows)
        return probabilities(self.model, self.adapter, records)

    def of_sites(self) -> SiteData | None:
        """A simulation's records as they were before anybody lied, and who holds which; None: of a deployment."""
        if self.config.data.train is None:
            return None
        return simulated_data(self.config.model_copy(update={"attack": AttackSection()}), self.model)


def evaluate_robustness(
    folder: Path, progress: ProgressCallback, *, rows: int = 500, attacked: int = 100, budget: int = 200, seeds: int = 3
) -> dict[str, Any]:
    """rows: of the test set, for noise and checks. attacked: of these, for attackers. budget: queries a text."""
    subject = Subject(folder)
    sample = subject.rows(rows)
    labels = np.asarray(sample.labels)
    clean = subject.ask(sample.text)
    right = np.flatnonzero(clean.argmax(1) == labels)[:attacked]
    facts = {
        "rows": len(sample),
        "seeds": seeds,
        "clean": float((clean.argmax(1) == labels).mean()),
        "spelling": _spelling(subject, sample.text),
        "perturbations": _perturbations(subject, sample, labels, seeds, progress),
        "checks": _checks(subject, sample, clean.argmax(1)),
        "slices": _slices(subject, sample, labels, clean),
        "sites": _sites(subject),
        "blackbox": _black_box(subject, sample, labels, right, budget, progress),
        "embeddings": _white_box(subject, sample, right, progress),
    }
    amend_report(folder, "robustness", facts)
    return facts


def _spelling(subject: Subject, texts: list[str]) -> dict[str, Any] | None:
    """What words are read as, and how many of texts as they are become others; None: no word does."""
    spelling = subject.model.spelling
    if spelling is None:
        return None
    pairs = [pair for text in texts for pair in zip(text.split(), spelling.read(text).split(), strict=True)]
    return {"words": spelling.words, "changed": sum(a != b for a, b in pairs) / max(1, len(pairs))}


def _perturbations(
    subject: Subject, sample: Rows, labels: np.ndarray, seeds: int, progress: ProgressCallback
) -> list[dict[str, Any]]:
    found = []
    for done, (name, perturb) in enumerate(PERTURBATIONS.items()):
        for strength in STRENGTHS:
            progress(f"noise: {name}", done, len(PERTURBATIONS))
            accuracies = []
            for seed in range(seeds):
                rng = np.random.default_rng([seed, 0x9E7])
                texts = [perturb(text, strength, rng) for text in sample.text]
                accuracies.append(float((subject.ask(texts).argmax(1) == labels).mean()))
            mean, spread = float(np.mean(accuracies)), (max(accuracies) - min(accuracies)) / 2
            found.append({"name": name, "strength": strength, "accuracy": mean, "spread": spread})
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


def _sites(subject: Subject) -> list[dict[str, Any]] | None:
    """Of a simulation, which knows all records: accuracy on each site's own. A deployment would have to release it."""
    data = subject.of_sites()
    if data is None:
        return None
    found = []
    for number, part in enumerate(data.parts):
        rows = np.random.default_rng([number, 0x517E]).permutation(part)[:_ROWS_OF_A_SITE]
        metrics = evaluate(subject.model, subject.adapter, data.records, np.sort(rows)).metrics
        name = site_name(number, len(data.parts))
        found.append({"name": name, "rows": len(rows), "records": len(part), "accuracy": metrics["accuracy"]})
    return found


def _black_box(
    subject: Subject, sample: Rows, labels: np.ndarray, right: np.ndarray, budget: int, progress: ProgressCallback
) -> dict[str, Any]:
    attempts = []
    for done, index in enumerate(right):
        progress("attack by queries", done, len(right))
        rng = np.random.default_rng([int(index), 0xDEE9])
        attempts.append(blackbox.attack(sample.text[index], int(labels[index]), subject.ask, budget, rng))
    won = [attempt for attempt in attempts if attempt.success]
    return {
        "attacked": len(attempts),
        "budget": budget,
        "success": len(won) / len(attempts) if attempts else 0.0,
        "queries": float(np.mean([attempt.queries for attempt in attempts])) if attempts else 0.0,
        "examples": [blackbox.marked(attempt.text, attempt.changed) for attempt in won[:_EXAMPLES]],
    }


def _white_box(subject: Subject, sample: Rows, right: np.ndarray, progress: ProgressCallback) -> list[dict[str, Any]]:
    """Success of PGD on embeddings among texts that are classified right."""
    model = subject.model
    records = model.encode(sample)
    model.set(subject.adapter)
    layer = embedding_layer(model)
    found = []
    for done, radius in enumerate(RADII):
        progress("attack on embeddings", done, len(RADII))
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
