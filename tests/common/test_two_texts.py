"""A second text of a record, and several classes of one: as transformers and scikit-learn have them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from confide.client.labelling import suggest
from confide.client.personalize import load_finished
from confide.common.config.resolve import resolve
from confide.common.config.tables import DataSection, LoraSection, ModelSection
from confide.common.data.augmentation import _copy
from confide.common.data.classes import has_lists, label_names
from confide.common.data.formats import Problem
from confide.common.data.record_keys import record_keys
from confide.common.data.sources import content_digest, examine, read_checked, read_rows, source_contents
from confide.common.errors import ConfigError, DataError, ModelError
from confide.common.model.adapter import export_adapter
from confide.common.model.dummies import dummy_records
from confide.common.model.loading import FineTuneModel, load_model
from confide.common.tasks import multi_label_classification
from confide.common.types import Reads, Rows
from confide.tests.architectures import save_architecture
from confide.tests.tiny import save_wordpiece, with_types, write_csv

LORA = LoraSection(rank=2, alpha=4)
ROWS = Rows(
    "x",
    ["good film", "a story", "bad"],
    labels=np.array([1, 0, 1]),
    pair=["a story was good", "film", " ".join(["awful"] * 40)],
)
SEVERAL = Reads(label="classes")


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT whose tokenizer says which text a token is of."""
    return with_types(save_wordpiece(tmp_path_factory.mktemp("typed")))


def two(backbone: Path, **changes: Any) -> FineTuneModel:
    section = {"backbone": str(backbone), "lora": LORA, "max_length": 16} | changes
    return load_model(ModelSection.model_validate(section), 2, 0, two_texts=True)


@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_two_texts_are_read_as_transformers_reads_them(typed: Path, pooling: str) -> None:
    model = two(typed, pooling=pooling)
    records = model.encode(ROWS)
    wanted = AutoTokenizer.from_pretrained(typed)(
        ROWS.text, ROWS.pair, truncation=True, max_length=16, padding=True, return_tensors="pt"
    )
    batch = model.batch(records, np.arange(3))
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[name], wanted[name]), name
    assert records.cut is not None
    assert records.cut.tolist() == [False, False, True]
    if pooling == "model":
        torch.manual_seed(0)
        plain = AutoModelForSequenceClassification.from_pretrained(typed, num_labels=2)
        plain.load_state_dict(
            {k.replace(".base_layer", "").replace(".modules_to_save.default", ""): v
             for k, v in model.module.get_base_model().state_dict().items()
             if "lora_" not in k and ".original_module." not in k}
        )  # fmt: skip
        with torch.no_grad():
            expected = torch.nn.functional.cross_entropy(
                plain.eval()(**wanted).logits, torch.tensor([1, 0, 1]), reduction="none"
            )
        torch.testing.assert_close(model.losses(records, np.arange(3)).detach(), expected, rtol=1e-5, atol=1e-6)


def test_which_text_a_token_is_of_reaches_the_model(typed: Path) -> None:
    model = two(typed)
    records = model.encode(ROWS)
    told = model.losses(records, np.array([0])).item()
    assert records.segments is not None
    records.segments[:] = 0
    assert model.losses(records, np.array([0])).item() != told
    assert dummy_records(model, [6]).segments is not None


def test_a_model_that_is_not_told_gets_no_types(typed: Path, bert: Path, tmp_path: Path) -> None:
    told = with_types(save_architecture("distilbert", tmp_path / "distilbert"))
    for backbone in (typed, bert, told):  # the last one's tokenizer says them, and the model has no such argument
        targets = ["q_lin", "v_lin"] if backbone is told else None
        model = two(backbone, pooling="last", lora={"rank": 2, "targets": targets})
        assert model.segments == (backbone is typed)
        assert ("token_type_ids" in model.batch(model.encode(ROWS), np.arange(3))) == model.segments
        assert torch.isfinite(model.losses(model.encode(ROWS), np.arange(3))).all()


def test_the_second_text_is_part_of_the_record(tmp_path: Path) -> None:
    other = Rows(ROWS.source, ROWS.text, labels=ROWS.labels, pair=["a story was good", "film", "awful"])
    one, two = (record_keys(rows, b"") for rows in (ROWS, other))
    assert (one == two).tolist() == [True, True, False]
    files = [
        write_csv(tmp_path / f"{i}.csv", [("a", second, "x")], ("text", "b", "label")) for i, second in enumerate("cd")
    ]
    data = DataSection(test="", text_pair="b")
    assert content_digest(str(files[0]), data) != content_digest(str(files[1]), data)
    path = write_csv(tmp_path / "gap.csv", [("a", "b", "x"), ("a", "", "x")], ("text", "b", "label"))
    with pytest.raises(DataError, match="row 3, column 'b': the field is empty"):
        read_rows(str(path), data, ["x"])
    with pytest.raises(DataError, match="column 'c' is missing"):
        read_rows(str(path), DataSection(test="", text_pair="c"), ["x"])


