"""What an ε protects, in words and numbers that follow from the run's declaration."""

import math
from dataclasses import dataclass, replace

import numpy as np

from ..config.run import RunConfig
from ..counted import classes_of, measures_of
from ..errors import PrivacyError
from ..modes import mode_of
from ..modes.by_record import declared
from . import claims
from .accounting import delta_pld, epsilon_rdp
from .copies import copies_epsilon
from .events import History
from .mechanism import PrivacyPlan, plan_for
from .plan import declared_steps

_DEVIATIONS = 1.96
"""of a normal law, within which 95 % of it lie"""


@dataclass(frozen=True)
class Alternative:
    """One answer to "what if"."""

    change: str
    rounds: int
    noise_multiplier: float
    epsilon: float


def belief(epsilon: float) -> float:
    """How sure a coin-toss belief about one record can become: e^ε / (1 + e^ε) (Wasserman and Zhou 2010)."""
    return 1 / (1 + math.exp(-epsilon))


def most_found(history: History, false_positive: float) -> float:
    """The largest true positive rate of any membership test with this false positive rate, by the whole curve of what
    was released.

    min over ε' of e^ε'·FPR + δ(ε'), by privacy loss distributions: tighter than the single (ε, δ) says.
    """
    return min(1.0, *(math.exp(e) * false_positive + delta_pld(history, e) for e in np.linspace(0, 30, 121).tolist()))


