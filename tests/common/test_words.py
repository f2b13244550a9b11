"""Tags of words where a text is cut into tokens whole: the tokens are those of the text, whatever the tokenizer."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from confide.common.data.words import with_blanks, word_numbers
from confide.common.tasks import token_classification
from confide.common.types import IGNORED, Rows

TEXTS = [
    "Ann Lee sees York , and Oslo",
    " two  blanks\tand a tab\u00a0here ",
    "Köln lies at 50.9° N 😀 indeed",
    "e\u0301te\u0301 ﬁne",
    "one",
    "(Rome)",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def byte_level(prefix: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=SPECIAL)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def metaspace(scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", special_tokens=SPECIAL)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def legacy_llama() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=150, special_tokens=SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])  # pyright: ignore[reportAttributeAccessIssue]
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL))
    return tokenizer


@pytest.mark.parametrize(
    "made",
    [
        lambda: byte_level(False),
        lambda: byte_level(True),
        lambda: metaspace("first"),
        lambda: metaspace("always"),
        lambda: metaspace("never"),
        legacy_llama,
        pieces,
    ],
)
def test_each_tag_is_on_the_first_token_of_its_word(made) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made(), unk_token="<unk>", pad_token="<pad>")
    words = [text.split() for text in TEXTS]
    tags = [np.arange(len(some), dtype=np.int32) for some in words]
    records = token_classification.encode(Rows("t", TEXTS, tags=tags), tokenizer, 64)
    for place, (text, own) in enumerate(zip(TEXTS, words, strict=True)):
        ids, wanted, _, spans = _of(records, place, tokenizer, text)
        assert ids.tolist() == tokenizer(with_blanks(text))["input_ids"]  # as in pre-training
        at = np.flatnonzero(wanted != IGNORED)
        assert wanted[at].tolist() == list(range(len(own)))
        for number, token in enumerate(at):  # the token begins where the word does
            start, end = spans[token]
            assert own[number].startswith(with_blanks(text)[start:end].strip()[:1])


def _of(records, place: int, tokenizer, text: str):
    part = slice(records.offsets[place], records.offsets[place + 1])
    found = tokenizer(with_blanks(text), return_offsets_mapping=True)
    return records.tokens[part], records.wanted[part], found, found["offset_mapping"]


def test_words_of_byte_level_tokenizers_keep_their_blank() -> None:
    tokenizer = byte_level(False)
    tokens = tokenizer.encode(with_blanks(TEXTS[0])).tokens
    assert sum(token.startswith("Ġ") for token in tokens) == len(TEXTS[0].split()) - 1


def test_marks_and_blanks_belong_to_no_word() -> None:
    assert word_numbers([(0, 0), (0, 2), (2, 3), (2, 6), (6, 8), (0, 0)], "ab cde fg") == [None, 0, None, 1, 2, None]
    assert word_numbers([(0, 6), (6, 9)], "ab cde fg") == [0, 2]
