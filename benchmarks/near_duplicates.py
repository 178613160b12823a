"""Measures by hand-made labels how well pHash finds near-duplicates, by radius.

    python benchmarks/near_duplicates.py ../shared/data/near_duplicates

Prints the tables of docs/near_duplicates.md, which says what the labels are. Pictures of
manifest.csv are hashed here; figures have the hashes of their full-size originals, as COYO would,
which stand in captions.parquet beside the pictures, and those of the small copies for comparison.
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from math import comb
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from coyo_tools.hashing import hash_files
from coyo_tools.phash import PHASH_BITS, TURNS
from coyo_tools.pictures import Refusal

RADII = range(0, 13, 2)
LABELLED_TO = 8
LABELS = ("same", "variant", "locator map", "unclear", "different")
COYO_HASHES = 579_679_137  # distinct image_phash in COYO-700M, as its dataset card has it
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Labelled:
    """The pictures of manifest.csv; ``hashes`` has a row for each and a column for each turn."""

    files: list[str]
    groups: npt.NDArray[np.str_]
    expected: npt.NDArray[np.str_]
    hashes: Hashes


@dataclass(frozen=True)
class Figures:
    """The figures of openstax_pairs.csv's collection, in order of name, and its labels.

    ``hashes`` are those of the originals. ``labels`` maps pairs of places, the lower first.
    """

    files: list[str]
    hashes: Hashes
    labels: dict[tuple[int, int], str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="holds manifest.csv and openstax_pairs.csv")
    parser.add_argument("--figures", type=Path, help="default: openstax_alt_text beside FOLDER")
    chosen = parser.parse_args()
    figures_folder = chosen.figures or chosen.folder.absolute().parent / "openstax_alt_text"
    labelled = read_labelled(chosen.folder)
    figures = read_figures(chosen.folder / "openstax_pairs.csv", figures_folder)
    print_pairs(labelled)
    print_from_originals(labelled)
    print_labels(figures)
    print_removals(figures)
    print_small_copies(figures, figures_folder)
    print_by_chance()


def read_labelled(folder: Path) -> Labelled:
    """Hash every picture of manifest.csv in all eight ways it can lie."""
    rows = pl.read_csv(folder / "manifest.csv")
    files = rows["file"].to_list()
    return Labelled(
        files,
        rows["group"].to_numpy(),
        rows["expected"].to_numpy(),
        hashes_of([(file, folder / file) for file in files], turns=True),
    )


def read_figures(pairs: Path, folder: Path) -> Figures:
    """Read the originals' hashes and the labels."""
    captions = pl.read_parquet(folder / "captions.parquet", columns=["file", "phash"])
    captions = captions.unique("file").sort("file")
    files = captions["file"].to_list()
    places = {file: place for place, file in enumerate(files)}
    labels: dict[tuple[int, int], str] = {}
    for row in pl.read_csv(pairs).iter_rows(named=True):
        one, other = sorted((places[row["a"]], places[row["b"]]))
        # One template makes most variants: told apart, so that it doesn't drown the others.
        is_map = (row["note"] or "").startswith("locator map")
        labels[one, other] = "locator map" if is_map else row["label"]
    hashes = np.array([int(digits, 16) for digits in captions["phash"]], np.uint64)
    return Figures(files, hashes, labels)


def hashes_of(files: list[tuple[str, Path]], *, turns: bool = False) -> Hashes:
    """Hash files, shape (files, turns)."""
    rows = []
    for name, result in hash_files(files, turns=turns):
        assert not isinstance(result, Refusal), (name, result)
        rows.append([int(digits, 16) for digits in result])
    return np.array(rows, np.uint64)


def distances(one: Hashes, other: Hashes) -> npt.NDArray[np.uint8]:
    """All distances between two lists of hashes, shape (one, other)."""
    return np.bitwise_count(one[:, None] ^ other[None, :])


