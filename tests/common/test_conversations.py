"""Conversations: what a value of `data.messages` is read as, its tokens, and which of them are learned."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerFast

from confide.common.config.tables import DataSection
from confide.common.data.chat_template import MESSAGES, chat_template, encode_conversations
from confide.common.data.record_keys import record_keys
from confide.common.data.sources import content_digest, read_checked, read_rows, source_contents
from confide.common.errors import DataError, ModelError
from confide.common.tasks import causal_lm
from confide.common.types import IGNORED, Conversation, Reads, Rows
from confide.tests.tiny import CHATML, CHATML_MARKED, GEMMA, LLAMA2, NO_HEADER, REWRITES, chat_tokenizer

DATA = DataSection(test="x", messages="messages")
READS = causal_lm.READS
TALK: Conversation = (
    ("system", "be warm"),
    ("user", "was it good"),
    ("assistant", "it was fine"),
    ("user", "and the film"),
    ("assistant", "very bad"),
)
SECRET = "measles"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return chat_tokenizer()


def as_list(turns: Conversation) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def rows_of(*talks: Conversation, template: str | None = None) -> Rows:
    return Rows("talks", [""] * len(talks), turns=list(talks), template=template)


def learned(tokenizer: PreTrainedTokenizerFast, *talks: Conversation, template: str | None = None, size: int = 64):
    """What of each conversation is learned, as text, and all of it."""
    found = []
    for one in encode_conversations(rows_of(*talks, template=template), tokenizer, size):
        ids = np.array(one.ids)
        found.append((tokenizer.decode(ids[one.learned]), tokenizer.decode(ids)))
    return found


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED], ids=["prefixes", "blocks"])
def test_the_assistants_turns_are_learned_and_the_token_that_ends_each(tokenizer, template: str) -> None:
    ((said, everything),) = learned(tokenizer, TALK, template=template)
    assert said == "it was fine <|end|> very bad <|end|>"
    assert everything == (
        "<|start|> system be warm <|end|> <|start|> user was it good <|end|> <|start|> assistant it was fine <|end|> "
        "<|start|> user and the film <|end|> <|start|> assistant very bad <|end|>"
    )


@pytest.mark.parametrize("template", [CHATML, GEMMA, LLAMA2], ids=["chatml", "gemma", "llama 2"])
def test_all_tokens_are_those_of_the_template(tokenizer, template: str) -> None:
    talk = TALK[1:]
    (one,) = encode_conversations(rows_of(talk, template=template), tokenizer, 64)
    text = tokenizer.apply_chat_template(as_list(talk), chat_template=template, tokenize=False)
    assert one.ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert not one.cut


def test_templates_of_other_forms(tokenizer) -> None:
    assert learned(tokenizer, TALK[1:], template=GEMMA)[0][0] == "it was fine <|end|> very bad <|end|>"
    assert learned(tokenizer, TALK[1:], template=LLAMA2)[0][0] == "it was fine [EOS] very bad [EOS]"
    # what asks for no answer leaves the header to the turn itself: it is not learned all the same
    assert learned(tokenizer, TALK, template=NO_HEADER)[0][0] == "it was fine <|end|> very bad <|end|>"


def test_a_token_that_ends_the_whole_text_alone_is_not_learned(tokenizer) -> None:
    trailing = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    ((said, everything),) = learned(tokenizer, TALK, template=trailing)
    assert said == "it was fine <|end|> very bad <|end|>"
    assert everything.endswith("very bad <|end|> [EOS]")


def test_a_block_without_its_end_learns_the_end_all_the_same(tokenizer) -> None:
    outside = CHATML_MARKED.replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>")
    assert outside != CHATML_MARKED
    assert learned(tokenizer, TALK, template=outside)[0][0] == "it was fine <|end|> very bad <|end|>"


def test_blanks_in_front_of_a_block_do_not_end_the_marks(tokenizer) -> None:
    """transformers' own mask stops at a block that begins with a character that no token holds."""
    blank = CHATML_MARKED.replace("{% generation %}", "{% generation %}{{ ' ' }}")
    assert learned(tokenizer, TALK, template=blank)[0][0] == "it was fine <|end|> very bad <|end|>"


