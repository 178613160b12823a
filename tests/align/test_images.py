"""Strangers' pictures: the pixels AlignProcessor gives, or a reason; never a crash."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from coyo_align.errors import AlignError
from coyo_align.input.images import (
    BadPictureError,
    Geometry,
    image_processor,
    open_picture,
    pixels_of,
    preprocess_of,
)
from PIL import Image
from transformers import EfficientNetImageProcessorPil

from align.making import encoded, square

PICTURE = square("red", "left", "grey")


def mean_colour(data: bytes) -> list[int]:
    return np.asarray(open_picture(data)).reshape(-1, 3).mean(axis=0).round().astype(int).tolist()


MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "P", "1", "RGBA", "LA"),
    "WEBP": ("RGB", "RGBA"),
}


@pytest.mark.parametrize(("kind", "mode"), [(k, mode) for k in MODES for mode in MODES[k]])
def test_any_mode_becomes_rgb(kind: str, mode: str) -> None:
    stream = io.BytesIO()
    PICTURE.convert(mode).save(stream, kind)
    opened = open_picture(stream.getvalue())
    assert (opened.mode, opened.size) == ("RGB", PICTURE.size)
    grey = np.asarray(PICTURE.convert("L"), dtype=float).mean()
    assert np.asarray(opened.convert("L"), dtype=float).mean() == pytest.approx(grey, abs=12)


def test_transparency_is_on_white() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert mean_colour(encoded(clear, "PNG")) == [255, 255, 255]
    palette = Image.new("P", (8, 8), 0)
    assert mean_colour(encoded(palette, "PNG", transparency=0)) == [255, 255, 255]


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    grey = Image.fromarray(np.full((8, 8), 128 * 256, dtype=np.uint16))
    assert mean_colour(encoded(grey, "PNG")) == [128, 128, 128]


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = open_picture(encoded(PICTURE, "JPEG", exif=exif))
    assert opened.size == PICTURE.size[::-1]


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(BadPictureError, match="does not decode"):
        open_picture(encoded(PICTURE, kind))


def test_damaged_pictures_are_refused() -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(PICTURE, kind)
        for bad in (data[: len(data) // 2], data[:20], b"", b"\0" * 100):
            with pytest.raises(BadPictureError, match="does not decode"):
                open_picture(bad)


def test_flipped_bytes_never_end_in_anything_else(random: np.random.Generator) -> None:
    refused = 0
    for kind in ("JPEG", "PNG", "WEBP"):
        whole = np.frombuffer(encoded(PICTURE, kind), dtype=np.uint8)
        for _ in range(60):
            data = whole.copy()
            places = random.integers(0, len(data), 8)
            data[places] = random.integers(0, 256, 8)
            try:
                assert open_picture(data.tobytes()).mode == "RGB"
            except BadPictureError:
                refused += 1
    assert refused > 0


@pytest.mark.parametrize("side", [9_000, 50_000])
def test_a_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(BadPictureError, match="too large"):
        open_picture(bomb)


ALIGN_BASE = {
    "size": {"height": 346, "width": 346},
    "crop_size": {"height": 289, "width": 289},
    "do_center_crop": True,
    "resample": 2,
    "rescale_factor": 1 / 127.5,
    "rescale_offset": True,
    "do_normalize": False,
    "include_top": False,
}
PROCESSORS = {
    "from scratch": image_processor(64),
    "align-base": EfficientNetImageProcessorPil(**ALIGN_BASE),
    "library defaults": EfficientNetImageProcessorPil(),
    "bicubic, not square": EfficientNetImageProcessorPil(size={"height": 40, "width": 61}),
    "odd crop": EfficientNetImageProcessorPil(
        size={"height": 40, "width": 41}, crop_size={"height": 33, "width": 30}, do_center_crop=True
    ),
    "crop beyond the edge": EfficientNetImageProcessorPil(
        size={"height": 20, "width": 40}, crop_size={"height": 31, "width": 30}, do_center_crop=True
    ),
    "lanczos": EfficientNetImageProcessorPil(size={"height": 50, "width": 50}, resample=1),
    "nearest": EfficientNetImageProcessorPil(size={"height": 50, "width": 50}, resample=0),
}


def noisy(width: int, height: int, detail: int = 8) -> Image.Image:
    """Something with detail of so many pixels, so that a pixel more or less shows."""
    shape = (height // detail, width // detail, 3)
    coarse = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(512, 384), (96, 80), (64, 300)])
def test_pixels_are_the_processors_bit_for_bit(name: str, size: tuple[int, int]) -> None:
    processor = PROCESSORS[name]
    split = preprocess_of(processor)
    data = encoded(noisy(*size), quality=90)
    pixels = pixels_of(data, split.geometry)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (split.height, split.width, 3))
    only = {"do_rescale": False, "do_normalize": False, "include_top": False}
    theirs = processor(open_picture(data), return_tensors="np", **only)["pixel_values"][0]
    np.testing.assert_array_equal(pixels, theirs.transpose(1, 2, 0))


@pytest.mark.parametrize("name", PROCESSORS)
def test_geometry_and_arithmetic_together_are_the_processor(name: str) -> None:
    split = preprocess_of(PROCESSORS[name])
    ours = split.resize(PICTURE) * np.float32(split.scale) + np.float32(split.offset)
    theirs = PROCESSORS[name](PICTURE, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours, theirs.transpose(1, 2, 0), atol=5e-6)


@pytest.mark.parametrize(
    ("processor", "says"),
    [
        (EfficientNetImageProcessorPil(size={"shortest_edge": 40}), "shortest_edge=40"),
        (EfficientNetImageProcessorPil(do_resize=False), "do_resize=False"),
        (object(), "object"),
    ],
)
def test_a_processor_with_another_geometry_is_refused_by_name(processor: object, says: str) -> None:
    with pytest.raises(AlignError, match=says) as caught:
        preprocess_of(processor)
    assert type(processor).__name__ in str(caught.value)


def test_a_processor_that_does_more_is_refused() -> None:
    class Mirrored(EfficientNetImageProcessorPil):
        def resize(self, image: np.ndarray, **options: object) -> np.ndarray:
            return super().resize(image, **options)[..., ::-1]

    with pytest.raises(AlignError, match="Mirrored does more"):
        preprocess_of(Mirrored(size={"height": 40, "width": 40}))


@pytest.mark.parametrize("side", [32, 64, 224])
def test_fast_pixels_are_nearly_the_exact_ones(side: int) -> None:
    exact, fast = (preprocess_of(image_processor(side), fast=f).geometry for f in (False, True))
    data = encoded(noisy(512, 384, detail=64), quality=90)
    one, two = (pixels_of(data, geometry).astype(int) for geometry in (exact, fast))
    assert (one != two).any()
    assert np.abs(one - two).mean() < 3


def test_fast_goes_for_plain_jpegs_only() -> None:
    exact, fast = (preprocess_of(image_processor(32), fast=f).geometry for f in (False, True))
    picture = noisy(96, 80)
    for data in (
        encoded(picture, "PNG"),
        encoded(picture.convert("CMYK")),
        encoded(picture, "WEBP"),
    ):
        np.testing.assert_array_equal(pixels_of(data, exact), pixels_of(data, fast))
    grey = pixels_of(encoded(picture.convert("L")), fast)
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])


def test_fast_refuses_what_exact_refuses() -> None:
    fast = preprocess_of(image_processor(32), fast=True).geometry
    whole = encoded(noisy(96, 80))
    for bad in (whole[: len(whole) // 2], whole[:20], b"", b"\xff\xd8\xff\xd9", whole[2:]):
        with pytest.raises(BadPictureError, match="does not decode"):
            pixels_of(bad, fast)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_fast_pictures_stand_upright_too(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noisy(96, 80), exif=exif, quality=95)
    exact, fast = (preprocess_of(image_processor(64), fast=f).geometry for f in (False, True))
    one, two = (pixels_of(data, geometry).astype(int) for geometry in (exact, fast))
    assert np.abs(one - two).mean() < 6


def test_a_large_flat_picture_in_a_tiny_file_is_just_a_picture() -> None:
    data = encoded(Image.new("1", (7_000, 7_000), 1), "PNG")
    assert len(data) < 20_000
    assert (pixels_of(data, preprocess_of(image_processor(32)).geometry) == 255).all()


def test_what_decodes_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, coyo_align.input.decode_worker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "pyarrow"} & set(done.stdout.split())


def test_fast_and_exact_refuse_the_same_of_a_broken_collection(shared: Path) -> None:
    exact, fast = (preprocess_of(image_processor(32), fast=f).geometry for f in (False, True))

    def outcome(data: bytes, geometry: Geometry) -> str:
        try:
            return str(pixels_of(data, geometry).shape)
        except BadPictureError as error:
            return str(error)

    files = [path for path in (shared / "corrupt_images").rglob("*") if path.is_file()]
    outcomes = {
        path.name: (outcome(d := path.read_bytes(), exact), outcome(d, fast)) for path in files
    }
    assert {name: both for name, both in outcomes.items() if both[0] != both[1]} == {}
    assert {one for one, _ in outcomes.values()} == {
        "(32, 32, 3)",
        "picture too large",
        "picture does not decode",
    }
