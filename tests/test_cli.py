"""The command as a person uses it: what it prints, its exit codes, what it leaves."""

import json
import re
import time
from pathlib import Path

import pytest

from confide import __version__
from confide.cli.progress import watch
from confide.server.record import Recorder


@pytest.fixture
def toml(make_config, tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(make_config(run={"rounds": 1}).to_toml())
    return path


STAGES = ["evaluating before", "waiting for sites", "training", "evaluating after"]


def test_a_run_ends_in_a_table_that_says_where_the_report_is(confide, toml: Path, tmp_path: Path) -> None:
    code, out, _ = confide("simulate", toml, "--out", tmp_path / "out", "--set", "run.name=mine")
    assert code == 0
    assert "mine" in out
    assert "accuracy" in out
    assert f"report: {tmp_path / 'out' / 'report.html'}" in out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["config"]["run"]["name"] == "mine"


def test_without_a_terminal_each_round_is_a_line(confide, toml: Path, tmp_path: Path) -> None:
    def told(*arguments: object) -> list[str]:
        lines = confide("simulate", *arguments)[2].splitlines()
        assert {line for line in lines if ":" not in line} <= {"loading and checking the model", *STAGES}
        return [line for line in lines if ":" in line]

    asked = toml, "--out", tmp_path / "out", "--set", "run.rounds=2"
    lines = told(*asked)
    assert [line.split(":")[0] for line in lines] == ["round 1 of 2", "round 2 of 2"]
    assert re.fullmatch(r"round 1 of 2: accuracy \d\.\d{3}, loss \d+\.\d{3}, \d+\.\d s", lines[0])
    assert told("--resume", tmp_path / "out") == []  # nothing is left to play, and nothing told again
    assert len(told(*asked, "--overwrite")) == 2


def test_without_a_terminal_each_stage_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confide.cli.progress._SILENCE", 0.1)
    recorder = Recorder(tmp_path, 2, [])
    with watch(tmp_path, "mine"):
        time.sleep(0.5)
        for stage in STAGES:
            for done in range(3):
                recorder.progress(stage, 0, done, 3)
                time.sleep(0.25)
    recorder.close()
    assert capsys.readouterr().err.splitlines() == [
        f"mine: {stage}" for stage in ["loading and checking the model", *STAGES]
    ]


def test_a_private_run_says_against_whom(confide, toml: Path, tmp_path: Path, local) -> None:
    sets = [arg for key, value in local.items() for arg in ("--set", f"privacy.{key}={value}")]
    code, out, _ = confide("simulate", toml, "--out", tmp_path / "out", *sets)
    assert code == 0
    assert "spent of 8 planned" in out
    assert "against the server" in " ".join(out.split())


def test_a_finished_run_can_be_resumed_and_changes_nothing(confide, toml: Path, tmp_path: Path) -> None:
    confide("simulate", toml, "--out", tmp_path / "out")
    first = json.loads((tmp_path / "out" / "report.json").read_text())
    code, _, _ = confide("simulate", "--resume", tmp_path / "out")
    assert code == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["after"] == first["after"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["simulate", "{toml}", "--set", "run.round=3"], "run.round: unknown key"),
        (["simulate", "nosuch"], "one of active, banking77, byzantine"),
        (["simulate"], "give a RECIPE, or --resume DIR"),
        (["simulate", "--resume", "{tmp}", "--set", "run.rounds=9"], "takes no --set"),
        (["simulate", "--resume", "{tmp}"], "holds no config.toml"),
        (["simulate", "{toml}", "--set", "model.task=poetry"], "model.task: received 'poetry'"),
        (["simulate", "{toml}", "--set", "model.backbone=./nosuch"], "no folder './nosuch'"),
        (["simulate", "{toml}", "--set", 'model.lora.targets=["nosuch"]'], "model.lora.targets: received"),
        (["simulate", "{toml}", "--set", "data.text=body"], "column 'body' is missing"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(
    confide, toml: Path, tmp_path: Path, arguments: list[str], text: str
) -> None:
    before = set(tmp_path.rglob("*"))
    code, out, err = confide(*(a.format(toml=toml, tmp=tmp_path) for a in arguments))
    assert code == 2
    assert text in err
    assert err.startswith("confide: ")
    assert err.count("\n") == 1
    assert out == ""
    assert set(tmp_path.rglob("*")) == before


def test_doctor_passes_a_sound_run_and_estimates_it(confide, toml: Path) -> None:
    code, out, _ = confide("doctor", toml)
    assert code == 0, out
    for name in ("python", "torch", "device", "memory", "per-sample gradients", "time per round", "memory planned"):
        assert name in out


def test_a_traceback_is_shown_with_debug_alone(confide, toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = ("--set", 'model.lora.targets=["nosuch"]')
    assert "Traceback" not in confide("simulate", toml, *target)[2]
    code, _, err = confide("simulate", "--debug", toml, *target)
    assert (code, "Traceback" in err) == (2, True)
    assert err.splitlines()[-1].startswith("confide: model.lora.targets: received 'nosuch'")

    def broken(*_: object) -> None:
        raise RuntimeError("one\ntwo")

    monkeypatch.setattr("confide.simulations.doctor.findings", broken)
    code, out, err = confide("doctor", toml)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("confide: RuntimeError in ")
    assert "a fault of confide; please report it" in err
    assert "one" not in err.split()  # what an error says may be of a record
    code, _, debugged = confide("doctor", toml, "--debug")
    assert (code, "in broken" in debugged, debugged.endswith(err)) == (1, True, True)


def test_doctor_plans_for_a_gpu_that_is_not_here(confide, toml: Path) -> None:
    code, out, _ = confide("doctor", toml, "--gpu", "24")
    assert code == 0, out
    assert "training.batch_tokens" in out
    assert "18.40 GiB usable" in " ".join(out.replace("│", " ").split())


def test_doctor_fails_where_the_model_does_not_fit(confide, toml: Path) -> None:
    code, out, _ = confide("doctor", toml, "--set", 'model.lora.targets=["nosuch"]')
    assert code == 1
    assert "no │ model" in out
    assert "nosuch" in out


def test_demo_data(confide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confide.common.data.demo.SPLITS", {"train": (30, 1), "test": (10, 2)})
    code, out, _ = confide("demo-data", tmp_path / "demo")
    assert code == 0
    assert "wrote test.csv, train.csv" in out
    assert (tmp_path / "demo" / "train.csv").read_text().startswith('"text","label","branch"\n')


def test_version(confide) -> None:
    assert confide("--version")[1] == f"confide {__version__}\n"


def test_stopping_says_how_to_go_on(confide, toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("confide.simulations.run.simulate", interrupt)
    code, _, err = confide("simulate", toml)
    assert code == 130
    assert "--resume" in err


def test_help_lists_the_commands(confide) -> None:
    out = confide("--help")[1]
    assert all(command in out for command in ("simulate", "doctor", "demo-data"))


@pytest.fixture
def private_toml(make_config, local, tmp_path: Path) -> Path:
    path = tmp_path / "private.toml"
    path.write_text(make_config(run={"rounds": 2}, privacy=local).to_toml())
    return path


def test_a_privacy_officers_walk(confide, private_toml: Path, tmp_path: Path) -> None:
    """Run, audit, be refused, export, verify."""
    ledgers, out = tmp_path / "ledgers", tmp_path / "out"
    assert confide("simulate", private_toml, "--out", out, "--ledger", ledgers)[0] == 0
    code, shown, _ = confide("audit", "ledger", ledgers, "--report", out)
    assert code == 0
    assert shown.count("holds; 3 entries") == 4
    assert 'id="ledger"' in (out / "report.html").read_text()
    code, _, err = confide("simulate", private_toml, "--out", tmp_path / "again", "--ledger", ledgers)
    assert code == 1
    assert "spent ε = " in err
    assert "limit 8, remaining 0 (" in err
    account = tmp_path / "account.json"
    assert confide("audit", "export", ledgers / "site-1", "--out", account)[0] == 0
    public = tmp_path / "registered.key"
    public.write_bytes((ledgers / "site-1" / "public.key").read_bytes())
    (ledgers / "site-1").rename(tmp_path / "gone")
    code, shown, _ = confide("audit", "verify", account, "--public-key", public)
    assert code == 0
    assert "the signature holds" in shown
    account.write_text(account.read_text().replace('"used": 2', '"used": 1'))
    code, _, err = confide("audit", "verify", account, "--public-key", public)
    assert code == 1
    assert "the document was changed" in err


def test_an_audit_of_a_changed_ledger_fails(confide, private_toml: Path, tmp_path: Path) -> None:
    confide("simulate", private_toml, "--out", tmp_path / "out", "--ledger", tmp_path / "ledgers")
    database = tmp_path / "ledgers" / "site-2" / "ledger.db"
    content = bytearray(database.read_bytes())
    content[-1] ^= 1
    database.write_bytes(content)
    code, shown, _ = confide("audit", "ledger", tmp_path / "ledgers", "--json")
    assert code == 1
    outcomes = {Path(one["path"]).parent.name: one for one in json.loads(shown)}
    assert [one["holds"] for one in outcomes.values()] == [True, False, True, True]
    code, shown, _ = confide("audit", "ledger", database)
    assert code == 1
    assert "DOES NOT HOLD" in shown
    assert "finding: " in shown
    code, _, err = confide("audit", "ledger", tmp_path / "ledgers", "--receipt", "x.json")
    assert code == 2
    assert "belong to one ledger" in err


def test_canaries_and_leakage_from_the_command_line(confide, private_toml: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, shown, _ = confide("audit", "canary", private_toml, "--out", out, "--canaries", 80, "--records", 0)
    assert code == 0
    assert "released updates" in shown
    assert "a low bound is no proof of safety" in shown
    sets = ("--set", "data.limit=100", "--set", "run.rounds=1")
    confide("simulate", private_toml, "--out", tmp_path / "limited", *sets)
    code, shown, _ = confide("audit", "leakage", tmp_path / "limited", "--references", 2)
    assert code == 0
    assert "likelihood ratio" in shown
    assert "is frozen and not released" in shown


def test_explain_says_it_in_words_and_draws_it(confide, toml: Path, private_toml: Path, tmp_path: Path) -> None:
    plot = tmp_path / "explain.png"
    code, shown, _ = confide("explain", private_toml, "--plot", plot)
    assert code == 0
    for words in ("Protected:", "Against:", "Not protected:", "twice the rounds, the same noise", "ε = 1"):
        assert words in shown
    assert plot.read_bytes().startswith(b"\x89PNG")
    confide("simulate", private_toml, "--out", tmp_path / "run")
    assert confide("explain", tmp_path / "run", "--plot", plot)[0] == 0
    for name in ("epsilon.png", "epsilon-2.png"):  # no image is overwritten that nobody named
        assert f"plot: {tmp_path / 'run' / name}" in confide("explain", tmp_path / "run")[1]
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    code, _, err = confide("explain", toml, "--plot", plot)
    assert code == 2
    assert "protects nothing" in err
