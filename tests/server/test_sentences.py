"""A head over pooled texts, as a folder of sentence-transformers: its own code answers, and nothing else does."""

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from confide.common.errors import ConfigError
from confide.server.ship.finished import FinishedRun
from confide.server.ship.sentences import export_sentences
from confide.simulations.run import simulate
from confide.tests.architectures import save_architecture
from confide.tests.elsewhere import Elsewhere
from confide.tests.server.test_plain import no_path_of_this_machine, numbers, refused
from confide.tests.simulations.test_two_texts_runs import lists


def shown(without_confide: Elsewhere, out: Path) -> list[str]:
    """What the code in a folder's README.md prints there, without confide."""
    text = (out / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 10
    blocked = "import sys; sys.modules['confide'] = None\n"
    return without_confide(f"{blocked}{code}", out).splitlines()


def test_the_folder_is_of_the_librarys_layout(make_config, bert: Path, tmp_path: Path) -> None:
    run, out = simulate(make_config(run={"rounds": 1})), tmp_path / "out"
    assert {*export_sentences(run, out)} == {
        "0_Transformer/config.json",
        "0_Transformer/model.safetensors",
        "0_Transformer/sentence_bert_config.json",
        "0_Transformer/tokenizer.json",
        "0_Transformer/tokenizer_config.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "README.md",
        "config_sentence_transformers.json",
        "modules.json",
    }
    modules = json.loads((out / "modules.json").read_text())
    assert [one["type"].rpartition(".")[2] for one in modules] == ["Transformer", "Pooling", "Dense"]
    assert json.loads((out / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"]
    assert load_file(out / "2_Dense" / "model.safetensors")["linear.weight"].shape == (2, 32)
    config = json.loads((out / "0_Transformer" / "config.json").read_text())
    assert config["labels"] == ["negative", "positive"]
    assert config["id2label"] == {}  # so that a head which `pipeline` draws has no class to answer with
    no_path_of_this_machine(out, run.parent, bert, tmp_path)
    assert 'library_name: "sentence-transformers"' in (out / "README.md").read_text()


def test_the_card_shows_how_labels_are_printed(make_config, without_confide: Elsewhere, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    run = simulate(make_config(run={"rounds": 2}))
    export_sentences(run, tmp_path / "out")
    answers = FinishedRun(run).merged().logits(["a text", "another one"]).argmax(1)
    printed = shown(without_confide, tmp_path / "out")
    assert [line.split()[-2] for line in printed] == [("negative", "positive")[i] for i in answers]


def test_the_card_shows_several_classes_and_numbers(make_config, without_confide: Elsewhere, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    data = {name: str(lists(tmp_path / f"{name}.jsonl", 60, i)) for i, name in enumerate(("train", "test"))}
    several = simulate(make_config(data=data, run={"rounds": 1, "output": str(tmp_path / "several")}))
    export_sentences(several, tmp_path / "out")
    assert all(line.endswith("]") for line in shown(without_confide, tmp_path / "out"))
    run = numbers(make_config, tmp_path)
    export_sentences(run, tmp_path / "numbers")
    wanted = FinishedRun(run, "regression").merged().logits(["a text", "another one"])[:, 0]
    mean, deviation = FinishedRun(run, "regression").config.data.scale or (0.0, 1.0)
    found = [float(line.split()[-1]) for line in shown(without_confide, tmp_path / "numbers")]
    assert found == pytest.approx([mean + deviation * one for one in wanted], rel=1e-5)


def test_what_is_no_pooled_text_is_refused(make_config, tmp_path: Path) -> None:
    out, one = tmp_path / "out", {"rounds": 1}
    own = simulate(make_config(model={"pooling": "model"}, run={**one, "output": str(tmp_path / "own")}))
    with pytest.raises(ConfigError, match="by a head over pooled vectors; try --format transformers"):
        export_sentences(own, out)
    spelled = simulate(make_config(model={"spelling": "vocabulary"}, run={**one, "output": str(tmp_path / "spelled")}))
    with pytest.raises(ConfigError, match="texts are corrected before"):
        export_sentences(spelled, out)
    assert not out.exists()


def test_each_format_names_the_other_ways(make_config, confide, tmp_path: Path) -> None:
    run, out = simulate(make_config(run={"rounds": 1})), tmp_path / "out"
    refused(run, out, r"give --format sentence-transformers; or .*model\.pooling = 'model'.*; or ship it as ONNX")
    for options, text in (
        (["--format", "peft"], "allowed: hub, transformers, sentence-transformers"),
        (["--format", "sentence-transformers", "--adapter"], "PEFT alone cannot build"),
        (["--format", "sentence-transformers", "--variant", "int8"], "leave it out"),
    ):
        code, _, told = confide("export", run, "--out", out, *options)
        assert code == 2
        assert text in told
    code, told, _ = confide("export", run, "--out", out, "--format", "sentence-transformers")
    assert code == 0
    assert "modules.json" in told


def test_decoders_are_padded_on_the_right(make_config, tmp_path: Path) -> None:
    """As the run's batches are, whatever their tokenizer does by itself."""
    backbone = save_architecture("llama", tmp_path / "llama")
    file = backbone / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))
    run = simulate(make_config(model={"backbone": str(backbone), "pooling": "last"}, run={"rounds": 1}))
    export_sentences(run, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "0_Transformer" / "tokenizer_config.json").read_text())
    assert found["padding_side"] == "right"
