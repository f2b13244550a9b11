"""What a language model writes after public prompts, and which of given answers it holds likely: before and after.

| metric | of `generation` |
|---|---|
| exact_match | share of prompts after which exactly one of the references is written, blanks at the ends aside |
| rouge_l | ROUGE-L (rouge-score, F1 against the reference that fits best, no stemming), mean over prompts, 0 … 1 |
| bleu, chrf | of all prompts together, against all references (sacrebleu with its defaults), 0 … 100 |
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from ..common.config.run import RunConfig
from ..common.errors import DataError
from ..common.model.generation import TOKENS, Generator
from ..common.model.loading import FineTuneModel
from ..common.tasks import Main, mean_of
from ..common.types import IGNORED, Adapter, Conversation, Metrics, Records, Rows
from .evaluation import asked_of, subset
from .measured import Figure

_PROMPTS, _SHOWN = 64, 10
"""answered where nobody says how many; of them side by side in the report"""


@dataclass(frozen=True)
class Questions:
    """Public prompts, and what should follow them."""

    model: FineTuneModel
    generator: Generator
    shown: list[str]
    """(P,) prompts, as text"""
    prompts: list[np.ndarray]
    """(P,) of (T,) tokens"""
    references: list[list[str]]
    """(P,) one or more each"""
    answers: list[Records]
    """of each answer, all (N,) rows with it as their response"""
    right: np.ndarray
    """(N,) the number of the right answer"""

    def asked(self, adapter: Adapter, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """Parts of an evaluation: `generation`, `answers`, and the `texts` that are shown. progress: called with done,
        of how many, of each."""
        self.model.set(adapter)
        found: dict[str, Any] = {}
        if self.prompts:
            written = self.generator.written(self.prompts, progress)
            metrics, intervals = text_metrics(written, self.references)
            found["generation"] = {**metrics, "intervals": intervals, "records": len(written)}
            rows = zip(self.shown, self.references, written, strict=True)
            texts = [{"prompt": prompt, "reference": wanted[0], "text": text} for prompt, wanted, text in rows]
            found["texts"] = texts[:_SHOWN]
        if self.answers:
            found["answers"] = share_of(int((self._likeliest(progress) == self.right).sum()), len(self.right))
        return found

    def _likeliest(self, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """(N,) the number of the answer whose tokens are the likeliest together; −1 where no single one is: the
        tokenizer reads two alike, or the model has no numbers."""
        size, everyone = max(1, TOKENS // self.model.max_length), np.arange(len(self.right))
        losses = [self.model.scores(records, everyone, size, progress)["token_loss"] for records in self.answers]
        found = np.where(np.isfinite(losses), losses, np.inf)  # (A, N)
        single = np.isfinite(found.min(0)) & ((found == found.min(0)).sum(0) == 1)
        return np.where(single, found.argmin(0), -1)


def read_questions(config: RunConfig, model: FineTuneModel) -> Questions | None:
    """Of the public test set; None where nothing is asked. Raises DataError, also for a response that is asked for and
    begins with none of `evaluation.answers`."""
    asked = config.evaluation
    limit = _PROMPTS if asked.generate is None else asked.generate
    if not config.responds or not (limit or asked.answers):
        return None
    rows = model.rows(config.data.test, config.data)
    pairs = [_parted(rows, place) for place in range(len(rows))]
    alike: dict[str, list[int]] = {}
    for place, (prompt, _) in enumerate(pairs):
        alike.setdefault(prompt, []).append(place)
    groups = list(alike.items())
    chosen = [groups[i] for i in subset(groups, limit, config.run.seed)]
    base, data = model.module.get_base_model(), config.data
    generator = Generator.of(base, model.tokenizer, data, model.max_length, asked.new_tokens)
    classified = asked_of(rows, config) if asked.answers else np.arange(0)
    right = [_answer(asked.answers, pairs[place][1], rows.where(place)) for place in classified.tolist()]
    read = rows.take(classified)
    return Questions(
        model,
        generator.drawing(asked.temperature, config.run.seed),
        [prompt for prompt, _ in chosen],
        _before_answers(model, rows, [places[0] for _, places in chosen]),
        [[pairs[place][1] for place in places] for _, places in chosen],
        [_only_last(model.tokenised(_with(read, answer)), generator.ends) for answer in asked.answers],
        np.array(right),
    )


def text_metrics(written: list[str], references: list[list[str]]) -> tuple[Metrics, dict[str, tuple[float, float]]]:
    """As the table above, and of those that are means over prompts the 95 % interval for the draw of the prompts.
    references: (P,) one or more each."""
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer  # loads half of a statistics library: seconds

    written = [text.strip() for text in written]
    references = [[text.strip() for text in texts] for texts in references]
    most = max(map(len, references))
    columns: list[Sequence[str]] = [
        [texts[i] if i < len(texts) else "" for texts in references]
        for i in range(most)  # "": sacrebleu skips it
    ]
    scorer, pairs = RougeScorer(["rougeL"]), list(zip(references, written, strict=True))
    exact = [float(text in wanted) for wanted, text in pairs]
    rouge = [scorer.score_multi(wanted, text)["rougeL"].fmeasure for wanted, text in pairs]
    alone = {"exact_match": _mean(exact), "rouge_l": _mean(rouge)}
    metrics = {name: value for name, (value, _) in alone.items()} | {
        "bleu": sacrebleu.corpus_bleu(written, columns).score,
        "chrf": sacrebleu.corpus_chrf(written, columns).score,
    }
    return metrics, {name: interval for name, (_, interval) in alone.items()}


def _mean(values: list[float]) -> tuple[float, tuple[float, float]]:
    """Of numbers of one prompt each, with its interval."""
    parts = np.stack([values, np.ones(len(values))], axis=1)
    return float(np.mean(values)), Figure(Main("mean", "mean"), parts, mean_of).interval


def share_of(right: int, records: int) -> Metrics:
    """accuracy, with its 95 % interval (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(right, records).proportion_ci(0.95, "wilson")
    return {"accuracy": right / records, "low": interval.low, "high": interval.high, "records": records}


def _parted(rows: Rows, place: int) -> tuple[str, str]:
    """The prompt of a row, as text, and what should follow it."""
    if rows.turns is not None:
        turns = _up_to_answer(rows.turns[place])
        return "\n".join(f"{role}: {content}" for role, content in turns[:-1]), turns[-1][1]
    return rows.text[place], (rows.response or [])[place]


def _before_answers(model: FineTuneModel, rows: Rows, places: list[int]) -> list[np.ndarray]:
    """Of the rows at these places, the tokens before what should be written, as training has them."""
    if not places:
        return []
    records = model.tokenised(rows.take(np.array(places)))
    return [records.tokens[records.offsets[i] : _last(records, i)[0]] for i in range(len(records))]


def _up_to_answer(turns: Conversation) -> Conversation:
    """A conversation up to the assistant's last turn, that one included."""
    return turns[: 1 + max(i for i, (role, _) in enumerate(turns) if role == "assistant")]


def _with(rows: Rows, answer: str) -> Rows:
    """The same prompts, each with this answer."""
    if rows.turns is not None:
        return replace(rows, turns=[(*_up_to_answer(turns)[:-1], ("assistant", answer)) for turns in rows.turns])
    return replace(rows, response=[answer] * len(rows))


def _answer(answers: tuple[str, ...], response: str, where: str) -> int:
    """The number of the answer that a response begins with: the longest of those that do."""
    begins = [i for i, answer in enumerate(answers) if re.match(rf"{re.escape(answer)}(?!\w)", response)]
    if answers and not begins:
        raise DataError(
            f"{where}: its response begins with none of evaluation.answers ({', '.join(map(repr, answers))}); correct "
            "the row, or name all answers as they are written"
        )
    return max(begins, key=lambda i: len(answers[i]), default=0)


def _last(records: Records, place: int) -> tuple[int, int]:
    """Where the last tokens that are learned begin and end among all records' tokens."""
    first, end = records.offsets[place], records.offsets[place + 1]
    learned = cast(np.ndarray, records.wanted)[first:end] != IGNORED
    stop = int(np.flatnonzero(learned).max(initial=-1)) + 1
    before = np.flatnonzero(~learned[:stop])
    return int(first + (before[-1] + 1 if len(before) else 0)), int(first + stop)


def _only_last(records: Records, ends: list[int]) -> Records:
    """With nothing wanted but the last tokens that are learned, and none of these that end a text or a turn."""
    wanted = np.full(len(records.tokens), IGNORED, dtype=np.int32)
    for place in range(len(records)):
        first, stop = _last(records, place)
        part = records.tokens[first:stop]
        wanted[first:stop] = np.where(np.isin(part, ends), IGNORED, part)
    return replace(records, wanted=wanted)
