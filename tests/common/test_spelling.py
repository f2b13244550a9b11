"""Misspelled words read as known ones: against a search through all words, and what must stay as it is."""

from pathlib import Path

import numpy as np
import pytest

from confide.common.config.tables import LoraSection, ModelSection
from confide.common.data.perturbations import EDITS, homoglyph
from confide.common.data.spelling import Spelling, spelling_of
from confide.common.errors import ConfigError
from confide.common.model.adapter import export_adapter, load_spelling
from confide.common.model.loading import load_model
from confide.common.types import Rows
from confide.tests.tiny import VOCABULARY

WORDS = ["film", "story", "actor", "actress", "lovely", "gloomy", "was", "quite", "filming", "filler", "storm", "cot"]
PIECES = {"[UNK]": 0, "##ing": 1, **{word: number for number, word in enumerate(WORDS, start=2)}}


@pytest.fixture(scope="module")
def spelling() -> Spelling:
    return Spelling("vocabulary", PIECES)


@pytest.fixture(scope="module")
def english() -> Spelling:
    return Spelling("english", PIECES)


def distance(a: str, b: str) -> int:
    """Optimal string alignment: letters inserted, left out, replaced, or two neighbours exchanged; each place once."""
    table = np.add.outer(np.arange(len(a) + 1), np.arange(len(b) + 1))
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            found = [table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a[i - 1] != b[j - 1])]
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                found.append(table[i - 2, j - 2] + 1)
            table[i, j] = min(found)
    return int(table[-1, -1])


