"""Measures how far copies and replacements move from a picture's pHash, by --max-drift.

    python benchmarks/drift.py ../shared/data/openstax_alt_text --figure docs/images/drift.svg

Prints the tables of docs/drift.md and draws its curve. 500 textbook figures are drawn by lot from
those within COYO's own limits; each is made anew as servers do, and each copy is decoded and
hashed from its bytes, as a download hashes what is served.
"""

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from coyo_tools.phash import PHASH_BITS, phash

PICTURES = 500
SEED = 5
LIMITS = range(0, 21, 2)
CHOSEN = 8
Counts = npt.NDArray[np.int64]  # pictures by distance, shape (65,)
Made = tuple[Image.Image, dict[str, object]]  # a picture, and how it is saved


@dataclass(frozen=True)
class Change:
    """Something a server does to a picture."""

    group: str
    name: str
    make: Callable[[Image.Image], Made]


def saved(kind: str, **options: object) -> Callable[[Image.Image], Made]:
    return lambda image: (image, {"format": kind, **options})


def jpeg(edit: Callable[[Image.Image], Image.Image], **options: object) -> Callable[..., Made]:
    """An edit, saved as a JPEG of quality 85 unless ``options`` say otherwise."""
    return lambda image: (edit(image), {"format": "JPEG", "quality": 85, **options})


