"""Decoding strangers' pictures: what comes out is a clean small JPEG or a reason."""

import io
import os
import signal
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import descendants, encoded, needs_proc, picture
from PIL import Image, ImageColor, ImageDraw

from coyo_tools.decoding import decode_picture
from coyo_tools.errors import CoyoError
from coyo_tools.phash import phash
from coyo_tools.picture_workers import PictureWorkers
from coyo_tools.pictures import (
    MAX_PIXELS,
    RESIZES,
    Picture,
    PictureSettings,
    Refusal,
    check_picture_settings,
)

SMALL = PictureSettings(image_size=64, quality=95)


def decode(data: bytes, settings: PictureSettings = SMALL) -> tuple[Picture, Image.Image]:
    """Decode what must decode; the picture and what its JPEG shows."""
    result = decode_picture(data, settings)
    assert isinstance(result, Picture), result
    shown = Image.open(io.BytesIO(result.jpeg))
    assert (shown.format, shown.mode) == ("JPEG", "RGB")
    return result, shown


def refusal(data: bytes | Path, settings: PictureSettings = SMALL) -> Refusal:
    result = decode_picture(data, settings)
    assert isinstance(result, Refusal)
    return result


def near(shown: Image.Image, at: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    """Whether a pixel has a colour, give or take what JPEG does to it."""
    seen = shown.getpixel(at)
    return all(abs(one - other) <= 12 for one, other in zip(seen, colour, strict=True))


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"]
CASES = [
    (mode, kind)
    for mode in MODES
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
    if not (kind == "JPEG" and mode in ("LA", "P", "PA", "RGBA", "I;16", "F"))
    if not (kind in ("WEBP", "AVIF", "GIF") and mode in ("CMYK", "YCbCr", "I;16", "F", "PA"))
    if not (kind == "BMP" and mode not in ("1", "L", "P", "RGB", "RGBA"))
    if not (kind == "PNG" and mode in ("PA", "CMYK", "YCbCr", "F"))
    if not (kind == "TIFF" and mode in ("YCbCr", "PA"))
]


@pytest.mark.parametrize(("mode", "kind"), CASES)
def test_every_mode_of_every_format_becomes_an_rgb_jpeg(mode: str, kind: str) -> None:
    image = picture(0, (60, 40))
    image = image.convert("P").convert("PA") if mode == "PA" else image
    image = image.convert("L").convert(mode) if mode in ("I;16", "F") else image.convert(mode)
    made, shown = decode(encoded(image, kind))
    assert (made.width, made.height) == shown.size == (60, 40)
    assert len(made.image_phash) == 16


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "P", "RGBA", "L"])
def test_colours_come_through(mode: str) -> None:
    image = Image.new("RGB", (32, 32), (200, 40, 40))
    made, shown = decode(encoded(image.convert(mode, palette=Image.Palette.ADAPTIVE), "TIFF"))
    grey = image.convert("L").getpixel((0, 0))
    expected = (grey,) * 3 if mode == "L" else (200, 40, 40)
    assert near(shown, (16, 16), expected)
    assert made.image_phash == "8000000000000000"


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    ramp = np.linspace(0, 65_535, 64, dtype=np.uint16)
    image = Image.fromarray(np.tile(ramp, (64, 1)))
    assert image.mode == "I;16"
    _, shown = decode(encoded(image, "PNG"))
    for x in (0, 16, 32, 48, 63):
        assert near(shown, (x, 32), (int(ramp[x] >> 8),) * 3)


