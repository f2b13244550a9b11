"""The vocabulary that a server and a site share, on one page.

Shapes: N records, B records of a physical batch, T tokens, K classes, d released coordinates.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from .ledger.chain import Head

Adapter = dict[str, np.ndarray]
"""LoRA and head by PEFT's saved name → float32 array; ordered by name."""

ProgressCallback = Callable[[str, int, int], None]
"""progress: the stage, how much is done, of how much"""

Metrics = dict[str, float]
"""accuracy, macro_f1, loss, … of one evaluation."""

CHARACTERS = 64
"""of a text that are read for each token that a record may have; a token has four on average"""

IGNORED = -100
"""a token that the loss does not count"""

WHOLE = "whole"
"""a metric of mode `client` without secure aggregation: whether the clip left the update whole, for a trusted server"""


def split(flat: np.ndarray, like: Adapter) -> Adapter:
    """(d,) numbers → float32 arrays with the names, order and shapes of `like`."""
    pieces = np.split(flat, np.cumsum([array.size for array in like.values()])[:-1])
    return {
        name: piece.reshape(array.shape).astype(np.float32)
        for (name, array), piece in zip(like.items(), pieces, strict=True)
    }


def joined(arrays: Adapter) -> np.ndarray:
    """Inverse of `split`, (d,) float64."""
    return np.concatenate([array.ravel() for array in arrays.values()]).astype(np.float64)


Message = tuple[str, str]
"""role and content"""
Conversation = tuple[Message, ...]

DEFAULT_TASK = "sequence-classification"
"""`model.task` where none is named"""
DEFAULT_BETA = 0.1
"""`training.beta` where none is named"""


@dataclass(frozen=True)
class Reads:
    """What a task reads of a row."""

    label: Literal["class", "classes", "tags", "number"] | None = "class"
    """one class a row, any number of them, one a word, a number, or nothing"""
    text: bool = True
    images: bool = False
    turns: bool = False
    """conversations instead of texts, where `data.messages` names their column"""
    pairs: bool = False
    """two answers to each text, the first of which is preferred"""
    alone: bool = False
    """that a second text is not read, though a table names its column"""

    @property
    def two_texts(self) -> bool:
        """Whether a record may have a second text, where `data.text_pair` names its column: tasks that give one answer
        for a text."""
        return not self.alone and self.text and not self.images and self.label in ("class", "classes", "number")


@dataclass(frozen=True)
class Rows:
    """What a source holds, cleaned: one entry a record."""

    source: str
    """the file or address, for error messages"""
    text: list[str]
    """the text, or the prompt of an instruction; empty texts where a task reads images alone"""
    response: list[str] | None = None
    """the answer of an instruction (`causal-lm`), or the chosen one of two (`preference`)"""
    labels: np.ndarray | None = None
    """(N,) int64 class indices; of several classes a row (N, K) uint8, 1 for those it has; `regression`: float64, in
    standard deviations from the public set's mean (`data.scale`)"""
    tags: list[np.ndarray] | None = None
    """one class index a word of the text (`token-classification`)"""
    group: np.ndarray | None = None
    """(N,) strings of the column of a `natural` partition"""
    images: np.ndarray | None = None
    """(N, C, H, W) uint8, as the backbone takes them"""
    person: np.ndarray | None = None
    """(N,) strings: whose each row is, where the unit of privacy is the person"""
    turns: list[Conversation] | None = None
    """conversations (`causal-lm`); the texts are empty then"""
    template: str | None = None
    """with turns: the run's chat template; None: the tokenizer's own"""
    numbers: np.ndarray | None = None
    """(N,) int64: the number of each row in its source, as messages count it"""
    rejected: list[str] | None = None
    """the other answer (`preference`)"""
    pair: list[str] | None = None
    """the second text of each record"""

    def __len__(self) -> int:
        return len(self.text)

    def where(self, place: int) -> str:
        """A row, as messages name it."""
        return f"{self.source}: row {place + 1 if self.numbers is None else self.numbers[place]}"

    def within(self, characters: int) -> "Rows":
        """The rows with texts of so many characters at most; of a prompt the end stays, as it does of its tokens.
        Conversations stay as they are: which of their turns are left out is for `chat_template` to say."""
        if self.response is None:
            pair = None if self.pair is None else [text[:characters] for text in self.pair]
            return replace(self, text=[text[:characters] for text in self.text], pair=pair)
        return replace(
            self,
            text=[text[-characters:] for text in self.text],
            response=[text[:characters] for text in self.response],
            rejected=None if self.rejected is None else [text[:characters] for text in self.rejected],
        )

    def take(self, keep: np.ndarray) -> "Rows":
        """The rows of these numbers, in this order."""
        return Rows(
            self.source,
            [self.text[i] for i in keep],
            None if self.response is None else [self.response[i] for i in keep],
            None if self.labels is None else self.labels[keep],
            None if self.tags is None else [self.tags[i] for i in keep],
            None if self.group is None else self.group[keep],
            None if self.images is None else self.images[keep],
            None if self.person is None else self.person[keep],
            None if self.turns is None else [self.turns[i] for i in keep],
            self.template,
            None if self.numbers is None else self.numbers[keep],
            None if self.rejected is None else [self.rejected[i] for i in keep],
            None if self.pair is None else [self.pair[i] for i in keep],
        )


