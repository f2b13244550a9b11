"""Why a model answered so: integrated gradients on the embeddings, checked for completeness and for faithfulness.

Layer integrated gradients (Sundararajan et al. 2017) by captum, from a baseline in which every word is padding and the
marks at the ends stay. What is explained is a logit (of the class, of a word's tag, of the next token) or a number.
Attributions must add up to its difference between text and baseline; where they miss it by more than a hundredth, more
steps are taken, and if that does not help the map is refused. Attention is not shown: weights of attention say what is
mixed, not what decides (Jain and Wallace 2019).
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...common.errors import ConfigError
from ...common.model.embeddings import input_embeddings
from ...common.stages import Stages
from ...common.types import ProgressCallback, Rows
from .finished import FinishedRun, exported_texts, writers
from .goals import HIGHER, LOWER, OUTSIDE, Asked, Goal, Split, goals, split, tag_of, title, unit, worth
from .runtime import fault_of, padded
from .writer import Writer

TOLERANCE = 0.01
_STEPS = (32, 128, 512)
_CHUNK, SHARES = 64, 11
_LEAST_SEEN, _TOP, NEIGHBOURS = 3, 8, 3


def settled(attempt: Callable[[int], np.ndarray], difference: float) -> tuple[np.ndarray, float]:
    """Scores that add up to the logit's difference, and what they miss of it, as a share.

    attempt: number of steps → scores. More steps are taken until the miss is within `TOLERANCE`, or none are left.
    """
    scores, delta = np.zeros(0), np.inf
    for steps in _STEPS:
        scores = attempt(steps)
        delta = abs(scores.sum() - difference) / max(abs(difference), 1e-12)
        if delta <= TOLERANCE:
            break
    return scores, float(delta)


@dataclass(frozen=True)
class Explanation:
    """What spoke for one thing that a model says of one text."""

    goal: Goal
    title: str
    """what it says"""
    words: list[str]
    scores: list[float]
    """of each word, towards `label`; they add up to the difference from the baseline: of logits, or of the number"""
    value: float
    """its probability, or the number"""
    delta: float
    """what the scores miss of that difference, as a share of it"""

    @property
    def label(self) -> str:
        return self.goal.label

    @property
    def refused(self) -> bool:
        return not self.delta <= TOLERANCE

    def as_json(self) -> dict[str, Any]:
        """As a report and a server tell it."""
        names = ("title", "label", "words", "scores", "value", "delta", "refused")
        return {"word": self.goal.word, **{name: getattr(self, name) for name in names}}


class Explainer:
    """Explains one model of texts."""

    def __init__(self, model: Asked) -> None:
        """Raises ConfigError without captum, ModelError for a model without embeddings."""
        try:
            from captum.attr import LayerIntegratedGradients
        except ModuleNotFoundError as error:
            raise ConfigError(f"explanations need {error.name}; pip install 'confide[ship]'") from None
        self.model = model
        for p in model.module.parameters():
            p.requires_grad_(False)
        embedding = input_embeddings(model.module)
        embedding.weight.requires_grad_()  # pyright: ignore[reportCallIssue,reportAttributeAccessIssue]  # gradients start here
        self._gradients = LayerIntegratedGradients(model.module, embedding)

    def explain(self, text: str, target: int | None = None, word: int | None = None) -> Explanation:
        """Of several tags the first. target: the class that is explained; omitted: the model's answer. word: the one
        whose tag is. Raises ConfigError for an empty text, and for a word that is not there."""
        read, ends = self._read(text)
        if word is not None:
            goal = tag_of(self.model, ends[0], read, word)
        elif target is not None:
            goal = Goal((target,), self.model.labels[target])
        else:
            goal = goals(self.model, ends[0], read)[0]
        return self._explained(read, ends, goal)

    def maps(self, text: str) -> list[Explanation]:
        """One of everything that the model says of the text. Raises ConfigError for an empty text."""
        read, ends = self._read(text)
        return [self._explained(read, ends, goal) for goal in goals(self.model, ends[0], read)]

    def as_json(self, text: str, word: int | None = None) -> dict[str, Any]:
        """`explain`, as a server tells it."""
        return self.explain(text, word=word).as_json()

    @torch.no_grad()
    def _outputs(self, ids: list[list[int]]) -> np.ndarray:
        """Of texts of one length."""
        return self.model.module(*map(torch.from_numpy, padded(ids, self.model.pad))).numpy()

    def _read(self, text: str) -> tuple[Split, np.ndarray]:
        """A text, and (2, …) outputs of it and of the baseline."""
        read = split(self.model, text)
        return read, self._outputs([read.ids, self._blank(read)])

    def _blank(self, read: Split) -> list[int]:
        """The baseline."""
        return read.without(np.ones(len(read.ids), dtype=bool), self.model.pad)

    def _explained(self, read: Split, ends: np.ndarray, goal: Goal) -> Explanation:
        """ends: (2, …) outputs, as `_read` gives them."""
        tokens, mask = map(torch.from_numpy, padded([read.ids], self.model.pad))
        baseline, (there, empty) = torch.tensor([self._blank(read)]), ends

        def attempt(steps: int) -> np.ndarray:
            found = self._gradients.attribute(
                tokens,
                baselines=baseline,
                additional_forward_args=(mask,),
                target=goal.place,
                n_steps=steps,
                internal_batch_size=_CHUNK,
            )
            assert isinstance(found, torch.Tensor)  # noqa: S101  # one layer, one answer
            return found.sum(-1)[0].detach().double().numpy()

        scores, delta = settled(attempt, float(there[goal.place] - empty[goal.place]))
        by_word = np.zeros(len(read.words))
        np.add.at(by_word, read.of_word[read.of_word >= 0], unit(self.model) * scores[read.of_word >= 0])
        value = float(worth(self.model, there[None], goal)[0])
        return Explanation(goal, title(self.model, goal, read, value), read.words, by_word.tolist(), value, delta)

    def curves(self, text: str, found: Explanation, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """What `found.value` becomes when words go (`deletion`) or come (`insertion`), by score and in random order.

        Each (11,), at 0 to 100 % of the words. What is gone is padding.
        """
        read = split(self.model, text)
        by_score = np.argsort(-np.asarray(found.scores), kind="stable")
        orders = {"": by_score, "_random": rng.permutation(len(read.words))}
        batch, keys = [], []
        for suffix, order in orders.items():
            for what in ("deletion", "insertion"):
                for share in np.linspace(0, 1, SHARES):
                    touched = order[: round(share * len(read.words))]
                    gone = np.isin(read.of_word, touched, invert=what == "insertion")
                    batch.append(read.without(gone, self.model.pad))
                keys.append(what + suffix)
        different, which = np.unique(np.array(batch), axis=0, return_inverse=True)  # of few words many shares are one
        values = worth(self.model, self._outputs(different.tolist()), found.goal)[which.ravel()]
        return dict(zip(keys, values.reshape(len(keys), SHARES), strict=True))

    @torch.no_grad()
    def vectors(self, texts: list[str]) -> np.ndarray | None:
        """(N, h) of unit length, of what the head reads; None for a model that reads more than one vector."""
        represent: Any = getattr(self.model.module.classifier, "represent", None)
        if represent is None:
            return None
        found = []
        for text in texts:
            ids = self.model.encoded(self.model.as_read(text))[0]
            tokens, mask = map(torch.from_numpy, padded([ids], self.model.pad))
            found.append(represent(input_ids=tokens, attention_mask=mask)[0].numpy())
        rows = np.stack(found)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)


def explainer_of(run: FinishedRun) -> Explainer:
    """Of a run whose task reads texts alone."""
    return Explainer(Writer(run) if run.model.task.EXPORT == "text" else run.merged())


def explained() -> list[str]:
    """Tasks whose models have maps of words."""
    return [*exported_texts(), *writers()]


def explain_run(
    run: FinishedRun,
    texts: list[str],
    *,
    against: FinishedRun | None = None,
    sample: int = 60,
    progress: ProgressCallback = lambda *_: None,
) -> dict[str, Any]:
    """Facts for report and terminal: the texts' maps, words that speak for each class, and the checks.

    sample: texts of the public test set for checks and words. against: another run of the same task, whose maps stand
    beside. Raises ConfigError, ModelError.
    """
    for number, text in enumerate(texts, start=1):
        if (wrong := fault_of(text)) is not None:
            raise ConfigError(f"TEXT {number}: {wrong}; give one that says something")
    explainer = explainer_of(run)
    public = run.rows(sample)
    stages = Stages(progress, {"explaining": len(texts), "checking on public texts": len(public)})
    stages.done("explaining", 0, len(texts))
    other = None if against is None else explainer_of(against)
    near = explainer.vectors(public.text)
    shown = []
    for number, text in enumerate(texts):
        own = explainer.vectors([text])
        nearest = [] if near is None or own is None else _nearest(run, public, near @ own[0])
        for found in explainer.maps(text):
            fact = {**found.as_json(), "nearest": nearest}
            if other is not None:
                fact["against"] = other.as_json(text, found.goal.word)
            shown.append(fact)
        stages.done("explaining", number + 1, len(texts))
    return {
        "texts": shown,
        "against": None if against is None else against.report["name"],
        "measure": "number" if explainer.model.reads.label == "number" else "probability",
        **_checked(explainer, public.text, stages),
    }


def _nearest(run: FinishedRun, public: Rows, closeness: np.ndarray) -> list[dict[str, Any]]:
    """The public rows that are closest. closeness: (N,)."""
    labels, (mean, deviation) = np.asarray(public.labels), run.config.data.scale or (0.0, 1.0)
    return [
        {
            "text": public.text[i],
            "label": run.labels[labels[i]] if run.labels else f"{labels[i] * deviation + mean:.6g}",
            "cosine": float(closeness[i]),
        }
        for i in np.argsort(-closeness)[:NEIGHBOURS]
    ]


def _checked(explainer: Explainer, texts: list[str], stages: Stages) -> dict[str, Any]:
    """Over public texts: how many maps hold, the mean curves, and the words that speak most for each class."""
    deltas, curves = [], defaultdict(list)
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number, text in enumerate(texts):
        stages.done("checking on public texts", number, len(texts))
        for found in explainer.maps(text):
            deltas.append(found.delta)
            if found.refused:
                continue
            for name, values in explainer.curves(text, found, np.random.default_rng([number, 0xDE1])).items():
                curves[name].append(values)
            for word, score in zip(found.words, found.scores, strict=True):
                scores[found.label][word.lower()].append(score)
    held = np.asarray(deltas) <= TOLERANCE
    return {
        "sample": len(deltas),
        "held": float(held.mean()) if deltas else 0.0,
        "curves": {name: np.mean(values, axis=0).tolist() for name, values in curves.items()},
        "areas": {name: float(np.mean(values)) for name, values in curves.items()},
        "words": _telling(explainer.model, scores),
    }


def _telling(model: Asked, scores: dict[str, dict[str, list[float]]]) -> dict[str, list[tuple[str, float]]]:
    """For each class or tag, or for higher and lower numbers, the words that speak most for it."""
    lists = {}
    for label in [label for label in model.labels if label != OUTSIDE] or [HIGHER]:
        mean = {word: float(np.mean(s)) for word, s in scores[label].items() if len(s) >= _LEAST_SEEN}
        lists[label] = sorted(mean.items(), key=lambda item: -item[1])
    if model.reads.label == "number":
        lists[LOWER] = [(word, -score) for word, score in lists[HIGHER][::-1]]
    return {label: [(word, score) for word, score in words if score > 0][:_TOP] for label, words in lists.items()}
