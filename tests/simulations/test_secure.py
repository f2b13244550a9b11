"""Modes `distributed` and `client`: whole runs, with sites that vanish, come back, or were lied to."""

import json
import logging
import tempfile
from pathlib import Path

import numpy as np
import pytest
from flwr.common.constant import ErrorCode
from safetensors.numpy import load_file

from confide.common.config.run import RunConfig
from confide.common.errors import RoundError, SecureSumError
from confide.common.ledger.ledger import DATABASE
from confide.common.ledger.verify import audit
from confide.common.privacy.mechanism import PoissonMechanism
from confide.common.privacy.plan import privacy_plan
from confide.common.secagg import keys, protocol
from confide.common.secagg.keys import RoundSecrets
from confide.server.report.render import read_report
from confide.simulations import local
from confide.simulations.local import LocalGrid
from confide.simulations.run import resume, simulate
from confide.simulations.sites import simulated_worker
from confide.tests.faults import dies_in, fails, no_noise

CLIENT = {"mode": "client", "epsilon": 100.0, "sampling_rate": 0.8, "clip": 0.5}
_Z = 5.0  # false alarm below 6e-7


@pytest.fixture
def distributed(make_config, local):
    def make(**changes) -> RunConfig:
        privacy = {**local, "mode": "distributed", **changes.pop("privacy", {})}
        return make_config(privacy=privacy, **changes)

    return make


def run(config: RunConfig, **options) -> dict:
    return read_report(simulate(config, **options))


def adapter(config: RunConfig) -> dict[str, np.ndarray]:
    return load_file(simulate(config) / "adapter" / "adapter_model.safetensors")


def test_without_noise_it_is_one_step_over_all_records(distributed, make_config, local, monkeypatch) -> None:
    """q = 1 and no noise: the secure sum gives the same adapter as the mean that the server computes in the open."""
    no_noise(monkeypatch)
    full = {"sampling_rate": 1.0, "clip": 100.0}
    changes = {"run": {"rounds": 2}, "training": {"optimizer": "sgd", "learning_rate": 0.1}}
    secure = adapter(distributed(privacy=full, **changes))
    changes["run"] = {"rounds": 2, "output": str(Path(distributed().output).parent / "open")}
    in_the_open = adapter(make_config(privacy={**local, **full}, **changes))
    assert secure.keys() == in_the_open.keys()
    for name, array in secure.items():
        np.testing.assert_allclose(array, in_the_open[name], atol=2e-5)  # rounding to the grid: 100/2^16 over 240


def test_the_report_says_who_sees_what(distributed) -> None:
    report = run(distributed())
    privacy = report["privacy"]
    assert privacy["mode"] == "distributed"
    assert privacy["secure_aggregation"] is True
    assert "one site that works for it, who see only the sum over at least 3 sites" in privacy["adversary"]
    assert "a share of 1/2" in privacy["noise"]
    assert [site["steps"] for site in privacy["sites"]] == [3, 3, 3, 3]
    assert privacy["epsilon_spent"] <= 8.0
    first, second, third = report["rounds"]
    assert first["bytes_up"] > second["bytes_up"] == third["bytes_up"]  # the set-up serves all rounds
    html = (Path(report["config"]["run"]["output"]) / "report.html").read_text()
    assert "a share of 1/2" in html


def test_the_noise_of_the_sum_is_what_was_promised(distributed, monkeypatch) -> None:
    """No record is drawn: what the server uses is the noise of four shares of σ²/(t − c) = σ²/2, off each of which is
    what four survivors do not need: σ²/(4 − c) = σ²/3 stays."""
    totals = []
    real = protocol.Sum.finish

    def spy(self, answers):
        totals.append(real(self, answers))
        return totals[-1]

    monkeypatch.setattr(protocol.Sum, "finish", spy)
    config = distributed(run={"rounds": 8}, privacy={"sampling_rate": 1e-6, "declared_examples": 10**7})
    run(config)
    plan = privacy_plan(config, totals[0].size)
    assert plan is not None
    found = np.concatenate(totals) / plan.variance**0.5
    assert plan.pieces.variances[0] == pytest.approx(plan.variance / 3)
    assert sum(plan.pieces.variances) == pytest.approx(plan.variance / 2)
    assert found.var() == pytest.approx(4 / 3, rel=_Z * (2 / found.size) ** 0.5)
    # and with one site missing and one that works for the server it is still whole
    assert 3 * (1 / plan.shares) - 1 / plan.shares == 1.0


