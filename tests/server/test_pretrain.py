"""A backbone from nothing: it learns its text, and runs start from it."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from confide.common.errors import ConfigError, DataError
from confide.server.pretrain import PretrainSection, make_model, make_tokenizer, pretrain
from confide.simulations.run import simulate
from confide.tests.tiny import sentences, write_csv

SMALL = {"layers": 1, "width": 32, "heads": 2, "vocabulary": 200, "max_length": 16, "batch": 32}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "text.csv", sentences(400, 31))


def test_words_that_follow_from_their_neighbours_are_guessed(tmp_path: Path, make_config) -> None:
    """Sentences of three frames, each of four words in a fixed order: a word follows from the others of its frame."""
    frames = [
        "red apple is sweet",
        "blue sea was deep",
        "old house stood empty",
        "young bird flew away",
        "wet dog ran home",
    ]
    rows = [(" ".join(three),) for three in product(frames, repeat=3)]
    source = write_csv(tmp_path / "text.csv", rows, ("text",))
    section = PretrainSection.parse({**SMALL, "steps": 600, "learning_rate": 0.005}, "test")
    steps = []
    found = pretrain([str(source)], tmp_path / "bert", section, progress=lambda *state: steps.append(state))
    assert found.before < 0.1
    assert found.after > 0.6
    assert steps[-1][1:] == (600, 600)
    facts = json.loads((tmp_path / "bert" / "pretrain.json").read_text())
    assert facts["steps"] == 600
    assert facts["after"] == found.after
    folder = simulate(make_config(model={"backbone": str(tmp_path / "bert")}, run={"rounds": 1}))
    assert (folder / "report.html").is_file()
    masked = make_config(
        model={"backbone": str(tmp_path / "bert"), "task": "masked-lm", "pooling": "model"},
        run={"rounds": 1, "output": str(tmp_path / "words")},
    )
    assert (simulate(masked) / "adapter" / "adapter_model.safetensors").is_file()


def test_the_seed_decides_the_first_weights() -> None:
    first, same, other = (make_model(PretrainSection(layers=1, width=32, heads=2, seed=s), 50) for s in (1, 1, 2))
    arrays = [next(model.parameters()).detach().numpy() for model in (first, same, other)]
    np.testing.assert_array_equal(arrays[0], arrays[1])
    assert not np.array_equal(arrays[0], arrays[2])


def test_the_tokenizer_reads_back_what_it_wrote(tmp_path: Path) -> None:
    made = make_tokenizer(["a good film", "Good films are rare"], 150)
    made.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    ids = read("A GOOD film", "rare")["input_ids"]
    assert read.decode(ids, skip_special_tokens=True) == "a good film rare"
    assert (ids[0], ids.count(read.sep_token_id)) == (read.cls_token_id, 2)
    assert read.mask_token_id is not None


def test_bad_input_is_refused_before_anything_is_written(text: Path, tmp_path: Path) -> None:
    few = write_csv(tmp_path / "few.csv", [("the same", "x")] * 500)
    with pytest.raises(DataError, match="1 different texts received"):
        pretrain([str(few)], tmp_path / "out", PretrainSection())
    with pytest.raises(ConfigError, match="must be a multiple"):
        pretrain([str(text)], tmp_path / "out", PretrainSection(width=30, heads=4))
    with pytest.raises(ConfigError, match="is not empty"):
        pretrain([str(text)], tmp_path, PretrainSection())
    with pytest.raises(DataError, match="column 'body' is missing"):
        pretrain([str(text)], tmp_path / "out", PretrainSection(), text="body")
    assert not (tmp_path / "out").exists()
