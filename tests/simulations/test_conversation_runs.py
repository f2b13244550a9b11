"""Whole runs on conversations, what a run says of records that were cut, and `confide data show`."""

import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import tomli_w
import torch

import confide
from confide.client.deploy.setup import check_site, init_site
from confide.client.site import Site
from confide.client.worker import Worker
from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig, SiteConfig
from confide.common.credentials import make_ca
from confide.common.data.chat_template import chat_template
from confide.common.errors import ConfigError, DataError, ModelError, PolicyError
from confide.common.ledger.chain import SiteKey
from confide.common.ledger.ledger import Ledger
from confide.common.model.loading import model_of
from confide.common.types import IGNORED, Rows
from confide.server.report import read_report
from confide.server.ship.finished import FinishedRun
from confide.server.ship.writer import Writer
from confide.simulations.canaries import canary_records
from confide.simulations.run import simulate
from confide.simulations.sites import simulated_worker
from confide.tests.rings import slow
from confide.tests.tiny import BAD, CHATML, GOOD, REWRITES, merged


def talks(count: int, long: int = 0) -> list[list[dict[str, str]]]:
    """Of one exchange each; of the first `long` of four."""
    rng, found = np.random.default_rng(count), []
    for number in range(count):
        word = str(rng.choice([*GOOD, *BAD]))
        asked = {"role": "user", "content": f"the film was {word}"}
        found.append([asked, {"role": "assistant", "content": f"it was {word}"}] * (4 if number < long else 1))
    return found


def write(path: Path, found: list[list[dict[str, str]]]) -> str:
    path.write_text("".join(json.dumps({"messages": talk, "text": "a film"}) + "\n" for talk in found))
    return str(path)


@pytest.fixture
def talking(make_config, gpt2: Path, tmp_path: Path):
    """RunConfig of a run on conversations with changes on top."""
    sources = {
        "train": write(tmp_path / "train.jsonl", talks(48, 5)),
        "test": write(tmp_path / "test.jsonl", talks(8, 2)),
    }
    base = {
        "model": {"backbone": str(gpt2), "task": "causal-lm", "max_length": 40},
        "data": {**sources, "messages": "messages", "template": CHATML},
    }

    def make(**changes: dict) -> RunConfig:
        return make_config(**merged(base, changes))

    return make


@pytest.mark.parametrize("mode", ["none", *slow("local")])
def test_conversations_are_learned(talking, local: dict, mode: str, caplog: pytest.LogCaptureFixture) -> None:
    privacy = {**local, "declared_examples": 48} if mode == "local" else {}
    config = talking(run={"rounds": 40 if mode == "none" else 2}, privacy=privacy)
    report = read_report(simulate(config))
    if mode == "none":
        assert report["after"]["loss"] < report["before"]["loss"] - 0.2
    said = [record.getMessage() for record in caplog.records if record.name == "confide.data"]
    assert [line for line in said if "unknown" in line] == [
        f"{config.data.test}: 67% of the first tokens are unknown to the tokenizer of model.backbone; check that it is "
        "for texts of this kind"
    ]
    said = [line for line in said if "unknown" not in line]
    assert said == [
        f"{config.data.train}: 5 of 48 records were cut to 40 tokens (model.max_length)",
        f"{config.data.test}: 2 of 8 records were cut to 40 tokens (model.max_length)",
    ]


def test_nothing_is_said_where_nothing_was_cut(make_config, caplog: pytest.LogCaptureFixture) -> None:
    simulate(make_config(run={"rounds": 1}))
    assert [record for record in caplog.records if record.name == "confide.data"] == []


