"""README.md of a subset: front matter that the hub reads, and the card that people read."""

import shlex
from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCardData

from coyo_tools import __version__
from coyo_tools.columns import PUBLISHED, URL
from coyo_tools.dedupe.removal import size_bins
from coyo_tools.publish.chain import COYO_REPOS, Step
from coyo_tools.publish.facts import PARTS, Card
from coyo_tools.publish.markdown import one_line, render
from coyo_tools.publish.words import CITATION, did, known_gaps, size_category, summary

README = "README.md"
# Settings are told in the words of the options, but for those that have their own place.
_UNTOLD = frozenset({"stage", "query", "recipe", "entries_sha256"})
_FIGURES = {
    "without_key": "rows with nothing to be compared by, which stayed",
    "distinct": "distinct hashes",
    "pairs": "pairs of hashes within the radius",
    "flat": "rows with a flat hash",
    "chained": "rows removed in a chain, beyond the radius of the row that stays",
    "split": "groups too large, and split",
    "evaluation_pictures": "pictures in the evaluation set",
    "evaluation_found": "of these, found in the rows",
    "evaluation_without_hash": "evaluation rows without a hash, which were not looked for",
    "evaluation_refused": "evaluation files that are no picture",
    "entries_matched": "entries found in a text",
    "entries_capped": "of these, in more texts than the cap",
    "entries_never_found": "entries that can be in no text, as texts are read",
    "matches_before": "pairs of a row and an entry in its text, before",
    "matches_after": "such pairs after",
}


def card_text(card: Card) -> str:
    """Return a card as README.md has it; the same facts give the same bytes."""
    body = render(
        "card.md.j2",
        card=card,
        summary=summary(card),
        steps=[_StepView(step) for step in card.road.steps],
        has_urls=URL in card.schema.names,
        published=PUBLISHED,
        gaps=known_gaps(card),
        parts=PARTS,
        commands="\n".join(_replay(step) for step in card.road.steps),
        citation=CITATION,
        version=__version__,
    )
    return f"---\n{front_matter(card).to_yaml()}\n---\n{body}"


def front_matter(card: Card) -> DatasetCardData:
    """Return what the hub sorts and loads data sets by."""
    features = _features(card.schema)
    info: dict[str, Any] = {} if features is None else {"features": features}
    info |= {
        "splits": [{"name": "train", "num_bytes": card.uncompressed, "num_examples": card.rows}],
        "download_size": card.bytes,
        "dataset_size": card.uncompressed,
    }
    return DatasetCardData(
        license=card.license,
        language=None if card.language is None else [card.language],
        pretty_name=one_line(card.title),
        size_categories=[size_category(card.rows)],
        task_categories=["image-to-text", "text-to-image", "zero-shot-image-classification"],
        source_datasets=_sources(card),
        tags=["image-text-pairs", "coyo-tools", *(["coyo-700m"] if card.coyo else [])],
        configs=[
            {"config_name": "default", "data_files": [{"split": "train", "path": PARTS}]},
        ],
        dataset_info=info,
    )


def _sources(card: Card) -> list[str] | None:
    if card.road.repo is not None:
        return [card.road.repo]
    return [COYO_REPOS[0]] if card.coyo else None


class _StepView:
    """A step with what the template shows of it."""

    def __init__(self, step: Step) -> None:
        made = step.manifest
        self.step = step
        self.made = made
        self.did = did(step)
        untold = _UNTOLD | ({"top_of"} if not made.details.get("cuts") else set())
        untold |= (
            {"seed"} if step.stage == "filter" and not made.parameters.get("sample") else set()
        )
        self.settings = [
            (name.replace("_", " "), _setting(value))
            for name, value in made.parameters.items()
            if name not in untold and value not in (None, [], "")
        ]
        self.figures = [
            (words, made.details[name])
            for name, words in _FIGURES.items()
            if isinstance(made.details.get(name), int)
        ]
        self.sizes = size_bins(made.details.get("group_sizes", {}))
        self.by_distance = made.details.get("by_distance", {})
        self.several = len({bite["recipe"] for bite in step.bites}) > 1
        resolved = made.details.get("resolved")
        self.sql = made.sql if resolved is None else resolved
        self.guarded = made.sql if resolved is not None and made.sql != resolved else ""


def _replay(step: Step) -> str:
    return f"coyo verify {shlex.quote(step.name)} --source {shlex.quote(step.source)}"


def _setting(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _features(schema: pa.Schema) -> list[dict[str, Any]] | None:
    """Return the columns as `datasets` writes them in YAML; None if it has no word for a type."""
    features = []
    for column in schema:
        kind = _feature(column.type)
        if kind is None:
            return None
        features.append({"name": column.name, **kind})
    return features


def _feature(kind: pa.DataType) -> dict[str, Any] | None:
    if pa.types.is_list(kind):
        inner = _feature(kind.value_type)
        if inner is None:
            return None
        return {"list": inner.get("dtype", inner.get("struct", inner))}
    if pa.types.is_struct(kind):
        inner_fields = _features(pa.schema(list(kind)))
        return None if inner_fields is None else {"struct": inner_fields}
    if pa.types.is_boolean(kind):
        return {"dtype": "bool"}
    if pa.types.is_floating(kind):
        return {"dtype": {16: "float16", 32: "float32", 64: "float64"}[kind.bit_width]}
    if pa.types.is_decimal(kind):
        return {"dtype": f"decimal{kind.bit_width}({kind.precision}, {kind.scale})"}
    if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_binary(kind):
        return {"dtype": str(kind)}
    if pa.types.is_temporal(kind):
        return {"dtype": str(kind).removesuffix("[day]")}  # Arrow says date32[day], datasets date32
    return None
