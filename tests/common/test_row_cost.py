"""What one record may cost in time and memory: bounded before it is read, or a round would end because of it."""

import io
import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from confide.common.config.tables import DataSection
from confide.common.data.chat_template import _exchanges
from confide.common.data.images import ImageForm, read_image
from confide.common.data.sources import read_checked
from confide.common.errors import DataError
from confide.common.types import Conversation, Reads

SECONDS = 10.0
"""by what took hours before; now far less than one"""
FORM = ImageForm(3, 24, 24)
ROLES = ("user", "assistant", "tool", "system")


def by_parts(turns: Conversation) -> list[Conversation]:
    """The exchanges as they are explained: cut before each user's message, and joined until somebody answers."""
    first = int(turns[0][0] == "system")
    found: list[Conversation] = []
    for place, message in enumerate(turns[first:]):
        begins = place > 0 and message[0] == "user" and any(role == "assistant" for role, _ in found[-1])
        if begins or not found:
            found.append(())
        found[-1] += (message,)
    return found


def test_exchanges_are_cut_before_the_user_who_was_answered() -> None:
    rng = np.random.default_rng(3)
    for count in [*range(1, 12)] * 20:
        turns = tuple((str(role), str(place)) for place, role in enumerate(rng.choice(ROLES, count)))
        begin, exchanges = _exchanges((*turns, ("assistant", "last")))
        assert exchanges == by_parts((*turns, ("assistant", "last")))
        assert [*begin, *(one for part in exchanges for one in part)] == [*turns, ("assistant", "last")]


def test_a_conversation_of_a_hundred_thousand_messages() -> None:
    """It took the square of their number: 400,000 of them, 12 MB, more than the hour that a site has."""
    turns = (*[("user", "x")] * 100_000, ("assistant", "y"))
    started = time.monotonic()
    assert _exchanges(turns)[1] == [turns]
    assert time.monotonic() - started < SECONDS


def written(folder: Path, rows: list[dict]) -> str:
    path = folder / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_person_s_name_is_bounded(tmp_path: Path) -> None:
    """Accents are put in order before they are joined, which takes the square of their number."""
    names = ["p1", "a" + "\u0301\u0316" * 200_000, "b" * 1000, "b" * 1001]
    source = written(tmp_path, [{"text": "a film", "who": name} for name in names])
    started = time.monotonic()
    found = read_checked(source, DataSection(test="x", person="who"), None, reads=Reads(label=None))
    assert time.monotonic() - started < SECONDS
    assert found.rows.person is not None
    assert found.rows.person.tolist() == ["p1", "b" * 1000]
    assert [(one.row, one.column) for one in found.problems] == [(2, "who"), (4, "who")]
    assert "at most" not in found.problems[0].what
    assert "more than 1,000 characters" in found.problems[0].what


def test_of_a_million_unknown_labels_the_first_decides(tmp_path: Path) -> None:
    source = written(tmp_path, [{"text": "a film", "label": ["x"] * 1_000_000}, {"text": "a film", "label": ["yes"]}])
    started = time.monotonic()
    found = read_checked(source, DataSection(test="x"), ["no", "yes"], reads=Reads("classes"))
    assert time.monotonic() - started < SECONDS
    assert [one.row for one in found.problems] == [1]
    assert found.classes == {"yes": 1}


def pages(count: int) -> bytes:
    """A TIFF of so many pages, all of which are the first: 111 bytes a page."""
    target = io.BytesIO()
    Image.new("L", (2, 2)).save(target, "TIFF")
    content = target.getvalue()
    start = struct.unpack("<I", content[4:8])[0]
    end = start + 2 + 12 * struct.unpack("<H", content[start : start + 2])[0]
    page, places = content[start:end], len(content) + (end - start + 4) * np.arange(count)
    chain = b"".join(page + struct.pack("<I", after) for after in [*places[1:], 0])
    return content[:end] + struct.pack("<I", places[0]) + content[end + 4 :] + chain


def scans(count: int) -> bytes:
    """A JPEG whose last pass comes so many times more: some fifty bytes each."""
    target = io.BytesIO()
    Image.new("L", (512, 512)).save(target, "JPEG", progressive=True)
    content = target.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * count + content[-2:]


def test_pages_are_not_counted() -> None:
    started = time.monotonic()
    with pytest.raises(DataError, match="several pages"):
        read_image(pages(60_000), Path(), FORM, "row 7")
    assert time.monotonic() - started < SECONDS


def test_an_image_is_gone_over_a_hundred_times_at_most() -> None:
    assert not read_image(scans(50), Path(), FORM, "row 7").any()
    with pytest.raises(DataError, match="row 7: an image in more than 100 passes; save it again"):
        read_image(scans(100), Path(), FORM, "row 7")


def test_numbers_of_large_images_are_scaled_in_parts() -> None:
    """Those of several tiles as those of one, in any byte order."""
    values = np.random.default_rng(2).integers(0, 4000, (1030, 2050)).astype(np.uint16)
    whole = ImageForm(1, 1030, 2050)
    for image, kind in ((values, "PNG"), (values, "TIFF"), (values.astype(">u2"), "TIFF"), (values / 4096, "TIFF")):
        target = io.BytesIO()
        Image.fromarray(image if image.dtype != float else image.astype("float32")).save(target, kind)
        white = 1.0 if image.dtype == float else 4095.0
        expected = np.rint(image.astype(float) * (255 / white))
        assert np.abs(read_image(target.getvalue(), Path(), whole, "row 7")[0] - expected).max() <= (white == 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["I;16", "F", "RGB", "RGBA", "CMYK"])
def test_the_largest_image_fits_into_what_the_documentation_says(tmp_path: Path, mode: str, kind: str) -> None:
    """The peak of a process of its own: 16 bits and broken numbers took 0.9 GB."""
    exif = Image.Exif()
    exif[0x0112] = 6
    numbers = {"I;16": np.full((4096, 8192), 700, np.uint16), "F": np.full((4096, 8192), 0.5, np.float32)}
    image = Image.fromarray(numbers[mode]) if mode in numbers else Image.new(mode, (8192, 4096))
    if mode == "RGBA":
        image.putalpha(255)
    packed = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    try:
        image.save(tmp_path / "image", kind, exif=exif, **packed)
    except (OSError, ValueError, KeyError):
        pytest.skip(f"{kind} has no {mode}")
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from confide.common.data.images import ImageForm, read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "read_image(sys.argv[1], Path(), ImageForm(3, 224, 224), 'image')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "image")]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(told.stdout) * (1 if sys.platform == "darwin" else 1024) < 6e8