def test_the_tokenizers_own_template_and_none(tokenizer) -> None:
    with pytest.raises(ModelError, match=r"no chat template; set data\.template"):
        chat_template(tokenizer)
    assert tokenizer.chat_template is None
    own = chat_tokenizer()
    own.chat_template = CHATML
    assert learned(own, TALK) == learned(tokenizer, TALK, template=CHATML)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (REWRITES, r"data\.template: the text of a conversation does not begin with .*\{% generation %\}"),
        ("{% for m in messages %}", r"data\.template: cannot be rendered \("),
        ("{{ raise_exception('never') }}", r"cannot be rendered \(never\)"),
        ("{{ ''.__class__.__mro__ }}", r"cannot be rendered \(SecurityError\)"),
        ("{{ messages[0].content + 1 }}", r"cannot be rendered \(TypeError\)"),
        ("hello", "leaves out what a message says"),
    ],
)
def test_templates_that_cannot_serve(tokenizer, template: str, text: str) -> None:
    with pytest.raises(ModelError, match=text) as caught:
        chat_template(tokenizer, template)
    assert "\n" not in str(caught.value)


def test_a_template_that_rewrites_turns_serves_with_blocks(tokenizer) -> None:
    marked = REWRITES.replace("{{ m.content }}<|end|>", "{% generation %}{{ m.content }}<|end|>{% endgeneration %}")
    assert learned(tokenizer, TALK[1:], template=marked)[0][0] == "it was fine <|end|> very bad <|end|>"


def test_a_slow_tokenizer_is_refused(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tokenizer), "is_fast", property(lambda _: False))
    with pytest.raises(ModelError, match="choose a backbone with a fast tokenizer"):
        chat_template(tokenizer, CHATML)


def test_the_day_is_always_the_same(tokenizer) -> None:
    dated = "{{ strftime_now('%d %b %Y') }}" + CHATML
    assert chat_template(tokenizer, dated).render(TALK).startswith("01 Jan 2025<|start|>")
    assert chat_template(tokenizer, "{% if strftime_now is defined %}it {% endif %}" + CHATML).render(TALK)[:2] == "it"


@pytest.mark.parametrize("said", ["no two", "{{ messages }}"])
def test_a_conversation_that_a_template_does_not_take_is_named_by_its_row(tokenizer, said: str) -> None:
    raising = "{% if messages[0].role == 'tool' %}{{ raise_exception(SAID) }}{% endif %}" + CHATML
    shown = "messages[0].content" if said.startswith("{") else f"'{said}'"
    rows = Rows(
        "t.jsonl",
        ["", ""],
        turns=[TALK, (("tool", SECRET), ("assistant", "a"))],
        template=raising.replace("SAID", shown),
    )
    with pytest.raises(
        DataError, match=r"t\.jsonl: row 2: the chat template does not take .*; correct the row"
    ) as caught:
        causal_lm.encode(rows, tokenizer, 64)
    assert SECRET not in str(caught.value)
    assert ("(no two)" in str(caught.value)) == (said == "no two")


def test_one_row_that_is_rewritten_is_named(tokenizer) -> None:
    rewrites = CHATML.replace("m.content", "m.content|replace('dark', '' if messages|length > 2 else 'dark')")
    talk: Conversation = (("user", "a"), ("assistant", "dark"), ("user", "a"), ("assistant", "bad"))
    with pytest.raises(DataError, match="row 1: the chat template rewrites an earlier turn"):
        encode_conversations(rows_of(talk, template=rewrites), tokenizer, 64)


# what is cut ---------------------------------------------------------------------------------------------------------


def test_the_oldest_exchanges_are_left_out_and_the_system_stays(tokenizer) -> None:
    system: Conversation = (("system", "be warm"),)
    pairs = [(("user", f"{word} film"), ("assistant", f"it was {word}")) for word in ("good", "bad", "sad", "dark")]
    talk = system + tuple(message for pair in pairs for message in pair)
    whole = len(encode_conversations(rows_of(talk, template=CHATML), tokenizer, 99)[0].ids)
    one = len(encode_conversations(rows_of(system + pairs[0], template=CHATML), tokenizer, 99)[0].ids)
    each = (whole - one) // 3
    for left in range(1, 5):
        for spare in (0, each - 1):
            size = one + (left - 1) * each + spare
            (found,) = encode_conversations(rows_of(talk, template=CHATML), tokenizer, size)
            expected = system + tuple(message for pair in pairs[-left:] for message in pair)
            assert found.ids == encode_conversations(rows_of(expected, template=CHATML), tokenizer, 99)[0].ids
            assert found.cut == (left < 4)


def test_an_exchange_that_is_too_long_loses_both_ends(tokenizer) -> None:
    talk: Conversation = (("user", "the " * 40 + "film"), ("assistant", "good " * 40))
    (found,) = encode_conversations(rows_of(talk, template=CHATML), tokenizer, 12)
    text = tokenizer.decode(found.ids)
    assert text == "the the film <|end|> <|start|> assistant" + " good" * 6
    assert found.cut
    assert len(found.ids) == 12
    assert tokenizer.decode(np.array(found.ids)[found.learned]) == " ".join(["good"] * 6)


