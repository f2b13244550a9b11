"""Whatever fails is one line, and leaves nothing that is half written: the operating system's errors, arguments, paths
and terminals of any kind; Python's traceback is for --debug alone."""

import errno
import io
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pyarrow.csv
import pytest
from matplotlib.figure import Figure
from safetensors import SafetensorError

from confide.cli.arguments import read_arguments
from confide.cli.failures import told
from confide.cli.main import main
from confide.cli.process import ended_like_ctrl_c, threads_in_a_line
from confide.client.check.page import _bars
from confide.common.errors import ConfigError, RoundError
from confide.common.json_file import read_object
from confide.common.model.adapter import read_adapter, read_arrays
from confide.common.run_folder import make_room, require_room
from confide.common.whole import naming, require_new, whole_file, whole_folder, write_whole
from confide.server.checkpoint import load_latest
from confide.server.report import read_report
from confide.server.report.drawing import _NAME, named
from confide.server.ship.runtime import load_variant


@pytest.fixture
def toml(make_config, local, tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(make_config(run={"rounds": 1}, privacy=local).to_toml())
    return path


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (OSError(errno.ENOSPC, "x"), 2, "no room is left on the disk; make room"),
        (OSError(errno.EFBIG, "x", "/a/b"), 2, "/a/b: the file is larger"),
        (PermissionError(errno.EACCES, "x", "/a/b"), 2, "/a/b: this user may not read or write there"),
        (OSError(errno.EROFS, "x", b"/a"), 2, "/a: a read-only file system"),
        (NotADirectoryError(errno.ENOTDIR, "x", "a"), 2, "a: a file where a folder is expected; give another path"),
        (IsADirectoryError(errno.EISDIR, "x", ""), 2, "an empty path: a folder where a file is expected"),
        (OSError(errno.ENAMETOOLONG, "x", "y" * 5000), 2, "shorten it"),
        (BrokenPipeError(errno.EPIPE, "x"), 2, "standard output: whoever read it has closed it"),
        (OSError(errno.EXDEV, "x", "a"), 2, "a: Invalid cross-device link"),
        (OSError("a hub's own\nwords"), 2, "a hub's own; see the whole with --debug"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 2, "no room is left"),
        (MemoryError(), 2, "confide doctor plans"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "the memory does not suffice"),
        (ModuleNotFoundError("x", name="captum"), 2, "the package 'captum' is missing"),
        (RoundError("two\nlines"), 1, "two lines"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_an_error_is_a_line_and_a_code(error: BaseException, code: int, text: str) -> None:
    line, found = told(raised(error))
    assert found == code
    assert text in line
    assert "\n" not in line
    assert len(line) < 1100


def test_a_fault_of_confide_is_told_by_its_kind_and_place_and_never_by_its_text() -> None:
    line, code = told(raised(ValueError("what a patient said")))
    assert code == 1
    assert line.startswith("ValueError in tests/test_failures.py, line ")
    assert "patient" not in line


def test_a_traceback_is_shown_with_debug_alone_wherever_it_stands(confide) -> None:
    for arguments in (("explain", "nosuch", "--debug"), ("--debug", "explain", "nosuch")):
        code, _, err = confide(*arguments)
        assert code == 2
        assert err.startswith("Traceback")
        assert err.splitlines()[-1].startswith("confide: RECIPE: received 'nosuch'")
    assert "Traceback" not in confide("explain", "nosuch")[2]
    assert read_arguments(["explain-model", "run", "--", "--debug"]) == (
        ["explain-model", "run", "--", "--debug"],
        False,
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["predict"], "Missing argument 'RUN'; see: confide predict --help"),
        (["simulatte"], "(Did you mean one of: 'simulate', 'site'?)"),
        (["demo-data", "x", "--sites", "many"], "'many' is not a valid integer range; see: confide demo-data --help"),
        (["explain", "demo", "--plot", ""], "an empty path was received"),
        (["simulate", "demo", "--out="], "an empty path was received"),
        (["--nosuch"], "No such option '--nosuch'"),
    ],
)
def test_arguments_that_are_none_are_one_line(confide, arguments: list[str], text: str) -> None:
    code, _, err = confide(*arguments)
    assert code == 2
    assert text in err
    assert err.startswith("confide: ")
    assert err.count("\n") == 1


def started(*arguments: str, **settings: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-m", "confide.cli.main", *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        **settings,  # pyright: ignore[reportArgumentType,reportCallIssue]
    )


def test_a_pipe_that_closes_and_a_device_that_is_full_are_one_line() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed, Path("/dev/full").open("wb") as full:
        for output, text in ((closed, "whoever read it has closed it"), (full, "no room is left")):
            done = started("--version", stdout=output)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1)
            assert text in done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_whoever_ends_a_command_leaves_nothing_half_written(confide, tmp_path: Path, monkeypatch, name: str) -> None:
    def interrupted(_: object, path: Path) -> None:
        path.write_text("half")
        signal.raise_signal(getattr(signal, name))

    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # whatever runs the tests may ignore it
    monkeypatch.setattr("pyarrow.csv.write_csv", interrupted)
    code, _, err = confide("demo-data", tmp_path / "data")
    assert signal.signal(number, before) == signal.SIG_DFL
    assert (code, err.splitlines()[-1]) == (130, "confide: stopped")
    assert list((tmp_path / "data").iterdir()) == []


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with ended_like_ctrl_c():
        signal.raise_signal(signal.SIGHUP)
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


