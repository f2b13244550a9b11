"""Canary records that a language model can memorise: each ends in a secret, and the final model's loss tells of it.

Panda, Tang, Choquette-Choo, Nasr, Mittal: "Privacy Auditing of Large Language Models", ICLR 2025 (arXiv 2503.06808):
a black-box audit sees what a canary of tokens that the model hardly ever expects leaves in it.
"""

from dataclasses import replace
from itertools import takewhile

import numpy as np

from ..common.config.run import RunConfig
from ..common.errors import ConfigError
from ..common.model.loading import FineTuneModel
from ..common.privacy.audit import public_seed, rows_each
from ..common.types import IGNORED, Records, Rows

_RARE, _DIGITS = 4, 8
"""tokens of a random secret, and figures of one among a record's own words"""
_TRIED = 8
"""tokens, or public records, that are looked at for each that is wanted"""
_HIDDEN = "#"


def secret_rows(config: RunConfig, model: FineTuneModel, site: str, *, hidden: bool = False) -> Rows:
    """A site's canary records, `_HIDDEN` in the place of each secret if `hidden`.

    Raises ConfigError where secrets cannot be made, or do not fit into `model.max_length`.
    """
    count = config.audit.records // config.clients * rows_each(config)
    rng = np.random.default_rng(public_seed(config, config.canary_kind, site))
    if config.canary_kind == "random":
        rows = _asked(config, [f"The code of box {box} is" for box in rng.integers(10**5, 10**6, count)])
        words = _rare_words(model, rng, _RARE * count)
        secrets = [" ".join(words[_RARE * i : _RARE * (i + 1)]) for i in range(count)]
    else:
        public = model.rows(config.data.test, config.data)
        rows = public.take(rng.integers(0, len(public), _TRIED * count))
        secrets = [f"{number:0{_DIGITS}d}" for number in rng.integers(0, 10**_DIGITS, len(rows))]
    cut = model.tokenised(_ending(config, rows, secrets)).cut
    whole = np.arange(len(rows)) if cut is None else np.flatnonzero(~cut)
    if len(whole) < count:
        raise ConfigError(
            f"model.max_length: {config.model.max_length} received with canary records of kind '{config.canary_kind}'; "
            f"{len(whole)} of {count} secrets would fit into a record; raise it"
        )
    chosen = whole[:count]
    shown = [_HIDDEN] * count if hidden else [secrets[i] for i in chosen]
    person = np.array([f"canary {site} {row // rows_each(config)}" for row in range(count)], dtype=object)
    rows = replace(_ending(config, rows.take(chosen), shown), source="canaries", numbers=None)
    return rows if config.data.person is None else replace(rows, person=person)


def secrets_alone(config: RunConfig, model: FineTuneModel, site: str) -> Records:
    """The same records, in whose loss only the tokens of the secrets count. Raises ConfigError as `secret_rows`, and
    for a tokenizer that does not tell a secret from another."""
    records, others = (model.encode(secret_rows(config, model, site, hidden=hidden)) for hidden in (False, True))
    wanted = np.full(len(records.tokens), IGNORED, dtype=np.int32)
    for i in range(len(records)):
        own, other = (part.tokens[part.offsets[i] : part.offsets[i + 1]] for part in (records, others))
        start = records.offsets[i] + _alike(own, other)
        end = records.offsets[i + 1] - _alike(own[::-1], other[::-1])
        if start >= end:
            raise ConfigError(f"audit.kind: '{config.canary_kind}' received; the tokenizer reads all secrets alike")
        wanted[start:end] = records.tokens[start:end]
    return replace(records, wanted=wanted)


def _alike(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two records have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _asked(config: RunConfig, prompts: list[str]) -> Rows:
    """Records of the data's form that wait for an answer."""
    if config.data.messages is not None:
        turns = [(("user", prompt), ("assistant", "")) for prompt in prompts]
        return Rows("canaries", [""] * len(prompts), turns=turns, template=config.data.template)
    return Rows("canaries", prompts, None if config.data.prompt is None else [""] * len(prompts))


def _ending(config: RunConfig, rows: Rows, secrets: list[str]) -> Rows:
    """The rows, each with its secret behind what is learned of it."""
    before = "" if config.canary_kind == "random" else "Call "

    def ended(text: str, secret: str) -> str:
        return f"{text} {before}{secret}".strip()

    if rows.turns is not None:
        turns = []
        for conversation, secret in zip(rows.turns, secrets, strict=True):
            last = max((i for i, (role, _) in enumerate(conversation) if role == "assistant"), default=None)
            said = [(role, ended(text, secret) if i == last else text) for i, (role, text) in enumerate(conversation)]
            turns.append(tuple(said))
        return replace(rows, turns=turns)
    if rows.response is not None:
        return replace(rows, response=[ended(*pair) for pair in zip(rows.response, secrets, strict=True)])
    return replace(rows, text=[ended(*pair) for pair in zip(rows.text, secrets, strict=True)])


def _rare_words(model: FineTuneModel, rng: np.random.Generator, count: int) -> list[str]:
    """Words that the tokenizer reads as one token of the last quarter of its vocabulary, where those made by frequency
    have their rarest; each once where there are enough. Raises ConfigError where there are none."""
    tokenizer, known = model.tokenizer, min(len(model.tokenizer), model.vocabulary)
    special = set(tokenizer.all_special_ids)
    ids = rng.permutation(np.arange(known * 3 // 4, known))[: _TRIED * count]
    said = {int(i): str(tokenizer.decode([int(i)])).strip() for i in ids if int(i) not in special}
    said = {i: word for i, word in said.items() if len(word.split()) == 1}
    before, *found = tokenizer(["a", *(f"a {word}" for word in said.values())], add_special_tokens=False)["input_ids"]
    words = [word for (i, word), read in zip(said.items(), found, strict=True) if read == [*before, i]]
    if not words:
        raise ConfigError("audit.kind: 'random' received; the tokenizer has no rare words; allowed: in-distribution")
    return words[:count] if len(words) >= count else list(rng.choice(words, count))