def test_two_texts_are_for_tasks_with_one_answer(make_config) -> None:
    for task in ("causal-lm", "token-classification", "masked-lm"):
        with pytest.raises(ConfigError, match=r"data\.text_pair: .*reads one text a record"):
            make_config(model={"task": task}, data={"text_pair": "b", "partition": {"kind": "iid"}})


def test_several_classes_cost_what_transformers_says(wordpiece: Path) -> None:
    section = ModelSection.model_validate(
        {"backbone": str(wordpiece), "lora": LORA, "pooling": "model", "task": "multi-label-classification"}
    )
    model = load_model(section, 3, 0)
    labels = np.array([[1, 0, 1], [0, 0, 0]], dtype=np.uint8)
    records = model.encode(Rows("x", ["good film", "a story"], labels=labels))
    batch = model.batch(records, np.arange(2))
    base: Any = model.module.get_base_model()
    assert base.config.problem_type == "multi_label_classification"
    targets = batch.pop("targets")
    whole = base(**batch, labels=targets).loss
    torch.testing.assert_close(model.losses(records, np.arange(2)).mean(), whole)
    alone = [base(**{k: v[i : i + 1] for k, v in batch.items()}, labels=targets[i : i + 1]).loss for i in range(2)]
    torch.testing.assert_close(model.losses(records, np.arange(2)), torch.stack(alone))


def test_metrics_of_several_classes_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    true, predicted = rng.random((50, 4)) < 0.4, rng.random((50, 4)) < 0.5
    true[:, 3] = predicted[:, 3] = False  # a class that occurs nowhere counts nowhere
    scores = {"true": true, "predicted": predicted, "loss": np.ones(50)}
    metrics, confusion = multi_label_classification.metrics(scores, 4)
    assert confusion is None
    assert metrics["macro_f1"] == pytest.approx(f1_score(true[:, :3], predicted[:, :3], average="macro"))
    assert metrics["micro_f1"] == pytest.approx(f1_score(true, predicted, average="micro"))
    assert metrics["accuracy"] == pytest.approx((true == predicted).all(1).mean())
    nothing = {"true": np.zeros((2, 3)), "predicted": np.zeros((2, 3)), "loss": np.ones(2)}
    assert multi_label_classification.metrics(nothing, 3)[0]["macro_f1"] == 1.0


LISTS = [["b", "a"], [], ["c"]]


def test_lists_of_classes_are_read_whatever_the_file(tmp_path: Path) -> None:
    texts = ["x", "y", "z"]
    pq.write_table(pa.table({"text": texts, "label": LISTS}), tmp_path / "l.parquet")
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, LISTS, strict=True)]
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    (tmp_path / "l.json").write_text(f"[{', '.join(lines)}]")
    write_csv(tmp_path / "l.csv", [(text, json.dumps(label)) for text, label in zip(texts, LISTS, strict=True)])
    data = DataSection(test="")
    for name in ("l.parquet", "l.jsonl", "l.json", "l.csv"):
        source = str(tmp_path / name)
        assert has_lists([source], data)
        assert label_names([source], data, "classes") == ["a", "b", "c"]
        found = read_rows(source, data, ["a", "b", "c"], reads=SEVERAL).labels
        assert found is not None
        assert found.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
        seen = examine(source, data)
        assert not seen.problems
        assert seen.classes == {"a": 1, "b": 1, "c": 1}
    with pytest.raises(DataError, match="row 3, column 'label': a label that is not one of the 2 of this run"):
        read_rows(str(tmp_path / "l.jsonl"), data, ["a", "b"], reads=SEVERAL)
    for value in ('["a", null]', '["a", {"b": 1}]', "null", '[""]'):
        (tmp_path / "bad.jsonl").write_text(f'{lines[0]}\n{{"text": "x", "label": {value}}}')
        with pytest.raises(DataError, match="row 2, column 'label'"):
            read_rows(str(tmp_path / "bad.jsonl"), data, ["a", "b"], reads=SEVERAL)


def test_lists_in_the_public_sets_choose_the_task(make_config, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"text": "x", "label": ["b", "a"]}\n{"text": "y", "label": []}\n')
    config = resolve(make_config(data={"test": str(tmp_path / "test.jsonl")}))
    assert config.model.task == "multi-label-classification"
    assert config.data.labels == ["a", "b"]
    (tmp_path / "test.jsonl").write_text('{"text": "x", "label": ["b", "a"]}\n{"text": "y", "label": "a"}\n')
    with pytest.raises(DataError, match="row 1, column 'label': a list where a text or a number is expected"):
        resolve(make_config(data={"test": str(tmp_path / "test.jsonl")}))
    with pytest.raises(ConfigError, match=r"data\.partition\.kind: .*not one each"):
        make_config(model={"task": "multi-label-classification"}, data={"partition": {"kind": "dirichlet"}})


