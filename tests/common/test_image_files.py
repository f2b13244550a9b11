"""Images as cameras, scanners and programs write them: the same picture, or a refusal that says what to do."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from confide.common.data.images import ImageForm, as_png, read_image
from confide.common.errors import DataError

SIDE, GREY, COLOURS = 24, ImageForm(1, 24, 24), ImageForm(3, 24, 24)
ORIENTATION, PHOTOMETRIC = 0x0112, 262


@pytest.fixture
def grey() -> np.ndarray:
    """(24, 24) in [0, 1], white somewhere: other in every corner, so that a turn shows."""
    return np.outer(np.linspace(0.2, 1, SIDE), np.linspace(0.5, 1, SIDE))


def written(image: Image.Image, kind: str, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def read(content: bytes, form: ImageForm = GREY) -> np.ndarray:
    return read_image(content, Path(), form, "row 7").astype(int)


def whole(grey: np.ndarray, most: int, kind: str = "uint16") -> Image.Image:
    return Image.fromarray(np.rint(grey * most).astype(kind))


@pytest.mark.parametrize("form", [GREY, COLOURS])
@pytest.mark.parametrize(
    "file",
    [
        lambda grey: written(whole(grey, 65535), "PNG"),
        lambda grey: written(whole(grey, 65535), "TIFF"),
        lambda grey: written(whole(grey, 4095), "TIFF"),
        lambda grey: written(whole(grey, 1023), "PNG"),
        lambda grey: written(whole(grey, 2**24 - 1, "int32"), "TIFF"),
        lambda grey: written(Image.fromarray(grey.astype("float32")), "TIFF"),
        lambda grey: written(Image.fromarray((255 * grey).astype("float32")), "TIFF"),
        lambda grey: written(whole(grey, 255, "uint8").convert("P"), "PNG"),
        lambda grey: written(whole(grey, 255, "uint8").convert("RGBA"), "PNG"),
        lambda grey: written(whole(grey, 255, "uint8").convert("RGBA"), "WEBP", lossless=True),
        lambda grey: written(whole(grey, 255, "uint8").convert("CMYK"), "TIFF"),
    ],
)
def test_the_picture_is_the_same(grey: np.ndarray, file: Callable[[np.ndarray], bytes], form: ImageForm) -> None:
    plain = read(as_png(np.rint(grey * 255).astype(np.uint8)), form)
    assert np.abs(read(file(grey), form) - plain).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(("orientation", "turn"), [(3, 180), (6, 90), (8, 270)])
def test_it_stands_upright(grey: np.ndarray, kind: str, orientation: int, turn: int) -> None:
    upright = whole(grey, 255, "uint8").convert("RGB")
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = written(upright.rotate(turn, expand=True), kind, exif=exif)
    assert np.abs(read(content) - read(as_png(np.asarray(upright)))).max() <= 12  # JPEG and WEBP lose some


def test_sixteen_bits_stand_upright_too(grey: np.ndarray) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for kind in ("PNG", "TIFF"):
        content = written(whole(np.rot90(grey), 65535), kind, exif=exif)
        assert np.abs(read(content) - np.rint(grey * 255)).max() <= 1


def test_zero_may_be_white(grey: np.ndarray) -> None:
    content = written(whole(1 - grey, 65535), "TIFF", tiffinfo={PHOTOMETRIC: 0})
    assert np.abs(read(content) - np.rint(grey * 255)).max() <= 1


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (lambda grey: layered(grey, 254), "transparent pixels; lay it on a background"),
        (lambda grey: written(whole(grey, 255, "uint8").convert("P"), "PNG", transparency=200), "transparent pixels"),
        (lambda grey: written(Image.fromarray((grey - 1).astype("float32")), "TIFF"), "not 0 to 1, or 0 to 255"),
        (lambda grey: written(Image.fromarray((grey * 999).astype("float32")), "TIFF"), "not 0 to 1, or 0 to 255"),
        (lambda grey: written(Image.fromarray((grey * np.nan).astype("float32")), "TIFF"), "not 0 to 1"),
        (lambda grey: written(whole(grey - 2, 1000, "int32"), "TIFF"), "not 0 or more"),
        (lambda grey: paged(grey, "TIFF"), "several pages or frames"),
        (lambda grey: paged(grey, "WEBP"), "several pages or frames"),
        (lambda grey: paged(grey, "PNG"), "several pages or frames"),
    ],
)
def test_what_has_no_one_meaning_is_refused_by_row(grey: np.ndarray, file: Callable, why: str) -> None:
    with pytest.raises(DataError, match=f"^row 7: .*{why}"):
        read(file(grey))


def layered(grey: np.ndarray, opacity: int) -> bytes:
    image = whole(grey, 255, "uint8").convert("RGBA")
    image.putpixel((3, 3), (0, 0, 0, opacity))
    return written(image, "PNG")


def paged(grey: np.ndarray, kind: str) -> bytes:
    other = whole(grey[::-1], 255, "uint8")
    return written(whole(grey, 255, "uint8"), kind, save_all=True, append_images=[other])
