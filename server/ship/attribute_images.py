"""Why a model took an image for what it did: integrated gradients on its values, as an image, with the same checks as
maps of words.

The baseline is the mean of the public test images: what an image of no class in particular looks like. What is shown
are the scores of small squares, at most `_CELLS` a side.
"""

import base64
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common.data.images import as_png, decoded
from ...common.data.sources import shuffled_limit
from ...common.errors import ConfigError
from ...common.stages import Stages
from ...common.tasks import tasks_where
from ...common.types import ProgressCallback, Rows
from .attribute import NEIGHBOURS, SHARES, TOLERANCE, settled
from .finished import FinishedRun, ImageLogits
from .runtime import softmax

_CELLS = 32
_GREEN, _ORANGE = (46, 160, 100), (234, 110, 60)


def explained_images() -> list[str]:
    """Tasks whose models have maps of images."""
    return tasks_where(lambda task: task.EXPORT == "logits" and not task.READS.text)


class ImageExplainer:
    """Explains one model of images."""

    def __init__(self, run: FinishedRun, public: Rows) -> None:
        """public: images whose mean is the baseline. Raises ConfigError without captum, or for too few."""
        try:
            from captum.attr import IntegratedGradients
        except ModuleNotFoundError as error:
            raise ConfigError(f"explanations need {error.name}; pip install 'confide[ship]'") from None
        if public.images is None or not len(public):
            raise ConfigError("--sample: 0 received; images are compared with the mean of public ones; raise it")
        self.labels = run.labels
        self.module = ImageLogits(run.classifier())
        self.baseline = torch.from_numpy(public.images.astype(np.float32).mean(0))[None]
        self._gradients = IntegratedGradients(self.module)

    def explain(self, image: np.ndarray) -> dict[str, Any]:
        """image: (C, H, W) uint8. The scores of its squares (h, w), and the check of the sum."""
        values = torch.from_numpy(image.astype(np.float32))[None]
        with torch.no_grad():
            logits = self.module(values).numpy()
            chosen = int(logits[0].argmax())
            difference = float(logits[0, chosen] - self.module(self.baseline)[0, chosen])

        def attempt(steps: int) -> np.ndarray:
            found = self._gradients.attribute(
                values, baselines=self.baseline, target=chosen, n_steps=steps, internal_batch_size=64
            )
            return found[0].detach().double().numpy().sum(0)

        scores, delta = settled(attempt, difference)
        squares = _squares(scores)
        return {
            "scores": squares.tolist(),
            "label": self.labels[chosen],
            "probability": float(softmax(logits)[0, chosen]),
            "delta": delta,
            "refused": not delta <= TOLERANCE,
        }

    def curves(self, image: np.ndarray, found: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """As of words, (11,) each, by squares: what is gone is the baseline's."""
        scores = np.asarray(found["scores"])
        orders = {"": np.argsort(-scores.ravel(), kind="stable"), "_random": rng.permutation(scores.size)}
        class_, batch, keys = self.labels.index(found["label"]), [], []
        values = torch.from_numpy(image.astype(np.float32))
        for suffix, order in orders.items():
            for what in ("deletion", "insertion"):
                for share in np.linspace(0, 1, SHARES):
                    touched = np.zeros(scores.size, dtype=bool)
                    touched[order[: round(share * scores.size)]] = True
                    gone = touched if what == "deletion" else ~touched
                    mask = torch.from_numpy(_spread(gone.reshape(scores.shape), image.shape[1:]))
                    batch.append(torch.where(mask, self.baseline[0], values))
                keys.append(what + suffix)
        with torch.no_grad():
            probabilities = softmax(self.module(torch.stack(batch)).numpy())[:, class_]
        return dict(zip(keys, probabilities.reshape(len(keys), SHARES), strict=True))

    @torch.no_grad()
    def vectors(self, images: np.ndarray) -> np.ndarray:
        """(N, h) of unit length, of what the head reads. images: (N, C, H, W)."""
        parts = np.array_split(images, -(-len(images) // 64))
        represent: Any = self.module.classifier.represent
        rows = np.concatenate([represent(pixel_values=torch.from_numpy(part).float()).numpy() for part in parts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)


def explain_images(
    run: FinishedRun, given: list[str], *, sample: int = 60, progress: ProgressCallback = lambda *_: None
) -> dict[str, Any]:
    """Facts for report and terminal, as `explain_run` gives them of texts.

    given: paths of images, or #N for a row of the public test set. Raises ConfigError, DataError.
    """
    test = run.rows()
    public = shuffled_limit(test, sample, run.config.run.seed)
    explainer = ImageExplainer(run, public)
    assert public.images is not None  # noqa: S101  # the explainer has looked
    stages = Stages(progress, {"explaining": len(given), "checking on public images": len(public)})
    stages.done("explaining", 0, len(given))
    near, shown = explainer.vectors(public.images), []
    for number, name in enumerate(given):
        stages.done("explaining", number, len(given))
        image = _image(run, test, name)
        found = explainer.explain(image)
        closeness = near @ explainer.vectors(image[None])[0]
        shown.append(
            {
                **found,
                "name": Path(name).name,
                "image": _png(image.transpose(1, 2, 0)),
                "map": _png(_coloured(image, np.asarray(found["scores"]))),
                "nearest": [
                    {
                        "image": _png(public.images[i].transpose(1, 2, 0)),
                        "label": run.labels[np.asarray(public.labels)[i]],
                        "cosine": float(closeness[i]),
                    }
                    for i in np.argsort(-closeness)[:NEIGHBOURS]
                ],
            }
        )
    deltas, curves = [], defaultdict(list)
    for number, image in enumerate(public.images):
        stages.done("checking on public images", number, len(public))
        found = explainer.explain(image)
        deltas.append(found["delta"])
        if not found["refused"]:
            for key, values in explainer.curves(image, found, np.random.default_rng([number, 0xDE1])).items():
                curves[key].append(values)
    return {
        "texts": [],
        "images": shown,
        "against": None,
        "measure": "probability",
        "sample": len(public),
        "held": float((np.asarray(deltas) <= TOLERANCE).mean()),
        "curves": {key: np.mean(values, axis=0).tolist() for key, values in curves.items()},
        "areas": {key: float(np.mean(values)) for key, values in curves.items()},
        "words": {},
    }


def _image(run: FinishedRun, test: Rows, name: str) -> np.ndarray:
    """(C, H, W) uint8."""
    form = run.model.image
    assert form is not None and test.images is not None  # noqa: S101, PT018  # a run of images
    if name.startswith("#"):
        if not name[1:].isdigit() or int(name[1:]) >= len(test):
            raise ConfigError(f"PICTURE: received '{name}'; allowed: #0 to #{len(test) - 1}, rows of the test set")
        return test.images[int(name[1:])]
    if not Path(name).is_file():
        raise ConfigError(f"PICTURE: no file '{name}'; give an image's path, or #N for a row of the test set")
    return decoded(Path(name).read_bytes(), form, name)


def _squares(scores: np.ndarray) -> np.ndarray:
    """(h, w) sums over squares of (H, W) scores."""
    rows, columns = (np.array_split(np.arange(side), min(side, _CELLS)) for side in scores.shape)
    return np.array([[scores[np.ix_(row, column)].sum() for column in columns] for row in rows])


def _spread(squares: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) of what (h, w) squares say."""
    rows, columns = (
        np.concatenate([np.full(len(part), i) for i, part in enumerate(np.array_split(np.arange(side), count))])
        for side, count in zip(shape, squares.shape, strict=True)
    )
    return squares[np.ix_(rows, columns)]


def _coloured(image: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the image in grey, green where it speaks for the class, orange where against it."""
    scores = _spread(squares, image.shape[1:])
    strength = np.abs(scores)[..., None] / max(float(np.abs(scores).max()), 1e-12)
    colour = np.where(scores[..., None] > 0, _GREEN, _ORANGE)
    grey = image.mean(0)[..., None]
    return np.rint((1 - 0.85 * strength) * grey + 0.85 * strength * colour).astype(np.uint8)


def _png(values: np.ndarray) -> str:
    """(H, W, 1 or 3) uint8 → base64."""
    return base64.b64encode(as_png(values[..., 0] if values.shape[-1] == 1 else values)).decode()
