"""Every error path of a configuration: one line that names file, key, value, what is allowed, what to do."""

from pathlib import Path

import pytest

from confide.common.config.run import RunConfig, load
from confide.common.config.tables import FLOWER_STRATEGIES
from confide.common.errors import ConfigError
from confide.simulations.recipes import FOLDER, find_recipe

MINIMAL = """
[model]
backbone = "b"
[data]
train = "train.csv"
test = "test.csv"
[data.partition]
clients = 4
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    return path


def refused(path: Path, *sets: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, list(sets))
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    config = load(find_recipe(path.stem))
    assert config.run.name == path.stem


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("privacy.epsilom=3", ["privacy.epsilom: unknown key", "did you mean 'epsilon'?"]),
        ("privcy.epsilon=3", ["privcy: unknown key", "did you mean 'privacy'?"]),
        ("zzz=3", ["zzz: unknown key", "remove it"]),
        ("server.liars=1", ["server.liars: renamed; use server.byzantine"]),
        ("model.lora.whole=1", ["model.lora.whole: renamed; use model.lora.modules_to_save"]),
        ("run.rounds=many", ["run.rounds: received 'many'", "integer", "--set run.rounds=VALUE"]),
        ("run.rounds=true", ["run.rounds: received True", "neither true nor false"]),
        ("evaluation.limit=true", ["evaluation.limit: received True"]),
        ("run.rounds=0", ["run.rounds: received 0", "greater than or equal to 1"]),
        ("run.name=a/b", ["run.name: received 'a/b'"]),
        ("run.output=2024", ["run.output: received 2024", 'a text; write it in quotes: "2024"']),
        ("run.id=2024-01-01", ["run.id: received 2024-01-01", 'write it in quotes: "2024-01-01"']),
        ("data.labels=[0, 1]", ["data.labels.0: received 0", 'write it in quotes: "0"']),
        ('data.train="a\\u0000b"', ["data.train: received", "a path without zero bytes"]),
        (f"run.rounds={'9' * 5000}", ["run.rounds: received '9999", "…; allowed"]),
        (f"run.rounds=0x{'f' * 5000}", ["run.rounds: received a number of thousands of digits"]),
        (f"run.rounds={'[' * 5000}", ["run.rounds: received '[[["]),
        ("privacy.epsilon=nan", ["privacy.epsilon: received nan", "finite"]),
        ("privacy.epsilon=inf", ["privacy.epsilon: received inf"]),
        ("privacy.delta=1.5", ["privacy.delta: received 1.5", "less than 1"]),
        ("privacy.mode=central", ["privacy.mode: received 'central'", "'none', 'local'"]),
        ("privacy.mode=distributed", ["privacy.epsilon: nothing received", "set it in [privacy]"]),
        ("server.secure_aggregation=true", ["server.secure_aggregation: true received with mode 'none'"]),
        ("privacy.mode=local", ["privacy.epsilon: nothing received", "set it in [privacy]"]),
        ("server.aggregation=fedsum", ["server.aggregation: received 'fedsum'", "fedavg, ffa, exact"]),
        ("server.options={eta=1.0}", ["server.options: {eta = 1.0} received with", "fedavg takes no", "remove them"]),
        ("server.aggregation=qfedavg", ["server.options.client_learning_rate: nothing received", "'qfedavg'"]),
        ("server.min_clients=9", ["server.min_clients: 9 received", "asks only 4 sites"]),
        ("server.cohort=9", ["server.cohort: 9 received", "allowed: at most 4"]),
        ("model.pooling=max", ["model.pooling: received 'max'", "'mean', 'first', 'last'"]),
        ("model.backbone=", ["model.backbone: nothing received", "required"]),
        ("data.partition.clients=", ["data.partition.clients: nothing received"]),
        ("data.partition.kind=natural", ["data.partition.column: nothing received"]),
        ("data.prompt=q", ["prompt and response go together"]),
        ("novalue", ["--set: received 'novalue'", "KEY=VALUE"]),
        ("run.name.x=1", ["'name' is a value, not a section"]),
    ],
)
def test_bad_values_name_key_value_and_remedy(toml: Path, override: str, parts: list[str]) -> None:
    if override == "run.name.x=1":
        toml.write_text(MINIMAL + '[run]\nname = "x"\n')
    message = refused(toml, override)
    assert all(part in message for part in parts), message
    assert override.startswith(("novalue", "run.name.x")) or str(toml) in message


def test_instructions_are_not_for_classification(toml: Path) -> None:
    assert "remove it" in refused(toml, "data.prompt=q", "data.response=a")


def test_losses_are_not_weights_under_privacy(toml: Path) -> None:
    private = ["mode=local", "epsilon=8", "sampling_rate=0.1", "declared_examples=100"]
    message = refused(
        toml,
        *(f"privacy.{setting}" for setting in private),
        "server.aggregation=qfedavg",
        "server.options.client_learning_rate=0.1",
    )
    assert "'qfedavg' weighs sites by their loss" in message


@pytest.mark.parametrize(
    ("mode", "settings", "parts"),
    [
        ("local", ["server.secure_aggregation=true"], ["wastes accuracy", "choose mode distributed"]),
        ("distributed", ["server.secure_aggregation=false"], ["a share of the noise protects nothing"]),
        ("distributed", ["server.aggregation=krum"], ["'krum' received", "a secure sum hides them", "fedavg, ffa"]),
        ("distributed", ["server.aggregation=exact"], ["needs each site's update"]),
        ("distributed", ["training.local_steps=2"], ["one round is one step", "allowed: 1"]),
        ("distributed", ["server.cohort=3"], ["amplifies nothing", "remove it"]),
        ("distributed", ["server.upload_dtype=float16"], ["packed integers"]),
        ("distributed", ["server.min_survivors=2"], ["two sets of survivors", "min_survivors"]),
        ("distributed", ["server.min_survivors=5"], ["server.min_survivors: 5 received", "allowed: from 2 to 4"]),
        ("distributed", ["privacy.colluders=4"], ["privacy.colluders: 4 received"]),
        (
            "distributed",
            ["data.partition.clients=1", "server.min_clients=1"],
            ["a secure sum over 1 of them hides nothing"],
        ),
        ("distributed", ["privacy.clip_quantile=0.5"], ["mode client"]),
        ("client", ["privacy.clip_count_noise=0.5"], ["with no privacy.clip_quantile"]),
        ("client", ["server.aggregation=median", "server.secure_aggregation=false"], ["made for their sum"]),
        ("client", ["server.secure_aggregation=false", "server.min_survivors=3"], ["use server.min_clients"]),
        ("client", ["audit.canaries=10"], ["canaries are records"]),
        ("client", ["privacy.sampling_rate="], ["site takes part in a round"]),
    ],
)
def test_sums_that_cannot_hold_are_refused(toml: Path, mode: str, settings: list[str], parts: list[str]) -> None:
    private = [f"mode={mode}", "epsilon=8", "sampling_rate=0.1", "declared_examples=100"]
    message = refused(toml, *(f"privacy.{setting}" for setting in private), *settings)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("kind", ["canaries", "records"])
def test_canaries_that_nobody_could_plant_are_refused(toml: Path, kind: str) -> None:
    private = ["mode=local", "epsilon=8", "sampling_rate=0.1", "declared_examples=100"]
    message = refused(toml, *(f"privacy.{setting}" for setting in private), f"audit.{kind}=3")
    assert f"audit.{kind}: 3 received with more sites" in message
    assert "each of 4 sites" in message
    assert "at least one a site" in message


@pytest.mark.parametrize(
    ("clients", "colluders", "survivors"),
    [(2, 1, 2), (3, 1, 3), (4, 1, 3), (8, 1, 7), (8, 4, 7), (100, 1, 90), (6, 0, 5)],
)
def test_one_site_in_ten_may_vanish(toml: Path, clients: int, colluders: int, survivors: int) -> None:
    settings = ["mode=distributed", "epsilon=8", "sampling_rate=0.1", "declared_examples=100", f"colluders={colluders}"]
    config = load(toml, [f"privacy.{s}" for s in settings] + [f"data.partition.clients={clients}"])
    assert config.secure
    parameters = config.secure_parameters
    assert (parameters.sites, parameters.survivors, parameters.colluders) == (clients, survivors, colluders)


def test_several_errors_are_counted(toml: Path) -> None:
    assert "(and 1 more)" in refused(toml, "run.rounds=0", "run.seed=-1")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("[run\n")
    assert "not valid TOML" in refused(tmp_path / "broken.toml")
    (tmp_path / "bytes.toml").write_bytes(b"name = '\xff'")
    assert "not valid TOML" in refused(tmp_path / "bytes.toml")
    assert "cannot be read" in refused(tmp_path)
    (tmp_path / "marked.toml").write_text("[run]\nrounds = 0\n", encoding="utf-8-sig")  # as some editors save
    assert "run.rounds" in refused(tmp_path / "marked.toml")
    with pytest.raises(ConfigError, match=r"received 'nosuch'; allowed: a .toml file, or one of .*demo"):
        find_recipe("nosuch")


def test_overrides_take_toml_values_and_bare_strings(toml: Path) -> None:
    config = load(
        toml, ["run.rounds=5", "run.name=other", 'model.lora.targets=["query"]', "privacy.mode=none", "data.limit=7"]
    )
    assert (config.run.rounds, config.run.name, config.model.lora.targets) == (5, "other", ("query",))
    assert load(toml, ["data.limit=7", "data.limit="]).data.limit is None
    assert str(config.output) == "runs/other"


def test_flat_run_config_is_lossless(toml: Path) -> None:
    config = load(
        toml,
        ['model.lora.targets=["query", "value"]', 'data.labels=["a", "b"]', "data.text=json:odd", "data.limit=9"],
    )
    flat = config.to_flat()
    assert all(isinstance(value, str | int | float | bool) for value in flat.values())
    assert RunConfig.from_flat(flat) == config
    toml.write_text(config.to_toml())
    assert load(toml) == config


def test_digest_ignores_where_and_how_but_not_what(toml: Path) -> None:
    base = load(toml).digest()
    assert load(toml, ["run.output=elsewhere", "engine.kind=ray"]).digest() == base
    assert load(toml, ["run.seed=1"]).digest() != base


def test_clients_must_be_known(toml: Path) -> None:
    config = load(toml, ["data.partition.clients=", "data.partition.kind=natural", "data.partition.column=site"])
    with pytest.raises(ConfigError, match="needs the number of sites"):
        _ = config.clients


def test_strategies_exist_in_flower() -> None:
    import flwr.serverapp.strategy as strategies

    assert all(hasattr(strategies, name) for name in FLOWER_STRATEGIES.values())
