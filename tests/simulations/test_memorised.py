"""Canary records that a language model memorises: the audit of the final model sees them."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from confide.cli.printing import print_audit
from confide.client.site import Site
from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig
from confide.common.errors import ConfigError
from confide.common.model.loading import model_of
from confide.common.privacy.audit import CANARY_KINDS
from confide.common.types import IGNORED
from confide.server.report import read_report
from confide.simulations.audit import audit_canaries
from confide.simulations.memorised import secret_rows, secrets_alone
from confide.simulations.sites import simulated_worker
from confide.tests.tiny import CHATML, NEUTRAL, merged, sentences, write_csv

_C = "bdfgklmnprstvz"
_LETTERS = [*"0123456789", "#", "a", "Call", "The", "code", "box", "is", "user", "assistant"]
_CHAT = ["<|start|>", "<|end|>"]
_WORDS = ["[PAD]", "[UNK]", "[EOS]", *_CHAT, *_LETTERS, *NEUTRAL[2:], *map("".join, product(_C, "aeiou", _C, "aeiou"))]
_COLUMNS = ("question", "answer", "messages")
CANARIES, GUESSES = 120, 40
TELLING = 1.0
"""a bound at 95 % confidence: a run that keeps to ε = 1 shows more in at most one audit of twenty"""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model that tells figures, and many rare words, apart."""
    folder = tmp_path_factory.mktemp("reader")
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(_WORDS), num_key_value_heads=4, max_position_embeddings=64, initializer_range=0.2, **shape
        )
    ).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token="[UNK]"))
    split = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[EOS]",
        chat_template=CHATML,
        extra_special_tokens=_CHAT,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def talking(make_config, reader: Path, tmp_path: Path):
    """Two sites with 60 instructions each, and canary records among them; no privacy."""
    for name, seed in (("train", 1), ("test", 2)):
        rows = [(text, f"it was {label}") for text, label in sentences(120, seed)]
        write_csv(tmp_path / f"{name}.csv", rows, ("question", "answer"))
    data: dict[str, Any] = {name: str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    base = {
        "run": {"rounds": 12},
        "model": {"backbone": str(reader), "task": "causal-lm", "lora": {"rank": 8, "targets": "all-linear"}},
        "data": {**data, "prompt": "question", "response": "answer", "partition": {"clients": 2}},
        "training": {"learning_rate": 0.01, "local_steps": 4, "batch_size": 32},
        "audit": {"records": CANARIES, "guesses": GUESSES},
    }

    def make(**changes: dict) -> RunConfig:
        return make_config(**merged(base, changes))

    return make


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coins and noise from fixed seeds: what is asserted of an audit holds of one outcome, and every time."""
    monkeypatch.setattr("confide.client.worker.secure_generator", lambda: np.random.default_rng(1))
    monkeypatch.setattr(Site, "coin_seed", lambda self, run: self.name.encode().ljust(32))


@pytest.mark.parametrize(
    ("kind", "rounds"), [("random", 12), pytest.param("in-distribution", 25, marks=pytest.mark.slow)]
)
def test_the_final_model_tells_what_it_memorised(talking, seeded, kind: str, rounds: int) -> None:
    config = talking(run={"rounds": rounds}, audit={"kind": kind})
    found = audit_canaries(config)
    assert found["records"]["epsilon_steinke"] > TELLING
    assert {"clipped_records", "control", "sensitivity"}.isdisjoint(found)
    assert not found["noise"]
    assert CANARY_KINDS[kind] in (config.output / "report.html").read_text()
    print_audit(config.output)
    assert read_report(config.output)["after"]["accuracy"] > 0.9  # the others are learned as well


@pytest.mark.slow
def test_under_privacy_nothing_is_seen(talking, seeded, local: dict) -> None:
    privacy = {**local, "epsilon": 1.0, "declared_examples": 120}
    config = talking(run={"rounds": 2}, privacy=privacy, training={"local_steps": 1})
    found = audit_canaries(config, control=False)
    assert found["kind"] == "random"  # of itself, where a language model is trained
    assert found["records"]["epsilon_steinke"] <= TELLING
    assert found["clipped_records"]["epsilon_steinke"] <= TELLING
    assert found["sensitivity"]["holds"]


FORMS = {
    "instructions": {},
    "texts": {"prompt": None, "response": None, "text": "answer"},
    "conversations": {"prompt": None, "response": None, "messages": "messages"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "tokens"), [("random", 4), ("in-distribution", 8)])
def test_only_the_secret_counts_and_no_other_record_changes(
    talking, tmp_path: Path, form: str, kind: str, tokens: int
) -> None:
    for name in ("train", "test"):
        turns = [[{"role": "user", "content": "the film"}, {"role": "assistant", "content": "it was good"}]] * 40
        write_csv(tmp_path / f"{name}.csv", [("the film", "it was good", json.dumps(said)) for said in turns], _COLUMNS)
    config, without = (resolve(talking(data=FORMS[form], audit={"kind": kind, "records": n})) for n in (CANARIES, 0))
    model = model_of(config)
    alone = secrets_alone(config, model, "site-1")
    assert [int((part != IGNORED).sum()) for part in np.split(np.asarray(alone.wanted), alone.offsets[1:-1])] == [
        tokens
    ] * (CANARIES // 2)
    assert len({tuple(row) for row in alone.tokens[np.asarray(alone.wanted) != IGNORED].reshape(-1, tokens)}) == 60
    planted, plain = simulated_worker(config)._records, simulated_worker(without)._records
    assert len(planted) == len(plain) + CANARIES
    everybody = np.arange(len(plain))
    assert planted.digest(everybody) == plain.digest(everybody)
    assert np.array_equal(np.asarray(planted.keys)[everybody], np.asarray(plain.keys))


def test_sites_hold_different_canaries(talking) -> None:
    config = resolve(talking())
    model = model_of(config)
    first, again, other = (secret_rows(config, model, site) for site in ("site-1", "site-1", "site-2"))
    assert first.response == again.response
    assert set(first.response or ()).isdisjoint(other.response or ())


def test_secrets_that_could_not_be_seen_are_refused(talking, gpt2: Path) -> None:
    short = resolve(talking(model={"max_length": 6}, audit={"kind": "in-distribution"}))
    with pytest.raises(ConfigError, match=r"model\.max_length: 6 received with canary records of kind 'in-dist"):
        secret_rows(short, model_of(short), "site-1")
    unread = resolve(talking(model={"backbone": str(gpt2)}, audit={"kind": "in-distribution"}))
    with pytest.raises(ConfigError, match="the tokenizer reads all secrets alike"):
        secrets_alone(unread, model_of(unread), "site-1")


def test_secrets_that_do_not_fit_are_refused_before_anything_runs(talking, tmp_path: Path) -> None:
    config = talking(model={"max_length": 6}, audit={"kind": "in-distribution"}, run={"output": str(tmp_path / "out")})
    with pytest.raises(ConfigError, match=r"model.max_length: 6 received .* would fit into a record; raise it"):
        audit_canaries(config)
    assert not (tmp_path / "out").exists()
