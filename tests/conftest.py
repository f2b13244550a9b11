"""Tiny models and data, built here: no test needs a download."""

import inspect
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import redirect_stdout
from functools import wraps
from pathlib import Path
from typing import Any

import datasets.config
import huggingface_hub.constants
import pytest
import torch
from matplotlib.figure import Figure
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from confide.cli.main import main
from confide.common.config.run import RunConfig
from confide.common.model import kept_proofs, proof
from confide.server.report import drawing, plots, plots_many
from confide.server.ship import compress, peak
from confide.server.ship.compress import _memory
from confide.tests.elsewhere import Elsewhere
from confide.tests.parts import Part, part_of
from confide.tests.proofs import Proofs
from confide.tests.tiny import LOCAL, VOCABULARY, merged, run_content, save, save_bert, save_data, save_wordpiece

os.environ["HF_HUB_OFFLINE"] = "1"  # for processes that tests start; this one has read it already
huggingface_hub.constants.HF_HUB_OFFLINE = True
datasets.config.HF_HUB_OFFLINE = True
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny matrices are slower on two."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _handlers_end_with_their_test() -> Iterator[None]:
    """Libraries log to the standard error of the test that imports them, which is closed after it."""
    before = logging.root.handlers[:]
    yield
    for handler in [one for one in logging.root.handlers if type(one) is logging.StreamHandler and one not in before]:
        logging.root.removeHandler(handler)


@pytest.fixture(scope="session", autouse=True)
def _each_plot_once() -> Iterator[None]:
    """Plots take half the time of a tiny run: each kind is drawn to its end once, and built once for facts of each form
    (another part missing, a list empty or of one entry); what is alike gets the image that is there."""
    drawn: dict[str, Figure] = {}
    built: set[tuple] = set()
    texts: dict[str, str] = {}

    def svg(figure: Figure, name: str, title: str) -> str:
        if name not in texts:
            texts[name] = real(figure, name, title)
        return texts[name]

    def once(kind: str, plot: Callable[..., Figure]) -> Callable[..., Figure]:
        @wraps(plot)
        def image(*facts: object, **named: object) -> Figure:
            form = kind, _form(facts), _form(named)
            if form not in built or kind not in drawn:
                drawn[kind] = plot(*facts, **named)
                built.add(form)
            return drawn[kind]

        return image

    with pytest.MonkeyPatch.context() as patched:
        real = drawing.svg
        svg.__wrapped__ = real  # pyright: ignore[reportFunctionMemberAccess]
        for module in (plots, plots_many):
            for kind, plot in list(vars(module).items()):
                own = inspect.isfunction(plot) and plot.__module__ == module.__name__ and not kind.startswith("_")
                if own and inspect.signature(plot).return_annotation is Figure:
                    patched.setattr(module, kind, once(kind, plot))
        patched.setattr(drawing, "svg", svg)
        yield


@pytest.fixture(scope="module")
def real_plots() -> Iterator[None]:
    """Every plot is drawn of its own facts, for tests that look at it."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (drawing, plots, plots_many):
            for kind, plot in list(vars(module).items()):
                if inspect.isfunction(plot) and hasattr(plot, "__wrapped__"):
                    patched.setattr(module, kind, inspect.unwrap(plot))
        yield


_DRAWN_OF_NO_PLOT = ("config", "environment", "model", "ledger")
"""parts of a report whose form decides nothing in a plot"""


def _form(facts: Any) -> Hashable:
    """The keys and types of nested facts; of a list, whether it has none, one or several entries, and the first's."""
    if isinstance(facts, dict):
        return tuple((key, _form(value)) for key, value in facts.items() if key not in _DRAWN_OF_NO_PLOT)
    if isinstance(facts, list | tuple):
        return (min(len(facts), 2), *map(_form, facts[:1] if isinstance(facts, list) else facts))
    return type(facts)


