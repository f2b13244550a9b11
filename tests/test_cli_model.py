"""The chain from a run to answers, as a person types it."""

import json
from pathlib import Path

import pytest

from confide.simulations.run import simulate
from confide.tests.tiny import sentences, write_csv


@pytest.mark.slow
def test_from_a_run_to_answers(confide, make_config, tmp_path: Path) -> None:
    run = simulate(make_config())
    public = write_csv(tmp_path / "public.csv", sentences(150, 55))
    code, out, _ = confide("distill", run, "--public", public, "--student", "1", "--steps", "3")
    assert (code, "student-1-int8" in out) == (0, True)
    code, out, _ = confide("compress", run, "--rows", "30")
    assert code == 0
    assert "recommended: " in out
    report = json.loads((run / "report.json").read_text())["compression"]
    assert {"torch", "onnx", "int8", "student-1-onnx", "student-1-int8"} == {row["name"] for row in report["variants"]}
    code, out, _ = confide("compress", run, "--rows", "30", "--max-mb", "0.0001")
    assert code == 1
    assert "nothing fits the limits; nearest: " in out
    code, out, _ = confide("explain-model", run, "a good film", "--sample", "5")
    assert code == 0
    assert "good(" in out
    code, out, _ = confide("export", run, "--out", tmp_path / "hub", "--variant", "int8")
    assert code == 0
    assert str(tmp_path / "hub" / "README.md") in out
    rows = write_csv(tmp_path / "rows.csv", [("a good film", "1"), ("a sad story", "2")], ("text", "id"))
    code, out, _ = confide("predict", run, rows, "--variant", "torch")
    assert code == 0
    assert out.splitlines()[0] == "text,id,predicted,probability"
    assert len(out.splitlines()) == 3
    code, out, _ = confide("predict", tmp_path / "hub" / "onnx" / "int8", rows, "--out", tmp_path / "answers.csv")
    assert out == f"2 rows: {tmp_path / 'answers.csv'}\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["compress", "{tmp}"], "no report.json there"),
        (["compress", "{tmp}", "--max-ms", "0"], "--max-ms: received 0; allowed: more than 0"),
        (["distill", "{tmp}", "--public", "{tmp}/nosuch.csv", "--student", "3"], "no such file"),
        (
            ["distill", "{tmp}", "--public", "x.csv", "--student", "3", "--temperature", "-1"],
            "--temperature: received -1",
        ),
        (["explain-model", "{tmp}", "a text"], "no report.json there"),
        (["export", "{tmp}", "--out", "{tmp}/o"], "no report.json there"),
        (["predict", "{tmp}", "{tmp}/a.xml"], "--format: received 'xml'"),
        (["predict", "{tmp}", "{tmp}/a.csv"], "no report.json there"),
        (["serve", "{tmp}"], "no report.json there"),
        (["serve", "{tmp}", "--host", "10.0.0.5"], "without TLS"),
        (["serve", "{tmp}", "--key", "a.key"], "--certificate, --key: give both or neither"),
        (["label", "suggest", "a.csv", "{tmp}", "--strategy", "best"], "--strategy: received 'best'"),
        (["pretrain", "{tmp}/nosuch.csv", "--out", "{tmp}/o"], "no such file"),
    ],
)
def test_bad_input_gets_one_line(confide, tmp_path: Path, arguments: list[str], text: str) -> None:
    before = {*tmp_path.rglob("*")}
    code, _, err = confide(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert code == 2
    assert text in err
    assert len(err.strip().splitlines()) == 1
    assert {*tmp_path.rglob("*")} == before
