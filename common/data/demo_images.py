"""Handwritten digits for the image tasks: scikit-learn's 1,797 real scans of 8 × 8 pixels (Alpaydin and Kaynak 1998).

`demo:digits/SPLIT`: the images as they are. `demo:half-digits/SPLIT`: the left, right, upper or lower half of each is
missing, and a text says one true thing about the digit: neither alone tells enough.
"""

import numpy as np
import pyarrow as pa

from ..errors import DataError
from .images import as_png

SETS = ("digits", "half-digits")
_TRAIN = 1400
_SAID = {
    "it is an even number": {0, 2, 4, 6, 8},
    "nobody could halve it without a rest": {1, 3, 5, 7, 9},
    "it is less than three": {0, 1, 2},
    "it lies between three and five": {3, 4, 5},
    "a half dozen or a little more": {6, 7},
    "only a little below ten": {8, 9},
    "it is drawn with a closed loop": {0, 6, 8, 9},
    "its strokes are mostly straight": {1, 4, 7},
    "the pen draws an open curve": {2, 3, 5},
    "multiplied by itself it has one figure": {0, 1, 2, 3},
    "it is a prime": {2, 3, 5, 7},
    "it is the square of something": {0, 1, 4, 9},
}


def digits(spec: str) -> pa.Table:
    """Columns image (PNG), text and label of SET/SPLIT. Raises DataError for another spec, or without scikit-learn."""
    name, _, split = spec.partition("/")
    if name not in SETS or split not in ("train", "test"):
        raise DataError(f"demo:{spec}: allowed: {', '.join(f'demo:{s}/train, demo:{s}/test' for s in SETS)}")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(f"demo:{spec}: the digits come with scikit-learn; install confide[data]") from None
    scans, answers = load_digits(return_X_y=True)
    images = np.rint(np.asarray(scans).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    rng = np.random.default_rng(0xD161)
    order, halves = rng.permutation(len(images)), rng.integers(0, 4, len(images))
    chosen = order[:_TRAIN] if split == "train" else order[_TRAIN:]
    texts = [str(rng.choice([said for said, those in _SAID.items() if digit in those])) for digit in answers]
    if name == "half-digits":
        for image, half in zip(images, halves, strict=True):
            side = slice(0, 4) if half % 2 else slice(4, 8)
            image[(side, slice(None)) if half < 2 else (slice(None), side)] = 0
    return pa.table(
        {
            "image": pa.array([as_png(images[i]) for i in chosen], pa.binary()),
            "text": [texts[i] for i in chosen],
            "label": [str(answers[i]) for i in chosen],
        }
    )
