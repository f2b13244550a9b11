"""Words of a text that is cut into tokens whole, as models saw text when they were pre-trained.

Words that are given to a tokenizer one by one lose the blank before them, and with byte-level tokenizers (RoBERTa,
GPT-2, Qwen2) become other tokens. No torch: `confide predict` may run without it.
"""

from collections.abc import Sequence


def with_blanks(text: str) -> str:
    """The words of a text, one blank between each."""
    return " ".join(text.split())


def word_numbers(spans: Sequence[tuple[int, int]], text: str) -> list[int | None]:
    """(T,) the number of the word that each token belongs to; None for marks, and for tokens of blanks alone.

    spans: the letters of each token, from and to. text: as `with_blanks` gives it. A token of several words is the
    first one's: what comes after it in the same token has no token of its own.
    """
    word, numbers = 0, []
    of_letter: list[int | None] = []
    for letter in text:
        of_letter.append(None if letter == " " else word)
        word += letter == " "
    for start, end in spans:
        numbers.append(next((number for number in of_letter[start:end] if number is not None), None))
    return numbers
