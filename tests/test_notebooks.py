"""The notebooks of docs/notebooks run from start to end: minutes, so `make slow`."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_made_and_not_kept(path: Path) -> None:
    assert all(not cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    errors = [cell for cell in notebook.cells if any(out["output_type"] == "error" for out in cell.get("outputs", []))]
    assert not errors
    if path.stem == "audit":
        assert "already spent" in str(notebook) or "limit" in str(notebook.cells[-1]["outputs"])


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["audit", "ship", "simulate"]
