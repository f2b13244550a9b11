"""Images: read from a column of a table, and perturbed copies of them. No torch: `confide predict` may run without it.

A column holds paths (relative to the table's folder) or encoded files as bytes, alone or as the hub's {bytes, path}.
Images are scaled to what the backbone takes when they are read, and stay 8-bit until a batch is made.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
LARGEST = 32 * 2**20
"""pixels; beyond that a file is taken for an attack on memory"""
LARGEST_FILE = 64 * 2**20
"""bytes of an encoded image"""
_PASSES = 100
"""of a progressive JPEG, each of some bytes, which go over the whole image again; programs write about ten"""
_TILE = 1024
"""pixels a side of what is scaled at once: of a large image all numbers together would take a gigabyte"""
_BEGINNINGS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_JPEG, _PASS = b"\xff\xd8\xff", b"\xff\xda"
_MODES = {1: "L", 3: "RGB"}
_DEPTHS = (8, 10, 12, 14, 16, 24, 32)
"""bits of a number that cameras and scanners write, whatever the file's own numbers could hold"""
_INVERTED, _PHOTOMETRIC = 0, 262
"""a TIFF's tag, and its value where zero is white"""


@dataclass(frozen=True)
class ImageForm:
    """What a backbone takes."""

    channels: int
    height: int
    width: int
    mean: tuple[float, ...] = (0.5,)
    deviation: tuple[float, ...] = (0.5,)
    """one a channel, of values in [0, 1]"""

    @classmethod
    def of(cls, backbone: "PreTrainedModel", path: str) -> "ImageForm":
        """From the backbone's configuration and, if there is one, its preprocessor_config.json. Raises ModelError."""
        config = backbone.config
        size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
        if size is None or channels not in _MODES:
            raise ModelError(
                f"model.backbone: {type(backbone).__name__} takes no images of 1 or 3 channels; give a vision "
                "transformer, such as a ViT"
            )
        height, width = (size, size) if isinstance(size, int) else size
        file = Path(path) / "preprocessor_config.json"
        try:
            content = dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
            mean, deviation = (
                tuple(float(value) for value in content.get(key) or [0.5] * channels)
                for key in ("image_mean", "image_std")
            )
        except (ValueError, TypeError, RecursionError):
            raise ModelError(
                f"{file}: not JSON, or image_mean and image_std are no lists of numbers; download it again"
            ) from None
        if len(mean) != channels or len(deviation) != channels or min(deviation) <= 0:
            raise ModelError(
                f"{file}: image_mean and image_std need {channels} numbers, the latter above 0; correct it"
            )
        return cls(channels, int(height), int(width), mean, deviation)


def read_image(value: Any, folder: Path, form: ImageForm, where: str) -> np.ndarray:
    """(C, H, W) uint8 from a path in `folder`, encoded bytes, or the hub's {bytes, path}.

    Raises DataError, which begins with `where`.
    """
    return decoded(image_file(value, folder, where), form, where)


def image_file(value: Any, folder: Path, where: str) -> bytes:
    """The encoded file of the same, not yet decoded: of `LARGEST_FILE` bytes at most, and no other kind of file.

    Other files are not read but for their first bytes: some of the machine's change from one look to the next, and with
    them what the table holds. Raises DataError, which begins with `where`.
    """
    content = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
    if isinstance(content, str) and content.strip():
        try:
            content = _read(folder / content, where)
        except (OSError, ValueError) as error:
            raise DataError(f"{where}: the image's file cannot be read ({type(error).__name__})") from None
    if not isinstance(content, bytes) or not content:
        raise DataError(f"{where}: no image; expected a path or the bytes of a {', '.join(_FORMATS)} file")
    if len(content) > LARGEST_FILE:
        raise DataError(f"{where}: an image's file of more than {LARGEST_FILE:,} bytes; make it smaller")
    if not content.startswith(_BEGINNINGS):
        raise DataError(f"{where}: not a readable {', '.join(_FORMATS)} image; convert it")
    return content


def _read(path: Path, where: str) -> bytes:
    """Its first bytes alone where they are of no image; no more than is needed to see that it is too large."""
    if path.exists() and not path.is_file():
        raise DataError(f"{where}: the image's path is not of a file; correct it")
    with path.open("rb") as file:
        head = file.read(16)
        return head + file.read(LARGEST_FILE) if head.startswith(_BEGINNINGS) else head


