"""An attacker who may only ask the model: DeepWordBug (Gao et al. 2018) with a budget of queries.

Words are ranked by how much the true class loses when they are left out; then, from the top, each gets the edit that
hurts most, until the class changes or the budget is spent.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from ...common.data.perturbations import EDITS

Ask = Callable[[list[str]], np.ndarray]
"""(N texts) → (N, K) probabilities"""


@dataclass(frozen=True)
class Attempt:
    """One text under attack."""

    text: str
    changed: str
    success: bool
    queries: int


def attack(text: str, true: int, ask: Ask, budget: int, rng: np.random.Generator) -> Attempt:
    """text: one that is classified right; the caller has asked for that. budget: queries.

    Returns the changed text that came furthest.
    """
    return attack_all([text], [true], ask, budget, [rng])[0]


def attack_all(
    texts: Sequence[str],
    trues: Sequence[int],
    ask: Ask,
    budget: int,
    rngs: Sequence[np.random.Generator],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Attempt]:
    """`attack` on each of the texts, by itself, with what all of them want to know next asked in one batch.

    progress: told how many attacks have ended.
    """
    attackers = [_attacker(*one, budget, rng) for one, rng in zip(zip(texts, trues, strict=True), rngs, strict=True)]
    ended: dict[int, Attempt] = {}
    answers: dict[int, np.ndarray | None] = dict.fromkeys(range(len(attackers)))
    while answers:
        asked: dict[int, list[str]] = {}
        for number, answer in answers.items():
            try:
                asked[number] = attackers[number].send(answer)
            except StopIteration as end:
                ended[number] = end.value
        progress(len(ended))
        if not asked:
            break
        scores = ask([text for batch in asked.values() for text in batch])
        ends = np.cumsum([len(batch) for batch in asked.values()])
        answers = dict(zip(asked, np.split(scores, ends[:-1]), strict=True))
    return [ended[number] for number in range(len(attackers))]


def _attacker(
    text: str, true: int, budget: int, rng: np.random.Generator
) -> Generator[list[str], np.ndarray | None, Attempt]:
    """Yields texts to ask about, is sent their (N, K) probabilities, and returns how it went."""
    words = text.split()
    places = [i for i, word in enumerate(words) if any(c.isalpha() for c in word)][: max(1, budget // 2)]
    order: list[int] = []
    if places:
        left = _given((yield [" ".join([*words[:i], *words[i + 1 :]]) or " " for i in places]))[:, true]
        order = [places[i] for i in np.argsort(left, kind="stable")]
    queries, best = len(places), 1.0
    for place in order:
        word = words[place]
        if queries + len(EDITS) > budget:
            break
        tries = _edited(word, rng)
        texts = [" ".join([*words[:place], changed, *words[place + 1 :]]) for changed in tries]
        scores = _given((yield texts))
        queries += len(texts)
        worst = int(scores[:, true].argmin())
        if scores[worst, true] < best:
            best = float(scores[worst, true])
            words[place] = tries[worst]
        if scores[worst].argmax() != true:
            return Attempt(text, texts[worst], True, queries)
    return Attempt(text, " ".join(words), False, queries)


def _given(scores: np.ndarray | None) -> np.ndarray:
    if scores is None:
        raise ValueError("an attacker was sent no answer to its questions")
    return scores


def _edited(word: str, rng: np.random.Generator) -> list[str]:
    """One edit of each kind, at a letter inside the word where it has one."""
    letters = [i for i, c in enumerate(word) if c.isalpha()]
    inside = letters[1:-1] or letters
    return [edit(word, inside[int(rng.integers(len(inside)))], rng) for edit in EDITS.values()]


def marked(text: str, changed: str) -> list[tuple[str, bool]]:
    """The changed text in pieces, and whether each differs from the original's words."""
    before, after = text.split(), changed.split()
    if len(before) != len(after):
        return [(changed, True)]
    pieces: list[tuple[str, bool]] = []
    for old, new in zip(before, after, strict=True):
        same = _shared(old, new)
        pieces += [(new[:same], False)] if same else []
        tail = _shared(old[same:][::-1], new[same:][::-1])
        middle = new[same : len(new) - tail]
        pieces += [(middle or "·", True)] if old != new else []
        pieces += [(new[len(new) - tail :], False)] if tail else []
        pieces.append((" ", False))
    return pieces


def _shared(one: str, other: str) -> int:
    """Length of the common beginning."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
