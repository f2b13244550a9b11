"""How the claims of a run and what was measured against them go together, and which figure is for whom.

What a run claims holds against every attacker and is an upper bound; what an audit measures is one attacker's success
and a lower bound. The two are consistent where the lower bound is not above the claim.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SEES = {
    "gradient": "every released update",
    "clipped_records": "every released update, and audits the clip",
    "records": "the final model alone",
}
"""the attacker of each part of an audit"""
_UNITS = {"example": "record", "person": "person", "client": "site"}
_NEAR_ALL = 0.99
"""above which a share needs another digit"""
NO_AUDIT = "none was run: no attack has been tried against this run"


@dataclass(frozen=True)
class Reconciled:
    """One attacker of an audit: what the run claims against it, and what it showed."""

    words: str
    consistent: bool | None
    """None: nothing was claimed"""


def reconciled(report: Mapping[str, Any]) -> list[Reconciled]:
    """A line each attacker of the report's audit; and one of the neighbour sensitivity, where it was measured."""
    found = report["audit"]
    rows = [_of_kind(found, report["privacy"], kind) for kind in _SEES if kind in found]
    if (sensitivity := found.get("sensitivity")) is not None:
        rows.append(
            Reconciled(
                "One record more or less can move the clipped sum by at most 1 C; measured at most "
                f"{sensitivity['largest']:.3f} C; consistent with the claim: {_yes(sensitivity['holds'])}.",
                sensitivity["holds"],
            )
        )
    return rows


def _of_kind(found: Mapping[str, Any], privacy: Mapping[str, Any], kind: str) -> Reconciled:
    part, control = found[kind], (found.get("control") or {}).get(kind)
    measured = f"measured at least ε = {part['epsilon_steinke']:.2f}, with {found['confidence']:.0%} confidence"
    if privacy["mode"] == "none" or not found["noise"]:
        return Reconciled(f"Against an attacker who sees {_SEES[kind]} nothing is claimed; {measured}.", None)
    claim = privacy["epsilon_spent"]
    holds = part["epsilon_steinke"] <= claim
    words = (
        f"An attacker who sees {_SEES[kind]} can claim at most ε = {claim:.2f} at δ = {found['delta']:g}; {measured}; "
        f"consistent with the claim: {_yes(holds)}."
    )
    if part["ceiling_steinke"] < claim:
        words += (
            f" So many guesses, were they all right, show no more than ε = {part['ceiling_steinke']:.2f}: this test "
            "could not have contradicted the claim; more canaries could."
        )
    if control is not None and control["epsilon_steinke"] <= part["epsilon_steinke"]:
        words += " Without noise the same attack does no better, so it is too weak to say anything here."
    return Reconciled(words, holds)


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"


def verdict(report: Mapping[str, Any]) -> tuple[str, bool | None]:
    """The audit in one line, and whether it contradicts nothing (None: nothing to say)."""
    found, privacy = report["audit"], report["privacy"]
    if not found:
        return NO_AUDIT, None
    bounds = [found[kind]["epsilon_steinke"] for kind in _SEES if kind in found]
    measured = f"at least ε = {max(bounds):.2f} was measured" if bounds else "no bound was measured"
    states = [row.consistent for row in reconciled(report) if row.consistent is not None]
    if not states:
        return f"nothing is claimed; {measured}", None
    claim = privacy["epsilon_spent"]
    if not all(states):
        return f"NOT consistent with the claim: {measured}, ε = {claim:.2f} is claimed", False
    ceilings = [found[kind]["ceiling_steinke"] for kind in _SEES if kind in found]
    small = "; the test was too small to contradict it" if max(ceilings, default=0.0) < claim else ""
    return f"consistent with the claim: {measured}, at most {claim:.2f} is claimed{small}", True


def unit(privacy: Mapping[str, Any]) -> str:
    """Whom ε is of, in a word."""
    name: str = privacy["unit"].split(":")[0]
    return _UNITS.get(name) or name


def limits(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the claim leaves to any attacker, in percent, and whence each figure follows; empty without privacy."""
    privacy = report["privacy"]
    if privacy["mode"] == "none":
        return []
    epsilon, whose = privacy["epsilon_spent"], unit(privacy)
    rows = [
        {
            "what": f"How sure can an attacker become, who thought it a coin toss before, that one {whose} was used?",
            "most": _percent(1 / (1 + math.exp(-epsilon))),
            "by": "ε alone: after the most telling outcome there is, however rare",
        }
    ]
    for rate, found in (privacy.get("most_found") or {}).items():
        rows.append(
            {
                "what": f"Which share of the {whose}s that were used can a test find that wrongly accuses "
                f"{100 * float(rate):g} % of the others?",
                "most": _percent(found),
                "by": "the whole curve of this run's noise: over all outcomes",
            }
        )
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.{4 if share > _NEAR_ALL else 3}g} %"


def differ(report: Mapping[str, Any]) -> str | None:
    """Why the figures of `limits` differ; None where there is nothing to compare."""
    rows = limits(report)
    if len(rows) < 2:
        return None
    return (
        f"Why one figure is {rows[0]['most']} and another {rows[1]['most']}: they answer different questions. The "
        "first is the worst moment: an outcome that hardly ever happens, after which the attacker is that sure. The "
        "second is a rate over all outcomes. Where attacks are compared with (ε, δ) alone, the limit is of the worst "
        "mechanism with these two numbers and is near the first; this run's noise is far from that worst case. All of "
        "them hold."
    )


def quotes(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """To whom which figure is told; empty without privacy."""
    privacy, found = report["privacy"], report["audit"]
    if privacy["mode"] == "none":
        return []
    spent, delta = privacy["epsilon_spent"], privacy["delta"]
    rows = [
        (
            f"to those whose {unit(privacy)}s they are, to a privacy officer, in a paper",
            f"ε = {spent:.2f} spent, with δ = {delta:g}, the unit and the adversary; never ε alone",
        ),
        (
            "to whoever plans further runs on the same data",
            f"ε = {privacy['epsilon_planned']:g} planned: so much is reserved in the sites' ledgers, which add up runs",
        ),
    ]
    if found:
        rows.append(
            (
                "to whoever asks whether the software does what it says",
                "the measured lower bound, with its confidence and what it can show; never as the privacy of the run",
            )
        )
    return rows