def decoded(content: bytes, form: ImageForm, where: str, largest: int = LARGEST) -> np.ndarray:
    """(C, H, W) uint8 from a file's bytes, upright as its camera says. largest: pixels. Raises DataError."""
    if content.startswith(_JPEG) and content.count(_PASS) > _PASSES:
        raise DataError(f"{where}: an image in more than {_PASSES} passes; save it again")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > largest:
                raise DataError(f"{where}: an image of {image.width} × {image.height}; at most {largest:,} pixels")
            if getattr(image, "is_animated", False):  # to count them all may take an hour
                raise DataError(f"{where}: an image of several pages or frames; give one a row")
            values = np.array(_fitted(_in_eight_bits(image, where), form), dtype=np.uint8)  # its own, to be written to
    except DataError:
        raise
    except Exception:  # a damaged file makes a decoder raise anything, and a row that ends a run tells of itself
        raise DataError(f"{where}: not a readable {', '.join(_FORMATS)} image; convert it") from None
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def _fitted(image: Image.Image, form: ImageForm) -> Image.Image:
    """Upright, and as the backbone takes it, with as few copies as can be; grey becomes coloured when it is small."""
    ImageOps.exif_transpose(image, in_place=True)
    mode, size = _MODES[form.channels], (form.width, form.height)
    if image.mode not in (mode, "L"):
        image = image.convert(mode)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return image.convert(mode)


def _in_eight_bits(image: Image.Image, where: str) -> Image.Image:
    """The image with numbers from 0 to 255, of which the last is white. Raises DataError for what has no such meaning.

    Numbers of more bits have the range of the least depth in `_DEPTHS` that holds the brightest pixel, since scanners
    write 12 bits in 16; broken numbers that of 0 to 1, or of 0 to 255.
    """
    if image.has_transparency_data:
        layered = image if image.mode == "RGBA" else image.convert("RGBA")
        if layered.getchannel("A").getextrema()[0] != 255:
            raise DataError(f"{where}: an image with transparent pixels; lay it on a background first, white or black")
        return _kept(layered.convert("RGB"), image)
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    ends = [(part.min(), part.max()) for _, part in _tiles(image)]
    lowest, highest = np.min(ends), np.max(ends)  # NaN where a number is none
    if not (np.isfinite([lowest, highest]).all() and lowest >= 0 and (image.mode != "F" or highest <= 255)):
        what = "0 to 1, or 0 to 255" if image.mode == "F" else "0 or more"
        raise DataError(f"{where}: an image whose numbers are not {what}; convert it to 8 or 16 bits")
    if image.mode == "F":
        white = 1.0 if highest <= 1 else 255.0
    else:
        white = next(2.0**depth - 1 for depth in _DEPTHS if highest < 2**depth)
    scaled = np.empty((image.height, image.width), dtype=np.uint8)
    for place, part in _tiles(image):
        scaled[place] = np.rint(part * (255 / white))
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _INVERTED:
        scaled = 255 - scaled
    return _kept(Image.fromarray(scaled), image)


def _tiles(image: Image.Image) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """Parts of an image: where they are, and their numbers as (h, w) float64."""
    for top, left in product(range(0, image.height, _TILE), range(0, image.width, _TILE)):
        bottom, right = min(top + _TILE, image.height), min(left + _TILE, image.width)
        part = np.asarray(image.crop((left, top, right, bottom)), dtype=np.float64)
        yield (slice(top, bottom), slice(left, right)), part


def _kept(made: Image.Image, image: Image.Image) -> Image.Image:
    """With the orientation of the image that it was made of."""
    made.info["exif"] = image.getexif().tobytes()
    return made


def as_png(values: np.ndarray) -> bytes:
    """values: (H, W) or (H, W, 3) uint8."""
    target = io.BytesIO()
    Image.fromarray(values).save(target, "PNG")
    return target.getvalue()


def perturbed(images: np.ndarray, flip: bool, shift: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Copies that are mirrored (half of them), moved by up to `shift` pixels, and noised; (N, C, H, W) uint8.

    noise: standard deviation, as a share of the whole range. What a shift uncovers is the edge, repeated.
    """
    result = images.copy()
    if flip:
        mirrored = rng.random(len(result)) < 0.5
        result[mirrored] = result[mirrored][..., ::-1]
    if shift:
        padded = np.pad(result, ((0, 0), (0, 0), (shift, shift), (shift, shift)), mode="edge")
        height, width = images.shape[2:]
        for number, (down, right) in enumerate(rng.integers(0, 2 * shift + 1, (len(result), 2))):
            result[number] = padded[number, :, down : down + height, right : right + width]
    if noise:
        moved = result + rng.normal(0, 255 * noise, result.shape)
        result = np.clip(np.rint(moved), 0, 255).astype(np.uint8)
    return result