def test_sites_that_vanish_at_each_stage(distributed, monkeypatch) -> None:
    fails(monkeypatch, "train", {2: {0}})
    fails(monkeypatch, "query.unmask", {3: {2}})
    report = run(distributed())
    assert [len(row["sites"]) for row in report["rounds"]] == [4, 3, 4]
    assert [failure["site"] for failure in report["rounds"][1]["failed"]] == ["site-1"]
    assert report["rounds"][2]["failed"] == [{"site": "site-3", "reason": "unmasking: vanished"}]
    assert all("void" not in row for row in report["rounds"])
    losses = [row["loss"] for row in report["rounds"]]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("action", ["train", "query.unmask"])
def test_below_the_threshold_a_round_is_void_and_charged(distributed, monkeypatch, action: str) -> None:
    fails(monkeypatch, action, {2: {0, 3}})
    report = run(distributed())
    second = report["rounds"][1]
    assert "round 2 is void" in second["void"]
    assert "nothing was revealed" in second["void"]
    assert report["rounds"][0]["loss"] == second["loss"] != report["rounds"][2]["loss"]
    assert max(site["steps"] for site in report["privacy"]["sites"]) == 3
    assert "is void" in (Path(report["config"]["run"]["output"]) / "report.html").read_text()


def test_a_run_in_which_every_round_is_void_fails_and_leaves_its_report(distributed, monkeypatch) -> None:
    fails(monkeypatch, "train", {1: {0, 3}, 2: {0, 3}})
    config = distributed(run={"rounds": 2})
    with pytest.raises(RoundError, match=r"no round changed the model: .*; the report is written"):
        simulate(config)
    report = json.loads((config.output / "report.json").read_text())
    assert all("void" in row for row in report["rounds"])
    assert max(site["steps"] for site in report["privacy"]["sites"]) == 2


def test_a_run_without_privacy_whose_updates_are_zero_fails(make_config) -> None:
    config = make_config(training={"optimizer": "sgd", "learning_rate": 1e-60})
    with pytest.raises(RoundError, match=r"no round changed the model: .* moved no trained array"):
        simulate(config)


def test_a_run_that_has_lost_its_sites_stops_charging(distributed, monkeypatch) -> None:
    """Two of four sites are gone for good: one round is void; the next set-up stops the run."""
    from flwr.app import Error, Message

    real = LocalGrid._handle
    trained: list[int] = []

    def handle(self, message):
        number, kind = message.metadata.dst_node_id - local._SERVER_NODE - 1, message.metadata.message_type
        if kind == "train":
            trained.append(number)
        if number in (1, 2) and len(trained) > 4:
            message.metadata.__dict__["_message_id"] = "x"
            return Message(Error(0, "gone"), reply_to=message)
        return real(self, message)

    monkeypatch.setattr(LocalGrid, "_handle", handle)
    with pytest.raises(RoundError, match=r"2 sites in the list; allowed: 3 .*the first problem: gone"):
        simulate(distributed(run={"rounds": 10}, engine={"workers": 1}))
    assert len(trained) == 8  # rounds 1 and 2


@pytest.mark.parametrize("stage", ["query.keys", "query.shares"])
def test_a_site_that_vanishes_in_the_set_up_is_left_out(distributed, monkeypatch, stage: str) -> None:
    fails(monkeypatch, stage, {1: {1}})
    report = run(distributed())
    assert [row["sites"] for row in report["rounds"]] == [["site-1", "site-3", "site-4"]] * 3


def test_no_set_up_without_enough_sites(distributed, monkeypatch) -> None:
    fails(monkeypatch, "query.keys", {1: {1, 2}})
    with pytest.raises(RoundError, match=r"2 sites in the list.*the first problem: vanished"):
        simulate(distributed())