def scaled(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize(
        (max(1, round(image.width * factor)), max(1, round(image.height * factor))),
        Image.Resampling.LANCZOS,
    )


def to_side(side: int) -> Callable[[Image.Image], Image.Image]:
    """Make the longer side so long."""
    return lambda image: scaled(side / max(image.size))(image)


def cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    """Cut so much of each side off."""

    def cut(image: Image.Image) -> Image.Image:
        across, down = max(1, round(share * image.width)), max(1, round(share * image.height))
        return image.crop((across, down, image.width - across, image.height - down))

    return cut


def bordered(share: float, colour: str) -> Callable[[Image.Image], Image.Image]:
    """Add so much of the longer side, on each side."""
    return lambda image: ImageOps.expand(image, max(1, round(share * max(image.size))), colour)


def signed(image: Image.Image) -> Image.Image:
    """Write a small line into the lower right corner, as agencies do."""
    image = image.copy()
    font = ImageFont.load_default(max(8, image.height // 16))
    corner = image.width - 4, image.height - 3
    ImageDraw.Draw(image).text(corner, "© example.com", "white", font, "rs", stroke_width=1,
                               stroke_fill="black")  # fmt: skip
    return image


def watermarked(image: Image.Image) -> Image.Image:
    """Write a word across the middle, 70 % of the width, at 35 % opacity."""
    layer = Image.new("RGBA", image.size, (255, 255, 255, 0))
    font = ImageFont.load_default(max(8, image.width // 8))
    middle = image.width / 2, image.height / 2
    ImageDraw.Draw(layer).text(middle, "SAMPLE PIC", (255, 255, 255, 90), font, "mm")
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


CHANGES = (
    Change("re-encoded", "PNG", saved("PNG", compress_level=1)),
    Change("re-encoded", "WebP, quality 80", saved("WEBP", quality=80, method=2)),
    Change("re-encoded", "AVIF, quality 60", saved("AVIF", quality=60, speed=9)),
    Change("re-encoded", "GIF, palette of 256", saved("GIF")),
    *(Change("recompressed", f"JPEG, quality {q}", saved("JPEG", quality=q))
      for q in (95, 85, 75, 60, 45, 30)),
    *(Change("resized", f"× {f:g}", jpeg(scaled(f), quality=90))
      for f in (0.25, 0.5, 0.75, 1.5, 2)),
    *(Change("resized", f"longer side {side}", jpeg(to_side(side), quality=90))
      for side in (1024, 512, 200)),
    Change("resized", "squashed to 200 × 200", jpeg(lambda i: i.resize((200, 200)), quality=90)),
    Change("resized and recompressed", "× 0.5, JPEG, quality 60", jpeg(scaled(0.5), quality=60)),
    Change("resized and recompressed", "× 2, JPEG, quality 60", jpeg(scaled(2), quality=60)),
    Change("resized and recompressed", "longer side 200, WebP, quality 75",
           jpeg(to_side(200), format="WEBP", quality=75, method=2)),
    Change("edited mildly", "progressive, metadata exchanged",
           jpeg(lambda i: i, progressive=True, comment=b"from a CDN")),
    Change("edited mildly", "chroma kept (4:4:4)", jpeg(lambda i: i, subsampling=0)),
    Change("edited mildly", "chroma halved (4:2:0)", jpeg(lambda i: i, subsampling=2)),
    Change("edited mildly", "sharpened",
           jpeg(lambda i: i.filter(ImageFilter.UnsharpMask(2, 100, 2)))),
    Change("edited mildly", "contrast stretched", jpeg(lambda i: ImageOps.autocontrast(i, 1))),
    Change("edited mildly", "a fifth brighter",
           jpeg(lambda i: ImageEnhance.Brightness(i).enhance(1.2))),
    Change("edited mildly", "grey", jpeg(lambda i: i.convert("L"))),
    Change("edited mildly", "small line in the corner", jpeg(signed)),
    Change("edited mildly", "watermark across the middle", jpeg(watermarked)),
    *(Change("cropped or bordered", f"cropped by {share:.0%} on each side", jpeg(cropped(share)))
      for share in (0.01, 0.02, 0.03, 0.05)),
    *(Change("cropped or bordered", f"{colour} border of {share:.0%}",
             jpeg(bordered(share, colour)))
      for share in (0.01, 0.02) for colour in ("white", "black")),
    Change("turned", "mirrored", jpeg(ImageOps.mirror)),
    Change("turned", "by a quarter", jpeg(lambda i: i.transpose(Image.Transpose.ROTATE_90))),
)  # fmt: skip
SAME = ("re-encoded", "recompressed", "resized", "resized and recompressed")


@dataclass(frozen=True)
class Pictures:
    """The figures that were drawn: their files, where they are from, their hashes."""

    files: list[Path]
    books: npt.NDArray[np.str_]
    modules: npt.NDArray[np.str_]
    hashes: npt.NDArray[np.uint64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="holds captions.parquet and images/")
    parser.add_argument("--figure", type=Path, help="draw the curve here, as SVG")
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    pictures = read_pictures(chosen.folder)
    with Pool(chosen.processes) as pool:
        moved = np.array(pool.map(distances_of, pictures.files, chunksize=5))
    copies = {change: counts(moved[:, place]) for place, change in enumerate(CHANGES)}
    others = replaced(pictures)
    print_copies(copies, len(pictures.files))
    print_grounds(moved, np.array([on_white(file) for file in pictures.files]))
    print_replaced(others)
    print_full_size(chosen.folder)
    if chosen.figure:
        lines = {"re-encoded, resized, recompressed": total(copies, SAME)}
        lines |= {name: total(copies, (name,)) for name in ("edited mildly", "cropped or bordered")}
        lines["replaced by another of the 500"] = others["any other of the 500"]
        lines["replaced by a placeholder"] = list(others.values())[-1]
        chosen.figure.write_text(curve(lines), encoding="utf-8")


def read_pictures(folder: Path) -> Pictures:
    """Draw 500 figures whose originals are within COYO's limits, and hash their files."""
    table = pl.read_parquet(folder / "captions.parquet").unique("file").sort("file")
    sides = pl.min_horizontal("orig_width", "orig_height")
    longer = pl.max_horizontal("orig_width", "orig_height")
    within = (sides >= 200) & (longer <= 3 * sides) & (pl.col("orig_bytes") >= 5000)
    table = table.filter(within)
    places = np.random.default_rng(SEED).permutation(table.height)[:PICTURES]
    table = table[np.sort(places)]
    files = [folder / name for name in table["file"]]
    return Pictures(
        files,
        table["book"].to_numpy(),
        table["module"].to_numpy(),
        np.array([hash_of(file.read_bytes()) for file in files], np.uint64),
    )


def hash_of(data: bytes) -> int:
    """Hash a picture from its bytes as served."""
    with Image.open(io.BytesIO(data)) as image:
        return int(phash(image), 16)


def on_white(file: Path) -> bool:
    """Say whether more than half of a picture is as good as white."""
    with Image.open(file) as image:
        return bool((np.asarray(image.convert("L")) > 245).mean() > 0.5)


def distances_of(file: Path, changes: Sequence[Change] = CHANGES) -> list[int]:
    """How far each change moves one picture's hash."""
    data = file.read_bytes()
    own = hash_of(data)
    with Image.open(io.BytesIO(data)) as image:
        image = image.convert("RGB")
    moved = []
    for change in changes:
        made, options = change.make(image)
        buffer = io.BytesIO()
        made.save(buffer, **options)  # type: ignore[arg-type]
        moved.append((hash_of(buffer.getvalue()) ^ own).bit_count())
    return moved


def replaced(pictures: Pictures) -> dict[str, Counts]:
    """Count at which distances other pictures lie: of the set, of the book, placeholders."""
    first, second = np.triu_indices(len(pictures.files), 1)
    apart = np.bitwise_count(pictures.hashes[first] ^ pictures.hashes[second])
    fakes = np.array([hash_of(data) for data in placeholders().values()], np.uint64)
    return {
        "any other of the 500": counts(apart),
        "another of the same book": counts(apart[pictures.books[first] == pictures.books[second]]),
        "another of the same module": counts(
            apart[pictures.modules[first] == pictures.modules[second]]
        ),
        f"one of {len(fakes)} placeholders": counts(
            np.bitwise_count(pictures.hashes[:, None] ^ fakes[None, :]).ravel()
        ),
    }


def placeholders() -> dict[str, bytes]:
    """What servers send in place of a picture that is gone."""
    drawn: dict[str, Image.Image] = {
        "white": Image.new("RGB", (300, 200), "white"),
        "one pixel": Image.new("RGB", (1, 1), "black"),
        "gradient": Image.linear_gradient("L").resize((320, 240)),
    }
    for words, size, paper in (
        ("image not available", (400, 300), "#dddddd"),
        ("No image", (300, 300), "white"),
        ("This image is\nno longer available", (468, 264), "#f4f4f4"),
        ("404", (200, 200), "#333333"),
    ):
        sheet = Image.new("RGB", size, paper)
        font = ImageFont.load_default(size[0] // 11)
        ink = "white" if paper == "#333333" else "#666666"
        middle = size[0] / 2, size[1] / 2
        ImageDraw.Draw(sheet).text(middle, words, ink, font, "mm", align="center")
        drawn[words] = sheet
    frame = Image.new("RGB", (320, 320), "#eeeeee")  # the mountains and sun of many an icon set
    pen = ImageDraw.Draw(frame)
    pen.rectangle((70, 90, 250, 230), outline="#999999", width=8)
    pen.polygon([(85, 215), (140, 150), (175, 190), (200, 165), (235, 215)], "#999999")
    pen.ellipse((190, 110, 220, 140), "#999999")
    drawn["icon"] = frame
    made = {}
    for name, image in drawn.items():
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        made[name] = buffer.getvalue()
    return made


def counts(distances: npt.NDArray[np.integer]) -> Counts:
    return np.bincount(distances, minlength=PHASH_BITS + 1)


def groups() -> list[str]:
    return list(dict.fromkeys(change.group for change in CHANGES))


def within(moved: Counts, limit: int) -> float:
    """Share of pictures at most so far."""
    return float(moved[: limit + 1].sum() / moved.sum())


def print_copies(copies: dict[Change, Counts], pictures: int) -> None:
    print(f"\n### Taken for the same, of {pictures} pictures, by --max-drift\n")
    print_copies_head()
    for group in groups():
        print_shares(f"**{group}**", total(copies, (group,)))
        for change, moved in copies.items():
            if change.group == group:
                print_shares(change.name, moved)
    print_shares("**re-encoded, recompressed, resized or both**", total(copies, SAME))


def print_grounds(moved: npt.NDArray[np.int64], white: npt.NDArray[np.bool_]) -> None:
    """The same by ground: line drawings on white against photographs and filled figures."""
    print("\n### By the picture's ground\n")
    print_row("served instead", "ground", "pictures", *LIMITS, "farthest")
    print_row(*("---" for _ in range(len(LIMITS) + 4)))
    for name, group in (
        ("re-encoded, recompressed, resized or both", SAME),
        ("edited mildly", ("edited mildly",)),
        ("cropped or bordered", ("cropped or bordered",)),
    ):
        places = [place for place, change in enumerate(CHANGES) if change.group in group]
        for ground, which in (("white", white), ("other", ~white)):
            found = counts(moved[np.ix_(which, places)].ravel())
            shares = [percent(within(found, limit)) for limit in LIMITS]
            print_row(name, ground, which.sum(), *shares, np.flatnonzero(found).max())


def total(copies: dict[Change, Counts], of: Sequence[str]) -> Counts:
    """All copies of some groups."""
    return np.sum([moved for change, moved in copies.items() if change.group in of], axis=0)


def print_copies_head() -> None:
    print_row("served instead", *LIMITS, "farthest")
    print_row(*("---" for _ in range(len(LIMITS) + 2)))


def print_shares(name: str, moved: Counts) -> None:
    shares = [percent(within(moved, limit)) for limit in LIMITS]
    print_row(name, *shares, np.flatnonzero(moved).max())


def print_replaced(others: dict[str, Counts]) -> None:
    print("\n### Told from the picture that was scored, by --max-drift\n")
    print_row("served instead", "pairs", *LIMITS, "nearest")
    print_row(*("---" for _ in range(len(LIMITS) + 3)))
    for name, apart in others.items():
        shares = [percent(1 - within(apart, limit)) for limit in LIMITS]
        print_row(name, f"{apart.sum():,}", *shares, np.flatnonzero(apart).min())


def print_full_size(folder: Path) -> None:
    """How far the small copies lie from the full-size originals, whose hashes are on record."""
    table = pl.read_parquet(folder / "captions.parquet").unique("file").sort("file")
    own = np.array([hash_of((folder / name).read_bytes()) for name in table["file"]], np.uint64)
    full = np.array([int(digits, 16) for digits in table["phash"]], np.uint64)
    moved = counts(np.bitwise_count(own ^ full))
    shrunk = float(np.median(table.select(pl.max_horizontal("orig_width", "orig_height"))))
    print(f"\n### All {table.height:,} figures at 256 pixels against their full-size originals\n")
    print_copies_head()
    print_shares(f"longer side {shrunk:,.0f} (median) made 256, JPEG, quality 85", moved)


def print_row(*values: object) -> None:
    print(f"| {' | '.join(map(str, values))} |")


def percent(share: float) -> str:
    """A share to a tenth; never rounded to all or nothing."""
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{share:.1%}" if share == 0 or share >= 0.0005 else "<0.1%"


def curve(lines: dict[str, Counts]) -> str:
    """Draw the shares within each limit as an SVG that is legible on light and dark pages."""
    left, top, wide, high, last = 56, 24, 520, 300, 30
    # Okabe and Ito's, told apart by colour-blind eyes too.
    colours = ("#0072b2", "#009e73", "#e69f00", "#d55e00", "#000000")
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 840 380" font-family="sans-serif" '
        'font-size="13">',
        '<rect width="840" height="380" fill="white"/>',
    ]

    def x(bits: float) -> float:
        return left + wide * bits / last

    def y(share: float) -> float:
        return top + high * (1 - share)

    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path d="M{left} {y(share):.1f}H{left + wide}" stroke="#dddddd"/>')
        parts.append(
            f'<text x="{left - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        )
    parts += [
        f'<text x="{x(bits):.1f}" y="{top + high + 20}" text-anchor="middle">{bits}</text>'
        for bits in range(0, last + 1, 2)
    ]
    parts.append(
        f'<path d="M{x(CHOSEN):.1f} {top}V{top + high}" stroke="#444444" stroke-dasharray="4 4"/>'
    )
    parts.append(
        f'<text x="{left + wide / 2}" y="{top + high + 44}" text-anchor="middle">'
        "--max-drift, bits of 64 (8 by default)</text>"
    )
    for place, (name, moved) in enumerate(lines.items()):
        steps = [f"{x(bits):.1f} {y(within(moved, bits)):.1f}" for bits in range(0, last + 1, 2)]
        colour = colours[place]
        parts.append(
            f'<path d="M{" L".join(steps)}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
        )
        row = top + 14 + 24 * place
        parts.append(f'<path d="M596 {row - 4}h22" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(f'<text x="626" y="{row}">{name}</text>')
    parts.append(f'<text x="{left}" y="14">taken for the picture that was scored</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    main()