def test_what_follows_the_last_answer_is_left_out(tokenizer) -> None:
    more: Conversation = (*TALK, ("user", "was it"), ("system", "be cold"))
    both = encode_conversations(rows_of(TALK, more, template=CHATML), tokenizer, 64)
    assert both[0].ids == both[1].ids
    assert not both[1].cut


def test_a_conversation_of_thousands_of_messages_costs_little(tokenizer) -> None:
    """And one whose contents are long is cut before it is rendered."""
    rendered: list[int] = []

    def counted(messages: list, **options: Any) -> Any:
        rendered.append(len(messages) + sum(len(m["content"]) for m in messages))
        return type(tokenizer).apply_chat_template(tokenizer, messages, **options)

    long: Conversation = (("system", ""), *(("user", "a"), ("assistant", "it")) * 20_000)
    wide: Conversation = (
        ("system", "a " * 90_000),
        ("user", "a " * 90_000),
        ("tool", "a " * 900),
        ("assistant", "it " * 90_000),
    )
    one_exchange: Conversation = (("user", "a"), *(("tool", ""),) * 50_000, ("assistant", "it"))
    tokenizer.apply_chat_template = counted  # type: ignore[method-assign]
    try:
        found = encode_conversations(rows_of(long, wide, one_exchange, template=CHATML), tokenizer, 16)
    finally:
        del tokenizer.apply_chat_template
    assert max(rendered) <= 3 * 64 * 16 + 2 * MESSAGES
    assert [one.cut for one in found] == [True, True, True]
    assert all(len(one.ids) <= 16 for one in found)
    assert all(one.learned.any() for one in found)


def test_whether_texts_and_answers_were_cut(tokenizer) -> None:
    texts = Rows("x", ["good " * 9, "good"])
    assert np.asarray(causal_lm.encode(texts, tokenizer, 8).cut).tolist() == [True, False]
    answers = Rows("x", ["the " * 4, "the " * 4], response=["good " * 4, "good " * 3])
    records = causal_lm.encode(answers, tokenizer, 8)
    assert np.asarray(records.cut).tolist() == [True, False]
    assert records.lengths(np.arange(2)).tolist() == [8, 8]


# a record is its own -------------------------------------------------------------------------------------------------


def test_a_record_does_not_change_when_others_are_there(tokenizer) -> None:
    other: Conversation = (("user", "the " * 99), ("assistant", "good " * 99))
    third: Conversation = (("user", "a"), ("assistant", "dark"))
    alone = causal_lm.encode(rows_of(TALK, template=CHATML), tokenizer, 20)
    among = causal_lm.encode(rows_of(other, TALK, third, template=CHATML), tokenizer, 20)
    part = slice(among.offsets[1], among.offsets[2])
    assert among.tokens[part].tolist() == alone.tokens.tolist()
    assert np.asarray(among.wanted)[part].tolist() == np.asarray(alone.wanted).tolist()
    assert among.targets[1] == alone.targets[0]
    assert np.asarray(among.cut)[1] == np.asarray(alone.cut)[0]
    keys = record_keys(rows_of(other, TALK, third), b"s")
    assert keys[1] == record_keys(rows_of(TALK), b"s")[0]
    assert len(set(keys.tolist())) == 3


def test_targets_are_the_tokens_that_count(tokenizer) -> None:
    records = causal_lm.encode(rows_of(TALK[1:3], template=CHATML), tokenizer, 20)
    found = causal_lm.targets(records, np.array([0]), 12)[0].tolist()
    ids = records.tokens.tolist()
    assert found == [IGNORED] * 8 + ids[8:]
    assert tokenizer.decode(ids[8:]) == "it was fine <|end|>"


# values --------------------------------------------------------------------------------------------------------------


def write(folder: Path, kind: str, values: list[Any]) -> str:
    """Conversations as each kind of file holds them."""
    path = folder / f"t.{kind}"
    if kind == "csv":
        quoted = ['"' + json.dumps(value, ensure_ascii=False).replace('"', '""') + '"' for value in values]
        path.write_text("\n".join(["messages", *quoted]) + "\n")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"messages": value}) + "\n" for value in values))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pa.table({"messages": values}), path)
    elif kind == "lists.parquet":
        both = [{key: [one[key] for one in value] for key in ("role", "content")} for value in values]
        pyarrow.parquet.write_table(pa.table({"messages": both}), path)
    else:
        path.unlink(missing_ok=True)
        with sqlite3.connect(path) as database:
            database.execute("create table t (messages text)")
            database.executemany("insert into t values (?)", [(json.dumps(value),) for value in values])
        return f"sqlite:///{path}#t"
    return str(path)


