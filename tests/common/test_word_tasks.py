"""`token-classification` and `masked-lm`: alignment, spans and losses by hand, and what they refuse."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from confide.common.config.run import RunConfig
from confide.common.config.tables import DataSection, LoraSection, ModelSection
from confide.common.data.classes import label_names
from confide.common.data.sources import examine, read_rows
from confide.common.errors import ConfigError, DataError, ModelError
from confide.common.model.loading import FineTuneModel, load_model
from confide.common.model.per_sample import clipped_sum, hooked
from confide.common.tasks import class_losses, collate, masked_lm, record_means, token_classification
from confide.common.types import IGNORED, Reads, Rows
from confide.tests.tiny import merged

LORA = LoraSection(rank=2, alpha=4)
LABELS = ["B-loc", "B-per", "I-loc", "I-per", "O"]


def rows() -> Rows:
    tags = [np.array([1, 4, 0, 2], np.int32), np.array([4, 4], np.int32)]
    return Rows("x", ["ann sees new yorkers", "it sees"], tags=tags)


@pytest.fixture
def tagger(wordpiece: Path) -> FineTuneModel:
    return load_model(ModelSection(backbone=str(wordpiece), task="token-classification", lora=LORA), len(LABELS), 0)


def test_the_first_piece_of_a_word_carries_its_tag(tagger: FineTuneModel) -> None:
    records = tagger.task.encode(rows(), tagger.tokenizer, 32)
    batch = collate(tagger.task, records, np.array([0, 1]), tagger.pad, tagger.device)
    pieces = tagger.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    assert pieces == ["[CLS]", "ann", "sees", "new", "york", "##er", "##s", "[SEP]"]
    assert batch["targets"].tolist() == [
        [IGNORED, 1, 4, 0, 2, IGNORED, IGNORED, IGNORED],
        [IGNORED, 4, 4, IGNORED, IGNORED, IGNORED, IGNORED, IGNORED],
    ]
    short = tagger.task.encode(rows(), tagger.tokenizer, 4)  # "sees" is the last word that fits
    assert (short.wanted != IGNORED).sum() == 4


def test_the_loss_of_a_record_is_its_own(tagger: FineTuneModel) -> None:
    records = tagger.task.encode(rows(), tagger.tokenizer, 32)
    together = tagger.task.record_losses(
        tagger.module, collate(tagger.task, records, np.array([0, 1]), tagger.pad, tagger.device)
    )
    for index in range(2):
        batch = collate(tagger.task, records, np.array([index]), tagger.pad, tagger.device)
        logits = tagger.module(input_ids=batch["input_ids"]).logits[0]
        there = batch["targets"][0] != IGNORED
        torch.testing.assert_close(together[index], F.cross_entropy(logits[there], batch["targets"][0][there]))


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", set()),
        ("B-loc I-loc O", {(0, 2, 0)}),
        ("B-loc B-loc", {(0, 1, 0), (1, 2, 0)}),
        ("B-loc I-per I-per", {(0, 1, 0), (1, 3, 1)}),
        ("O I-per I-per O B-loc", {(1, 3, 1), (4, 5, 0)}),
        ("I-loc I-per I-loc", {(0, 1, 0), (1, 2, 1), (2, 3, 0)}),
        ("", set()),
    ],
)
def test_spans_are_read_as_conlleval_reads_them(tags: str, found: set) -> None:
    indices = np.array([LABELS.index(tag) for tag in tags.split()], dtype=int)
    assert token_classification.spans(indices, len(LABELS)) == found


def test_span_scores_by_hand() -> None:
    """Three entities, three guesses, one of them right: its neighbour has a wrong border, the third a wrong type."""

    def ragged(*lines: str) -> np.ndarray:
        out = np.empty(len(lines), dtype=object)
        for i, line in enumerate(lines):
            out[i] = np.array([LABELS.index(tag) for tag in line.split()])
        return out

    scores = {
        "true": ragged("B-per O B-loc I-loc", "B-per O"),
        "predicted": ragged("B-per O B-loc O", "B-loc O"),
        "loss": np.array([1.0, 2.0]),
    }
    metrics, confusion = token_classification.metrics(scores, len(LABELS))
    third = pytest.approx(1 / 3)
    assert confusion is None
    assert (metrics["span_precision"], metrics["span_recall"], metrics["span_f1"]) == (third, third, third)
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    nothing, _ = token_classification.metrics({**scores, "predicted": ragged("O O O O", "O O")}, len(LABELS))
    assert nothing["span_f1"] == nothing["span_precision"] == 0.0


CONLL = "\ufeffAnn\tB-per\nsees\tO\n\t\nNew\tB-loc\nYork\tI-loc\n\n\nit O\n\uffff\n"


def test_conll_files_and_tables_hold_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text(CONLL, encoding="utf-8")
    (tmp_path / "a.csv").write_text("text,label\nAnn sees,B-per O\nNew York,B-loc I-loc\nit,O\n")
    data = DataSection(test="x")
    for name in ("a.conll", "a.csv"):
        source = str(tmp_path / name)
        assert label_names([source], data, "tags") == LABELS
        found = read_rows(source, data, LABELS, reads=Reads("tags"))
        assert found.text == ["Ann sees", "New York", "it"]
        assert [tags.tolist() for tags in found.tags or []] == [[1, 4], [0, 2], [4]]
        assert [tags.tolist() for tags in found.take(np.array([2, 0])).tags or []] == [[4], [1, 4]]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_lists_of_words_and_tags_are_read_as_the_same_words_with_blanks(tmp_path: Path, suffix: str) -> None:
    words, tags = [["in", "New", "York"], ["hello"]], [["O", "B-LOC", "I-LOC"], ["O"]]
    rows = [{"tokens": one, "ner_tags": other} for one, other in zip(words, tags, strict=True)]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = DataSection(train=str(path), test=str(path), text="tokens", label="ner_tags")
    names = label_names([str(path)], data, "tags")
    assert names == ["B-LOC", "I-LOC", "O"]
    found = read_rows(str(path), data, names, reads=Reads("tags"))
    assert found.text == ["in New York", "hello"]
    assert found.tags is not None
    assert [one.tolist() for one in found.tags] == [[2, 0, 1], [2]]
    assert examine(str(path), data).classes == {"B-LOC": 1, "I-LOC": 1, "O": 2}
    rows[1] = {"tokens": ["New York"], "ner_tags": ["B-LOC"]}  # a word with a blank would be two
    path = tmp_path / "blank.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match="row 2, column 'tokens': a list"):
        read_rows(str(path), data, names, reads=Reads("tags"))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Ann\tB-per\nsees\n", "line 2: a word without a tag"),
        ("Ann\tX-per\n", "tag 'X-per' received; allowed: B-TYPE"),
        ("", "the file is empty"),
        ("\n\n", "there are no rows"),
    ],
)
def test_what_is_no_conll_is_refused(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "a.conll").write_text(text)
    with pytest.raises(DataError, match=part):
        label_names([str(tmp_path / "a.conll")], DataSection(test="x"), "tags")


def test_tags_that_do_not_fit_are_named_by_row_and_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nAnn sees,B-per\n")
    with pytest.raises(DataError, match=r"row 2, column 'label': 1 tags for 2 words"):
        read_rows(str(path), DataSection(test="x"), LABELS, reads=Reads("tags"))
    path.write_text("text,label\nAnn sees,B-per O\nsecret word,B-org O\n")
    with pytest.raises(DataError, match="row 3") as refused:
        read_rows(str(path), DataSection(test="x"), LABELS, reads=Reads("tags"))
    assert "secret" not in str(refused.value)
    assert "B-org" not in str(refused.value)


@pytest.fixture
def guesser(wordpiece: Path) -> FineTuneModel:
    section = ModelSection(backbone=str(wordpiece), task="masked-lm", pooling="model", lora=LORA)
    return load_model(section, 0, 0)


def test_hidden_tokens_are_guessed_and_nothing_else(guesser: FineTuneModel) -> None:
    texts = [" ".join(["ann sees new yorkers in it"] * 5)] * 40
    tokenizer, length = guesser.tokenizer, 64
    plain = [tokenizer(text)["input_ids"] for text in texts]
    records = guesser.task.encode(Rows("x", texts), tokenizer, length)
    assert records.wanted is not None
    tokens, wanted = records.tokens.reshape(40, -1), records.wanted.reshape(40, -1)
    original = np.array(plain)
    hidden = wanted != IGNORED
    np.testing.assert_array_equal(wanted[hidden], original[hidden])
    np.testing.assert_array_equal(tokens[~hidden], original[~hidden])
    assert not hidden[:, [0, -1]].any()  # never [CLS] or [SEP]
    assert (hidden.sum(1) == round(0.15 * (original.shape[1] - 2))).all()
    assert (tokens == tokens[0]).all()  # the text decides the masking


def test_variants_differ_and_a_short_text_hides_one_token(guesser: FineTuneModel) -> None:
    rows = Rows("x", ["ann sees new york in it", "it"])
    maskings = [masked_lm.encode(rows, guesser.tokenizer, 32, variant) for variant in range(masked_lm.VARIANTS)]
    assert len({np.asarray(one.wanted).tobytes() for one in maskings}) > 1
    assert all((np.asarray(one.wanted)[one.offsets[1] :] != IGNORED).sum() == 1 for one in maskings)


def test_masked_loss_is_transformers_own(guesser: FineTuneModel) -> None:
    records = guesser.task.encode(Rows("x", ["ann sees new york", "it sees in it new york"]), guesser.tokenizer, 32)
    both = guesser.task.record_losses(
        guesser.module, collate(guesser.task, records, np.arange(2), guesser.pad, guesser.device)
    )
    for index in range(2):
        batch = collate(guesser.task, records, np.array([index]), guesser.pad, guesser.device)
        reference = guesser.module(input_ids=batch["input_ids"], labels=batch["targets"]).loss
        torch.testing.assert_close(both[index], reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_only_hidden_tokens_are_compared_with_all_words_and_nothing_else_changes(
    wordpiece: Path, pooling: Literal["mean", "model"]
) -> None:
    """Losses, and each record's clipped gradient, against those of the whole table of logits, record by record."""
    section = ModelSection(backbone=str(wordpiece), task="masked-lm", pooling=pooling, lora=LORA)
    model = load_model(section, 0, 0)
    texts = ["ann sees new york in it and ann goes to rome", "it", "ann sees new york in it " * 4]
    records, clip = model.task.encode(Rows("x", texts), model.tokenizer, 64), 0.001
    wanted, losses = [], []
    for index in range(3):
        batch = model.batch(records, np.array([index]))
        whole = model.module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = record_means(class_losses(whole, batch), batch["targets"]).sum()
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.trained.values()))])
        wanted.append(gradient * min(1, clip / float(gradient.norm())))
        losses.append(float(loss.detach()))
    with hooked(model):
        found = model.losses(records, np.arange(3))
        total, norms = clipped_sum(model, found, clip)
    assert found.tolist() == pytest.approx(losses, rel=1e-4)
    assert (norms > clip).all()
    torch.testing.assert_close(total, torch.stack(wanted).sum(0).double(), rtol=1e-3, atol=1e-7)


