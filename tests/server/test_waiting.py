"""Nobody is asked, and charged, while fewer sites are online than a round needs."""

import json
from pathlib import Path

import pytest

from confide.cli.progress import _in_words
from confide.common import wire
from confide.common.errors import RoundError
from confide.server import waiting
from confide.simulations.local import LocalGrid
from confide.simulations.run import resume, simulate
from confide.tests.rings import slow


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many nodes are there: at each look the next number, the last one for good; all until the first round."""
    monkeypatch.setattr(waiting, "_AGAIN_SECONDS", 0.01)
    numbers: list[int] = []
    everybody = LocalGrid.get_node_ids

    def there(self: LocalGrid) -> list[int]:
        nodes = list(everybody(self))
        if vars(self).get("begun") and numbers:
            return nodes[: numbers.pop(0) if len(numbers) > 1 else numbers[0]]
        return nodes

    handle = LocalGrid._handle

    def noted(self: LocalGrid, message):
        if message.metadata.message_type == "train":
            vars(self)["begun"] = True
        return handle(self, message)

    monkeypatch.setattr(LocalGrid, "get_node_ids", there)
    monkeypatch.setattr(LocalGrid, "_handle", noted)
    return numbers


@pytest.mark.parametrize("mode", ["local", *slow("distributed")])
def test_a_run_goes_on_when_sites_are_back(make_config, local: dict, online: list[int], mode: str) -> None:
    online += [1] * 20 + [2] * 3 + [4]
    needed = 3 if mode == "distributed" else 2
    folder = simulate(make_config(run={"rounds": 2}, privacy={**local, "mode": mode}))
    rows = json.loads((folder / "report.json").read_text())["rounds"]
    assert not any("void" in row for row in rows)
    assert len(rows[1]["sites"]) >= needed
    assert len(online) < 24  # it looked again and again


def test_it_stops_before_anybody_is_asked(make_config, local: dict, online: list[int]) -> None:
    online += [1]
    config = make_config(run={"rounds": 3}, privacy=local, server={"wait_minutes": 0.001})
    with pytest.raises(
        RoundError, match=r"round 2 needs 2 sites, 1 were online for 0\.001 minutes .* nobody was asked"
    ):
        simulate(config)
    lines = (Path(config.run.output or "") / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1
    checkpoints = sorted((Path(config.run.output or "") / "checkpoints").iterdir())
    assert checkpoints
    online[:] = [4]
    folder = resume(Path(config.run.output or ""))
    rows = json.loads((folder / "report.json").read_text())["rounds"]
    assert [len(row["sites"]) for row in rows] == [4, 4, 4]


def test_who_is_left_out_is_named_with_the_reason(
    make_config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another version at one site: in the log, in the first round's line, and in the report."""
    handle = LocalGrid._handle

    def other_version(self: LocalGrid, message):
        reply = handle(self, message)
        if message.metadata.dst_node_id == 2 and message.metadata.message_type == "query.hello":
            reply.content.config_records[wire.SITE][wire.VERSION] = "9.9.9"
        return reply

    monkeypatch.setattr(LocalGrid, "_handle", other_version)
    folder = simulate(make_config(run={"rounds": 2}))
    first, second = json.loads((folder / "report.json").read_text())["rounds"]
    ((left_out),) = first["failed"]
    assert left_out["site"] == "site-1"
    assert "9.9.9" in left_out["reason"]
    assert left_out["reason"].startswith("left out: ")
    assert len(first["sites"]) == 3
    assert second["failed"] == []
    assert any("site-1 is left out" in record.getMessage() for record in caplog.records)
    line = (folder / "metrics.jsonl").read_text().splitlines()[0]
    words = _in_words(line, folder, "")
    assert words is not None
    assert "1 failed (site-1: left out: " in words
    assert "site-1" in (folder / "report.html").read_text()
