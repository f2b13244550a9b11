"""A model card from a finished run, and a folder as a hub wants it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, Literal

from ... import __version__
from ...common.data.spelling import Words
from ...common.errors import ConfigError, ModelError
from ...common.json_file import read_object
from ...common.model.adapter import CARD, DRAWN, PEFT, asked_text, is_whole, read_adapter
from ...common.model.backbones import DEMO_GEMMA, DEMO_VIT, resolve_backbone
from ...common.tasks import load_task
from ...common.types import Reads
from ...common.whole import require_new, whole_folder
from ..report import figures, read_report
from .runtime import FACTS, MODEL, TOKENIZER, VARIANTS, load_variant

Library = Literal["peft", "transformers", "sentence-transformers"]
_UNKNOWN = "unknown"
_AUDITS = (
    ("gradient", "on released updates"),
    ("clipped_records", "on released updates, through the clip"),
    ("records", "on the final model"),
)
_AGAIN = "copy the run's folder again"
_WEIGHTS = ("adapter_model.safetensors", PEFT, CARD)
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/?$")
"""where a hub's cache keeps a revision"""


def card(
    folder: Path,
    variants: list[str],
    *,
    base: str | None = None,
    intended: str | None = None,
    licence: str | None = None,
    library: Library = "peft",
) -> str:
    """README.md of a model: YAML for the hub, then what a reader has to know. Nothing in it is derived from a record.

    variants: names of those that are shipped. base: the backbone's name on a hub. intended: what the model is for, in
    the words of whoever ships it. licence: of the backbone; omitted: what its folder says. library: what loads it; PEFT
    an adapter, others a whole model. Raises ConfigError without a finished run.
    """
    report = read_report(folder)
    model, config = report["model"], report["config"]
    backbone = base or _name_of(model["backbone"])
    found = licence or licence_of(model["backbone"]) or _UNKNOWN
    train = config["model"].get("train", "lora")
    tags = ["federated-learning"]
    tags += ["differential-privacy"] if report["privacy"]["mode"] != "none" else []
    merged = library != "peft"
    tags += ["lora"] if train == "lora" and not merged else []
    head = {
        "library_name": library,
        "base_model": backbone,
        "license": found,
        "tags": tags,
    }
    kind, spelling = load_task(model["task"]).PIPELINE, config["model"].get("spelling", "none")
    lines = ["---", *_yaml({**head, **({"pipeline_tag": kind} if kind else {})}), "---", f"# {report['name']}", ""]
    how = "plain model" if merged else {"lora": "LoRA adapter", "head": "head", "full": "set of weights"}[train]
    lines += [
        f"A {how} on `{backbone}` for {model['task'].replace('-', ' ')}, trained with confide {__version__} over "
        f"{len(report['privacy']['sites'])} sites in {len(report['rounds'])} rounds. The sites' records stayed where "
        "they are.",
        "",
        "## Intended use",
        intended or "Not stated by whoever exported it. Do not use it for decisions about people before somebody does.",
        "",
    ]
    if model["labels"]:
        lines += ["Classes: " + ", ".join(f"`{label}`" for label in model["labels"]) + ".", ""]
    lines += ["## Data", *_data(report), "", "## Privacy", *_privacy(report), "", "## Evaluation", *_evaluation(report)]
    if report.get("robustness"):
        lines += ["", "## Robustness and slices", *_robustness(report["robustness"])]
    if report.get("compression"):
        lines += ["", "## Variants", *_compression(report["compression"], variants)]
    two = config["data"].get("text_pair") is not None
    reads = load_task(model["task"]).READS
    if library == "peft":
        use = _use(model["task"], variants, spelling, two)
    else:
        use = _use_piped(kind, reads, two) if library == "transformers" else _use_sentences(reads, two)
    lines += ["", "## Use", *use]
    lines += ["", "## Limits", *_limits(report), "", "## Licence", _licence(backbone, found), ""]
    return "\n".join(lines)


def export_hub(
    folder: Path,
    out: Path,
    *,
    variants: list[str] | None = None,
    base: str | None = None,
    intended: str | None = None,
    licence: str | None = None,
) -> list[str]:
    """Writes what a hub shows and others load: README.md, the adapter, the tokenizer, and onnx/ with variants.

    variants: names; omitted: the recommended one, if any was measured. base, intended, licence: as of `card`. Returns
    the files' names. Raises ConfigError.
    """
    report = read_report(folder)
    require_new(out)
    measured = report.get("compression") or {}
    chosen = variants if variants is not None else [n for n in [measured.get("recommended")] if n and n != "torch"]
    for name in chosen:
        load_variant(folder / VARIANTS / name)
    text = card(folder, chosen, base=base, intended=intended, licence=licence)
    with whole_folder(out) as made:
        copy_adapter(folder, made, base)
        for name in chosen:
            place = made / "onnx" / name
            place.mkdir(parents=True)
            for file in (folder / VARIANTS / name).iterdir():
                if file.name in (MODEL, TOKENIZER, FACTS):
                    shutil.copyfile(file, place / file.name)
        (made / "README.md").write_text(text, encoding="utf-8")
    return written(out)


