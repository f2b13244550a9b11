"""Why a model answered so: integrated gradients on the embeddings, checked for completeness and for faithfulness.

Layer integrated gradients (Sundararajan et al. 2017) by captum, from a baseline in which every word is padding and the
marks at the ends stay. Attributions must add up to the logit's difference between text and baseline; where they miss it
by more than a hundredth, more steps are taken, and if that does not help the map is refused. Attention is not shown:
weights of attention say what is mixed, not what decides (Jain and Wallace 2019).
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ...common.errors import ConfigError
from ...common.robustness.embeddings import input_embeddings
from ...common.types import Tell
from .finished import FinishedRun, TorchModel
from .runtime import softmax

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
    """One text."""

    words: list[str]
    scores: list[float]
    """of each word, towards the class; they add up to the logit's difference from the baseline"""
    label: str
    probability: float
    delta: float
    """what the scores miss of that difference, as a share of it"""

    @property
    def refused(self) -> bool:
        return not self.delta <= TOLERANCE


class Explainer:
    """Explains one model."""

    def __init__(self, model: TorchModel) -> None:
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

    def explain(self, text: str, target: int | None = None) -> Explanation:
        """target: the class that is explained; omitted: the model's answer. Raises ConfigError for an empty text."""
        ids, words, of_word = self._split(text)
        tokens, mask = self.model.batch([ids])
        with torch.no_grad():
            logits = self.model.module(tokens, mask).numpy()
        chosen = int(logits[0].argmax()) if target is None else target
        baseline = torch.where(torch.from_numpy(of_word)[None] >= 0, self.model.pad, tokens)
        with torch.no_grad():
            difference = float(logits[0, chosen] - self.model.module(baseline, mask)[0, chosen])

        def attempt(steps: int) -> np.ndarray:
            found = self._gradients.attribute(
                tokens,
                baselines=baseline,
                additional_forward_args=(mask,),
                target=chosen,
                n_steps=steps,
                internal_batch_size=_CHUNK,
            )
            assert isinstance(found, torch.Tensor)  # noqa: S101  # one layer, one answer
            return found.sum(-1)[0].detach().double().numpy()

        scores, delta = settled(attempt, difference)
        by_word = np.zeros(len(words))
        np.add.at(by_word, of_word[of_word >= 0], scores[of_word >= 0])
        probability = float(softmax(logits)[0, chosen])
        return Explanation(words, by_word.tolist(), self.model.labels[chosen], probability, delta)

    def as_json(self, text: str) -> dict[str, Any]:
        """`explain`, as a report and a server tell it."""
        found = self.explain(text)
        return {**asdict(found), "refused": found.refused}

    def _split(self, text: str) -> tuple[list[int], list[str], np.ndarray]:
        """Token ids, the words that they are pieces of as the text writes them, and (T,) which word; −1: a mark."""
        encoded = self.model.tokenizer(
            text, truncation=True, max_length=self.model.max_length, return_offsets_mapping=True
        )
        ids, offsets, numbers = encoded["input_ids"], encoded["offset_mapping"], encoded.word_ids()
        words: list[str] = []
        of_word, last = np.full(len(ids), -1), None
        for place, (number, (start, end)) in enumerate(zip(numbers, offsets, strict=True)):
            if number is None:
                continue
            if number != last:
                words.append(text[start:end])
                last = number
            else:
                words[-1] += text[start:end]
            of_word[place] = len(words) - 1
        if not words:
            raise ConfigError("TEXT: nothing that the tokenizer knows was received; give a text")
        return ids, words, of_word

    def curves(self, text: str, found: Explanation, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Probability of the class when words go (`deletion`) or come (`insertion`), by score and in random order.

        Each (11,), at 0 to 100 % of the words. What is gone is padding.
        """
        ids, words, of_word = self._split(text)
        by_score = np.argsort(-np.asarray(found.scores), kind="stable")
        orders = {"": by_score, "_random": rng.permutation(len(words))}
        class_ = self.model.labels.index(found.label)
        batch, keys = [], []
        for suffix, order in orders.items():
            for what in ("deletion", "insertion"):
                for share in np.linspace(0, 1, SHARES):
                    touched = order[: round(share * len(words))]
                    gone = np.isin(of_word, touched) if what == "deletion" else ~np.isin(of_word, touched)
                    batch.append(
                        [self.model.pad if g and w >= 0 else i for i, g, w in zip(ids, gone, of_word, strict=True)]
                    )
                keys.append(what + suffix)
        tokens, mask = self.model.batch(batch)
        with torch.no_grad():
            probabilities = softmax(self.model.module(tokens, mask).numpy())[:, class_]
        return dict(zip(keys, probabilities.reshape(len(keys), SHARES), strict=True))

    @torch.no_grad()
    def vectors(self, texts: list[str]) -> np.ndarray | None:
        """(N, h) of unit length, of what the head reads; None for a model that reads more than one vector."""
        represent = getattr(self.model.module.classifier, "represent", None)
        if represent is None:
            return None
        found = []
        for one in self.model.ids(texts):
            tokens, mask = self.model.batch([one])
            found.append(represent(input_ids=tokens, attention_mask=mask)[0].numpy())
        rows = np.stack(found)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)


def explain_run(
    run: FinishedRun,
    texts: list[str],
    *,
    against: FinishedRun | None = None,
    sample: int = 60,
    tell: Tell = lambda *_: None,
) -> dict[str, Any]:
    """Facts for report and terminal: the texts' maps, words that speak for each class, and the checks.

    sample: texts of the public test set for checks and words. against: another run, whose maps stand beside.
    Raises ConfigError, ModelError.
    """
    explainer = Explainer(run.merged())
    public = run.rows(sample)
    other = None if against is None else Explainer(against.merged())
    near = explainer.vectors(public.text)
    shown = []
    for number, text in enumerate(texts):
        tell("explaining", number, len(texts))
        fact: dict[str, Any] = {**explainer.as_json(text), "nearest": []}
        own = explainer.vectors([text])
        if near is not None and own is not None:
            closeness = near @ own[0]
            labels = np.asarray(public.labels)
            fact["nearest"] = [
                {"text": public.text[i], "label": run.labels[labels[i]], "cosine": float(closeness[i])}
                for i in np.argsort(-closeness)[:NEIGHBOURS]
            ]
        if other is not None and against is not None:
            fact["against"] = other.as_json(text)
        shown.append(fact)
    return {
        "texts": shown,
        "against": None if against is None else against.report["name"],
        **_checked(explainer, public.text, tell),
    }


def _checked(explainer: Explainer, texts: list[str], tell: Tell) -> dict[str, Any]:
    """Over public texts: how many maps hold, the mean curves, and the words that speak most for each class."""
    deltas, curves = [], defaultdict(list)
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number, text in enumerate(texts):
        tell("checking on public texts", number, len(texts))
        found = explainer.explain(text)
        deltas.append(found.delta)
        if found.refused:
            continue
        for name, values in explainer.curves(text, found, np.random.default_rng([number, 0xDE1])).items():
            curves[name].append(values)
        for word, score in zip(found.words, found.scores, strict=True):
            scores[found.label][word.lower()].append(score)
    words = {}
    for label in explainer.model.labels:
        mean = {word: float(np.mean(s)) for word, s in scores[label].items() if len(s) >= _LEAST_SEEN}
        words[label] = sorted(mean.items(), key=lambda item: -item[1])[:_TOP]
    held = np.asarray(deltas) <= TOLERANCE
    return {
        "sample": len(texts),
        "held": float(held.mean()) if len(texts) else 0.0,
        "curves": {name: np.mean(values, axis=0).tolist() for name, values in curves.items()},
        "areas": {name: float(np.mean(values)) for name, values in curves.items()},
        "words": words,
    }