def test_alpha_is_laid_on_white() -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((0, 0, 31, 63), fill=(0, 0, 255, 255))
    for kind in ("PNG", "WEBP", "TIFF"):
        _, shown = decode(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
        assert near(shown, (10, 32), (0, 0, 255)), kind
        assert near(shown, (54, 32), (255, 255, 255)), kind


def test_the_transparent_entry_of_a_palette_is_white() -> None:
    image = Image.new("P", (64, 64), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    ImageDraw.Draw(image).rectangle((0, 0, 31, 63), fill=1)
    _, shown = decode(encoded(image, "PNG", transparency=0))
    assert near(shown, (10, 32), (0, 255, 0))
    assert near(shown, (54, 32), (255, 255, 255))


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        _, shown = decode(data)
        assert near(shown, (32, 32), (255, 0, 0)), kind


@pytest.mark.parametrize(("orientation", "corner"), [(1, (5, 5)), (3, (58, 42)), (6, (42, 5))])
def test_the_jpeg_is_upright_and_the_measures_are_those_of_the_file(
    orientation: int, corner: tuple[int, int]
) -> None:
    image = Image.new("RGB", (64, 48), "white")
    ImageDraw.Draw(image).rectangle((0, 0, 20, 20), fill="red")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "JPEG", exif=exif, quality=95)
    made, shown = decode(data)
    assert shown.size == ((48, 64) if orientation == 6 else (64, 48))
    assert near(shown, corner, (254, 0, 0))
    assert (made.width, made.height) == (64, 48)
    assert made.image_phash == phash(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (64, 48)),
        ((480, 640), (48, 64)),
        ((64, 64), (64, 64)),
        ((20, 10), (20, 10)),  # never enlarged
        ((1000, 1), (64, 1)),
        ((1, 1), (1, 1)),
    ],
)
def test_pictures_only_ever_shrink(size: tuple[int, int], expected: tuple[int, int]) -> None:
    made, shown = decode(encoded(picture(0, size), "PNG"))
    assert shown.size == expected
    assert (made.width, made.height) == size


def test_the_stored_size_is_img2datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network
    from img2dataset.resizer import Resizer

    random = np.random.default_rng(0)
    sizes = [(int(w), int(h)) for w, h in random.integers(1, 200, (60, 2))]
    sizes += [(64, 64), (64, 65), (65, 64), (64, 30), (30, 64), (1, 199), (199, 1), (129, 64)]
    for resize in RESIZES:
        theirs = Resizer(64, resize, resize_only_if_bigger=True)
        for size in sizes:
            data = encoded(picture(0, size), "PNG")
            made, shown = decode(data, PictureSettings(64, 90, resize))
            _, width, height, *_ = theirs(io.BytesIO(data))
            assert (made.stored_width, made.stored_height) == shown.size
            assert shown.size == (width, height), (resize, size)


WIDE, TALL = (300, 100), (100, 300)


