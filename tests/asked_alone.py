"""A script without confide: asks exported folders what they answer, and says how far that is from what was wanted.

    python -I asked_alone.py cases.json

A case has a name, a kind (a function here), a folder, and what is given and wanted. A line of JSON comes out for each.
"""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

Case = dict[str, Any]
Answers = list[dict[str, float]]
"""of each record, a number by name"""


def piped(case: Case) -> float:
    """Of `pipeline`, and of what it has saved and pushed."""
    from transformers import pipeline

    task, folder = case["task"], case["folder"]
    asked: Any = pipeline(task, folder)
    found = _shares(asked(case["given"], **case["options"]))
    asked.save_pretrained(f"{folder}-again")
    again: Any = pipeline(task, f"{folder}-again")
    if _shares(again(case["given"], **case["options"])) != found:
        raise ValueError("it answers otherwise when it was saved and loaded")
    with _no_network() as pushed:
        asked.model.push_to_hub("somebody/model")
    if not any(name.endswith(".safetensors") for name in pushed):
        raise ValueError(f"pushed: {sorted(pushed)}")
    return _apart(found, case["wanted"])


def encoded(case: Case) -> float:
    """Of `SentenceTransformer`, and of what it has saved and pushed."""
    from sentence_transformers import SentenceTransformer

    folder, given = case["folder"], [tuple(one) if isinstance(one, list) else one for one in case["given"]]
    model = SentenceTransformer(folder)
    found = _named(model, given, case["link"])
    model.save_pretrained(f"{folder}-again")
    if _named(SentenceTransformer(f"{folder}-again"), given, case["link"]) != found:
        raise ValueError("it answers otherwise when it was saved and loaded")
    with _no_network() as pushed:
        model.push_to_hub("somebody/model")
    if "modules.json" not in pushed:
        raise ValueError(f"pushed: {sorted(pushed)}")
    for place in (folder, f"{folder}-again", f"{folder}/0_Transformer"):
        if (answer := _answered(place)) is not None:
            raise ValueError(f"pipeline answers from a random head: {answer}")
    return _apart(found, case["wanted"])


def _answered(folder: str) -> Any:
    """What `pipeline` answers; None where it fails."""
    from transformers import pipeline

    try:
        return pipeline("text-classification", folder)("a text")
    except Exception:  # of a library that finds no head
        return None


def _named(model: Any, given: list, link: str) -> Answers:
    rows, names = model.encode(given, convert_to_tensor=True), model[0].auto_model.config.labels
    return [dict(zip(names, row, strict=True)) for row in _linked(rows, link).tolist()]


