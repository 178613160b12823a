"""Other pools' columns under COYO's names, so that one recipe runs on all.

A pool is recognised by the names of its columns. A column is renamed where it holds the same thing
as COYO's; where another model made the score, a note says so. A COYO name that has a model in it
takes that model's scores only. Nothing is converted that a reader would not expect: types and nulls
stay as stored, and what has no counterpart keeps its own name.
"""

from dataclasses import dataclass, field

import pyarrow as pa

from coyo_tools.columns import ID, IMAGE_PHASH, TEXT, URL

COYO = "COYO-700M"


@dataclass(frozen=True)
class MappedColumn:
    """One column of the view ``pool``: its name and type there, what it is read from.

    ``macro`` is the one of sql/layouts.sql that makes it; empty where the column is only renamed.
    """

    name: str
    type: pa.DataType
    stored: str
    macro: str = ""
    note: str = ""


@dataclass(frozen=True)
class ColumnMap:
    """What a pool's columns are called in the view ``pool``.

    ``absent`` gives for some of COYO's columns the reason why this layout has none, though a reader
    may think so.
    """

    layout: str
    columns: tuple[MappedColumn, ...]
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether the view shows the files as they are."""
        return all(column.name == column.stored and not column.macro for column in self.columns)


@dataclass(frozen=True)
class _Rule:
    """``stored``, in lower case, is shown as ``name``; the first rule for a name wins."""

    stored: str
    name: str
    macro: str = ""
    note: str = ""


@dataclass(frozen=True)
class _Layout:
    """``absent`` has, by COYO's name, what may be taken for it, in lower case, and why not."""

    name: str
    rules: tuple[_Rule, ...]
    absent: dict[str, tuple[str, str]] = field(default_factory=dict)


_PUNSAFE = (
    "punsafe",
    "punsafe is LAION's own CLIP-based NSFW probability, another model; it keeps its name",
)
_LAION = _Layout(
    "LAION",
    (
        _Rule("sample_id", ID),
        _Rule("hash", ID, note="LAION's 64-bit hash of url and text; there is no SAMPLE_ID"),
        _Rule("url", URL),
        _Rule("text", TEXT),
        _Rule("width", "width"),
        _Rule("height", "height"),
        _Rule("similarity", "clip_similarity_vitb32", note="LAION's own run of CLIP ViT-B/32"),
        _Rule("pwatermark", "watermark_score", note="LAION's watermark model, not COYO's"),
        _Rule(
            "aesthetic_score",
            "aesthetic_score_laion_v2",
            note="LAION's own run of LAION-Aesthetics V2",
        ),
    ),
    {
        "nsfw_score_opennsfw2": _PUNSAFE,
        "nsfw_score_gantman": _PUNSAFE,
        "aesthetic_score_laion_v2": (
            "aesthetic",
            "`aesthetic` is LAION-Aesthetics V1, whose scale is another one; it keeps its name",
        ),
    },
)
_MULTILINGUAL = _Rule(
    "similarity",
    "clip_similarity_vitb32",
    note="LAION's run; outside LAION-2B-en the text side is a multilingual CLIP",
)
_DATACOMP = _Layout(
    "DataComp",
    (
        _Rule(
            "uid",
            ID,
            macro="id_of_uid",
            note="63 bits of the 128-bit uid: n rows hold a collision with odds of n * n / 2**64",
        ),
        _Rule("url", URL),
        _Rule("text", TEXT),
        _Rule("original_width", "width"),
        _Rule("original_height", "height"),
        _Rule("face_bboxes", "num_faces", macro="faces_of", note="DataComp's face detector"),
        _Rule(
            "clip_b32_similarity_score",
            "clip_similarity_vitb32",
            note="DataComp's own run of CLIP ViT-B/32",
        ),
        _Rule(
            "clip_l14_similarity_score",
            "clip_similarity_vitl14",
            note="DataComp's own run of CLIP ViT-L/14",
        ),
    ),
)
_LABELED = _Layout("COYO-Labeled-300M", (_Rule("imagehash", IMAGE_PHASH),))

_COMPUTED = (
    _Rule(TEXT, "text_length", macro="characters_of", note="computed from text"),
    _Rule(TEXT, "word_count", macro="words_of", note="computed from text"),
)
_MACRO_TYPES = {"id_of_uid": pa.int64(), "id_of_double": pa.int64()}


def map_columns(schema: pa.Schema) -> ColumnMap:
    """Recognise a pool by its column names and map them to COYO's.

    A column that COYO's name is taken by already is left alone.

    Args:
        schema: the files' own columns.
    """
    layout = _recognise({name.lower() for name in schema.names})
    if layout is None:
        return ColumnMap(COYO, tuple(MappedColumn(f.name, f.type, f.name) for f in schema))
    by_lower = {name.lower(): name for name in reversed(schema.names)}
    taken = set(schema.names)
    renamed: dict[str, _Rule] = {}
    made: list[MappedColumn] = []
    for rule in layout.rules:
        stored = by_lower.get(rule.stored)
        if stored is None or rule.name in (taken - {stored}):
            continue
        taken.add(rule.name)
        if rule.macro:
            made.append(_made(rule, stored))
        elif rule.name == ID and pa.types.is_floating(schema.field(stored).type):
            note = f"{stored} is stored as {schema.field(stored).type}; whole numbers become ids"
            made.append(_made(_Rule(rule.stored, ID, "id_of_double", note), stored))
        else:
            renamed[stored] = rule
    shown = [_shown(schema.field(name), renamed.get(name)) for name in schema.names]
    text = next((column.stored for column in shown if column.name == TEXT), None)
    if text is not None and layout is not _LABELED:
        made += [_made(rule, text) for rule in _COMPUTED if rule.name not in taken]
    front = [column for column in made if column.name == ID]
    columns = (*front, *shown, *(column for column in made if column.name != ID))
    names = {column.name for column in columns}
    absent = {
        name: why
        for name, (stored, why) in layout.absent.items()
        if name not in names and stored in by_lower
    }
    return ColumnMap(layout.name, columns, absent)


def _recognise(names: set[str]) -> _Layout | None:
    if ID in names:
        return _LABELED if "imagehash" in names else None
    if "uid" in names and names & {rule.stored for rule in _DATACOMP.rules[3:]}:
        return _DATACOMP
    if names & {"sample_id", "hash"} and names >= {URL, TEXT}:
        if "language" not in names:
            return _Layout("LAION", _LAION.rules, _LAION.absent)
        rules = [_MULTILINGUAL if rule.stored == "similarity" else rule for rule in _LAION.rules]
        return _Layout("LAION", tuple(rules), _LAION.absent)
    return None


def _shown(stored: pa.Field, rule: _Rule | None) -> MappedColumn:
    if rule is None:
        return MappedColumn(stored.name, stored.type, stored.name)
    return MappedColumn(rule.name, stored.type, stored.name, note=rule.note)


def _made(rule: _Rule, stored: str) -> MappedColumn:
    kind = _MACRO_TYPES.get(rule.macro, pa.int32())
    return MappedColumn(rule.name, kind, stored, rule.macro, rule.note)