def test_a_set_up_waits_for_sites_that_cannot_be_reached(distributed, monkeypatch) -> None:
    """The node of two sites is away for three attempts; nobody is left out once they are back."""
    monkeypatch.setattr("confide.server.secagg._PAUSE_SECONDS", 0.01)
    fails(monkeypatch, "query.keys", {attempt: {1, 2} for attempt in (1, 2, 3)}, ErrorCode.NODE_UNAVAILABLE)
    report = run(distributed())
    assert [len(row["sites"]) for row in report["rounds"]] == [4] * 3


def test_a_site_that_was_away_in_a_set_up_is_back_soon(distributed, monkeypatch) -> None:
    """Three of four are enough for a set-up, which would serve 32 rounds: the fourth does not wait for its end."""
    asked = []
    real = LocalGrid._handle
    monkeypatch.setattr(LocalGrid, "_handle", lambda self, m: (asked.append(m.metadata.message_type), real(self, m))[1])
    fails(monkeypatch, "query.keys", {1: {1}, 2: {1}}, ErrorCode.NODE_UNAVAILABLE)
    report = run(distributed(run={"rounds": 8}))
    assert [len(row["sites"]) for row in report["rounds"]] == [3, 3, 3, 3, 3, 3, 4, 4]  # asked in rounds 1, 3 and 7
    assert asked.count("query.keys") == 3 + 3 + 4
    charged = {site["site"]: site["steps"] for site in report["privacy"]["sites"]}
    assert charged == {"site-1": 8, "site-2": 2, "site-3": 8, "site-4": 8}