def test_cut_texts_of_other_tasks_are_counted(make_config, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config(run={"rounds": 1}, model={"max_length": 6})
    simulate(config)
    lengths = [len(text.split()) for text in pandas.read_csv(config.data.training).text]
    count = sum(length > 6 for length in lengths)
    assert 0 < count < 240
    assert f"{config.data.train}: {count} of 240 records were cut to 6 tokens" in caplog.text


def test_a_row_that_cannot_be_used_is_refused_before_anything_is_written(talking, tmp_path: Path) -> None:
    bad = [*talks(5), [{"role": "measles", "content": "measles"}]]
    config = talking(data={"train": write(tmp_path / "bad.jsonl", bad)})
    with pytest.raises(DataError, match=r"bad\.jsonl: row 6, column 'messages': message 1 has an unknown role"):
        simulate(config)
    assert not config.output.exists()


def test_a_row_that_the_template_refuses_is_named_wherever_it_lands(talking, tmp_path: Path) -> None:
    bad = [[{"role": "system", "content": "measles"}, *talk] if i == 3 else talk for i, talk in enumerate(talks(12))]
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    config = talking(data={"train": write(tmp_path / "bad.jsonl", bad), "template": template})
    with pytest.raises(DataError, match=r"bad\.jsonl: row 4: .*\(no system\); correct the row") as caught:
        simulate(config)
    assert "measles" not in str(caught.value)
    assert not config.output.exists()


def test_no_template_and_one_that_does_not_line_up(talking) -> None:
    for template, text in ((None, "no chat template; set data.template"), (REWRITES, "does not begin with")):
        config = talking(data={"template": template})
        with pytest.raises(ModelError, match=text):
            simulate(config)
        assert not config.output.exists()


def test_a_site_refuses_such_a_template_before_it_reads_a_row(talking) -> None:
    def load(*_: object):
        raise AssertionError("a row was read")

    with pytest.raises(ModelError, match=r"no chat template; set data\.template"):
        Worker(resolve(talking(data={"template": None})), load)


def test_canary_records_are_conversations(talking, local: dict) -> None:
    config = talking(privacy={**local, "declared_examples": 48}, audit={"records": 40}, run={"rounds": 1})
    resolved = resolve(config)
    model = model_of(resolved)
    canaries = canary_records(resolved, model, "site-1")
    assert len(canaries) == 10
    worker = simulated_worker(resolved)
    assert np.asarray(worker._records.wanted).shape == worker._records.tokens.shape
    learned = np.asarray(canaries.wanted) != IGNORED
    assert 0 < learned.sum() < len(learned)
    assert read_report(simulate(config))["audit"]["records"]["canaries"] == 40


def test_a_table_of_the_caller_and_a_partition_of_hers(talking) -> None:
    frame = pandas.DataFrame({"messages": talks(12), "ward": ["a", "b", "c"] * 4})
    config = talking(run={"rounds": 1}, data={"train": None})
    content = config.model_dump(mode="json", exclude_none=True)
    run = confide.simulate(content, data=frame, partition=lambda rows: list(rows["ward"]))
    assert len(run.report["rounds"]) == 1
    content["data"]["train"] = talking().data.train  # read, partitioned and written again
    sites = confide.simulate(content, partition=lambda rows: [i % 3 for i in range(len(rows))], overwrite=True)
    assert sites.config.data.partition.clients == 3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": {"task": "masked-lm"}}, "data.messages: 'messages' received with a task other than causal-lm"),
        ({"data": {"prompt": "q", "response": "a"}}, "data.messages: 'messages' received with data.prompt"),
        ({"data": {"messages": None}}, r"data\.template: .* received with no data\.messages"),
    ],
)
def test_settings_that_cannot_be_together(talking, changes: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        talking(**changes)


def test_a_finished_model_answers_what_a_user_says(talking) -> None:
    """As the module itself says token by token after the template's text; of its turn's end, too, it stops."""
    template = CHATML.replace("<|end|>", "[EOS]")
    folder = simulate(talking(run={"rounds": 40}, data={"template": template}))
    model = Writer(FinishedRun(folder, "causal-lm"), tokens=8)
    module, tokenizer = FinishedRun(folder, "causal-lm").classifier(), model.tokenizer
    assert tokenizer.eos_token_id in model.generator.ends
    asked = chat_template(tokenizer, template).render((("user", "the film was good"),), asks=True)
    assert asked.endswith("<|start|>assistant\n")
    ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
    wanted: list[int] = []
    with torch.no_grad():
        while len(wanted) < 8 and tokenizer.eos_token_id not in wanted:
            wanted.append(int(module(input_ids=torch.tensor([ids + wanted])).logits[0, -1].argmax()))
    (answer,) = model.answers(Rows("rows", ["the film was good"]))
    assert answer["continuation"] == tokenizer.decode(wanted, skip_special_tokens=True)
    assert answer["continuation"].startswith("it was")


# a site --------------------------------------------------------------------------------------------------------------


def site_with(policy: dict, **dataset: object) -> Site:
    content = {"datasets": {"default": {"epsilon": 8.0, "source": "a.jsonl", **dataset}}, "policy": policy}
    return Site("st-mary", SiteConfig.parse(content, "site.toml"), Ledger.in_memory("st-mary", SiteKey.new()), {})


def test_what_a_site_admits(talking, local: dict, make_config, gpt2: Path) -> None:
    private = {**local, "declared_examples": 48}
    run = talking(privacy=private, run={"id": "r"}, data={"template": None})
    site_with({}, messages="messages").admit(run)
    with pytest.raises(
        PolicyError, match=r"the run reads conversations \(data\.messages\), and .* holds texts; set mess"
    ):
        site_with({}).admit(run)
    texts = make_config(model={"backbone": str(gpt2), "task": "causal-lm"}, privacy=local, run={"id": "r"})
    with pytest.raises(PolicyError, match="the run reads texts, and data set 'default' holds conversations"):
        site_with({}, messages="messages").admit(texts)
    labelled = make_config(privacy=local, run={"id": "r"})
    site_with({}, messages="messages").admit(labelled)  # which reads its column of texts
    brought = talking(privacy=private, run={"id": "r"})
    with pytest.raises(PolicyError, match=r"data\.template a text; allowed: the tokenizer's own"):
        site_with({}, messages="messages").admit(brought)
    site_with({"templates": True}, messages="messages").admit(brought)


def test_site_check_tells_its_operator_what_a_run_would_read(talking, tmp_path: Path) -> None:
    make_ca(tmp_path)
    refused = [[{"role": "system", "content": "measles"}, *talks(1)[0]], [{"role": "measles", "content": "a"}]]
    source = write(tmp_path / "rows.jsonl", [*talks(20, 3), *refused])
    site = tmp_path / "site"
    init_site(site, "a", "127.0.0.1:9", tmp_path / "ca.crt", "default", "../rows.jsonl", 8.0)
    text = (site / "site.toml").read_text().replace('label = "label"\n', 'label = "label"\nmessages = "messages"\n')
    (site / "site.toml").write_text(text)
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(talking(data={"train": None, "template": template}).model_dump(exclude_none=True)))
    found = {check.what: check for check in check_site(site, path)}
    assert found["data set default"].detail.startswith(
        "21 rows, conversations of 2 to 8 messages, 1 of 22 rows contrib"
    )
    assert found[f"as {path} reads it"].detail == (
        "20 records, 3 of them cut to 40 tokens (model.max_length), rows that the chat template does not take, and "
        "that contribute nothing: 1"
    )
    assert all("measles" not in check.detail for check in found.values())
    assert source


