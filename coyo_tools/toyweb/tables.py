"""The toy web's two tables: the pool's metadata, and the truth that the metadata hides.

The pool has COYO's columns and nothing else. The truth says of every row what was planted; no
stage may read it, only tests and reports that compare a finding with what is so.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coyo_tools.columns import COYO_SCHEMA, text_length, word_count
from coyo_tools.toyweb import scores
from coyo_tools.toyweb.config import ToyWebConfig, ToyWebSummary
from coyo_tools.toyweb.encode import Encoded
from coyo_tools.toyweb.links import INTACT
from coyo_tools.toyweb.plan import Plan, Row
from coyo_tools.toyweb.scenes import likeness
from coyo_tools.toyweb.seeds import generator

TRUTH_SCHEMA: pa.Schema = pa.schema(
    [
        ("id", pa.int64()),
        ("picture", pa.int32()),
        ("caption_fault", pa.string()),
        ("caption_of", pa.int64()),
        ("true_text", pa.string()),
        ("watermarked", pa.bool_()),
        ("faces", pa.int32()),
        ("nsfw", pa.bool_()),
        ("duplicate_kind", pa.string()),
        ("duplicate_of", pa.int64()),
        ("shared_url", pa.bool_()),
        ("link_fate", pa.string()),
        ("intact", pa.bool_()),
        ("shape", pa.string()),
        ("colour", pa.string()),
        ("count", pa.int32()),
        ("size", pa.string()),
        ("place", pa.string()),
        ("background", pa.string()),
        ("background_colour", pa.string()),
        ("second_shape", pa.string()),
        ("second_colour", pa.string()),
        ("relation", pa.string()),
    ]
)


def write_pool(
    path: Path, config: ToyWebConfig, plan: Plan, pictures: Sequence[Sequence[Encoded]]
) -> None:
    """Write the metadata in order of id.

    Args:
        path: the parquet file.
        config: for the seed.
        plan: the rows.
        pictures: for every picture its files as measured; their bytes are not needed.
    """
    records = [_metadata(config, plan, n, pictures) for n in range(len(plan.rows))]
    _write(path, COYO_SCHEMA, records)


def _metadata(
    config: ToyWebConfig, plan: Plan, number: int, pictures: Sequence[Sequence[Encoded]]
) -> dict[str, Any]:
    row = plan.rows[number]
    job = plan.pictures[row.picture]
    file = pictures[row.picture][row.file]
    picture = scores.picture_scores(
        config.seed,
        row.picture,
        row.file,
        watermarked=job.watermarked,
        nsfw=row.picture in plan.nsfw,
    )
    alike = 0.0
    if row.caption_of >= 0:
        alike = likeness(job.scene, plan.pictures[plan.rows[row.caption_of].picture].scene)
    b32, l14 = scores.similarities(
        generator(config.seed, "similarity", number),
        right=row.caption_of == number,
        likeness=alike,
    )
    bert, gpt = scores.token_counts(row.text)
    return {
        "id": row.id,
        "url": row.url,
        "text": row.text,
        "width": file.width,
        "height": file.height,
        "image_phash": file.phash,
        "text_length": text_length(row.text),
        "word_count": word_count(row.text),
        "num_tokens_bert": bert,
        "num_tokens_gpt": gpt,
        "num_faces": job.scene.faces,
        "clip_similarity_vitb32": b32,
        "clip_similarity_vitl14": l14,
        "nsfw_score_opennsfw2": picture.nsfw_opennsfw2,
        "nsfw_score_gantman": picture.nsfw_gantman,
        "watermark_score": picture.watermark,
        "aesthetic_score_laion_v2": picture.aesthetic,
    }


def write_truth(path: Path, plan: Plan) -> None:
    """Write what was planted in every row, in order of id.

    ``caption_fault`` is none, swapped or boilerplate; ``caption_of`` the id whose caption a row
    carries (its own if right, null if boilerplate) and ``true_text`` what it should say.
    ``duplicate_kind`` is none, exact, reencoded or resized. ``shared_url`` marks a row that came
    in as a second text for the url of ``duplicate_of``.
    """
    _write(path, TRUTH_SCHEMA, [_truth(plan, n) for n in range(len(plan.rows))])


def _caption_fault(row: Row, number: int) -> str:
    if row.caption_of == number:
        return "none"
    return "swapped" if row.caption_of >= 0 else "boilerplate"


def _truth(plan: Plan, number: int) -> dict[str, Any]:
    row = plan.rows[number]
    job = plan.pictures[row.picture]
    scene = job.scene
    return {
        "id": row.id,
        "picture": row.picture,
        "caption_fault": _caption_fault(row, number),
        "caption_of": plan.rows[row.caption_of].id if row.caption_of >= 0 else None,
        "true_text": row.true_text,
        "watermarked": job.watermarked,
        "faces": scene.faces,
        "nsfw": row.picture in plan.nsfw,
        "duplicate_kind": "none" if row.kind in ("first", "shared_url") else row.kind,
        # A picture's first row stands at the picture's own number.
        "duplicate_of": None if row.kind == "first" else plan.rows[row.picture].id,
        "shared_url": row.kind == "shared_url",
        "link_fate": row.fate.value,
        "intact": row.fate in INTACT,
        "shape": scene.thing.shape,
        "colour": scene.thing.colour,
        "count": scene.count,
        "size": scene.size,
        "place": scene.place,
        "background": scene.background.kind,
        "background_colour": scene.background.colour,
        "second_shape": scene.second.shape if scene.second else "",
        "second_colour": scene.second.colour if scene.second else "",
        "relation": scene.relation,
    }


def _write(path: Path, schema: pa.Schema, records: list[dict[str, Any]]) -> None:
    records.sort(key=lambda record: int(record["id"]))
    pq.write_table(pa.Table.from_pylist(records, schema=schema), path, compression="snappy")


def summarise(config: ToyWebConfig, plan: Plan) -> ToyWebSummary:
    """Count what was planted."""
    rows = plan.rows
    faults = Counter(_caption_fault(row, number) for number, row in enumerate(rows))
    kinds = Counter(row.kind for row in rows)
    fate_of = {row.url: row.fate.value for row in rows}
    jobs = [plan.pictures[row.picture] for row in rows]
    return ToyWebSummary(
        seed=config.seed,
        rows=len(rows),
        pictures=len(plan.pictures),
        urls=len(fate_of),
        hosts=len({url.split("/")[2] for url in fate_of}),
        heldout=len(plan.heldout),
        swapped=faults["swapped"],
        boilerplate=faults["boilerplate"],
        watermarked=sum(job.watermarked for job in jobs),
        with_faces=sum(job.scene.faces > 0 for job in jobs),
        nsfw=sum(row.picture in plan.nsfw for row in rows),
        exact=kinds["exact"],
        reencoded=kinds["reencoded"],
        resized=kinds["resized"],
        shared_url=kinds["shared_url"],
        intact_rows=sum(row.fate in INTACT for row in rows),
        links=dict(sorted(Counter(fate_of.values()).items())),
        link_rows=dict(sorted(Counter(row.fate.value for row in rows).items())),
    )