def by_onnx(case: Case) -> float:
    """Of onnxruntime and tokenizers alone."""
    import onnxruntime
    from tokenizers import Tokenizer

    folder = Path(case["folder"])
    facts = json.loads((folder / "variant.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    wanted_inputs = {one.name for one in session.get_inputs()}
    found: Answers = []
    for number, text in enumerate(case["given"]):
        inputs: dict[str, np.ndarray] = {}
        if "input_ids" in wanted_inputs:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.enable_truncation(facts["max_length"])
            one = tokenizer.encode(*text) if isinstance(text, list) else tokenizer.encode(text)
            every = {"input_ids": one.ids, "attention_mask": one.attention_mask, "token_type_ids": one.type_ids}
            inputs = {name: np.array([values]) for name, values in every.items() if name in wanted_inputs}
        if "pixel_values" in wanted_inputs:
            inputs["pixel_values"] = np.array([case["images"][number]], dtype=np.float32)
        logits = torch.from_numpy(np.asarray(session.run(None, inputs)[0]))
        if logits.ndim == 3:
            found.append({str(i): value for i, value in enumerate(logits[0].softmax(1).max(1).values.tolist())})
            continue
        mean, deviation = facts["scale"] or (0.0, 1.0)
        names = facts["labels"] or ["number"]
        row = (_linked(logits, case["link"]) * deviation + mean)[0].tolist()
        found.append(dict(zip(names, row, strict=True)))
    return _apart(found, case["wanted"])


def by_peft(case: Case) -> float:
    """Of PEFT on the backbone in its auto class, logits beside those of the plain folder."""
    import transformers
    from peft import PeftModel

    kind = getattr(transformers, case["class"])
    plain = kind.from_pretrained(case["folder"]).eval()
    config = plain.config
    base = kind.from_pretrained(case["base"], config=config)
    model: Any = PeftModel.from_pretrained(base, f"{case['folder']}/adapter").eval()
    if "images" in case:
        inputs = {"pixel_values": torch.tensor(case["images"], dtype=torch.float32) / 127.5 - 1}
    else:
        reader = transformers.AutoTokenizer.from_pretrained(case["folder"])
        inputs = dict(reader(case["given"], return_tensors="pt", padding=True))
    with torch.no_grad():
        found, wanted = (one(**inputs).logits.float() for one in (model, plain))
    return float((found - wanted).abs().max())


def _linked(rows: torch.Tensor, link: str) -> torch.Tensor:
    return {"softmax": rows.softmax(-1), "sigmoid": rows.sigmoid(), "none": rows}[link]


def _shares(answers: list) -> Answers:
    """Whatever a pipeline answers, as numbers by name."""
    found: Answers = []
    for one in answers:
        rows = one if isinstance(one, list) else [one]
        if "generated_text" in rows[0]:
            found.append({row["generated_text"]: 0.0 for row in rows})
        elif "entity" in rows[0]:
            found.append({f"{row['start']} {row['entity']}": float(row["score"]) for row in rows})
        else:
            found.append({row.get("label", row.get("token_str")): float(row["score"]) for row in rows})
    return found


def _apart(found: Answers, wanted: Answers) -> float:
    """Relative where numbers are above 1. Raises ValueError for other names."""
    if len(found) != len(wanted):
        raise ValueError(f"{len(found)} answers, {len(wanted)} wanted")
    largest = 0.0
    for one, right in zip(found, wanted, strict=True):
        if not right.keys() <= one.keys():
            raise ValueError(f"answers {sorted(one)}, wanted {sorted(right)}")
        apart = (abs(one[name] - value) / max(1.0, abs(value)) for name, value in right.items())
        largest = max(largest, *apart)
    return largest


@contextmanager
def _no_network() -> Iterator[set[str]]:
    """Within, what would go to a hub is noted by name."""
    import huggingface_hub
    from huggingface_hub import HfApi

    pushed: set[str] = set()

    def commit(self: Any, repo_id: str, operations: Any, **_: object) -> Any:
        pushed.update(one.path_in_repo for one in operations)
        return SimpleNamespace(commit_url="")

    def upload(self: Any, *, folder_path: str, **_: object) -> Any:
        pushed.update(str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file())
        return SimpleNamespace(commit_url="")

    def create(self: Any, repo_id: str, **_: object) -> Any:
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    changed = {"create_commit": commit, "upload_folder": upload, "create_repo": create, "repo_exists": lambda *_: True}
    before = {name: getattr(HfApi, name) for name in changed}
    for name, function in changed.items():
        setattr(HfApi, name, function)
    modules = [module for name, module in sys.modules.items() if name.startswith("transformers.utils.hub")]
    bound = {(module, name): getattr(module, name) for module in modules for name in changed if hasattr(module, name)}
    for module, name in bound:
        setattr(module, name, getattr(HfApi(), name))
    try:
        yield pushed
    finally:
        for name, function in before.items():
            setattr(HfApi, name, function)
        for (module, name), function in bound.items():
            setattr(module, name, function)


KINDS: dict[str, Callable[[Case], float]] = {"piped": piped, "encoded": encoded, "onnx": by_onnx, "peft": by_peft}


def has_sentences() -> bool:
    return importlib.util.find_spec("sentence_transformers") is not None


def main(path: str) -> None:
    for case in json.loads(Path(path).read_text(encoding="utf-8")):
        if case["kind"] == "encoded" and not has_sentences():
            continue
        told: dict[str, Any] = {"name": case["name"], "kind": case["kind"]}
        try:
            told["apart"] = KINDS[case["kind"]](case)
        except Exception as error:  # of one case: others are asked, too
            told["error"] = f"{type(error).__name__}: {error}"
        sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    sys.modules["confide"] = None  # pyright: ignore[reportArgumentType]  # whoever asks for it gets an ImportError
    main(sys.argv[1])