def written(out: Path) -> list[str]:
    """The names of a folder's files."""
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def copy_adapter(folder: Path, out: Path, base: str | None) -> None:
    """A run's adapter and tokenizer, without paths of this machine, which mean nothing elsewhere. base: as of `card`.

    Raises ConfigError where there is no adapter.
    """
    source = folder / "adapter"
    config, backbone = adapter_config(folder), read_report(folder)["model"]["backbone"]
    read_adapter(source)  # whole, and numbers: others will load it
    out.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.name != "README.md":
            shutil.copyfile(path, out / path.name)
    fits = is_whole(config) and not (source / DRAWN).is_file()
    name, revision = base_of(config, backbone, base) if fits else (None, None)
    config |= {"base_model_name_or_path": name, "revision": revision}
    (out / PEFT).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    content = read_object(source / CARD, _AGAIN)
    content["model"]["backbone"] = base or _name_of(backbone)
    content["model"].pop("init_from", None)
    (out / CARD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a run. Raises ConfigError where there is no adapter."""
    source = folder / "adapter"
    if not all((source / name).is_file() for name in _WEIGHTS):
        raise ConfigError(f"{source}: no adapter of a finished run")
    return read_object(source / PEFT, _AGAIN)


def base_of(config: dict[str, Any], backbone: str, base: str | None) -> tuple[str | None, str | None]:
    """The name and revision under which people find a run's backbone; None, None: nobody has said.

    config: adapter_config.json. backbone: `model.backbone`. base: as of `card`.
    """
    read_from = str(config.get("base_model_name_or_path"))
    if base is not None or _is_folder(backbone) or read_from == backbone or backbone in (DEMO_VIT, DEMO_GEMMA):
        return base, None
    snapshot = _SNAPSHOT.search(read_from)
    return backbone, snapshot[1] if snapshot else None


def _is_folder(backbone: str) -> bool:
    return backbone.startswith((".", "/", "~")) or Path(backbone).is_dir()


def _name_of(backbone: str) -> str:
    return Path(backbone).name if _is_folder(backbone) else backbone


def licence_of(backbone: str) -> str | None:
    """What the backbone's README says in its YAML head; None where nobody says anything."""
    try:
        text = (Path(resolve_backbone(backbone)) / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ModelError):
        return None
    head = text.split("---")[1] if text.startswith("---") else ""
    lines = [line.partition(":") for line in head.splitlines()]
    return next(
        (value.strip() for key, _, value in lines if key.strip() in ("license", "licence") and value.strip()), None
    )


def _yaml(content: dict[str, Any]) -> list[str]:
    """A flat table; JSON strings and lists are YAML."""
    return [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items()]


def _data(report: dict[str, Any]) -> list[str]:
    config = report["config"]
    data, privacy = config["data"], config["privacy"]
    persons = data.get("person") is not None
    declared = privacy.get("declared_persons" if persons else "declared_examples")
    lines = [f"- data set: `{data['name']}`, at {len(report['privacy']['sites'])} sites"]
    if declared and privacy["mode"] != "none":
        units = "persons" if persons else "records"
        lines.append(f"- declared size of all sites' data together: {declared:,} {units} (declared, not counted)")
    lines.append(f"- public test set: `{Path(data['test']).name}`")
    if (start := report["model"].get("init_from")) is not None:
        lines.append(f"- training started from the adapter of run `{start.get('name') or _UNKNOWN}`")
    return lines


def _privacy(report: dict[str, Any]) -> list[str]:
    privacy, audit = report["privacy"], report.get("audit")
    lines = [privacy["statement"]]
    if privacy["mode"] != "none":
        lines += [
            "",
            f"- unit: {privacy['unit']}",
            f"- adversary: {privacy['adversary']}",
            f"- ε planned {privacy['epsilon_planned']:g}, spent {privacy['epsilon_spent']:.2f}, δ {privacy['delta']:g}",
            f"- {privacy['accountant']}; {privacy['composition']}",
        ]
        if audit is None:
            lines.append("- audit: none was run; no attack has been tried")
        else:
            found = [
                f"{name}: ε ≥ {part['epsilon_steinke']:.2f} of {part['ceiling_steinke']:.2f} that could have been shown"
                for kind, name in _AUDITS
                if isinstance(part := audit.get(kind), dict)
            ]
            lines.append(
                "- audited from below (a low value is no proof of safety): " + ("; ".join(found) or "see the report")
            )
    return lines


def _evaluation(report: dict[str, Any]) -> list[str]:
    lines = ["On the public test set:", "", "| metric | before | after |", "|---|---|---|"]
    before = figures(report["before"])
    lines += [f"| {name} | {before[name]:.4f} | {value:.4f} |" for name, value in figures(report["after"]).items()]
    return lines


def _robustness(facts: dict[str, Any]) -> list[str]:
    lines = [f"{facts['rows']} texts of the public test set, {100 * facts['clean']:.1f} % right as they are."]
    worst = min(facts["perturbations"], key=lambda row: row["accuracy"])
    lines.append(
        f"Worst noise: {worst['name']} at {100 * worst['strength']:g} %: {100 * worst['accuracy']:.1f} % right. "
        f"An attack by queries turns {100 * facts['blackbox']['success']:.1f} % of right answers."
    )
    lines += ["", "| slice | rows | accuracy |", "|---|---|---|"]
    lines += [f"| {row['name']} | {row['rows']} | {row['accuracy']:.4f} |" for row in facts["slices"]]
    return lines


def _compression(facts: dict[str, Any], shipped: list[str]) -> list[str]:
    lines = [
        f"| variant | MB | ms, one row | {facts['measure']} | with 10 % of characters perturbed | here |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['name']} | {row['mb']:.1f} | {row['ms_1']:.1f} | {row['accuracy']:.4f} | "
        f"{'–' if row['noisy'] is None else format(row['noisy'], '.4f')} | "
        f"{'onnx/' + row['name'] if row['name'] in shipped else '–'} |"
        for row in facts["variants"]
    ]
    return lines


def _use(task: str, shipped: list[str], spelling: Words, two: bool) -> list[str]:
    """two: whether a record has two texts."""
    without = [f"Without torch: `confide predict onnx/{name} rows.csv`" for name in shipped]
    reads = load_task(task).READS
    if reads.images or reads.label == "number":
        read = ["Texts pass through `confide.load_spelling(folder).read` first."] if spelling != "none" else []
        return [
            "`confide.load_base(folder)` builds the base model, onto which PEFT loads this folder.",
            *read,
            *without,
        ]
    asked = ", ".join([asked_text(spelling)] * (1 + two))
    code = [
        "```python",
        "import confide",
        "from peft import PeftModel",
        "from transformers import AutoTokenizer",
        "",
        'folder = "."',
        "model = PeftModel.from_pretrained(confide.load_base(folder), folder).eval()",
        f'logits = model(**AutoTokenizer.from_pretrained(folder)({asked}, return_tensors="pt")).logits',
        "```",
    ]
    return [*code, *without]


def _use_piped(kind: str | None, reads: Reads, two: bool) -> list[str]:
    several = reads.label == "classes"
    more = (
        ", truncation=True" if kind == "text-classification" else ""
    )  # otherwise it cuts nothing, and the model fails
    more += ", top_k=None" if several else ""
    code = ["```python", "from transformers import pipeline", "", f'answer = pipeline("{kind}", "."{more})']
    if two:
        code += ['answer({"text": "a text", "text_pair": "another"})']
    if several:
        code += ["# each class has a probability of its own; those above one half are the answer"]
    return [*code, "```"]


def _use_sentences(reads: Reads, two: bool) -> list[str]:
    """Code that prints what a text is."""
    texts = '[("a text", "its second"), ("another", "and its own")]' if two else '["a text", "another one"]'
    shown = {
        "class": ["rows.softmax(1)", "names[int(row.argmax())], float(row.max())"],
        "classes": ["rows.sigmoid()", "[name for name, p in zip(names, row) if p > 0.5]"],
        "number": ["rows", "float(row[0])"],
    }
    answers, answer = shown[str(reads.label)]
    names = [] if reads.label == "number" else ["names = model[0].auto_model.config.labels"]
    unit = "the number of each text, in the labels' unit" if reads.label == "number" else "(N, K) logits, no embeddings"
    return [
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer(".")',
        *names,
        f"texts = {texts}",
        f"rows = model.encode(texts, convert_to_tensor=True)  # {unit}",
        f"for text, row in zip(texts, {answers}):",
        f"    print(text, {answer})",
        "```",
    ]


def _limits(report: dict[str, Any]) -> list[str]:
    lines = [
        "- It was measured on one public test set; other texts than those may be answered worse.",
        "- Answers are no explanations: see the run's report for what was looked at.",
    ]
    if report["privacy"]["mode"] == "none":
        lines.insert(0, "- No privacy was promised: parts of training records may be read from these weights.")
    if not report.get("robustness"):
        lines.append("- Nobody has measured how it answers to noise or attacks (`confide evaluate robustness`).")
    return lines


def _licence(backbone: str, licence: str) -> str:
    if licence == _UNKNOWN:
        return f"The licence of `{backbone}` was not found beside its weights; look it up before you pass this on."
    return f"The backbone `{backbone}` is under `{licence}`, which binds what is built on it."
