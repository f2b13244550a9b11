"""What a run answers, in sentences that may be quoted: was it worth joining, and may the figure be believed."""

import math
from collections.abc import Mapping
from typing import Any

SHARES = ("accuracy", "macro_f1", "span_f1", "decisions", "words", "tokens", "macro_recall")
"""metrics between 0 and 1, which are told in percent"""
_UNEVEN, _APART, _UNCALIBRATED = (0.6, 2.0), 0.05, 0.1
"""share of the largest class, or how often that of even classes, and accuracy above macro F1, from where accuracy
misleads; calibration error likewise"""

_ON_REQUEST = "in a simulation, `--baselines` trains each site alone, and all data in one place"
NAMES = {
    "majority": "the same answer for everybody",
    "zero_shot": "no training",
    "alone": "each site alone",
    "pooled": "all data in one place, without privacy",
    "pooled_private": "all data in one place, at the same ε",
}
"""of what a run is compared with"""


def sentences(report: Mapping[str, Any]) -> list[str]:
    """The figure, then how it compares, then what to be careful about."""
    found = [_figure(report["after"]["main"]), *_at_sites(report), *_joining(report)]
    return found + warnings(report)


def _figure(main: Mapping[str, Any]) -> str:
    low, high = (told(main, main[key]) for key in ("low", "high"))
    name, value = f"{main['name'][0].upper()}{main['name'][1:]}", told(main, main["value"])
    return (
        f"{name} is {value} on {main['records']:,} public test records (95 % interval {low} to {high}, for the draw of "
        "these records)."
    )


def _at_sites(report: Mapping[str, Any]) -> list[str]:
    """What the sites' own held-out records say."""
    found = (report.get("evaluation") or {}).get("sites")
    if found is None:
        return []
    figure, noised = found["after"], report["privacy"]["mode"] != "none"
    if figure["value"] is None:
        why = found["last"].get("why") or "the noise is as large as all that was counted; raise evaluation.holdout"
        return [f"At the sites, on {found['unit']} held out of training, {figure['name']} is not measurable: {why}."]
    low, value, high = (told(figure, figure[key]) for key in ("low", "value", "high"))
    count = f"{'about ' * noised}{max(0.0, figure['records']):,.0f} {found['unit']}"
    drawn = f"for the draw of these {found['unit']}{' and the noise' * noised}"
    name = f"{figure['name'][0].upper()}{figure['name'][1:]}"
    return [
        f"{name} at the sites is {value} on {count} that they hold out of training (95 % interval {low} to {high}, "
        f"{drawn})."
    ]


def told(main: Mapping[str, Any], value: float) -> str:
    """A value of the main metric, as people say it."""
    return f"{100 * value:.1f} %" if main["key"] in SHARES else f"{value:.3f}"


def in_words(main: Mapping[str, Any], value: float, spread: float) -> str:
    """A value of the main metric and how far it varies, as people say it."""
    if main["key"] in SHARES:
        return f"{100 * value:.1f} ± {100 * spread:.1f} %"
    return f"{value:.3f} ± {spread:.3f}"


def distance(main: Mapping[str, Any], gain: Mapping[str, float]) -> str:
    """How far two values of the main metric are apart, with half of the interval, as people say it."""
    value, half = abs(gain["value"]), (gain["high"] - gain["low"]) / 2
    if main["key"] in SHARES:
        return f"{100 * value:.1f} ± {100 * half:.1f} points"
    digits = max(3, min(6, math.ceil(-math.log10(half)))) if half > 0 else 3  # small differences are some, too
    return f"{value:.{digits}f} ± {half:.{digits}f}"


def difference(main: Mapping[str, Any], gain: Mapping[str, float]) -> tuple[float, str, bool]:
    """How much better the run is (worse: below 0), that in words without its sign, and whether it is surely not 0."""
    better = gain["value"] if main["higher"] else -gain["value"]
    return better, distance(main, gain), not gain["low"] <= 0 <= gain["high"]


def _perhaps(better: float, words: str) -> str:
    """A difference that may be none, in words."""
    if not better:
        return f"a difference of {words}"
    return f"{words} {'better' if better > 0 else 'worse'}, which may be chance"


def _asked(reason: str) -> bool:
    """Whether what was not measured had been asked for, or cannot be."""
    return bool(reason) and not reason.startswith("not asked for")


def _joining(report: Mapping[str, Any]) -> list[str]:
    main, found = report["after"]["main"], report["baselines"]
    private = report["privacy"]["mode"] != "none"
    clauses = {
        "alone": ("Joining costs", f"training alone {'at the same ε' if private else 'without privacy'}"),
        "pooled": (
            "Privacy and distance cost" if private else "Distance costs",
            "all data in one place without privacy",
        ),
        "pooled_private": ("Distance costs", "all data in one place at the same ε"),
    }
    told_of = []
    for name, (costs, other) in clauses.items():
        if found[name] is None:
            continue
        better, words, certain = difference(main, found[name]["gain"])
        if not certain:
            told_of.append(f"The model cannot be told from that of {other} ({_perhaps(better, words)}).")
        elif better < 0:
            told_of.append(f"{costs} {words} against {other}.")
        elif name == "alone":
            told_of.append(f"Joining gains {words} over {other}.")
        else:
            told_of.append(f"It is {words} better than {other}, trained with the run's rounds and settings.")
    if not told_of:
        reason = found["not_measured"].get("alone", "")
        told_of.append(f"Whether joining was worth it was not measured: {reason if _asked(reason) else _ON_REQUEST}.")
    for name in ("zero_shot", "majority"):
        if found[name] is not None:
            better, words, certain = difference(main, found[name]["gain"])
            what = f"{NAMES[name]} ({found[name]['how']}: {told(main, found[name]['value'])})"
            told_of.append(
                f"It is {words} {'better' if better > 0 else 'worse'} than {what}."
                if certain
                else f"It cannot be told from {what}."
            )
            break
    return told_of


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What to be careful about."""
    after, main, told_of = report["after"], report["after"]["main"], []
    for name in ("majority", "zero_shot"):
        found = report["baselines"][name]
        if found is not None and not (difference(main, found["gain"])[0] > 0 and difference(main, found["gain"])[2]):
            told_of.append(f"Careful: the model is no better than {NAMES[name]}.")
    counts = report["confusion"]["after"]
    if counts and main["key"] == "accuracy":
        rows = [sum(row) for row in counts]
        share = max(rows) / max(1, sum(rows))
        if share >= min(_UNEVEN[0], _UNEVEN[1] / len(rows)) and after["macro_f1"] < after["accuracy"] - _APART:
            told_of.append(
                f"Careful: {100 * share:.0f} % of the test records are of one class; look at macro F1, "
                f"{100 * after['macro_f1']:.1f} %, rather than at accuracy."
            )
    if (error := after.get("calibration_error", 0.0)) > _UNCALIBRATED:
        calibration = report.get("calibration")
        remedy = "give data.validation, and a temperature is fitted on it"
        if calibration is not None and calibration["error"] < error:
            remedy = (
                f"dividing its logits by {calibration['temperature']:.2f}, fitted on the validation set, leaves "
                f"{calibration['error']:.2f}"
            )
        elif calibration is not None:
            remedy = "a temperature fitted on the validation set does not mend it"
        told_of.append(f"Careful: its probabilities are off by {error:.2f} in the mean (calibration error); {remedy}.")
    return told_of
