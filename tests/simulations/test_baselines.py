"""What a simulation is compared with: each site alone, all data in one place, and what needs no training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig
from confide.common.model.loading import model_of
from confide.common.model.zero_shot import directions, nearest_centroid
from confide.server.evaluation import read_public
from confide.server.report import read_report
from confide.simulations import audit, baselines
from confide.simulations.attacks import leakage
from confide.simulations.run import simulate
from confide.tests.tiny import sentences

ALL = {"alone": True, "pooled": True, "pooled_private": True}


def measured(config: RunConfig) -> dict:
    return read_report(simulate(config, overwrite=True))


def test_of_one_site_without_privacy_all_are_the_run_itself(make_config) -> None:
    """A site alone, and all data in one place, are then the very same training: the same bits, no difference."""
    one = {"clients": 1, "kind": "iid"}
    config = make_config(run={"rounds": 4}, data={"partition": one}, server={"min_clients": 1}, baselines=ALL)
    report = measured(config)
    found = report["baselines"]
    for name in ("alone", "pooled"):
        assert found[name]["value"] == report["after"]["main"]["value"]
        assert found[name]["gain"]["value"] == 0.0
        assert found[name]["gain"]["low"] == -found[name]["gain"]["high"]
    assert found["pooled_private"] is None
    assert found["not_measured"]["pooled_private"] == "the run has no privacy: pooled is the same"


def test_a_private_run_is_compared_at_its_own_epsilon(make_config, local, monkeypatch) -> None:
    played: list[tuple[str, RunConfig]] = []
    alone = baselines._alone

    def seen(config: RunConfig, name: str, data) -> RunConfig:
        played.append((name, alone(config, name, data)))
        return played[-1][1]

    monkeypatch.setattr(baselines, "_alone", seen)
    config = make_config(privacy={**local, "mode": "distributed"}, run={"rounds": 2}, baselines=ALL)
    report = measured(config)
    found = report["baselines"]
    assert len(found["alone"]["sites"]) == config.clients
    assert found["alone"]["value"] == pytest.approx(sum(found["alone"]["sites"]) / config.clients)
    assert {"low", "high"} <= found["pooled"].keys()
    assert [name for name, _ in played] == ["alone"] * config.clients + ["pooled", "pooled_private"]
    for name, one in played:
        assert one.clients == 1
        assert one.run.rounds == config.run.rounds
        if name == "pooled":
            assert not one.private
            continue
        assert (one.privacy.mode, one.privacy.epsilon, one.privacy.delta) == ("local", config.privacy.epsilon, 1e-5)
        assert one.privacy.sampling_rate == config.privacy.sampling_rate
        whole = config.privacy.declared_examples or 0
        assert one.privacy.declared_examples == (round(whole / config.clients) if name == "alone" else whole)
    assert "no ε covers" in report["privacy"]["statement"]
    assert "what baselines reach" in report["privacy"]["statement"]
    page = (config.output / "report.html").read_text()
    assert "each site alone" in page
    assert "all data in one place, at the same ε" in page


def test_nobody_asked(make_config) -> None:
    found = measured(make_config(run={"rounds": 2}))["baselines"]
    assert found["alone"] is found["pooled"] is None
    assert found["not_measured"]["alone"] == "not asked for (baselines.alone)"
    assert found["majority"]["value"] == pytest.approx(0.5, abs=0.1)
    assert found["zero_shot"]["how"].startswith("the class whose name is nearest")


def test_byzantine_sites_are_not_compared_with_themselves(make_config) -> None:
    """What a site alone reaches is of its own records, not of what an attack made of them."""
    quiet = measured(make_config(run={"rounds": 2}, baselines={"alone": True}))
    attacked = measured(make_config(run={"rounds": 2}, baselines={"alone": True}, attack={"kind": "labelflip"}))
    assert quiet["baselines"]["alone"]["sites"] == attacked["baselines"]["alone"]["sites"]


def test_a_site_is_a_unit_of_its_own(make_config, local) -> None:
    privacy = {"mode": "client", "epsilon": 100.0, "sampling_rate": 0.8, "clip": 0.5}
    found = measured(make_config(run={"rounds": 2}, privacy=privacy, baselines=ALL))["baselines"]
    assert found["alone"] is found["pooled_private"] is None
    assert "a whole site" in found["not_measured"]["alone"]
    assert found["pooled"]["value"] > 0


def test_the_flag_asks_for_all(confide, make_config, tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text(make_config().to_toml())
    code, shown, _ = confide("simulate", toml, "--out", tmp_path / "out", "--baselines", "--set", "run.rounds=2")
    assert code == 0
    assert "training alone" in " ".join(shown.split())
    code, _, told = confide("simulate", "--resume", tmp_path / "out", "--baselines")
    assert (code, "--baselines" in told) == (2, True)


def test_what_attacks_a_run_plays_no_baselines_of_its_own(make_config, local, tmp_path: Path) -> None:
    privacy = {**local, "mode": "distributed"}
    config = make_config(privacy=privacy, data={"limit": 100}, baselines=ALL, audit={"canaries": 20})
    assert not leakage._reference(config, 1).baselines.asked
    assert not audit._control_of(config, tmp_path).baselines.asked


def test_without_names_the_nearest_validation_records_are_the_zero_shot(make_config, tmp_path: Path) -> None:
    numbered = {}
    for part, count in (("train", 60), ("test", 30), ("validation", 40)):
        lines = [f'"{text}",{int(label == "positive")}' for text, label in sentences(count, len(part))]
        numbered[part] = tmp_path / f"{part}.csv"
        numbered[part].write_text("text,label\n" + "\n".join(lines) + "\n")
    config = resolve(make_config(data={name: str(path) for name, path in numbered.items()}))
    model = model_of(config)
    test, known = (read_public(config, model, str(config.data.model_dump()[name])) for name in ("test", "validation"))
    everyone = np.arange(len(test))
    vectors = directions(model, known, np.arange(len(known)))
    centroids = np.stack([vectors[known.targets == label].mean(0) for label in (0, 1)])
    wanted = (directions(model, test, everyone) @ (centroids / np.linalg.norm(centroids, axis=1)[:, None]).T).argmax(1)
    np.testing.assert_array_equal(nearest_centroid(model, test, everyone, known, 2), wanted)
    alone = replace(known, targets=np.zeros_like(known.targets))
    assert set(nearest_centroid(model, test, everyone, alone, 2)) == {0}  # nobody is of a class without records
    found = measured(make_config(run={"rounds": 1}, data={name: str(path) for name, path in numbered.items()}))
    assert found["baselines"]["zero_shot"]["how"].startswith("the class whose public validation records are nearest")
    assert found["calibration"]["temperature"] > 0
