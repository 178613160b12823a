"""Writes README.md and croissant.json beside a subset's parts, where both find them.

The same facts give the same bytes, so a card that is there already is either the same, or it was
changed by hand or is of other rows; it is then replaced only when that is asked for.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import jinja2

from coyo_tools.errors import OutputError, SourceError
from coyo_tools.manifest import MANIFEST, new_file
from coyo_tools.publish.card_text import README, card_text
from coyo_tools.publish.croissant import CROISSANT, croissant_of
from coyo_tools.publish.facts import UNKNOWN_LICENSE, Card, CardSettings, read_card


@dataclass(frozen=True)
class WrittenCard:
    """What was written and what the user may want to know of it."""

    readme: Path
    croissant: Path
    rows: int
    coyo: bool
    coyo_by: str
    notes: tuple[str, ...]


def write_card(
    subset: Path,
    output: Path | None = None,
    *,
    settings: CardSettings | None = None,
    shards: Path | None = None,
    overwrite: bool = False,
    memory: str | None = None,
) -> WrittenCard:
    """Write a subset's card.

    Args:
        subset: the subset.
        output: directory for README.md and croissant.json; default the subset.
        settings: what the user says.
        shards: what was downloaded for it, if anything.
        overwrite: replace a card that differs.
        memory: DuckDB's memory limit.

    Raises:
        SourceError: as ``read_card``, or its manifest lacks what a card needs.
        OutputError: another card is there.
    """
    directory = subset if output is None else output
    card = read_card(subset, settings, shards=shards, memory=memory)
    try:
        texts = {
            README: card_text(card),
            CROISSANT: json.dumps(croissant_of(card), indent=2, ensure_ascii=False) + "\n",
        }
    except (jinja2.UndefinedError, KeyError) as error:
        raise SourceError(
            f"A {MANIFEST} on the way to {subset} is damaged or of another version: {error}."
        ) from error
    fresh = {name: text for name, text in texts.items() if _differs(directory / name, text)}
    for name in fresh:
        if (directory / name).exists() and not overwrite:
            raise OutputError(
                f"{directory / name} is there already, and is not what would be written now.",
                "Somebody changed it, or it is of other rows: --overwrite replaces it, -o writes "
                "elsewhere.",
            )
    for name, text in fresh.items():
        with new_file(directory / name, overwrite=overwrite) as path:
            path.write_text(text, encoding="utf-8")
    return WrittenCard(
        directory / README,
        directory / CROISSANT,
        card.rows,
        card.coyo,
        card.coyo_by,
        tuple(_notes(card)),
    )


def _differs(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() != text.encode()
    except FileNotFoundError:
        return True


def _notes(card: Card) -> list[str]:
    taken = "taken" if card.coyo else "not taken"
    notes = [f"the rows are {taken} for COYO-700M's, because {card.coyo_by} (--coyo, --no-coyo)"]
    if card.license == UNKNOWN_LICENSE:
        notes.append("no licence is known; name one with --license, such as cc-by-4.0")
    if card.language is None:
        notes.append("no language is known; name it with --language, such as en")
    if card.road.ends:
        notes.append(f"the road before {card.road.steps[0].name} is not known: {card.road.ends}")
    if card.fates is None:
        notes.append("nothing is said of what became of the pictures; --shards DIR does")
    return notes
