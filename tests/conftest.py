"""Tiny models and data, built here: no test needs a download."""

import csv
import os
from pathlib import Path

import datasets.config
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from confide.common.config import RunConfig

os.environ["HF_HUB_OFFLINE"] = "1"  # for processes that tests start; this one has read it already
huggingface_hub.constants.HF_HUB_OFFLINE = True
datasets.config.HF_HUB_OFFLINE = True
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

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


def _save(model, folder: Path) -> Path:
    model.save_pretrained(str(folder))
    _tokenizer(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny matrices are slower on two."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    return _save(BertModel(config), tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(VOCABULARY), n_embd=32, n_layer=2, n_head=2, n_positions=64)
    return _save(GPT2LMHeadModel(config), tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return _save(LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))


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


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.csv with 240 rows and test.csv with 80."""
    folder = tmp_path_factory.mktemp("data")
    write_csv(folder / "train.csv", sentences(240, 1))
    write_csv(folder / "test.csv", sentences(80, 2))
    return folder


def merged(base: dict, changes: dict) -> dict:
    """Nested dictionaries, `changes` on top."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


@pytest.fixture
def content(bert: Path, data: Path, tmp_path: Path) -> dict:
    """A small run as a nested dictionary: 4 sites, 3 rounds, no privacy."""
    return {
        "run": {"name": "tiny", "rounds": 3, "seed": 3, "output": str(tmp_path / "run")},
        "model": {"backbone": str(bert), "max_length": 32, "lora": {"rank": 2, "alpha": 4}},
        "data": {
            "train": str(data / "train.csv"),
            "test": str(data / "test.csv"),
            "partition": {"clients": 4, "kind": "iid"},
        },
        "training": {"learning_rate": 0.02, "physical_batch": 16},
    }


@pytest.fixture
def make_config(content: dict):
    """RunConfig from `content` with changes on top."""

    def make(**changes: dict) -> RunConfig:
        return RunConfig.parse(merged(content, changes), "test")

    return make


LOCAL = {"mode": "local", "epsilon": 8.0, "sampling_rate": 0.1, "declared_examples": 240}


@pytest.fixture
def local() -> dict:
    """A [privacy] section for mode `local`."""
    return dict(LOCAL)


def shared_data() -> Path | None:
    """The real data sets, where a checkout has them beside it."""
    folder = Path(os.environ.get("CONFIDE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    return folder if folder.is_dir() else None
