"""The sections of docs/reference/architectures.md on models that people bring: written from runs, and read back."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from confide.tests.brought import GROUPS, NO, PADDING, Cell, Outcome, tried, without_page

Outcomes = Mapping[tuple[str, str], Outcome]
"""group and model_type → what came of it; with reasons as the page has them"""
TITLES = {
    "texts": "What people bring: models that read texts",
    "writing": "What people bring: models that write",
    "images": "What people bring: models that read images",
}
_TASKS = {
    "texts": "`sequence-classification` with our head on the mean of the tokens",
    "writing": "`causal-lm`",
    "images": "`image-classification` with our head on the mean of the patches",
}
_INTRO = """## What people bring

Architectures by the `model_type` of their config.json, each as one tiny random model, from the folder to the answers:
`confide doctor`; one round at two sites in mode `none`, and one in mode `distributed`, which ran, or was refused in the
doctor's very words; the exported adapter, loaded by PEFT onto a fresh base model, with equal logits; and `confide
predict`, with the answers of the run's own model.

A cell names the first of these ways to train that the mode takes: *attention* (`model.lora.targets` omitted), *all
linear layers* (`targets = "all-linear"`), *head* (`model.train = "head"`, of classifiers). A number says why not the
one before, or what else there is to know. Settings are the architecture's own but for sizes; a checkpoint with others
may fare otherwise (DeBERTa-v3, above), and the doctor tells.
"""
_REASONS = (
    (r"has no input embeddings", "it has no table of tokens"),
    (r"no linear layers of an attention", "no linear layers of an attention were found"),
    (r"this model has no linear layer", "it has no linear layers"),
    (r"names no width of its vectors", "its configuration names no width of its vectors"),
    (r"is an encoder with a decoder", "an encoder with a decoder, which does not answer to one text alone"),
    (r"its vectors have another width", "its vectors have another width than its configuration says"),
    (r"takes no images of 1 or 3 channels", "its configuration names no size of images, or no channels"),
    (r"transformers has no model of (?P<kind>\w+) for it", "transformers' auto class for the task does not know it"),
    (r"does not load for '[^']*': (?P<why>.*?); ", "it does not load: {why}"),
    (r"needed for gradient computation has been modified", "no gradients: it changes an array in place"),
    (r"does not answer a short record of the task \((?P<why>.*)\); ", "it does not answer: {why}"),
    (
        r"changes with what it has read",
        "it changes with what it has read, so one record would change another's gradient",
    ),
    (r"draws random numbers while it reads|another answer each time", "it draws random numbers while it reads"),
    (r"changes with the tokens after it", "it sees the token that it is to guess"),
    (r"changes with the records beside it", "what it makes of a record changes with the records beside it"),
    (r"its name|whose name|compares the ends of names", "a layer's name ends like that of the head"),
    (r"not usable under differential privacy: (?P<why>.*)", "{why}"),
    (r"zero or not finite in every trained array", "the gradients of random records are zero or not finite"),
    (r"reads an array of shape", "a layer reads an array that is no batch of records"),
    (r"the per-record gradient differs", "what Opacus computes is not the record's gradient"),
    (r"the loss does not depend on", "the task does not use a layer"),
    (r"Opacus has no per-record gradients", "Opacus has no per-record gradients for a layer"),
    (r"could not be bounded", "a trained array gets no gradient per record"),
    (r"PEFT does not take these layers", "PEFT does not take these layers"),
    (r"holds no numbers for", "its file does not hold all of its arrays"),
)


def brief(why: str) -> str:
    """A reason as the page has it, without what differs between machines."""
    for pattern, words in _REASONS:
        if found := re.search(pattern, why):
            return words.format(**found.groupdict()).replace("|", "/")
    return why if why in ("", PADDING) else why.partition("; ")[0].removeprefix("model.backbone: ").replace("|", "/")


def in_brief(outcome: Outcome) -> Outcome:
    none, distributed = (Cell(cell.trained, brief(cell.why)) for cell in (outcome.none, outcome.distributed))
    return Outcome(none, distributed)


def render(outcomes: Outcomes) -> str:
    """All sections."""
    return "\n".join([_INTRO, *(_section(group, outcomes) for group in GROUPS)])


def _section(group: str, outcomes: Outcomes) -> str:
    own = {name: outcome for (where, name), outcome in outcomes.items() if where == group}
    counts = [sum(getattr(one, mode).trained != NO for one in own.values()) for mode in ("none", "distributed")]
    reasons: list[str] = []
    lines = []
    for name, outcome in own.items():
        shown = []
        for cell in (outcome.none, outcome.distributed):
            if cell.why and cell.why not in reasons:
                reasons.append(cell.why)
            shown.append(f"{cell.trained} ({reasons.index(cell.why) + 1})" if cell.why else cell.trained)
        lines.append(f"| `{name}` | {' | '.join(shown)} |")
    total = (
        f"Task: {_TASKS[group]}. Of {len(own)} architectures {counts[0]} train in mode `none`, and {counts[1]} in mode "
        "`distributed`.\n"
    )
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    table = ["| architecture | mode `none` | mode `distributed` |", "|---|---|---|", *lines, "", *notes, ""]
    return "\n".join([f"## {TITLES[group]}\n", total, *table])


def parse(page: str) -> dict[tuple[str, str], Outcome]:
    """The outcomes that sections were rendered from."""
    found: dict[tuple[str, str], Outcome] = {}
    for section in page.split("\n## ")[1:]:
        group = next((group for group, title in TITLES.items() if section.startswith(title)), None)
        if group is None:
            continue
        reasons = dict(re.findall(r"^(\d+)\. (.*)$", section, re.MULTILINE))
        for name, none, distributed in re.findall(r"^\| `([\w-]+)` \| ([^|]*) \| ([^|]*) \|$", section, re.MULTILINE):
            found[group, name] = Outcome(_cell(none, reasons), _cell(distributed, reasons))
    return found


def _cell(shown: str, reasons: Mapping[str, str]) -> Cell:
    trained, _, number = shown.partition(" (")
    return Cell(trained, reasons[number.removesuffix(")")] if number else "")


def all_tried(groups: Sequence[str] = tuple(GROUPS)) -> dict[tuple[str, str], Outcome]:
    """Every model of some groups, by running it."""
    with tempfile.TemporaryDirectory() as folder, without_page():
        return {
            (group, name): in_brief(tried(group, name, Path(folder) / group / name))
            for group in groups
            for name in GROUPS[group]
        }