def test_a_word_becomes_the_commonest_of_the_nearest(spelling: Spelling) -> None:
    rng, changed = np.random.default_rng(0), 0
    for _ in range(3000):
        word = WORDS[int(rng.integers(len(WORDS)))]
        for _ in range(int(rng.integers(1, 4))):
            edit = list(EDITS.values())[int(rng.integers(3))]  # homoglyphs apart
            word = edit(word, int(rng.integers(len(word))), rng)
        far = {known: distance(word, known) for known in WORDS}
        allowed = 0 if len(word) < 3 or word in WORDS else min(2, max(1, len(word) // 3))
        near = [known for known in WORDS if far[known] == min(far.values()) <= allowed]
        wanted = near[0] if allowed and near else word  # WORDS is in the order of their numbers
        assert spelling.read(word) == wanted
        changed += wanted != word
    assert changed > 1000


def test_blanks_marks_digits_and_the_form_of_letters_stay(spelling: Spelling) -> None:
    assert spelling.read("  The fulm,\tFilmm FLIM\n3rd 'stroy'- x1 ") == "  The film,\tFilm FLIM\n3rd 'story'- x1 "
    assert spelling.read("THE FLIM, 3RD STROY") == "THE FILM, 3RD STORY"
    assert spelling.read("a FiLn") == "a FiLn"
    assert spelling.read("") == ""
    assert spelling.read("wa ca") == "wa ca"  # too short to tell
    assert spelling.read("tachycardia") == "tachycardia"


def test_words_of_a_trade_are_known_and_come_first() -> None:
    assert Spelling("vocabulary", PIECES).read("Filn filz") == "Film film"
    for words in ("vocabulary", "english"):
        assert Spelling(words, PIECES, ["Filn", "Statin"]).read("Filn fiml filz statn") == "Filn film filn statin"


def test_words_go_on_in_every_form_of_vocabulary() -> None:
    """A piece inside a word is none: "ing" is no word here."""
    for pieces in (
        {"film": 5, "##ing": 1, "##s": 2},
        {"Ġfilm": 5, "Ġa": 4, "ing": 1, "s": 2},
        {"▁film": 5, "▁a": 4, "ing": 1, "s": 2},
    ):
        spelling = Spelling("vocabulary", pieces)
        assert spelling.read("flim ingg") == "film ingg"


def test_letters_that_look_latin_are_read_so_only_among_latin_ones(spelling: Spelling) -> None:
    rng = np.random.default_rng(0)
    text = "the actress was quite lovely , Kate said to Mr Poe"
    twins = "".join(homoglyph(c, 0, rng) if c != " " else c for c in text)
    assert twins != text
    assert spelling.read(text) == text
    half = "".join(b if place % 3 == 0 else a for place, (a, b) in enumerate(zip(text, twins, strict=True)))
    assert spelling.read(half) == text
    russian = "он сор хорошо"
    assert spelling.read(russian) == russian
    assert (
        spelling.read(f"a lovely film from {russian.split()[2]} films")
        == f"a lovely film from {russian.split()[2]} film"
    )
    assert spelling.read("ein schöner film") == "ein schöner film"


@pytest.mark.slow
def test_english_words_are_known_beside_the_vocabulary(english: Spelling) -> None:
    assert english.read("teh moive is refrsehingly beatiful , filming cliches") == (
        "the movie is refreshingly beautiful , filming cliches"
    )
    assert Spelling("english", {"zorbfilm": 3}).read("zorbfilm") == "zorbfilm"


def test_most_words_with_one_letter_wrong_are_read_as_they_were(english: Spelling) -> None:
    rng, words = np.random.default_rng(0), ["beautiful", "performance", "hospital", "patient", "interesting", "account"]
    tried = [(word, edit(word, place, rng)) for word in words for edit in EDITS.values() for place in range(len(word))]
    assert np.mean([english.read(f"in the {perturbed} .") == f"in the {word} ." for word, perturbed in tried]) > 0.95


def test_none_reads_nothing() -> None:
    assert spelling_of("none", PIECES, ()) is None


def test_records_are_those_of_the_corrected_text(make_config, tmp_path: Path) -> None:
    section = make_config(model={"spelling": "vocabulary"}).model
    model = load_model(section, 2, 0)
    assert "lovely" in VOCABULARY

    def tokens(*texts: str) -> list[int]:
        return model.encode(Rows("t", list(texts), labels=np.zeros(len(texts), dtype=np.int64))).tokens.tolist()

    assert tokens("a lovly flim", "baad") == tokens("a lovely film", "bad")
    export_adapter(model, section, ["a", "b"], tmp_path)
    found = load_spelling(tmp_path)
    assert found is not None
    assert found.read("a lovly flim") == "a lovely film"
    assert 'load_spelling(folder).read("a text")' in (tmp_path / "README.md").read_text()
    export_adapter(load_model(make_config().model, 2, 0), make_config().model, ["a", "b"], tmp_path)
    assert load_spelling(tmp_path) is None


def test_tags_stay_with_their_words(wordpiece: Path) -> None:
    section = ModelSection(
        backbone=str(wordpiece),
        task="token-classification",
        lora=LoraSection(targets=("query", "value")),
        spelling="vocabulary",
    )
    model = load_model(section, 3, 0)
    tags = [np.array([1, 0, 0, 2], np.int32)]
    wrong, right = (model.encode(Rows("t", [text], tags=tags)) for text in ("bob gooes to yorkk", "bob goes to york"))
    assert wrong.tokens.tolist() == right.tokens.tolist()
    assert wrong.digest(np.array([0])) == right.digest(np.array([0]))


def test_what_cannot_be_read_so_says_why(make_config) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.spelling: 'english' received with a task that learns the text itself"
    ):
        make_config(model={"task": "causal-lm", "spelling": "english"})
    with pytest.raises(ConfigError, match=r"model\.known_words: \['aspirin'\] received with model\.spelling 'none'"):
        make_config(model={"known_words": ["aspirin"]})
    with pytest.raises(ConfigError, match=r"model\.known_words\.1: received 'co-amoxiclav'"):
        make_config(model={"spelling": "english", "known_words": ["aspirin", "co-amoxiclav"]})
    with pytest.raises(ConfigError, match=r"model\.spelling: received 'german'"):
        make_config(model={"spelling": "german"})
