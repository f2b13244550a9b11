"""Every rule of combination refuses its own example, in one line, and nothing that may run."""

import itertools

import pytest

from confide.common.config.probes import AuditSection
from confide.common.config.rules import RULES
from confide.common.config.rules.rule import EXAMPLE_RUN, Rule, private, shown
from confide.common.config.run import RunConfig
from confide.common.config.section import Section, override
from confide.common.errors import ConfigError, SecureSumError
from confide.common.secagg.params import Parameters


def content_of(*assignments: str) -> dict:
    content: dict = {}
    override(content, [*EXAMPLE_RUN, *assignments])
    return content


def unchecked(*assignments: str) -> RunConfig:
    """A run whose tables are checked one by one, and not together."""
    content = content_of(*assignments)
    assert not content.keys() - RunConfig.model_fields.keys()
    tables = {}
    for key, field in RunConfig.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, Section)
        tables[key] = field.annotation.model_validate(content.get(key, {}))
    return RunConfig.model_construct(**tables)


def refusals(config: RunConfig) -> list[str]:
    return [rule.message(config) for rule in RULES if rule.refused(config)]


def test_the_run_that_examples_change_may_run() -> None:
    assert RunConfig.parse(content_of(), "run.toml").clients == 9
    assert refusals(unchecked()) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.key} with {rule.when}")
def test_an_example_is_refused_by_its_rule_alone(rule: Rule) -> None:
    assert rule.example
    config = unchecked(*rule.example)
    assert [other for other in RULES if other.refused(config)] == [rule]
    message = rule.message(config)
    assert message.startswith(f"{rule.key}: ")
    assert f" received with {rule.when}; " in message
    assert "\n" not in message
    assert "{" not in rule.when
    with pytest.raises(ConfigError) as refused:
        RunConfig.parse(content_of(*rule.example), "run.toml")
    assert str(refused.value) == f"run.toml: {message}"


def test_no_rule_stands_twice() -> None:
    assert len({rule.example for rule in RULES}) == len(RULES)
    assert len({(rule.key, rule.when, rule.reason) for rule in RULES}) == len(RULES)


def test_each_pair_of_examples_ends_in_one_line() -> None:
    """No condition and no message fails on what other rules refuse."""
    for one, other in itertools.combinations(RULES, 2):
        refused = refusals(unchecked(*one.example, *other.example))
        assert all(" received with " in message and "\n" not in message for message in refused)


def test_rules_of_secure_sums_are_those_of_the_protocol() -> None:
    """The rules refuse exactly the numbers that `Parameters` does."""
    for sites, survivors, colluders in itertools.product(range(1, 7), range(1, 8), range(8)):
        config = unchecked(
            *private("distributed"),
            "server.min_clients=1",
            f"data.partition.clients={sites}",
            f"server.min_survivors={survivors}",
            f"privacy.colluders={colluders}",
        )
        try:
            Parameters(sites, survivors, colluders)
            allowed = True
        except SecureSumError:
            allowed = False
        assert allowed == (not refusals(config)), (sites, survivors, colluders)


def test_values_are_shown_as_in_the_file() -> None:
    values = (True, 0.5, "krum", ("a", 1), {"eta": 1.0}, AuditSection(canaries=3, control=True))
    expected = ["true", "0.5", "'krum'", "['a', 1]", "{eta = 1.0}", "{canaries = 3, control = true}"]
    assert [shown(value) for value in values] == expected
