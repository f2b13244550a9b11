"""Sentences of files with a word and its tag a line."""

from collections.abc import Iterator


def sentences(text: str) -> Iterator[list[tuple[int, list[str]]]]:
    """The number of each line of a sentence, and what stands in it."""
    sentence: list[tuple[int, list[str]]] = []
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        parts = line.strip("\ufeff\uffff\n").split()  # marks that some tools leave at the ends of a file
        if parts and not parts[0].startswith("-DOCSTART-"):
            sentence.append((number, parts))
        elif not parts and sentence:
            yield sentence
            sentence = []