def test_an_exported_adapter_says_that_it_reads_two(typed: Path, tmp_path: Path) -> None:
    model = two(typed)
    section = ModelSection.model_validate({"backbone": str(typed), "lora": LORA, "max_length": 16})
    export_adapter(model, section, ["no", "yes"], tmp_path / "adapter")
    assert 'tokenizer("a text", "a text", return_tensors="pt")' in (tmp_path / "adapter" / "README.md").read_text()
    finished = load_finished(tmp_path / "adapter", ())
    assert (finished.model.two_texts, finished.model.segments) == (True, True)
    (tmp_path / "pool.csv").write_text("text\na\n")
    with pytest.raises(ConfigError, match="labels are asked for one class a text"):
        suggest(str(tmp_path / "pool.csv"), tmp_path / "adapter", tmp_path / "out.csv", strategy="margin", count=1)


def test_joined_files_of_lines_lose_their_first_row_without_a_trace(tmp_path: Path) -> None:
    """A byte-order mark before a line is no letter of it, whichever line comes first then."""
    lines = ["a film", "\ufeffgloomy story", "\ufeff", "the last"]
    read = []
    for start in range(2):
        (tmp_path / "rows.txt").write_text("\n".join(lines[start:]), encoding="utf-8")
        read.append(read_rows(str(tmp_path / "rows.txt"), DataSection(test=""), None, reads=Reads(label=None)).text)
    assert read == [["a film", "gloomy story", "the last"], ["gloomy story", "the last"]]


def test_one_broken_number_costs_its_own_row_of_tags(tmp_path: Path) -> None:
    """It makes some writers store all numbers of the column as broken ones."""
    words, data = [["ann", "sees"]] * 3, DataSection(test="", text="words", label="tags", numbered_tags=["O", "B-x"])
    for tags in ([[1, 0], [0, 1], [0, 0]], [[1, 0], [0, 1], [0.5, 0]]):
        pq.write_table(pa.table({"words": words, "tags": tags}), tmp_path / "t.parquet")
        problems: list[Problem] = []
        source = str(tmp_path / "t.parquet")
        found = read_rows(source, data, ["B-x", "I-x", "O"], reads=Reads("tags"), problems=problems)
        assert found.tags is not None
        assert [one.tolist() for one in found.tags[:2]] == [[0, 2], [2, 0]]
        assert len(problems) == (tags[2][0] == 0.5)
        assert len(examine(source, data.model_copy(update={"numbered_tags": None})).rows) == 3


def test_the_same_records_have_one_identity(tmp_path: Path) -> None:
    """Whichever text a table names first, and whether words are a list or stand in a text."""
    rows = [("one", "two", "x"), ("three", "four", "y")]
    source = str(write_csv(tmp_path / "a.csv", rows, ("a", "b", "label")))
    identities = {
        source_contents(source, DataSection(test="", text=one, text_pair=other))[0] for one, other in ("ab", "ba")
    }
    assert len(identities) == 1
    assert source_contents(source, DataSection(test="", text="a"))[0] not in identities
    (tmp_path / "w.jsonl").write_text('{"text": ["ann", "sees"], "label": ["O", "O"]}\n')
    write_csv(tmp_path / "w.csv", [("ann sees", "O O")])
    assert len({source_contents(str(tmp_path / name), DataSection(test=""))[0] for name in ("w.jsonl", "w.csv")}) == 1
    digests = set()
    for name, label in {"l": '["x"]', "t": "\"['x']\""}.items():
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "a", "label": {label}}}\n')
        digests.add(content_digest(str(tmp_path / f"{name}.jsonl"), DataSection(test="")))
    write_csv(tmp_path / "l.csv", [("a", '["x"]')])
    assert len(digests) == 2
    assert content_digest(str(tmp_path / "l.csv"), DataSection(test="")) in digests


def test_a_second_text_that_a_table_names_is_not_read_where_the_run_has_one(tmp_path: Path) -> None:
    source = str(write_csv(tmp_path / "a.csv", [("one", "", "x"), ("two", "b", "x")], ("text", "pair", "label")))
    data, alone = DataSection(test=source, text_pair="pair"), Reads(alone=True)
    assert len(read_checked(source, data, ["x"], reads=Reads()).rows) == 1
    whole = read_checked(source, data, ["x"], reads=alone)
    assert (len(whole.rows), whole.rows.pair, whole.problems) == (2, None, [])
    assert whole.digest == content_digest(source, data)  # of the columns that the table names


def test_a_length_below_the_marks_is_refused(typed: Path) -> None:
    with pytest.raises(ModelError, match=r"max_length: 2 received; this tokenizer puts 3 marks around two texts"):
        two(typed, max_length=2)


def test_some_lists_among_classes_are_said(make_config, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_csv(tmp_path / "test.csv", [("a", '["x"]'), ("b", "y")])
    assert resolve(make_config(data={"test": str(tmp_path / "test.csv")})).model.task == "sequence-classification"
    assert "1 of 2 rows have a list in column 'label'" in caplog.text


def test_copies_spoil_both_texts(make_config) -> None:
    config = make_config(training={"augmentation": 0.9})
    rows = Rows("x", ["a good film it was"] * 3, labels=np.zeros(3, int), pair=["a gloomy story it was"] * 3)
    copy = _copy(config, rows, np.arange(3, dtype=np.uint64), 1)
    assert copy.pair is not None
    assert all(one != two for one, two in zip([*rows.text, *(rows.pair or [])], [*copy.text, *copy.pair], strict=True))