# show ----------------------------------------------------------------------------------------------------------------


def recipe(tmp_path: Path, config: RunConfig) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(config.to_toml())
    return path


def test_show_marks_what_is_learned(talking, confide, tmp_path: Path) -> None:
    path = recipe(tmp_path, talking())
    code, out, err = confide("data", "show", path, "--records", 6)
    assert (code, err) == (0, "")
    blocks = out.strip().split("\n\n")
    assert len(blocks) == 6
    head, text = blocks[5].split("\n")
    (asked, said) = talks(48, 5)[5]
    # of the tiny tokenizer the marks of a turn are unknown words
    assert head == f"{tmp_path / 'train.jsonl'}: row 6: 21 tokens, 6 learned"
    assert text.split("⟦")[0].endswith("[UNK] [UNK] [UNK]")
    assert text.count("⟦") == 1
    assert f"⟦{said['content']} " in text
    assert asked["content"] in text.split("⟦")[0]
    assert blocks[0].split("\n")[0].endswith("learned, cut to model.max_length")
    code, out, _ = confide("data", "show", path, "--source", "test", "--records", 1)
    assert out.startswith(f"{tmp_path / 'test.jsonl'}: row 1:")


def test_show_for_other_tasks(make_config, confide, tmp_path: Path, wordpiece: Path) -> None:
    (tmp_path / "t.csv").write_text('text,label\n"good \x1b[31mfilm",positive\nbad,negative\n')
    path = recipe(tmp_path, make_config(data={"train": str(tmp_path / "t.csv")}))
    code, out, _ = confide("data", "show", path)
    assert code == 0
    first, second = out.strip().split("\n\n")
    assert first.startswith(f"{tmp_path / 't.csv'}: row 2: ")
    assert first.split("\n")[0].endswith("tokens, class: positive")
    assert "\x1b" not in out
    assert second == f"{tmp_path / 't.csv'}: row 3: 1 tokens, class: negative\nbad"
    (tmp_path / "t.conll").write_text("ann B-per\nsees O\n\n")
    data = {"train": None, "test": str(tmp_path / "t.conll")}
    tagging = make_config(model={"backbone": str(wordpiece), "task": "token-classification"}, data=data)
    _, out, _ = confide("data", "show", recipe(tmp_path, tagging))
    assert "4 tokens, 2 learned, tags: B-per O\n[CLS]⟦ann sees⟧[SEP]" in out
    (tmp_path / "n.csv").write_text("text,label\ngood,4\nbad,2\n")
    numbers = make_config(model={"task": "regression"}, data={"train": None, "test": str(tmp_path / "n.csv")})
    _, out, _ = confide("data", "show", recipe(tmp_path, numbers))
    assert "1 tokens, number: 4\ngood" in out
    (tmp_path / "l.jsonl").write_text('{"text": "good", "label": ["b", "a"]}\n{"text": "bad", "label": ["b"]}\n')
    for labels in (None, ["a", "b"]):  # whose task the lists choose, as in a run
        data = {"train": None, "test": str(tmp_path / "l.jsonl"), "labels": labels}
        code, out, _ = confide("data", "show", recipe(tmp_path, make_config(data=data)))
        assert (code, "1 tokens, classes: a, b\ngood" in out) == (0, True)


def test_show_refuses_in_one_line(make_config, confide, tmp_path: Path) -> None:
    path = recipe(tmp_path, make_config())
    assert confide("data", "show", path, "--source", "pool")[2] == (
        "confide: --source: received 'pool'; allowed: train, validation, test\n"
    )
    assert "the run names no data.validation" in confide("data", "show", path, "--source", "validation")[2]
    images = make_config(model={"backbone": "demo:vit", "task": "image-classification"})
    assert "which reads no text" in confide("data", "show", recipe(tmp_path, images))[2]
