"""Tiny models and data, built here: no test needs a download."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets.config
import huggingface_hub.constants
import pytest
import torch
from matplotlib.figure import Figure
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from confide.cli.main import main
from confide.common.config.run import RunConfig
from confide.server.report import plots
from confide.tests.tiny import LOCAL, VOCABULARY, merged, run_content, save, save_bert, save_data, save_wordpiece

os.environ["HF_HUB_OFFLINE"] = "1"  # for processes that tests start; this one has read it already
huggingface_hub.constants.HF_HUB_OFFLINE = True
datasets.config.HF_HUB_OFFLINE = True
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny matrices are slower on two."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _each_plot_once() -> Iterator[None]:
    """Drawing takes half the time of a tiny run: each kind of plot is drawn to its end once, and then only built."""
    drawn: dict[str, bytes] = {}

    def png(figure: Figure) -> bytes:
        kind = sys._getframe(1).f_code.co_name
        if kind not in drawn:
            drawn[kind] = real(figure)
        return drawn[kind]

    real, plots._png = plots._png, png
    yield
    plots._png = real


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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share what their module made run on one worker: a federation or a finished run is made once."""
    for item in items:
        if not isinstance(item, pytest.Function) or item.path.name in _SPREAD:
            continue
        used = item._fixtureinfo.name2fixturedefs.values()
        if any(definitions[-1].scope == "module" for definitions in used):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


_SPREAD = ("test_neighbours.py", "test_spelling.py")
"""whose module fixtures cost nothing beside their tests"""
