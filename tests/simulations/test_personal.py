"""Heads that stay at a site: known answers, a finished simulation, and a real site's folder."""

import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from confide.client.personalize import personalize_site
from confide.common.config.resolve import resolve
from confide.common.config.run import RunConfig
from confide.common.errors import ConfigError, ModelError
from confide.common.model.adapter import export_adapter
from confide.common.model.loading import load_model, model_of
from confide.common.model.personal_head import head_names, personal_head
from confide.server.evaluation import evaluate
from confide.server.report import read_report
from confide.simulations.personalized import personalize
from confide.simulations.run import simulate
from confide.simulations.sites import simulated_data
from confide.tests.federation import Federation


@pytest.fixture
def skewed(make_config) -> RunConfig:
    partition = {"kind": "dirichlet", "alpha": 0.3, "clients": 4, "empty": "redistribute"}
    return make_config(data={"partition": partition}, run={"rounds": 3})


def known(config: RunConfig) -> tuple:
    resolved = resolve(config)
    model = model_of(resolved)
    return model, simulated_data(resolved, model).records


def test_a_site_with_its_own_meaning_of_the_classes_gets_its_own_head(skewed) -> None:
    """Where the classes are the other way round, the shared head is wrong and the fit right on records it left out."""
    model, records = known(skewed)
    everyone = np.arange(len(records))
    trained = personal_head(model, model.initial, records, everyone, 0)
    adapter = {**model.initial, **trained.arrays}
    assert evaluate(model, adapter, records, everyone).metrics["accuracy"] > 0.9
    records.targets[:] = 1 - records.targets
    found = personal_head(model, adapter, records, everyone, 0)
    assert found.shared < 0.1
    assert found.validated > 0.9
    own = evaluate(model, {**adapter, **found.arrays}, records, everyone).metrics["accuracy"]
    assert own > 0.9
    assert found.arrays.keys() == set(head_names(model))


def test_where_classes_mean_nothing_the_shared_head_is_kept(skewed) -> None:
    """Random classes: a fit of its own is right on half of what it left out, the shared head on all by construction."""
    model, records = known(skewed)
    everyone = np.arange(len(records))
    trained = personal_head(model, model.initial, records, everyone, 0)
    adapter = {**model.initial, **trained.arrays}
    right = np.flatnonzero(_right(model, adapter, records))
    found = personal_head(model, adapter, records, right, 0)
    assert found.strength is None
    assert found.shared == found.validated == 1.0
    assert all(np.array_equal(found.arrays[name], adapter[name]) for name in found.arrays)
    few = personal_head(model, model.initial, records, everyone[:5], 0)
    assert few.strength is None


def _right(model, adapter, records) -> np.ndarray:
    from confide.server.evaluation import predictions

    return predictions(model, adapter, records) == records.targets


def test_a_finished_simulation_is_compared(skewed) -> None:
    folder = simulate(skewed)
    adapter = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    facts = personalize(folder, lambda *_: None)
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == adapter
    assert [row["name"] for row in facts["sites"]] == ["site-1", "site-2", "site-3", "site-4"]
    assert facts["personal"] > facts["shared"] + 0.05
    heads = [load_file(folder / "heads" / f"{row['name']}.safetensors") for row in facts["sites"]]
    assert all(head.keys() == heads[0].keys() for head in heads)
    assert not all("lora" in name for name in heads[0])
    report = read_report(folder)
    assert report["personal"] == facts
    assert report["after"]["accuracy"] == pytest.approx(_accuracy_of_the_run(folder))
    assert "Heads that stay at the site" in (folder / "report.html").read_text()


def _accuracy_of_the_run(folder: Path) -> float:
    from confide.simulations.attacks.robustness import Subject

    subject = Subject(folder)
    rows = subject.rows(10_000)
    return float((subject.ask(rows.text).argmax(1) == rows.labels).mean())


def test_a_real_site_keeps_its_head(tmp_path: Path, skewed) -> None:
    federation = Federation(tmp_path / "federation", 2)
    federation.make()
    config = resolve(skewed)
    model = load_model(config.model, 2, 0)
    export_adapter(model, config.model, list(config.data.labels or []), tmp_path / "adapter")
    site = federation.site("site-1")
    before = {path for path in site.rglob("*") if path.is_file()}
    head = personalize_site(site, tmp_path / "adapter", "default")
    assert head.records > 0
    assert {path for path in site.rglob("*") if path.is_file()} - before == {head.path}
    assert stat.S_IMODE(head.path.stat().st_mode) == 0o600
    assert load_file(head.path).keys() == set(head_names(model))
    with pytest.raises(ConfigError, match="no data set 'nothing'"):
        personalize_site(site, tmp_path / "adapter", "nothing")
    with pytest.raises(ConfigError, match="give the adapter folder of a finished run"):
        personalize_site(site, tmp_path, "default")


def test_without_a_head_it_is_refused(make_config, gpt2: Path, tmp_path: Path) -> None:
    config = resolve(make_config(model={"backbone": str(gpt2), "task": "causal-lm", "pooling": "mean"}))
    with pytest.raises(ModelError, match="has no head that could stay"):
        head_names(model_of(config))
    with pytest.raises(ConfigError, match="finished run"):
        personalize(tmp_path, lambda *_: None)
