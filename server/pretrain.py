"""`confide pretrain`: a small BERT and its tokenizer from nothing but public text, for those without any hub.

Everything of it is a function of the text: the vocabulary names words, the weights may remember sentences. So the text
must be public. Text that is not is learned by a run: `model.task = "masked-lm"`, `model.train = "full"`, under privacy.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
from pydantic import Field
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from ..common.config.section import Positive, PositiveFloat, Section
from ..common.data.sources import read_texts
from ..common.errors import ConfigError, DataError
from ..common.model.optimizer import warmed_up
from ..common.model.output import note_end
from ..common.tasks import Batch, Task, collate, masked_lm
from ..common.types import ProgressCallback, Records, Rows
from ..common.whole import require_new, whole_folder

FACTS = "pretrain.json"
_UNKNOWN = "[UNK]"
_SPECIAL = ("[PAD]", _UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
_LEAST, _HELD_OUT = 100, 0.05
_WARMUP, _NORM = 0.1, 1.0


class PretrainSection(Section, frozen=True):
    """The model and its training; the defaults are BERT-mini (Turc et al. 2019) with a small vocabulary."""

    layers: Positive = 4
    width: Annotated[int, Field(ge=8)] = 256
    heads: Positive = 4
    vocabulary: Annotated[int, Field(ge=100)] = 8000
    """subwords, at most"""
    max_length: Annotated[int, Field(ge=8)] = 64
    """tokens a text is cut to, and positions of the model"""
    steps: Positive = 2000
    batch: Positive = 64
    learning_rate: PositiveFloat = 1e-3
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


@dataclass(frozen=True)
class Pretrained:
    texts: int
    parameters: int
    before: float
    """share of hidden words of held-out texts that are guessed, by the random model …"""
    after: float
    perplexity: float


def pretrain(
    sources: list[str],
    out: Path,
    section: PretrainSection,
    *,
    text: str = "text",
    progress: ProgressCallback = lambda *_: None,
) -> Pretrained:
    """Writes a folder that `model.backbone` takes: config.json, model.safetensors, tokenizer, and pretrain.json.

    sources: csv, jsonl or parquet files, or hub ids of public text. Raises ConfigError, DataError before it writes.
    """
    if section.width % section.heads:
        raise ConfigError(
            f"--width: {section.width} received with --heads {section.heads}; it must be a multiple of it"
        )
    require_new(out)
    texts = _texts(sources, text)
    if len(texts) < _LEAST:
        raise DataError(f"{', '.join(sources)}: {len(texts)} different texts received; at least {_LEAST} are needed")
    order = np.random.default_rng([section.seed, 0x9E7]).permutation(len(texts))
    held = max(1, round(_HELD_OUT * len(texts)))
    progress("vocabulary", 0, 1)
    known = [texts[i] for i in order[held:]]
    tokenizer = make_tokenizer(known, section.vocabulary)
    task = masked_lm
    variants = [
        task.encode(Rows("text", known), tokenizer, section.max_length, variant) for variant in range(task.VARIANTS)
    ]
    unseen = task.encode(Rows("text", [texts[i] for i in order[:held]]), tokenizer, section.max_length)
    model = make_model(section, len(tokenizer))
    before = _guessed(model, unseen, tokenizer, section.batch)
    _train(model, variants, tokenizer, section, progress)
    after = _guessed(model, unseen, tokenizer, section.batch)
    outcome = Pretrained(len(texts), model.num_parameters(), before["accuracy"], after["accuracy"], after["perplexity"])
    facts: dict[str, Any] = {"sources": sources, **section.model_dump(), **vars(outcome)}
    with whole_folder(out) as place:
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        (place / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return outcome


def make_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Subwords (Schuster and Nakajima 2012) as BERT uses them: lower case, accents off, at most `vocabulary`.

    Of equally frequent pieces the library takes others every time: the text alone does not give the folder back.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=_UNKNOWN))  # pyright: ignore[reportCallIssue]
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.WordPiece()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=list(_SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    named = {f"{name[1:-1].lower()}_token": name for name in _SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)  # pyright: ignore[reportArgumentType]


def make_model(section: PretrainSection, words: int) -> BertForMaskedLM:
    """Weights drawn from the seed."""
    config = BertConfig(
        vocab_size=words,
        hidden_size=section.width,
        num_hidden_layers=section.layers,
        num_attention_heads=section.heads,
        intermediate_size=4 * section.width,
        max_position_embeddings=max(section.max_length, 512),  # so that a later run may read longer texts
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(section.seed)
        return note_end(BertForMaskedLM(config))


def _texts(sources: list[str], column: str) -> list[str]:
    """Each different text once."""
    found: dict[str, None] = {}
    for source in sources:
        found.update(dict.fromkeys(read_texts(source, column)))
    return list(found)


def _train(
    model: BertForMaskedLM, variants: list[Records], tokenizer, section: PretrainSection, progress: ProgressCallback
) -> None:
    """AdamW with a linear rise and fall of the learning rate; dropout as the configuration has it."""
    rng = np.random.default_rng([section.seed, 0x57E])
    rise = max(1, math.ceil(_WARMUP * section.steps))
    optimizer, schedule = warmed_up(model.parameters(), section.learning_rate, section.steps, rise)
    task = masked_lm
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(section.seed)
        for step in range(section.steps):
            records = variants[int(rng.integers(len(variants)))]
            chosen = rng.integers(len(records), size=min(section.batch, len(records)))
            loss = task.record_losses(model, _batch(records, chosen, tokenizer)).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), _NORM)
            optimizer.step()
            schedule.step()
            progress(f"loss {float(loss.detach()):.2f}", step + 1, section.steps)
    model.eval()


@torch.no_grad()
def _guessed(model: BertForMaskedLM, records: Records, tokenizer, size: int) -> dict[str, float]:
    task = masked_lm
    model.eval()
    parts = np.array_split(np.arange(len(records)), max(1, -(-len(records) // size)))
    scores = [task.score(model, _batch(records, part, tokenizer)) for part in parts]
    return task.metrics({key: np.concatenate([score[key] for score in scores]) for key in scores[0]}, 0)[0]


def _batch(records: Records, chosen: np.ndarray, tokenizer) -> Batch:
    return collate(cast(Task, masked_lm), records, chosen, tokenizer.pad_token_id, torch.device("cpu"))
