"""What a language model writes and holds likely: against sacrebleu, rouge-score and logits by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig
from confide.common.errors import ConfigError, DataError
from confide.common.model.loading import model_of
from confide.server.evaluation import asked_of, evaluate, read_public
from confide.server.report import read_report
from confide.server.report.facts import figures
from confide.server.written import Questions, read_questions, share_of, text_metrics
from confide.simulations.run import simulate
from confide.tests.tiny import CHATML, merged, write_csv

ROWS = [
    ("the film was very good", "happy"),
    ("the film was very bad", "sad story"),
    ("the film was very good", "happy and warm"),
    ("the <b>actor</b> was good", "happy of it"),
    ("this story was gloomy", "sad"),
]


def test_metrics_are_those_of_the_packages() -> None:
    written = ["the cat sat on the mat ", "a small red house by the sea", "", "it rains"]
    references = [
        ["the cat sat on a mat", "a cat was on the mat today"],
        ["a small red house by the sea"],
        ["nothing at all was written", "no", "none"],
        ["it snows", "it rains today in the north"],
    ]
    found, intervals = text_metrics(written, references)
    texts = [text.strip() for text in written]
    columns: list[Any] = [[wanted[i] if i < len(wanted) else None for wanted in references] for i in range(3)]
    assert found["bleu"] == BLEU().corpus_score(texts, columns).score > 20
    assert found["chrf"] == CHRF().corpus_score(texts, columns).score > 20
    scorer = RougeScorer(["rougeL"])
    best = [
        max(scorer.score(one, text)["rougeL"].fmeasure for one in wanted)
        for text, wanted in zip(texts, references, strict=True)
    ]
    assert best[0] == pytest.approx(5 / 6)
    assert found["rouge_l"] == pytest.approx(np.mean(best))
    assert found["exact_match"] == 0.25
    assert intervals["exact_match"] == pytest.approx(tuple(share_of(1, 4)[key] for key in ("low", "high")))
    assert all(low <= found[name] <= high for name, (low, high) in intervals.items())
    assert intervals["rouge_l"][1] - intervals["rouge_l"][0] < 1
    single = text_metrics(written[:2], [wanted[:1] for wanted in references[:2]])[0]
    assert single["bleu"] == sacrebleu.corpus_bleu(texts[:2], [[wanted[0] for wanted in references[:2]]]).score
    assert found["bleu"] != text_metrics(written, [wanted[:1] for wanted in references])[0]["bleu"]


def test_an_interval_by_hand() -> None:
    """Wilson: (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n), of 8 in 10."""
    found = share_of(8, 10)
    assert (found["accuracy"], found["records"]) == (0.8, 10)
    assert (found["low"], found["high"]) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


@pytest.fixture
def asking(make_config, gpt2: Path, tmp_path: Path):
    """RunConfig of a run on prompts and responses with changes on top."""
    path = str(write_csv(tmp_path / "qa.csv", ROWS * 8, ("q", "a")))
    base = {
        "model": {"backbone": str(gpt2), "task": "causal-lm"},
        "data": {"train": path, "test": path, "prompt": "q", "response": "a"},
        "evaluation": {"new_tokens": 4},
    }

    def make(**changes: dict) -> RunConfig:
        return resolve(make_config(**merged(base, changes)))

    return make


def questions(config: RunConfig) -> Questions:
    found = read_questions(config, model_of(config))
    assert found is not None
    return found


def test_rows_with_the_same_prompt_are_references_of_one(asking) -> None:
    found = questions(asking())
    assert found.shown == [ROWS[0][0], ROWS[1][0], ROWS[3][0], ROWS[4][0]]
    assert found.references == [["happy", "happy and warm"] * 8, ["sad story"] * 8, ["happy of it"] * 8, ["sad"] * 8]
    tokenizer = found.model.tokenizer
    assert [ids.tolist() for ids in found.prompts] == [tokenizer(text)["input_ids"] for text in found.shown]


def test_prompts_are_drawn_by_the_seed(asking) -> None:
    drawn = {seed: questions(asking(evaluation={"generate": 2}, run={"seed": seed})).shown for seed in range(8)}
    assert all(len(shown) == 2 for shown in drawn.values())
    assert len({tuple(shown) for shown in drawn.values()}) > 1
    assert questions(asking(evaluation={"generate": 2}, run={"seed": 3})).shown == drawn[3]


def test_before_and_after_stand_on_as_many_rows_as_asked_for(asking, make_config) -> None:
    """The same rows both times, drawn by the seed; of answers only these are looked at."""
    few = asking(evaluation={"limit": 7, "answers": ["happy", "sad"]})
    found = read_report(simulate(few))
    assert [found[when]["answers"]["records"] for when in ("before", "after")] == [7, 7]
    rows = asked_of(np.arange(40), few)
    assert len(set(rows)) == 7
    everything = questions(asking(evaluation={"answers": ["happy", "sad"]})).right
    np.testing.assert_array_equal(questions(few).right, everything[rows])
    test, model = read_public(few, model_of(few), few.data.test), model_of(few)
    assert found["before"]["loss"] == pytest.approx(
        evaluate(model, model.initial, test, rows).metrics["loss"], abs=1e-6
    )
    classes = make_config(evaluation={"limit": 7}, run={"output": str(few.output.with_name("classes"))})
    matrices = read_report(simulate(classes))["confusion"]
    assert [np.sum(matrices[when]) for when in ("before", "after")] == [7, 7]


def test_nothing_is_asked_of_others(asking, make_config, gpt2: Path) -> None:
    silent = asking(evaluation={"generate": 0})
    assert read_questions(silent, model_of(silent)) is None
    for config in (make_config(), make_config(model={"backbone": str(gpt2), "task": "causal-lm"})):
        assert read_questions(resolve(config), model_of(resolve(config))) is None
    only = questions(asking(evaluation={"generate": 0, "answers": ["happy", "sad"]}))
    assert only.asked(only.model.initial).keys() == {"answers"}


def test_the_likeliest_answer_is_that_of_the_logits(asking) -> None:
    """Sums of log-probabilities over answers of one and two words, after each prompt, without the end token."""
    answers = ["happy", "sad", "sad story", "happy and warm"]
    found = questions(asking(evaluation={"answers": answers}))
    assert found.right.tolist() == [0, 2, 3, 0, 1] * 8
    module, tokenizer = found.model.module, found.model.tokenizer
    wanted = []
    for prompt, _ in ROWS:
        ids = tokenizer(prompt)["input_ids"]
        sums = []
        for answer in answers:
            own = tokenizer(answer)["input_ids"]
            with torch.no_grad():
                logits = module(input_ids=torch.tensor([ids + own])).logits[0].log_softmax(-1)
            sums.append(sum(float(logits[len(ids) - 1 + i, token]) for i, token in enumerate(own)))
        wanted.append(int(np.argmax(sums)))
    assert found._likeliest().tolist() == wanted * 8
    result = found.asked(found.model.initial)["answers"]
    right = int((np.array(wanted * 8) == found.right).sum())
    assert result == share_of(right, 40)


def test_where_no_single_answer_is_the_likeliest_none_is_right(asking) -> None:
    """Two that the tokenizer reads alike; and a model without numbers, to which the first answer was the likeliest."""
    found = questions(asking(evaluation={"answers": ["happy", "sad", "sad story", "happy and warm"]}))
    nothing = {name: np.full_like(array, np.nan) for name, array in found.model.initial.items()}
    result = found.asked(nothing)
    assert result["answers"]["accuracy"] == 0
    found.generator.drawing(1.0, 3).written(found.prompts)  # draws something, and does not fail
    alike = replace(found, answers=[found.answers[0]] * 2, right=np.zeros(40, dtype=int))
    assert set(alike._likeliest()) == {-1}


def test_tokens_are_chosen_whatever_the_backbones_settings_are(asking) -> None:
    found = questions(asking())
    settings = found.generator.module.generation_config
    plain = found.generator.written(found.prompts)
    settings.repetition_penalty, settings.top_k, settings.do_sample = 5.0, 1, True
    try:
        assert found.generator.written(found.prompts) == plain
    finally:
        settings.repetition_penalty, settings.top_k, settings.do_sample = 1.0, 50, False


def test_a_response_that_is_no_answer_is_refused_before_a_run(asking) -> None:
    config = asking(evaluation={"answers": ["happy", "sa"]})
    with pytest.raises(DataError, match=r"qa\.csv: row 3: its response begins with none of evaluation\.answers \('h"):
        simulate(config)
    assert not config.output.exists()


@pytest.mark.parametrize("answers", [["yes"], ["yes", "yes"], ["yes", " "]])
def test_answers_must_differ(asking, answers: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.answers: .*two or more different texts"):
        asking(evaluation={"answers": answers})


def test_of_a_conversation_the_last_turn_is_asked_for(asking, tmp_path: Path) -> None:
    talk = [("user", "the film"), ("assistant", "good"), ("user", "the story"), ("assistant", "bad"), ("user", "it")]
    turns = [{"role": role, "content": content} for role, content in talk]
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    source = str(tmp_path / "talks.jsonl")
    columns = {"prompt": None, "response": None, "messages": "messages", "template": CHATML.replace("<|end|>", "[EOS]")}
    found = questions(asking(data={"test": source, **columns}, evaluation={"answers": ["good", "bad"]}))
    assert found.shown == ["user: the film\nassistant: good\nuser: the story"]
    assert found.references == [["bad"]]
    tokenizer, chat = found.model.tokenizer, found.generator.chat
    assert chat is not None
    asked = tokenizer(chat.render(tuple(talk[:3]), asks=True), add_special_tokens=False)["input_ids"]
    assert found.prompts[0].tolist() == asked
    (record,) = found.answers[0].offsets[1:]
    wanted = found.answers[0].wanted
    assert wanted is not None
    assert wanted[len(asked) : record].tolist()[0] == tokenizer.get_vocab()["good"]
    assert (wanted != -100).sum() == 1


def test_before_and_after_stand_in_the_report(asking) -> None:
    changes = {"run": {"rounds": 30}, "evaluation": {"answers": ["happy", "sad"]}, "training": {"learning_rate": 0.05}}
    config = asking(**changes)
    report = read_report(simulate(config))
    for when in ("before", "after"):
        assert report[when]["generation"].keys() == {"exact_match", "rouge_l", "bleu", "chrf", "intervals", "records"}
        assert report[when]["generation"]["records"] == 4
        assert report[when]["answers"]["records"] == 40
        assert {"generation: rouge_l", "answers: accuracy", "loss"} <= figures(report[when]).keys()
    low, high = report["after"]["generation"]["intervals"]["rouge_l"]
    assert f"{low:.3f} to {high:.3f}" in (config.output / "report.html").read_text()
    assert report["after"]["generation"]["rouge_l"] > report["before"]["generation"]["rouge_l"] + 0.2
    assert report["after"]["answers"]["accuracy"] >= 0.8
    assert [one["prompt"] for one in report["generations"]] == questions(config).shown
    assert all(one.keys() == {"prompt", "reference", "before", "after"} for one in report["generations"])
    assert "happy" in report["generations"][0]["after"]
    page = (config.output / "report.html").read_text(encoding="utf-8")
    assert "the &lt;b&gt;actor&lt;/b&gt; was good" in page
    assert "the <b>actor" not in page
    again = read_report(simulate(asking(**changes), overwrite=True))
    assert again["generations"] == report["generations"]
    assert again["after"] == report["after"]
