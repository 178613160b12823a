"""Croissant metadata: what a subset is made of, in JSON-LD that loaders and search engines read.

Croissant 1.0 (MLCommons), the version that the hub and mlcroissant both read. Files are named
relative to croissant.json, each with its SHA-256; a file set of them is what the records come from.
Columns of a type that Croissant has no word for are left out and named in the description.
"""

import re
from typing import Any

import pyarrow as pa

from coyo_tools.columns import BY_NAME, URL
from coyo_tools.publish.facts import PARTS, Card
from coyo_tools.publish.markdown import one_line
from coyo_tools.publish.words import CITATION, HUB, summary

CROISSANT = "croissant.json"
_PARQUET = "application/x-parquet"
_FILES = "parts"
_RECORDS = "pairs"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]+")
# The specification's context, whole, as it asks of every document.
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_LICENSES = {"cc-by-4.0": "https://creativecommons.org/licenses/by/4.0/"}


def croissant_of(card: Card) -> dict[str, Any]:
    """Return a card's facts as Croissant JSON-LD."""
    fields, left_out = _fields(card.schema)
    said = summary(card)
    if left_out:
        said += f" Columns not described here: {', '.join(map(one_line, left_out))}."
    made: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": one_line(card.title),
        "description": said,
        "license": _LICENSES.get(card.license, card.license),
        "isLiveDataset": False,
        "version": "1.0.0",
        "identifier": card.manifest.id_digest,
        "keywords": ["image-text pairs", "alternative text"],
        "distribution": [
            *(
                {
                    "@type": "cr:FileObject",
                    "@id": part.name,
                    "name": part.name,
                    "contentUrl": part.name,
                    "contentSize": f"{part.bytes} B",
                    "encodingFormat": _PARQUET,
                    "sha256": part.sha256,
                }
                for part in card.parts
            ),
            {
                "@type": "cr:FileSet",
                "@id": _FILES,
                "name": _FILES,
                "description": "All parts, in order.",
                "encodingFormat": _PARQUET,
                "includes": PARTS,
            },
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": _RECORDS,
                "name": _RECORDS,
                "description": f"{card.rows:,} rows, one for each picture's url and its text.",
                "key": {"@id": f"{_RECORDS}/id"},
                "field": fields,
            }
        ],
    }
    if card.language is not None:
        made["inLanguage"] = card.language
    if card.coyo:
        made |= {"citeAs": CITATION, "isBasedOn": f"{HUB}/datasets/kakaobrain/coyo-700m"}
    if card.repo is not None:
        made["url"] = f"{HUB}/datasets/{card.repo}"
    return made


def _fields(schema: pa.Schema) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a field for every column that Croissant can describe, and the names of the others."""
    fields, left_out = [], []
    for number, column in enumerate(schema):
        repeated = pa.types.is_list(column.type)
        kind = _data_type(column.name, column.type.value_type if repeated else column.type)
        if kind is None:
            left_out.append(column.name)
            continue
        plain = _PLAIN_NAME.fullmatch(column.name) is not None
        known = BY_NAME.get(column.name)
        field: dict[str, Any] = {
            "@type": "cr:Field",
            "@id": f"{_RECORDS}/{column.name if plain else f'column-{number}'}",
            "name": one_line(column.name),
            "description": known.meaning if known is not None else "a column of this pool",
            "dataType": kind,
            "source": {"fileSet": {"@id": _FILES}, "extract": {"column": column.name}},
        }
        if repeated:
            field["repeated"] = True
        fields.append(field)
    return fields, left_out


def _data_type(name: str, kind: pa.DataType) -> str | None:
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "sc:Float"
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return "sc:Date"
    if pa.types.is_string(kind):
        return "sc:URL" if name == URL else "sc:Text"
    return None