@pytest.mark.parametrize(
    ("resize", "size", "stored", "left", "middle"),
    [
        # The outer thirds of the longer side are red, the middle is blue.
        ("keep_ratio_largest", WIDE, (60, 20), "red", "blue"),
        ("keep_ratio", WIDE, (180, 60), "red", "blue"),
        ("center_crop", WIDE, (60, 60), "blue", "blue"),
        ("center_crop", TALL, (60, 60), "blue", "blue"),
        ("border", WIDE, (60, 60), "white", "blue"),
        ("border", TALL, (60, 60), "white", "blue"),
        ("no", WIDE, (300, 100), "red", "blue"),
        ("center_crop", (300, 50), (300, 50), "red", "blue"),  # 50 is not above 60
        ("border", (60, 20), (60, 20), "red", "blue"),
    ],
)
def test_resize_modes_show_what_their_names_say(
    resize: str, size: tuple[int, int], stored: tuple[int, int], left: str, middle: str
) -> None:
    width, height = size
    image = Image.new("RGB", size, "red")
    blue = (width // 3, 0, 2 * width // 3 - 1, height)
    if height > width:
        blue = (0, height // 3, width, 2 * height // 3 - 1)
    ImageDraw.Draw(image).rectangle(blue, fill="blue")
    made, shown = decode(encoded(image, "PNG"), PictureSettings(60, 95, resize))
    assert shown.size == (made.stored_width, made.stored_height) == stored
    assert (made.width, made.height) == size
    assert made.image_phash == phash(image)
    corner = (2, 2)
    assert near(shown, corner, ImageColor.getrgb(left)[:3])
    assert near(shown, (stored[0] // 2, stored[1] // 2), ImageColor.getrgb(middle)[:3])


def test_a_jpegs_sides_end() -> None:
    long = encoded(Image.new("RGB", (70_000, 2)), "PNG")
    assert refusal(long, PictureSettings(resize="no")) == Refusal(
        "too many pixels", "70000 x 2, but a JPEG's sides end at 65500"
    )
    assert decode(long)[1].size == (64, 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (PictureSettings(image_size=15), "15 pixels is below 16"),
        (PictureSettings(quality=0), "quality of 0"),
        (PictureSettings(quality=96), "quality of 96"),
        (PictureSettings(resize="crop"), "'crop' is no way .*\\n.*center_crop, border, no"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: PictureSettings, said: str) -> None:
    with pytest.raises(CoyoError, match=said):
        check_picture_settings(settings)
    with pytest.raises(CoyoError, match=said):
        PictureWorkers(settings, 1)


def test_the_hash_is_taken_before_the_picture_is_shrunk() -> None:
    image = picture(4, (400, 300))
    made, _ = decode(encoded(image, "PNG"), PictureSettings(image_size=16))
    assert made.image_phash == phash(image)


def test_what_was_served_is_measured() -> None:
    data = encoded(picture(0), "PNG")
    assert decode(data)[0].bytes_served == len(data)


def test_quality_is_the_quality_of_the_jpeg() -> None:
    data = encoded(picture(0, (60, 60)), "PNG")
    worse, better = (
        len(decode(data, PictureSettings(64, quality))[0].jpeg) for quality in (30, 95)
    )
    assert worse < better


WHISPER = "meet me at dawn"


def _with_metadata(kind: str) -> bytes:
    image = picture(0)
    exif = Image.Exif()
    exif[0x010E] = WHISPER  # ImageDescription
    options: dict[str, Any] = {"exif": exif}
    if kind in ("JPEG", "GIF"):
        options["comment"] = WHISPER.encode()
    if kind == "GIF":
        del options["exif"]
    if kind in ("JPEG", "PNG", "WEBP"):
        options["icc_profile"] = WHISPER.encode() + bytes(128)
    if kind in ("JPEG", "WEBP"):
        options["xmp"] = WHISPER.encode()
    data = encoded(image, kind, **options)
    assert WHISPER.encode() in data
    return data


@pytest.mark.parametrize("settings", [SMALL, PictureSettings(resize="no")])
@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP", "TIFF"])
def test_no_metadata_comes_through(kind: str, settings: PictureSettings) -> None:
    made, shown = decode(_with_metadata(kind), settings)
    assert WHISPER.encode() not in made.jpeg
    assert not shown.getexif()
    assert set(shown.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_no_bytes_behind_the_picture_come_through() -> None:
    made, _ = decode(encoded(picture(0)) + b"<?php evil ?>")
    assert b"php" not in made.jpeg


def _png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "not an image", "the file is empty"),
        (b"<!DOCTYPE html><html>404</html>", "not an image", "an HTML page"),
        (b"\n  <html>", "not an image", "an HTML page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image", "an SVG or XML file"),
        (b'<?xml version="1.0"?><svg/>', "not an image", "an SVG or XML file"),
        (b"\x00\x01\x02\x03" * 9, "not an image", "starts with"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image", "starts with"),
        (_png_header(50_000, 50_000), "too many pixels", "2500000000 pixels"),
        (_png_header(10_000, MAX_PIXELS // 10_000 + 1), "too many pixels", "10000 x 8948"),
        (_png_header(100, 100), "undecodable", ""),
        (encoded(picture(0))[:900], "undecodable", "truncated"),
        (encoded(picture(0), "PNG")[:2000], "undecodable", ""),
        (encoded(picture(0), "GIF")[:1500], "undecodable", ""),
        (encoded(picture(0), "WEBP")[:100], "undecodable", ""),
    ],
)
def test_what_is_no_picture_is_refused_with_its_reason(
    data: bytes, reason: str, detail: str
) -> None:
    refused = refusal(data)
    assert refused.reason == reason
    assert detail in refused.detail
    assert refused.detail
    assert len(refused.detail) <= 200


def test_a_file_that_cant_be_read_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.png") == Refusal("missing file", "No such file or directory")
    assert refusal(tmp_path) == Refusal("missing file", "Is a directory")


# --- workers -------------------------------------------------------------------------------------


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A picture that nobody ever finishes reading: a pipe without a writer."""
    os.mkfifo(tmp_path / "hanging.png")
    return tmp_path / "hanging.png"


def test_a_picture_that_hangs_is_given_up_and_the_others_come_in_order(hanging: Path) -> None:
    items: list[tuple[str, bytes | Path | Refusal]] = [
        (f"good {number}", encoded(picture(number), "PNG")) for number in range(12)
    ]
    items.insert(2, ("hanging", hanging))
    items.insert(5, ("broken", b"broken"))
    items.insert(8, ("refused before", Refusal("missing file", "the row names none")))
    with PictureWorkers(SMALL, 2, seconds=2) as workers:
        results = list(workers.decode(items))
    assert [key for key, _ in results] == [key for key, _ in items]
    by_key = dict(results)
    assert by_key["hanging"] == Refusal("too slow", "not decoded in 2 s")
    assert by_key["refused before"] == Refusal("missing file", "the row names none")
    assert isinstance(by_key["broken"], Refusal)
    assert all(isinstance(by_key[f"good {number}"], Picture) for number in range(12))


def test_hashing_has_the_limits_of_decoding_and_keeps_the_order(hanging: Path) -> None:
    items: list[tuple[int, bytes | Path | Refusal]] = [
        (0, encoded(picture(0), "PNG")),
        (1, hanging),
        (2, Refusal("hidden file", "not looked at")),
        (3, _png_header(50_000, 50_000)),
        (4, encoded(picture(4), "PNG")),
    ]
    with PictureWorkers(SMALL, 1, seconds=2) as workers:
        results = list(workers.hash(items))
    assert [key for key, _ in results] == [0, 1, 2, 3, 4]
    hashes = [result for _, result in results]
    assert (hashes[0], hashes[4]) == ((phash(picture(0)),), (phash(picture(4)),))
    assert hashes[1] == Refusal("too slow", "not decoded in 2 s")
    assert hashes[2] == items[2][1]
    assert isinstance(hashes[3], Refusal)
    assert hashes[3].reason == "too many pixels"


@needs_proc
def test_a_picture_that_takes_its_worker_down_is_refused_and_the_next_one_comes(
    hanging: Path,
) -> None:
    def take_down() -> None:
        for pid in descendants(os.getpid()):
            if b"coyo_tools.decoder" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)

    with PictureWorkers(SMALL, 1, seconds=60) as workers:
        good = encoded(picture(0))
        assert len(list(workers.decode([("warm up", good)]))) == 1
        results = workers.decode([("deadly", hanging), ("good", good)])
        threading.Timer(0.5, take_down).start()
        assert next(results) == (
            "deadly", Refusal("undecodable", "crashed its decoder (exit code -9)"),
        )  # fmt: skip
        assert isinstance(next(results)[1], Picture)


def test_a_file_larger_than_a_workers_memory_is_refused_and_the_next_one_comes(
    tmp_path: Path,
) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(5 * 1024**3)  # sparse: takes no room
    (tmp_path / "good.png").write_bytes(encoded(picture(0), "PNG"))
    with PictureWorkers(SMALL, 1) as workers:
        results = dict(workers.decode([(n, tmp_path / f"{n}.png") for n in ("huge", "good")]))
    assert results["huge"] == Refusal("undecodable", "needs more memory than a worker may have")
    assert isinstance(results["good"], Picture)


def test_pictures_are_asked_for_no_faster_than_they_are_taken() -> None:
    asked = []

    def items() -> Iterator[tuple[int, bytes]]:
        for number in range(100):
            asked.append(number)
            yield number, b"broken"

    with PictureWorkers(SMALL, 1) as workers:
        results = workers.decode(items())
        assert next(results)[0] == 0
        assert len(asked) <= 9