def test_our_own_head_begins_as_likeness_to_the_embeddings(wordpiece: Path) -> None:
    model = load_model(ModelSection(backbone=str(wordpiece), task="masked-lm", lora=LORA), 0, 0)
    batch = torch.tensor([[2, 9, 10, 3]])
    with torch.no_grad():
        logits = model.module(input_ids=batch).logits
        backbone = model.module.get_submodule("base_model.model.backbone")
        hidden = backbone(input_ids=batch).last_hidden_state
        torch.testing.assert_close(logits, hidden @ backbone.get_input_embeddings().weight.T)  # pyright: ignore
    assert any(name.endswith("head.weight") for name in model.trained)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    with pytest.raises(ModelError, match="has no mask token"):
        masked_lm.encode(Rows("x", ["a b"]), fast, 8)


def test_a_digest_of_records_covers_every_target(tagger: FineTuneModel) -> None:
    first = tagger.task.encode(rows(), tagger.tokenizer, 32)
    other = rows()
    assert other.tags is not None
    other.tags[1][0] = 3
    second = tagger.task.encode(other, tagger.tokenizer, 32)
    assert first.digest(np.array([0])) == second.digest(np.array([0]))
    assert first.digest(np.array([1])) != second.digest(np.array([1]))
    joined = first.joined(second)
    assert joined.wanted is not None
    assert len(joined.wanted) == len(joined.tokens)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"data": {"partition": {"kind": "dirichlet"}}}, "allowed: iid, natural"),
        ({"audit": {"records": 4}, "model": {"task": "masked-lm"}}, "other maskings are made"),
        ({"training": {"augmentation": 0.1}}, "allowed: sequence-classification"),
    ],
)
def test_settings_that_make_no_sense(content: dict, local: dict, changes: dict, part: str) -> None:
    base = {"model": {"task": "token-classification"}, "privacy": local}
    with pytest.raises(ConfigError, match=part):
        RunConfig.parse(merged(merged(content, base), changes), "run.toml")