@dataclass(frozen=True)
class Records:
    """Tokenised records, ragged: record i is `tokens[offsets[i]:offsets[i + 1]]`."""

    tokens: np.ndarray
    """(Σ T_i,) int32; `preference`: `IGNORED` after the end of a chosen answer that is the shorter one"""
    offsets: np.ndarray
    """(N + 1,) int64"""
    targets: np.ndarray
    """(N,) int64: the class index, the first position that counts in the loss (`preference`, and `causal-lm` without
    `wanted`), or 0; several classes: (N, K) uint8; `regression`: float64"""
    wanted: np.ndarray | None = None
    """(Σ T_i,) int32, where every token has a target: `IGNORED` where it does not count; `preference`: the tokens of
    the rejected answer in their places"""
    images: np.ndarray | None = None
    """(N, C, H, W) uint8"""
    features: np.ndarray | None = None
    """(N, F) float32: what a frozen backbone makes of the records, where only the head is trained"""
    keys: np.ndarray | None = None
    """(N,) uint64: each record's own (`record_keys`), from which its randomness follows"""
    person: np.ndarray | None = None
    """(N,) int64: a number for each person, where the unit of privacy is the person"""
    cut: np.ndarray | None = None
    """(N,) bool: whether a record is shorter than its row, which `max_length` is too short for. Of private rows it must
    not leave their site"""
    segments: np.ndarray | None = None
    """(Σ T_i,) int8: which of a record's two texts a token is of, where the tokenizer says that (`token_type_ids`)"""

    def __len__(self) -> int:
        return len(self.targets)

    def joined(self, other: "Records") -> "Records":
        """These, and the others after them; what only one of the two has is left out."""
        return Records(
            np.concatenate([self.tokens, other.tokens]),
            np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]]),
            np.concatenate([self.targets, other.targets]),
            _both(self.wanted, other.wanted),
            _both(self.images, other.images),
            _both(self.features, other.features),
            _both(self.keys, other.keys),
            _both(self.person, other.person),
            _both(self.cut, other.cut),
            _both(self.segments, other.segments),
        )

    def digest(self, indices: np.ndarray) -> bytes:
        """SHA-256 of the named records' tokens, images and targets, in their order."""
        total = hashlib.sha256()
        for index in indices:
            part = slice(self.offsets[index], self.offsets[index + 1])
            total.update(int(part.stop - part.start).to_bytes(8, "little"))
            total.update(self.tokens[part].tobytes())
            total.update(self.targets[index : index + 1].tobytes())
            if self.wanted is not None:
                total.update(self.wanted[part].tobytes())
            if self.segments is not None:
                total.update(self.segments[part].tobytes())
            if self.images is not None:
                total.update(self.images[index].tobytes())
        return total.digest()

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """(len(indices),) tokens of each record."""
        return self.offsets[indices + 1] - self.offsets[indices]

    def by_length(self, indices: np.ndarray, size: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The named records in parts of similar length, at most `size` each, and (len(indices),) the positions that put
        what was made of all parts, one after the other, back into the order of `indices`."""
        order = np.argsort(self.lengths(indices), kind="stable")
        parts = np.array_split(indices[order], max(1, -(-len(order) // size)))
        return parts, np.argsort(order, kind="stable")


def shuffled_batches(indices: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Epoch after epoch without end; the rest of an epoch that fills no batch starts the next one's first."""
    pool = np.empty(0, dtype=np.int64)
    size = min(size, len(indices))
    while True:
        if len(pool) < size:
            pool = np.concatenate([pool, rng.permutation(indices)])
        yield pool[:size]
        pool = pool[size:]


def _both(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    return None if first is None or second is None else np.concatenate([first, second])


@dataclass(frozen=True)
class RoundTask:
    """What the server asks of a site in one round."""

    round: int
    """1 … rounds"""
    adapter: Adapter
    """the global adapter, frozen factors included"""
    proximal_mu: float = 0.0
    """FedProx: μ of the term μ/2·‖θ − θ_global‖²"""
    clip: float | None = None
    """the clip norm of this round, where it adapts"""
    queries: tuple[str, ...] = ()
    """public texts that the site's teachers shall answer (`distill`)"""
    dealt: dict[str, bytes] | None = None
    """after a set-up of secure sums: what the neighbours dealt to this site, sealed"""
    evaluate: bool = False
    """whether held-out records are counted, at these weights"""
    evaluated: int = 0
    """evaluations that the server has asked of this site before"""


@dataclass(frozen=True)
class Update:
    """What leaves a site after one round: a release."""

    site: str
    delta: Adapter
    """new − old of the trained arrays; −(mean gradient) when the server takes the step; empty in a secure sum"""
    weight: float
    """records in mode `none`; 1 under privacy, where a count would be a release"""
    steps: int
    """optimizer steps charged to this run so far, this round's included"""
    epsilon: float | None
    """ε spent in this run so far; None in mode `none`"""
    metrics: Metrics = field(default_factory=dict)
    """mode `none`, and only where the site's policy lets it: the mean training loss; mode `client` with a trusted
    server: `whole`"""
    head: Head | None = None
    """the last entry of the site's ledger; None when it lives in memory"""
    commitment: str | None = None
    """an audit: SHA-256 that binds the coins that decided which canaries are in"""
    masked: bytes | None = None
    """secure sums: the masked input, packed"""
    counts: np.ndarray | None = None
    """(k,) float64: what held-out records count, under privacy with noise; None: not asked, or in the secure sum"""
    evaluations: int = 0
    """evaluations charged to this run so far, this round's included; 0 in mode `none`"""