KINDS = ["csv", "jsonl", "parquet", "lists.parquet", "db"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same(tmp_path: Path, kind: str) -> None:
    talks = [as_list(TALK), as_list(TALK[1:3])]
    source, other = write(tmp_path, kind, talks), write(tmp_path, "jsonl", talks)
    rows = read_rows(source, DATA, None, reads=READS)
    assert rows.turns == [TALK, TALK[1:3]]
    assert rows.text == ["", ""]
    assert rows.numbers is not None
    assert rows.numbers.tolist() == ([2, 3] if kind == "csv" else [1, 2])
    assert content_digest(source, DATA) == content_digest(other, DATA)
    assert source_contents(source, DATA) == source_contents(other, DATA)
    turned = write(tmp_path, kind, talks[::-1])
    assert content_digest(turned, DATA) == content_digest(other, DATA)


BAD: dict[str, tuple[Any, str]] = {
    "empty": ([], "a conversation without messages"),
    "null": (None, "the field is empty"),
    "no list": ("measles", "no JSON"),
    "a number": (7, "no list"),
    "no object": (["measles"], "message 1 is no object"),
    "unknown role": ([{"role": "measles", "content": "a"}], "message 1 has an unknown role; allowed: system, user,"),
    "no role": ([{"content": "measles"}], "message 1 has an unknown role"),
    "no content": ([*as_list(TALK), {"role": "user"}], "message 6 has no content"),
    "blank content": (
        [{"role": "user", "content": " "}, {"role": "assistant", "content": "a"}],
        "message 1 has no content",
    ),
    "content of parts": (
        [{"role": "user", "content": [{"type": "text", "text": "measles"}]}],
        "message 1 has no content",
    ),
    "nobody answers": ([{"role": "user", "content": "measles"}], "no turn of the assistant"),
    "half a surrogate": ([{"role": "assistant", "content": "measles \ud83d"}], "half a surrogate pair"),
    "other form": ({"from": "human", "value": "measles"}, "no list"),
    "uneven": ({"role": ["user"], "content": ["measles", "measles"]}, "no list"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_conversation_that_cannot_be_used_costs_its_row_alone(tmp_path: Path, name: str) -> None:
    value, text = BAD[name]
    source = write(tmp_path, "jsonl", [as_list(TALK), value, as_list(TALK[1:])])
    with pytest.raises(DataError, match=f"row 2, column 'messages': {text}") as caught:
        read_rows(source, DATA, None, reads=READS)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    checked = read_checked(source, DATA, None, reads=READS)
    assert checked.rows.turns == [TALK, TALK[1:]]
    assert [problem.row for problem in checked.problems] == [2]
    assert checked.digest != content_digest(write(tmp_path, "jsonl", [as_list(TALK), as_list(TALK[1:])]), DATA)


def test_a_system_and_a_tool_may_say_nothing(tmp_path: Path) -> None:
    talk: Conversation = (("system", ""), ("user", "a"), ("tool", ""), ("assistant", "b"))
    assert read_rows(write(tmp_path, "jsonl", [as_list(talk)]), DATA, None, reads=READS).turns == [talk]


def test_other_keys_of_a_message_are_not_read(tmp_path: Path) -> None:
    more = [{**one, "weight": 1, "name": None} for one in as_list(TALK)]
    plain = write(tmp_path, "jsonl", [as_list(TALK)])
    expected = content_digest(plain, DATA)
    assert content_digest(write(tmp_path, "jsonl", [more]), DATA) == expected


def test_a_task_that_reads_texts_reads_no_conversation(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"messages": as_list(TALK), "text": "a film"}) + "\n")
    rows = read_rows(str(path), DATA, None, reads=Reads(label=None))
    assert (rows.text, rows.turns) == (["a film"], None)


def test_whose_conversations_they_are_does_not_depend_on_case_and_blanks(tmp_path: Path) -> None:
    shouted = tuple((role, f" {content.upper()}  ") for role, content in TALK)
    first = source_contents(write(tmp_path, "jsonl", [as_list(TALK)]), DATA)
    second = source_contents(write(tmp_path, "jsonl", [as_list(shouted)]), DATA)
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert source_contents(write(tmp_path, "jsonl", [as_list(TALK[1:])]), DATA)[0] != first[0]