def alternatives(config: RunConfig, plan: PrivacyPlan) -> list[Alternative]:
    """As planned, with other numbers of rounds, and with the noise that other targets need."""
    rounds, per_round = config.run.rounds, config.steps_per_round

    def of(change: str, rounds: int, plan: PrivacyPlan) -> Alternative:
        return Alternative(change, rounds, plan.noise_multiplier, plan.epsilon(rounds * per_round, 0))

    twice = replace(plan, steps=2 * plan.steps)
    found = [of("as declared", rounds, plan), of("twice the rounds, the same noise", 2 * rounds, twice)]
    if rounds > 1:
        found.append(of("half the rounds, the same noise", rounds // 2, plan))
    target = config.privacy.epsilon or plan.epsilon()
    again = calibrated(plan, target, 2 * plan.steps)
    if again is not None:
        found.append(of(f"twice the rounds, ε = {target:g} kept", 2 * rounds, again))
    for epsilon in (1.0, 3.0):
        stronger = calibrated(plan, epsilon, declared_steps(config))
        if stronger is not None and not math.isclose(epsilon, target):
            found.append(of(f"ε = {epsilon:g}", rounds, stronger))
    return found


def calibrated(plan: PrivacyPlan, epsilon: float, steps: int) -> PrivacyPlan | None:
    """The plan with other noise; None where no noise reaches that ε."""
    try:
        return plan_for(
            epsilon=epsilon,
            delta=plan.delta,
            sampling_rate=plan.sampling_rate,
            steps=steps,
            clip=plan.clip,
            coordinates=plan.coordinates,
            declared_units=plan.denominator / plan.sampling_rate,
            shares=plan.shares,
            most_shares=plan.most_shares,
            count_noise=plan.count_noise,
        )
    except PrivacyError:
        return None


_UNITS = {"example": "record", "person": "person", "client": "site"}
_PROTECTED = {
    "example": "whether a record was among the site's records, and what it said",
    "person": "whether a person was among those whose records the site holds, and what any of them said",
    "client": "whether a site contributed, and anything about what it contributed",
}
_NOT_PROTECTED = {
    "example": "somebody with several records (the table below says how much less)",
    "person": "somebody whose records lie at several sites, or under several names",
    "client": "somebody whose records lie at several sites",
}


@dataclass(frozen=True)
class Meaning:
    """What a run's noise is worth to one kind of unit."""

    whose: str
    epsilon: float
    """infinite: nothing is promised"""
    hides: str


def meanings(config: RunConfig, plan: PrivacyPlan) -> list[Meaning]:
    """ε of a record, of a person and of a site, side by side, whichever the run is charged for.

    A person with k records in a run that draws records is a unit of which i ~ Binomial(k, q) are drawn in a step: a
    mixture of Gaussians, as in `copies_epsilon`.
    """
    unit, epsilon, rows = mode_of(config).ledger_unit(config), plan.epsilon(), min(8, config.data.person_rows)
    record = Meaning("a record", epsilon, "whether one row was there, and what it said")
    site = Meaning(
        "a site", epsilon if unit == "client" else math.inf, "that a site contributed, and all that it holds"
    )
    if unit == "example" and plan.sampling_rate < 1:
        several = Meaning(
            f"a person with {rows} records", copies_epsilon(plan, rows), "that somebody was there, with that many rows"
        )
    elif unit == "example":
        several = Meaning("a person with several records", math.inf, "that somebody was there, with all their rows")
    else:
        several = Meaning(
            "a person with any records at one site", epsilon, "that somebody was there, and all their rows"
        )
    return [record, several, site]


def further_runs(config: RunConfig, plan: PrivacyPlan) -> str:
    """How far a data set's limit goes with runs like this one."""
    history = plan.history()
    two, four = (
        epsilon_rdp(History({step: many * count for step, count in history.items()}), plan.delta) for many in (2, 4)
    )
    return (
        f"Several runs: alone on a data set this run takes ε = {plan.epsilon():.3g} of its limit, by PLD. A later run "
        "may depend on what an earlier one showed, so from the second on a Rényi filter adds all of them up: two runs "
        f"like this one need a limit of {two:.3g}, four {four:.3g}."
    )


def half_interval(config: RunConfig, plan: PrivacyPlan, share: float = 0.5) -> float:
    """Half of the 95 % interval of a share, the widest at ½, on what is declared to be held out at all sites; infinite
    where the noise is as large as all that is counted."""
    records = declared(config) * config.evaluation.holdout
    noises = plan.most_shares + config.privacy.colluders if config.secure else config.clients
    noise = plan.count_variance * (noises / plan.most_shares if config.secure else noises)
    variance = len(measures_of(config)) * max(1, classes_of(config)) * noise
    if records**2 <= 2 * _DEVIATIONS**2 * variance:
        return math.inf
    spread = records * share * (1 - share) + variance * (share**2 + (1 - share) ** 2)
    return _DEVIATIONS * math.sqrt(spread) / records


def evaluation_in_words(config: RunConfig, plan: PrivacyPlan) -> list[str]:
    """What evaluation at the sites costs, and how much it will say; nothing where it is not asked for."""
    if plan.held_out is None:
        return []
    unit = "records" if config.data.person is None else "persons"
    asked, declared_ = plan.held_out.evaluations, declared(config)
    half = half_interval(config, plan)
    wide = f"about ± {100 * half:.1f} points" if math.isfinite(half) else "too wide to say anything"
    deviation = math.sqrt(plan.count_variance)
    return [
        f"Evaluation at the sites: {config.evaluation.holdout:g} of all {unit} are held out and not trained on, which "
        f"is all that it costs: no {unit[:-1]} is both trained on and held out, and ε is the larger of the two. "
        f"{asked} evaluation{'s' * (asked > 1)}, in each of which a held-out {unit[:-1]} moves the sum by at most "
        f"{plan.held_out.sensitivity:.3g} · C, cost it ε = {plan.epsilon(0):.3g}; a trained one pays "
        f"{plan.epsilon(None, 0):.3g}. Each count has noise of standard deviation {deviation:.3g} {unit}. "
        f"With {declared_ * config.evaluation.holdout:,.0f} {unit} held out, as declared, the 95 % interval of a share "
        f"near one half will be {wide}."
    ]


def in_words(config: RunConfig, plan: PrivacyPlan) -> list[str]:
    """Paragraphs: what is protected, against whom, how well, under which assumption, and what is not."""
    mode = mode_of(config)
    charged = mode.ledger_unit(config)
    unit, what, several = _UNITS[charged], _PROTECTED[charged], _NOT_PROTECTED[charged]
    epsilon = plan.epsilon()
    found = most_found(plan.history(), 0.01)
    return [
        f"ε = {epsilon:.3g} at δ = {plan.delta:g}, for one {unit}{'' if unit == 'site' else ' at one site'}, over "
        f"{f'all {plan.steps} steps of the run' if plan.steps > 1 else 'the one release of the run'}.",
        f"Protected: {what}. Against: {mode.adversary(config)}. They know every other {unit}'s part, and have "
        f"unlimited computing power{' but for breaking the secure sum' if config.secure else ''}.",
        f"How well: whoever thinks it a coin toss whether a given {unit} was used can become at most "
        f"{100 * belief(epsilon):.4g} % sure. A test that wrongly accuses 1 % of the {unit}s that were not used finds "
        f"at most {100 * found:.3g} % of those that were.",
        claims.several_sites(config, plan),
        *evaluation_in_words(config, plan),
        f"By what: {mode.bounded(config, plan)}, and noise of standard deviation {plan.noise_multiplier:.4g} · C "
        f"is added in each of {plan.coordinates:,} coordinates. Who adds it: {mode.noise(config)}.",
        f"Not protected: that the site is in the federation; {several}; what the backbone and the public test set "
        "already say; facts that hold of the population with or without any one of them; other runs on the same data, "
        "which the site's ledger adds up.",
        further_runs(config, plan),
    ]