@pytest.fixture(scope="session", autouse=True)
def _each_proof_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proofs]:
    """Workers of the same model, in the same shapes, are proved once a session: its weights, its layers and their
    settings, its task and the number of threads are all that a proof depends on. See `real_proofs`."""
    own = tmp_path_factory.getbasetemp()
    session = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own  # which all of its processes share
    proofs = Proofs(proof.prove, session / "proofs")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(proof, "prove", proofs)
        patched.setattr(kept_proofs, "folder", lambda: session / "kept proofs")
        patched.setattr(kept_proofs, "DEAR", float("inf"))
        yield proofs


@pytest.fixture
def real_proofs(_each_proof_once: Proofs, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what a proof is for: none is taken over from another test."""
    monkeypatch.setattr(proof, "prove", _each_proof_once.prove)


@pytest.fixture(scope="session", autouse=True)
def _variants_here() -> Iterator[None]:
    """The memory of a model's variants is measured in processes of their own, which load torch: here, what they run
    runs in this one. See `real_processes`."""

    def here(folder: Path, name: str) -> float:
        with redirect_stdout(io.StringIO()) as printed:
            peak.main(folder, name)
        return json.loads(printed.getvalue())["mb"]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compress, "_memory", here)
        yield


@pytest.fixture
def real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the test of what a variant's own process takes."""
    monkeypatch.setattr(compress, "_memory", _memory)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wordpiece(tmp_path_factory.mktemp("wordpiece"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(VOCABULARY), n_embd=32, n_layer=2, n_head=2, n_positions=64)
    return save(GPT2LMHeadModel(config), tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return save(LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[Elsewhere]:
    """Runs scripts in another process, which loads torch once."""
    elsewhere = Elsewhere()
    yield elsewhere
    elsewhere.close()


@pytest.fixture(scope="session")
def without_confide() -> Iterator[Elsewhere]:
    """Another process, in which whoever asks for confide gets an ImportError."""
    process = Elsewhere()
    process('import sys; sys.modules["confide"] = None', Path("/"))
    yield process
    process.close()


@pytest.fixture
def content(bert: Path, data: Path, tmp_path: Path) -> dict:
    return run_content(bert, data, tmp_path / "run")


@pytest.fixture
def make_config(content: dict):
    """RunConfig from `content` with changes on top."""

    def make(**changes: dict) -> RunConfig:
        return RunConfig.parse(merged(content, changes), "test")

    return make


@pytest.fixture
def local() -> dict:
    """A [privacy] section for mode `local`."""
    return dict(LOCAL)


@pytest.fixture
def confide(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs the command here; returns exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["confide", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def shared_data() -> Path | None:
    """The real data sets, where a checkout has them beside it."""
    folder = Path(os.environ.get("CONFIDE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    return folder if folder.is_dir() else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", metavar="DAY/PARTS", help="one of so many parts of what is selected, by the day")
    parser.addoption("--minutes", type=float, default=60.0, help="of --part: after them no test begins")


_PART = pytest.StashKey[Part]()


def pytest_configure(config: pytest.Config) -> None:
    if (text := config.getoption("--part")) and (minutes := config.getoption("--minutes")):
        config.stash[_PART] = part_of(text, minutes)


def pytest_report_header(config: pytest.Config) -> str | None:
    return str(config.stash[_PART]) if _PART in config.stash else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if _PART in item.config.stash and item.config.stash[_PART].over():
        pytest.skip("today's minutes are over")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
    """Tests that share what their module made run on one worker: a federation or a finished run is made once; and so
    do those that train one model in several modes. What -m and -k leave is reduced to the part that --part asks for."""
    for item in items:
        if not isinstance(item, pytest.Function) or item.path.name in _SPREAD:
            continue
        used = item._fixtureinfo.name2fixturedefs.values()
        if any(definitions[-1].scope == "module" for definitions in used):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        elif hasattr(item, "callspec") and "mode" in item.callspec.params:  # side by side, each would prove the model
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {item.originalname}"))
    yield
    if _PART in config.stash:
        items[:], left = config.stash[_PART].chosen(items)
        config.hook.pytest_deselected(items=left)


_SPREAD = ("test_neighbours.py", "test_spelling.py")
"""whose module fixtures cost nothing beside their tests"""