def print_pairs(labelled: Labelled) -> None:
    """Precision and recall over all pairs of manifest.csv, turned copies counted or not."""
    first, second = np.triu_indices(len(labelled.files), 1)
    apart = distances(labelled.hashes[:, 0], labelled.hashes[:, 0])[first, second]
    alike = labelled.groups[first] == labelled.groups[second]
    turned = labelled.expected == "not near by pHash"
    upright = alike & ~turned[first] & ~turned[second]
    print_title(
        f"All {len(first):,} pairs of the {len(labelled.files)} pictures of manifest.csv: "
        f"{upright.sum()} pairs of copies, {alike.sum()} if turned copies count"
    )
    print_head("radius", "pairs found", "precision", "recall", "recall, turned copies counted")
    for radius in RADII:
        found = apart <= radius
        print_row(
            radius, found.sum(), percent((found & upright).sum(), found.sum()),
            percent((found & upright).sum(), upright.sum()),
            percent((found & alike).sum(), alike.sum()),
        )  # fmt: skip
    print(
        f"\nPairs at an odd distance: {(apart % 2).sum()}. Pairs of different originals are "
        f"{apart[~alike].min()} or more bits apart, pairs of copies {apart[upright].max()} or less."
    )


def print_from_originals(labelled: Labelled) -> None:
    """What is found from the originals, as an evaluation set would be, turned or not."""
    originals = labelled.expected == "original"
    plain = distances(labelled.hashes[originals, 0], labelled.hashes[:, 0])
    augmented = np.min(
        [
            distances(labelled.hashes[originals, t], labelled.hashes[:, 0])
            for t in range(len(TURNS))
        ],
        axis=0,
    )
    own = labelled.groups[originals][:, None] == labelled.groups[None, :]
    near = own & (labelled.expected == "near")[None, :]
    turned = own & (labelled.expected == "not near by pHash")[None, :]
    print_title(
        f"From the {originals.sum()} originals: {near.sum()} near copies, {turned.sum()} turned "
        f"ones, {(~own).sum()} pairs with pictures of others"
    )
    print_head("radius", "near", "turned", "turned, --augment", "others", "others, --augment")
    for radius in RADII:
        print_row(
            radius, (plain[near] <= radius).sum(), (plain[turned] <= radius).sum(),
            (augmented[turned] <= radius).sum(), (plain[~own] <= radius).sum(),
            (augmented[~own] <= radius).sum(),
        )  # fmt: skip
    at = sorted(int(bits) for bits in augmented[turned])
    print(
        f"\nWith --augment the turned copies are {', '.join(map(str, at))} bits away, pictures of "
        f"others at least {augmented[~own].min()}; without, turned copies at least "
        f"{plain[turned].min()}."
    )


def print_labels(figures: Figures) -> None:
    """Precision and recall over the labelled pairs of figures, in both readings of variant."""
    first, second = np.triu_indices(len(figures.files), 1)
    apart = distances(figures.hashes, figures.hashes)[first, second]
    near = np.flatnonzero(apart <= max(RADII))
    found = [
        (int(apart[at]), figures.labels.get((int(first[at]), int(second[at])), "")) for at in near
    ]
    totals = Counter(label for _, label in found)
    variants = totals["variant"] + totals["locator map"]
    print_title(
        f"Pairs of {len(figures.files):,} figures, {len(figures.labels)} of them labelled: "
        f"{', '.join(f'{totals[label]} {label}' for label in LABELS)}"
    )
    print_head(
        "radius", *LABELS, "no label", "precision, variants wrong", "the same without locator maps",
        "precision, variants right", "recall of same", "recall of same and variants",
    )  # fmt: skip
    for radius in RADII:
        count = Counter(label for distance, label in found if distance <= radius)
        same, different, maps = count["same"], count["different"], count["locator map"]
        right = same + count["variant"] + maps
        precisions = [
            percent(same, right + different),
            percent(same, right + different - maps),
            percent(right, right + different),
        ]
        print_row(
            radius, *(count[label] for label in LABELS), count[""],
            *(precisions if radius <= LABELLED_TO else "???"), percent(same, totals["same"]),
            percent(right, totals["same"] + variants),
        )  # fmt: skip
    flat = np.bitwise_count(figures.hashes) != PHASH_BITS // 2
    print(
        f"\nPairs at an odd distance up to {max(RADII)}: "
        f"{sum(distance % 2 for distance, _ in found)}. Hashes whose popcount is not "
        f"{PHASH_BITS // 2}: {flat.sum()}."
    )


