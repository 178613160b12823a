"""Strangers' pictures: the pixels AlignProcessor gives, or a reason; never a crash."""

import io
import struct
import zlib

import numpy as np
import pytest
from coyo_align.images import BadPictureError, image_processor, open_picture, preprocess_of
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
    "size": {"height": 46, "width": 46},
    "crop_size": {"height": 39, "width": 39},
    "do_center_crop": True,
    "resample": 2,
    "rescale_factor": 1 / 127.5,
    "rescale_offset": True,
    "do_normalize": False,
    "include_top": False,
}


@pytest.mark.parametrize(
    "processor",
    [
        image_processor(64),
        EfficientNetImageProcessorPil(**ALIGN_BASE),
        EfficientNetImageProcessorPil(size={"height": 40, "width": 40}),  # library defaults
    ],
)
def test_geometry_and_arithmetic_together_are_the_processor(
    processor: EfficientNetImageProcessorPil,
) -> None:
    split = preprocess_of(processor)
    resized = split.resize(PICTURE)
    assert (resized.dtype, resized.shape) == (np.uint8, (split.height, split.width, 3))
    ours = resized * np.float32(split.scale) + np.float32(split.offset)
    theirs = processor(PICTURE, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
