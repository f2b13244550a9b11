"""The model card says what was promised, and the folder loads elsewhere without the run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from confide.cli.main import main
from confide.common.config.run import RunConfig
from confide.common.errors import ConfigError
from confide.server.report import read_report
from confide.server.ship.card import card, export_hub, licence_of
from confide.server.ship.compress import make_variants, measure
from confide.server.ship.finished import FinishedRun
from confide.simulations.run import simulate
from confide.tests.elsewhere import Elsewhere
from confide.tests.tiny import LOCAL, merged, run_content, save_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Path:
    place = tmp_path_factory.mktemp("card")
    backbone = Path(shutil.copytree(bert, place / "small-bert"))
    (backbone / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n# A backbone\n")
    content = run_content(backbone, save_data(place), place / "run")
    return simulate(RunConfig.parse(merged(content, {"privacy": LOCAL, "run": {"rounds": 2}}), "test"))


def test_the_card_says_what_was_promised_and_to_whom(folder: Path) -> None:
    text = card(folder, [], intended="Sorting reviews.")
    _, head, body = text.split("---\n", 2)
    facts = yaml.safe_load(head)
    assert facts["license"] == "mit"
    assert facts["base_model"] == "small-bert"
    assert facts["pipeline_tag"] == "text-classification"
    assert facts["tags"] == ["federated-learning", "differential-privacy", "lora"]
    report = read_report(folder)
    assert report["privacy"]["statement"] in body
    assert report["privacy"]["adversary"] in body
    assert "Sorting reviews." in body
    assert "audit: none was run" in body
    assert f"| accuracy | {report['before']['accuracy']:.4f} | {report['after']['accuracy']:.4f} |" in body
    assert "240 records (declared, not counted)" in body
    assert "Do not use it for decisions about people" in card(folder, [])
    assert str(folder.parent) not in text  # no path of this machine
    assert card(folder, [], licence="apache-2.0").count("apache-2.0") == 2
    assert licence_of("./nosuch") is None


def test_what_an_audit_measured_is_in_the_card(make_config) -> None:
    folder = simulate(make_config(privacy=LOCAL, run={"rounds": 1}, audit={"canaries": 40, "records": 40}))
    found = read_report(folder)["audit"]
    text = card(folder, [])
    for kind, where in (("gradient", "on released updates"), ("records", "on the final model")):
        assert f"{where}: ε ≥ {found[kind]['epsilon_steinke']:.2f} of {found[kind]['ceiling_steinke']:.2f}" in text


def test_a_card_of_a_run_without_privacy_warns(make_config) -> None:
    text = card(simulate(make_config(run={"rounds": 1})), [])
    assert "parts of training records may be read from these weights" in text
    assert 'license: "unknown"' in text
    assert "look it up before you pass this on" in text
    assert yaml.safe_load(text.split("---\n")[1])["tags"] == ["federated-learning", "lora"]


@pytest.mark.slow
def test_the_folder_loads_in_another_process(folder: Path, elsewhere: Elsewhere, tmp_path: Path) -> None:
    """By PEFT with the backbone at hand, and by onnxruntime without the run, the backbone or torch."""
    run = Path(shutil.copytree(folder, tmp_path / "run"))
    make_variants(run)
    measure(run, limit=20)
    out = tmp_path / "hub"
    files = export_hub(run, out, variants=["int8", "onnx"])
    assert {"README.md", "adapter_model.safetensors", "confide.json", "onnx/int8/model.onnx"} <= {*files}
    for path in out.rglob("*.json"):
        assert str(folder.parent) not in path.read_text()
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    wanted = FinishedRun(run).merged().logits(["a good film"])[0]
    shutil.rmtree(run)
    by_onnx = (
        "import json; from pathlib import Path; from confide.server.ship.runtime import OnnxModel\n"
        f"print(json.dumps(OnnxModel(Path({str(out / 'onnx' / 'onnx')!r})).logits(['a good film'])[0].tolist()))"
    )
    by_peft = (
        "import json, torch, confide; from peft import PeftModel; from transformers import AutoTokenizer\n"
        f"folder = {str(out)!r}; model = PeftModel.from_pretrained(confide.load_base(folder), folder).eval()\n"
        "with torch.no_grad():\n"
        "    found = model(**AutoTokenizer.from_pretrained(folder)('a good film', return_tensors='pt')).logits[0]\n"
        "print(json.dumps(found.tolist()))"
    )
    beside = folder.parent  # there is the backbone, under the name that the card gives
    done = subprocess.run([sys.executable, "-c", by_onnx], capture_output=True, text=True, check=True, cwd=beside)
    for printed in (done.stdout, elsewhere(by_peft, beside)):
        np.testing.assert_allclose(json.loads(printed.splitlines()[-1]), wanted, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_exported_is_refused(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    with pytest.raises(ConfigError, match=r"no variant\.json there"):
        export_hub(folder, tmp_path / "out", variants=["nosuch"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        export_hub(folder, tmp_path / "full")
    with pytest.raises(ConfigError, match=r"no report\.json"):
        export_hub(tmp_path, tmp_path / "out")
    monkeypatch.setattr(
        sys, "argv", ["confide", "export", str(folder), "--out", str(tmp_path / "o"), "--format", "zip"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--format: received 'zip'; allowed: hub, transformers" in capsys.readouterr().err