def test_a_set_up_does_not_wait_for_ever(distributed, monkeypatch) -> None:
    monkeypatch.setattr("confide.server.secagg._PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("confide.server.secagg._PATIENCE_SECONDS", 0.05)
    fails(monkeypatch, "query.shares", {attempt: {1, 2} for attempt in range(100)}, ErrorCode.NODE_UNAVAILABLE)
    with pytest.raises(RoundError, match=r"2 sites are left for secure sums, 3 are needed; site-2 dealt no shares"):
        simulate(distributed())


def test_a_restarted_site_drops_out_and_comes_back(distributed, monkeypatch) -> None:
    real = LocalGrid.send_and_receive
    rounds = iter(range(100))

    def forgets(self, messages, *, timeout=None):
        messages = list(messages)
        if messages[0].metadata.message_type == "train" and next(rounds) == 1:
            self._states.pop(local._SERVER_NODE + 1)  # site-1's memory, as a restart leaves it
        return real(self, messages, timeout=timeout)

    monkeypatch.setattr(LocalGrid, "send_and_receive", forgets)
    report = run(distributed(run={"rounds": 4}))
    assert [len(row["sites"]) for row in report["rounds"]] == [4, 3, 4, 4]
    (failure,) = report["rounds"][1]["failed"]
    assert "holds no keys (restarted?)" in failure["reason"]
    # it charged nothing in the round that it could not take part in
    assert [site["steps"] for site in report["privacy"]["sites"]] == [3, 4, 4, 4]


def test_a_set_up_serves_its_rounds_and_no_more(distributed, monkeypatch) -> None:
    asked = []
    real = LocalGrid._handle
    monkeypatch.setattr(LocalGrid, "_handle", lambda self, m: (asked.append(m.metadata.message_type), real(self, m))[1])
    run(distributed(run={"rounds": 5}, server={"setup_rounds": 2}))
    stages = [asked[i] for i in range(0, len(asked), 4)]
    assert stages[1:] == [
        *("query.keys", "query.shares", "train", "query.unmask", "train", "query.unmask"),
        *("query.keys", "query.shares", "train", "query.unmask", "train", "query.unmask"),
        *("query.keys", "query.shares", "train", "query.unmask"),
    ]


def test_nothing_secret_is_written_or_logged(distributed, monkeypatch, caplog, capfd) -> None:
    secrets: list[bytes] = []
    real_new, real_seed, real_derive = RoundSecrets.new, keys.pair_seed, keys.derive

    def new():
        secret = real_new()
        secrets.append(secret.to_bytes())
        return secret

    def kept(real):
        def spy(*arguments):
            secrets.append(real(*arguments))
            return secrets[-1]

        return spy

    monkeypatch.setattr(protocol.RoundSecrets, "new", new)
    monkeypatch.setattr(protocol, "pair_seed", kept(real_seed))
    monkeypatch.setattr(protocol, "derive", kept(real_derive))
    fails(monkeypatch, "train", {2: {0}})  # errors are told, too
    with caplog.at_level(logging.DEBUG):
        folder = simulate(distributed())
    assert len(secrets) > 20
    output = capfd.readouterr()
    text = caplog.text + output.out + output.err
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for secret in secrets:
        for part in (secret[:16], secret[-16:]):
            assert part not in written
            for form in (part.hex(), repr(part)[2:-1], str(int.from_bytes(part, "little"))):
                assert form not in text
                assert form.encode() not in written


def test_it_resumes_with_a_new_set_up(distributed, monkeypatch) -> None:
    config = distributed()
    with monkeypatch.context() as patch:
        dies_in(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            simulate(config)
    report = read_report(resume(config.output))
    assert [row["round"] for row in report["rounds"]] == [1, 2, 3]
    assert [site["steps"] for site in report["privacy"]["sites"]] == [3] * 4


def test_ledgers_record_both_modes(distributed, make_config, tmp_path: Path) -> None:
    kept = {"ledger": str(tmp_path / "ledgers")}
    run(distributed(engine=kept, data={"name": "by-record"}))
    outcome = audit(tmp_path / "ledgers" / "site-1" / DATABASE)
    assert outcome.holds
    (facts,) = outcome.to_json()["datasets"]
    assert facts["unit"] == ["example"]
    assert facts["epsilon"]["pld"] == facts["epsilon_spent"] <= 8.0
    site_toml = tmp_path / "ledgers" / "site.toml"
    text = site_toml.read_text()
    public = (tmp_path / "ledgers" / "site-2" / "public.key").read_text().strip()
    assert f'site-2 = "{public}"' in text
    # another unit needs a data set of another name, and the policy's leave
    text = text.replace('modes = [\n    "distributed",\n]', 'modes = ["distributed", "client"]')
    site_toml.write_text(text.replace("epsilon = 8.0", "epsilon = 800.0"))
    output = {"output": str(tmp_path / "second")}
    with pytest.raises(RoundError, match="charged per example so far, asked per client"):
        simulate(make_config(privacy=CLIENT, engine=kept, data={"name": "by-record"}, run=output))


def test_a_site_makes_no_sum_with_an_unregistered_key(distributed, tmp_path: Path) -> None:
    kept = {"ledger": str(tmp_path / "ledgers")}
    run(distributed(engine=kept))
    site_toml = tmp_path / "ledgers" / "site.toml"
    public = (tmp_path / "ledgers" / "site-2" / "public.key").read_text().strip()
    site_toml.write_text(site_toml.read_text().replace(public, "0" * 64).replace("epsilon = 8.0", "epsilon = 80.0"))
    with pytest.raises(RoundError, match="keys of site-2 are not signed by its registered identity"):
        simulate(distributed(engine=kept, run={"output": str(tmp_path / "second")}))


@pytest.mark.parametrize("secure", [True, False])
def test_client_level_runs(make_config, secure: bool) -> None:
    changes = {"run": {"rounds": 4}, "training": {"local_steps": 3}, "server": {"secure_aggregation": secure}}
    report = run(make_config(privacy={**CLIENT, "clip_quantile": 0.5}, **changes))
    privacy = report["privacy"]
    assert privacy["unit"].startswith("client: one site's whole contribution")
    assert ("server is trusted" in privacy["adversary"]) is not secure
    assert [site["steps"] for site in privacy["sites"]] == [4] * 4  # one release a round, whatever the local steps
    assert privacy["epsilon_spent"] <= 100.0
    norms = [row["clip"] for row in report["rounds"]]
    assert norms[0] == 0.5
    assert len(set(norms)) == 4
    assert report["after"]["loss"] != report["before"]["loss"]


def test_one_task_sent_twice_at_once_is_answered_once(distributed, tmp_path: Path, monkeypatch) -> None:
    """Two processes with the same state, as a server that sends twice could find them: the second gives nothing."""
    real = LocalGrid._handle
    second: dict[str, list[str]] = {"train": [], "query.unmask": []}

    def twice(self, message):
        import copy

        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        before = copy.deepcopy(self._states.get(node))
        reply = real(self, message)
        if kind in second:
            after, self._states[node] = self._states[node], before
            again = real(self, message)
            second[kind].append(again.error.reason or "")
            self._states[node] = after
        return reply

    monkeypatch.setattr(LocalGrid, "_handle", twice)
    report = run(distributed(engine={"ledger": str(tmp_path / "ledgers")}))
    assert [len(row["sites"]) for row in report["rounds"]] == [4, 4, 4]
    assert all(len(reasons) == 12 and all("a second time" in r for r in reasons) for reasons in second.values())
    assert [site["steps"] for site in report["privacy"]["sites"]] == [3] * 4


def test_client_level_with_and_without_a_secure_sum_agree(make_config, tmp_path: Path, monkeypatch) -> None:
    """Everybody takes part and nothing is noised: both are the mean of the clipped updates over the declared sites."""
    no_noise(monkeypatch)
    monkeypatch.setattr("confide.client.train.secure_generator", lambda: np.random.default_rng(5))
    found = []
    for secure in (True, False):
        config = make_config(
            privacy={**CLIENT, "sampling_rate": 1.0, "clip": 0.01},
            run={"rounds": 1, "output": str(tmp_path / str(secure))},
            server={"secure_aggregation": secure},
        )
        found.append(adapter(config))
    for name, array in found[0].items():
        np.testing.assert_allclose(array, found[1][name], atol=1e-6)


def test_a_site_that_is_out_sends_zero_and_trains_all_the_same(make_config, monkeypatch) -> None:
    """Under secure aggregation neither the message nor the time tells who was drawn."""
    trained = []
    monkeypatch.setattr(
        "confide.client.train.train_plain",
        lambda work, rng: (
            trained.append(1),
            ({n: np.ones_like(a) for n, a in work.model.trained_initial.items()}, 0.0),
        )[1],
    )
    no_noise(monkeypatch)
    real = PoissonMechanism.draw
    monkeypatch.setattr(PoissonMechanism, "draw", lambda self, population: real(self, 0))
    config = make_config(privacy=CLIENT, run={"rounds": 2})
    report = run(config)
    assert len(trained) == 8
    assert report["after"] == report["before"]


@pytest.mark.slow
def test_the_sum_is_audited(distributed) -> None:
    config = distributed(
        run={"rounds": 10}, privacy={"sampling_rate": 0.5}, audit={"canaries": 200, "records": 40, "guesses": 10}
    )
    found = run(config)["audit"]
    assert found["gradient"]["canaries"] == 200
    assert found["gradient"]["epsilon_steinke"] <= 8.0
    control = run(
        config.model_copy(update={"audit": config.audit.model_copy(update={"control": True})}), overwrite=True
    )
    assert control["audit"]["gradient"]["correct"] >= 9  # without noise a canary that was drawn stands out


@pytest.mark.slow
def test_the_modes_on_ray(distributed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # its name is short enough for ray's sockets
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray/ray_current_cluster").write_text("192.0.2.2:6399")  # the machine left an ended cluster
        monkeypatch.setenv("RAY_TMPDIR", folder)
        report = run(distributed(engine={"kind": "ray"}))
    assert [len(row["sites"]) for row in report["rounds"]] == [4] * 3
    assert all(not row["failed"] for row in report["rounds"])
    log = (Path(report["config"]["run"]["output"]) / "ray.log").read_text(errors="replace")
    assert "secure-sum" not in log
    assert (
        json.loads((Path(report["config"]["run"]["output"]) / "report.json").read_text())["privacy"]["epsilon_spent"]
        <= 8
    )


def test_a_sum_without_a_set_up_is_refused(distributed) -> None:
    worker = simulated_worker(distributed(run={"id": "r"}, data={"labels": ["negative", "positive"]}))
    from confide.client import secagg

    with pytest.raises(SecureSumError, match="holds no keys"):
        secagg.restored(worker, {})
    with pytest.raises(SecureSumError, match="no set-up for round 9 of 3"):
        secagg.restored(worker, {"first-round": 9})