def print_removals(figures: Figures) -> None:
    """What deduplicating the figures takes away and leaves, by linkage."""
    apart = distances(figures.hashes, figures.hashes)
    copies = roots(
        len(figures.files), [pair for pair, is_ in figures.labels.items() if is_ == "same"]
    )
    true_copies = len(copies) - len(set(copies))
    print_title(
        f"Deduplicating the {len(figures.files):,} figures, of which {true_copies} are copies of "
        "others"
    )
    print_head(
        "linkage", "radius", "removed", *LABELS, "no label", "copies left", "largest group",
    )  # fmt: skip
    for linkage, keep in (("star", star), ("components", components)):
        for radius in RADII:
            keepers = keep(apart, radius)
            fates = Counter(
                "same" if copies[place] == copies[kept]
                else figures.labels.get((min(place, kept), max(place, kept)), "")
                for place, kept in enumerate(keepers)
                if place != kept
            )  # fmt: skip
            stay = {place for place, kept in enumerate(keepers) if place == kept}
            left = len(stay) - len({copies[place] for place in stay})
            largest = max(Counter(keepers).values())
            print_row(
                linkage, radius, len(keepers) - len(stay), *(fates[label] for label in LABELS),
                fates[""], left, largest,
            )  # fmt: skip


def star(apart: npt.NDArray[np.uint8], radius: int) -> list[int]:
    """Who is kept in place of each: the nearest of those kept before it, within the radius."""
    keepers: list[int] = []
    kept: list[int] = []
    for place in range(len(apart)):
        nearest = kept[int(np.argmin(apart[place, kept]))] if kept else place
        if apart[place, nearest] > radius:
            nearest = place
        if nearest == place:
            kept.append(place)
        keepers.append(nearest)
    return keepers


def components(apart: npt.NDArray[np.uint8], radius: int) -> list[int]:
    """Who is kept in place of each under single linkage: the first of its group."""
    first, second = np.nonzero(np.triu(apart <= radius, 1))
    return roots(len(apart), list(zip(first.tolist(), second.tolist(), strict=True)))


def roots(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """The least member of each one's group."""
    parents = list(range(count))

    def root(place: int) -> int:
        while parents[place] != place:
            place = parents[place]
        return place

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    return [root(place) for place in range(count)]


def print_small_copies(figures: Figures, folder: Path) -> None:
    """How far labelled pairs move when the copies of at most 256 pixels are hashed instead."""
    places = sorted({place for pair in figures.labels for place in pair})
    small = hashes_of([(figures.files[place], folder / figures.files[place]) for place in places])
    row = {place: number for number, place in enumerate(places)}
    moved: Counter[int] = Counter()
    for one, other in figures.labels:
        before = np.bitwise_count(figures.hashes[one] ^ figures.hashes[other])
        after = np.bitwise_count(small[row[one], 0] ^ small[row[other], 0])
        moved[abs(int(after) - int(before))] += 1
    own = Counter(
        int(np.bitwise_count(figures.hashes[place] ^ small[row[place], 0])) for place in places
    )
    print_title(f"The {len(places)} figures in labelled pairs, hashed at 256 pixels instead")
    print_head("bits", "hashes moved by so many", "labelled distances changed by so many")
    for bits in range(0, max(own | moved) + 1, 2):
        print_row(bits, own[bits], moved[bits])


def print_by_chance() -> None:
    """How many pairs of all of COYO would lie within a radius if hashes were drawn at random.

    Of hashes with 32 bits set, the first among them, C(63, 31) are possible, and each has
    C(31, k) C(32, k) others at distance 2k. Real hashes clump, so there are more.
    """
    pairs = COYO_HASHES * (COYO_HASHES - 1) / 2
    ordinary = PHASH_BITS // 2
    print_title(f"Pairs by chance alone among {COYO_HASHES:,} hashes")
    print_head("radius", "share of all possible hashes", "pairs")
    for radius in RADII:
        within = sum(comb(ordinary - 1, k) * comb(ordinary, k) for k in range(radius // 2 + 1))
        share = within / comb(PHASH_BITS - 1, ordinary - 1)
        print_row(radius, f"{share:.1e}", f"{pairs * share:,.0f}" if radius else "–")


def print_title(title: str) -> None:
    print(f"\n### {title}\n")


def print_head(*names: str) -> None:
    print_row(*names)
    print_row(*("---" for _ in names))


def print_row(*values: object) -> None:
    print(f"| {' | '.join(map(str, values))} |")


def percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


if __name__ == "__main__":
    main()
