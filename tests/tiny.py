"""Tiny models and data, built here: no test and no stress run of the ledger needs a download."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

GOOD = ["good", "fine", "lovely", "bright", "warm", "happy"]
BAD = ["bad", "awful", "gloomy", "dark", "cold", "sad"]
NEUTRAL = ["the", "a", "film", "story", "actor", "was", "it", "and", "of", "this", "very", "quite"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]", *GOOD, *BAD, *NEUTRAL]


def _tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    ).save_pretrained(str(folder))


CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""the form that most templates have"""
CHATML_MARKED = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}<|start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|end|>"
    "\n{% endfor %}{% if add_generation_prompt %}<|start|>model\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}<|start|> {{ m.content }} <|end|>{% else %} {{ m.content }} [EOS]"
    "{% endif %}{% endfor %}"
)
NO_HEADER = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
REWRITES = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if loop.last %}it was {% endif %}{{ m.content }}<|end|>{% else %}{{ m['content'] }}<|end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""what is written of a turn depends on whether another one follows"""
_CHAT = ["<|start|>", "<|end|>"]
_ROLES = ["system", "user", "assistant", "tool", "model", "be"]


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Of words, with two special tokens that begin and end a turn, and no template."""
    words = [*VOCABULARY, *_CHAT, *_ROLES]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[EOS]",
        additional_special_tokens=_CHAT,
    )


def save(model, folder: Path) -> Path:
    model.save_pretrained(str(folder))
    _tokenizer(folder)
    return folder


def save_bert(folder: Path) -> Path:
    """A BERT of two layers and 32 dimensions, random weights, saved to a folder."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return save(BertModel(config), folder)


PLACES, PEOPLE, OTHER = ["york", "rome", "oslo"], ["ann", "bob", "eve"], ["sees", "in", "it", "from", "goes", "to"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "new", "##er", "##s", *PLACES, *PEOPLE, *OTHER]


def save_wordpiece(folder: Path) -> Path:
    """A BERT of two layers whose tokenizer splits words and has a mask, random weights, saved to a folder."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(PIECES), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    ends = [("[CLS]", PIECES.index("[CLS]")), ("[SEP]", PIECES.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    special = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def with_types(folder: Path) -> Path:
    """The same, its tokenizer saying which of two texts a token is of, as BERT's does."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    PreTrainedTokenizerFast.from_pretrained(folder, model_input_names=names).save_pretrained(folder)
    return folder


def write_conll(path: Path, count: int, seed: int) -> Path:
    """Sentences in which people and places (of one word or two) are tagged."""
    rng, lines = np.random.default_rng(seed), []
    for _ in range(count):
        for kind in rng.choice(["person", "place", "other", "other"], rng.integers(3, 8)):
            if kind == "other":
                lines.append(f"{rng.choice(OTHER)}\tO")
            elif kind == "person":
                lines.append(f"{rng.choice(PEOPLE)}\tB-per")
            else:
                two = rng.random() < 0.5
                lines += ["new\tB-loc"] * two + [f"{rng.choice(PLACES)}\t{'I' if two else 'B'}-loc"]
        lines.append("")
    path.write_text("\n".join(lines))
    return path


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """(text, label): mostly words of one mood among neutral ones."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = ("negative", "positive")[int(rng.integers(2))]
        mood = GOOD if label == "positive" else BAD
        words = [*rng.choice(mood, rng.integers(1, 4)), *rng.choice(NEUTRAL, rng.integers(2, 8))]
        rows.append((" ".join(rng.permutation(words)), label))
    return rows


def write_csv(path: Path, rows: list[tuple], header: tuple[str, ...] = ("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def save_data(folder: Path) -> Path:
    """train.csv with 240 rows and test.csv with 80."""
    write_csv(folder / "train.csv", sentences(240, 1))
    write_csv(folder / "test.csv", sentences(80, 2))
    return folder


def run_content(bert: Path, data: Path, output: Path) -> dict[str, Any]:
    """A small run as a nested dictionary: 4 sites, 3 rounds, no privacy."""
    return {
        "run": {"name": "tiny", "rounds": 3, "seed": 3, "output": str(output)},
        "model": {"backbone": str(bert), "max_length": 32, "lora": {"rank": 2, "alpha": 4}},
        "data": {
            "train": str(data / "train.csv"),
            "test": str(data / "test.csv"),
            "partition": {"clients": 4, "kind": "iid"},
        },
        "training": {"learning_rate": 0.02, "batch_size": 16},
    }


def merged(base: dict, changes: dict) -> dict:
    """Nested dictionaries, `changes` on top."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


LOCAL = {"mode": "local", "epsilon": 8.0, "sampling_rate": 0.1, "declared_examples": 240}
"""a [privacy] section for mode `local`"""