def test_a_thread_that_fails_is_a_line_without_what_it_read(capsys: pytest.CaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("what a patient said")

    with threads_in_a_line(debug=False):
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    err = capsys.readouterr().err
    assert err.startswith("a thread ended: ValueError in tests/test_failures.py")
    assert err.count("\n") == 1
    assert "patient" not in err


def test_a_stream_that_was_closed_is_no_file_of_a_run(tmp_path: Path) -> None:
    script = "import os; from confide.cli.process import open_streams; open_streams(); print(os.open('/', 0) > 2)"
    with (tmp_path / "out").open("w+") as out:
        subprocess.run(
            [sys.executable, "-c", script],
            stdout=out,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            preexec_fn=lambda: os.close(2),
            check=True,
        )
        out.seek(0)
        assert out.read() == "True\n"


def test_an_image_replaces_an_image_and_no_other_file(confide, toml: Path) -> None:
    content = toml.read_bytes()
    code, _, err = confide("explain", toml, "--plot", toml)
    assert (code, "a file that is no image" in err, toml.read_bytes()) == (2, True, content)
    plot = toml.with_name("plot.png")
    assert [confide("explain", toml, "--plot", plot)[0] for _ in range(2)] == [0, 0]


def test_a_terminal_of_any_encoding_will_do(toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys, "argv", ["confide", "explain", str(toml), "--plot", str(tmp_path / "é.png")])
    with redirect_stdout(terminal), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert b"\\u03b5 = 8" in raw.getvalue()


PATHS = ["2024", "true", "é ü 😀", "[red]quotes'\"\\", " blank", "1e3"]


def test_folders_of_any_name_are_made_shown_and_resumed(
    confide, toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in PATHS:
        code, out, err = confide("simulate", toml, "--out", name)
        assert (code, (tmp_path / name / "report.json").is_file()) == (0, True), err
        assert f"report: {name}/report.html" in out
        code, out, err = confide("simulate", "--resume", name)
        assert code == 0, err


def test_home_is_home_behind_an_equals_sign_and_in_a_file(
    confide, toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert read_arguments(["--out=~/x", "--out=a~/x", "~/x"])[0] == [f"--out={tmp_path}/x", "--out=a~/x", "~/x"]
    assert confide("explain", toml, "--set", "run.output=~/there", "--plot=~/plot.png")[0] == 0
    assert (tmp_path / "plot.png").is_file()
    assert not (tmp_path / "~").exists()


def test_a_file_in_the_way_is_told_before_anything_is_loaded(confide, toml: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("confide.simulations.run.prepare", None)
    for option, value in (("--out", "file"), ("--out", "file/run"), ("--ledger", "file")):
        out = ["--out", tmp_path / "out"] if option == "--ledger" else []
        code, _, err = confide("simulate", toml, option, tmp_path / value, *out)
        assert code == 2
        assert "file" in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    for check in (lambda: require_new(tmp_path / "a" / "b"), lambda: require_room(tmp_path, overwrite=True)):
        with pytest.raises(ConfigError, match="this user may not write to") as caught:
            check()
        assert str(tmp_path) in str(caught.value)


def test_the_folder_of_a_run_stays_when_it_is_emptied(tmp_path: Path) -> None:
    """It may be a volume of its own, which cannot be removed."""
    (tmp_path / "old").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "old")
    number = tmp_path.stat().st_ino
    make_room(tmp_path)
    assert (list(tmp_path.iterdir()), tmp_path.stat().st_ino) == ([], number)


def test_a_run_whose_files_were_changed_is_not_resumed(confide, toml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert confide("simulate", toml, "--out", run)[0] == 0
    for name, reason in (
        ("data.json", "restore it, or start a new run"),
        ("partition.json", "only a plot is made of it"),
        ("checkpoints/asked.json", "what sites have been charged for"),
        ("checkpoints/round-00001.safetensors", "not a checkpoint of confide"),
    ):
        before = (run / name).read_bytes()
        for content in (b"", b"\xff", b"[1]"):
            (run / name).write_bytes(content)
            code, _, err = confide("simulate", "--resume", run)
            assert (code, reason in err.splitlines()[-1]) == (2, True), (name, err)
        (run / name).write_bytes(before)
    assert confide("simulate", "--resume", run)[0] == 0


@contextmanager
def files_of(most: int) -> Iterator[None]:
    """Within, no file may become larger: as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "old")
    with files_of(1000), pytest.raises(OSError, match="a") as caught:
        write_whole(tmp_path / "a", "x" * 5000)
    assert caught.value.filename == str(tmp_path / "a")
    with pytest.raises(UnicodeEncodeError), whole_file(tmp_path / "b") as partial:
        partial.write_text("half \ud800", encoding="utf-8")
    with pytest.raises(OSError, match="another") as caught, naming(tmp_path):
        raise OSError(errno.EIO, "x", "another")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_a_copy_that_fails_names_where_it_went(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full") as caught, whole_folder(tmp_path / "out") as place:
        raise OSError(errno.ENOSPC, "full", "source", None, str(place / "copy"))
    assert caught.value.filename == str(tmp_path / "out")
    with pytest.raises(OSError, match="full") as caught, whole_folder(tmp_path / "out") as place:
        raise OSError(errno.ENOSPC, "full", str(place / "file"))
    assert caught.value.filename == str(tmp_path / "out")
    with pytest.raises(OSError, match="read") as caught, whole_folder(tmp_path / "out"):
        raise OSError(errno.EACCES, "read", "source")
    assert caught.value.filename == "source"


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError), whole_folder(tmp_path / "a" / "b") as place:
        (place / "half").write_text("half \ud800", encoding="utf-8")
    assert list((tmp_path / "a").iterdir()) == []
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "new", tmp_path / "empty"):
        with whole_folder(out) as place:
            (place / "file").write_text("x")
        assert [path.name for path in out.iterdir()] == ["file"]
    with pytest.raises(ConfigError, match="is not empty"):
        require_new(tmp_path / "new")


def test_a_full_disk_leaves_nothing_half_written(confide, toml: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with files_of(500):
        for arguments in (["demo-data", folder / "d"], ["explain", toml, "--plot", folder / "p.png"]):
            folder.mkdir(exist_ok=True)
            code, _, err = confide(*arguments)
            assert code == 2, err
            assert "the file is larger than this process may write" in err
            assert str(folder) in err
            assert not [path for path in folder.rglob("*") if path.is_file()]
        code, _, err = confide("simulate", toml, "--out", tmp_path / "run")
    assert (code, (tmp_path / "run").exists()) == (2, False)  # nothing is charged or trained yet
    assert err.splitlines()[-1].startswith(f"confide: {tmp_path / 'run'}")


def test_a_check_and_a_demonstration_that_fail_halfway_leave_none_of_their_files(
    confide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,yes\nb,no\n")
    out, real = tmp_path / "out", pyarrow.csv.write_csv

    def full(table: object, path: Path, *_: object) -> None:
        if isinstance(path, Path) and path.stem == "train":
            raise OSError(errno.ENOSPC, "full", str(path))
        real(table, path)

    def full_disk(place: Path, *_: object) -> None:
        assert {path.name for path in place.iterdir()} == {"cleaned.csv", "dropped.csv"}
        raise OSError(errno.ENOSPC, "full", str(place / "check.html"))

    check = ("data", "check", tmp_path / "rows.csv", "--backbone", "", "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.csv.write_csv", full)
        patch.setattr("confide.client.check.run.write_page", full_disk)
        for command in (("demo-data", out), check):
            code, _, err = confide(*command)
            assert (code, err.count("\n")) == (2, 1)
            assert f"{out}: no room is left" in err
            assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "rows.csv"]
            assert not [*tmp_path.glob(".*")]
    (out / "check.html").write_text("before")
    (out / "mine.txt").write_text("mine")
    assert confide(*check)[0] == 2
    assert (out / "check.html").read_text() == "before"
    assert confide(*check, "--overwrite")[0] == 0
    assert {path.name for path in out.iterdir()} == {"check.html", "cleaned.csv", "dropped.csv", "mine.txt"}
    assert (out / "check.html").read_text() != "before"


@pytest.mark.parametrize("kind", ["a folder", "a named pipe"])
def test_what_stands_in_place_of_a_runs_file_is_told_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    made = Path.mkdir if kind == "a folder" else os.mkfifo
    readers: dict[str, Callable[[], object]] = {
        "report.json": lambda: read_report(tmp_path),
        "any.json": lambda: read_object(tmp_path / "any.json", "run again"),
        "confide.json": lambda: read_adapter(tmp_path),
        "adapter_model.safetensors": lambda: read_arrays(tmp_path),
        "round-00001.safetensors": lambda: load_latest(tmp_path, "x"),
        "variant.json": lambda: load_variant(tmp_path),
    }
    for name, read in readers.items():
        made(tmp_path / name)
        with pytest.raises(ConfigError, match=f"{name}: is {kind}, and a file is expected there; remove it"):
            read()


def test_nothing_is_written_among_the_files_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "config.toml").write_text("")
    require_new(run / "export")
    require_new(tmp_path / "adapter" / "x")
    monkeypatch.chdir(run / "adapter")
    for out in (
        run / "adapter" / "x",
        run / "adapter" / "a" / "b",
        run / "checkpoints",
        Path("x"),
        Path("../adapter/x"),
    ):
        with pytest.raises(ConfigError, match=r"--out: received .*, which is within \w+/ of a run; give another path"):
            require_new(out)


def test_class_names_in_plots_are_no_formulas(tmp_path: Path) -> None:
    names = ["$\\frac{$", "x" * 500]
    drawn = Figure()
    drawn.text(0, 0, named(names[0]))
    drawn.savefig(io.BytesIO())
    assert len(named(names[1])) == _NAME + 1
    assert _bars(dict.fromkeys(names, 3))
