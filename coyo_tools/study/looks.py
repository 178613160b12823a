"""What an arm looks like beside what it was chosen from: spread of scores, and whom it leaves out.

One comparison by id (``compare``) has all of it: of each bin of a column, how many of the base's
rows there are and how many of these the arm kept. That, and the pairs that a report shows, is an
artifact of its own under ``looks``, made once for the rows it was made from.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from coyo_tools.bins import BINS
from coyo_tools.compare import AUDITED, compare_pools
from coyo_tools.handover import open_shards
from coyo_tools.manifest import (
    MANIFEST,
    Manifest,
    Stopwatch,
    new_artifact,
    read_manifest,
    settings_digest,
    write_manifest,
)
from coyo_tools.measures import measurable
from coyo_tools.pairs import ReportStage
from coyo_tools.source import open_source
from coyo_tools.study.results import Row
from coyo_tools.study.shown import PAIRS, THUMBNAIL, ShownPair, draw_pairs
from coyo_tools.study.spec import EVERYTHING

LOOKS = "looks"
LOOK_KIND = "look"
_COMPARED = "compared"
_PAIRS = "pairs.parquet"
DOMAIN = "domain"
ALL_ROWS = "all rows"


@dataclass(frozen=True)
class Look:
    """An arm looked at: rows for the results, pairs for the page, and where they lie.

    ``base_rows`` are the same for all arms of a study; ``fresh`` says that it was made just now.
    """

    arm: str
    directory: Path
    base_rows: list[Row]
    rows: list[Row]
    pairs: list[ShownPair]
    fresh: bool


def look_at(
    arm: str,
    base: Path,
    stages: Sequence[ReportStage],
    shards: Path,
    *,
    captions: str | None,
    output: Path,
) -> Look:
    """Compare an arm with its base and draw its pairs, or read what was made of the same rows.

    Args:
        arm: its name.
        base: the rows that it was chosen from.
        stages: that chose its rows, the last of which has them.
        shards: the pictures.
        captions: a source whose ``text`` models are trained on, None for the shards' captions.
        output: the study's directory.

    Raises:
        CoyoError: rows or shards can't be read, or the output not be written.
    """
    watch = Stopwatch()
    rows = stages[-1].directory
    pools = open_source(base), open_source(rows)
    inputs = [pools[0].as_input("base"), pools[1].as_input("arm"), open_shards(shards)]
    if captions is not None:
        inputs.append(open_source(captions).as_input("captions"))
    asked: dict[str, Any] = {
        "stage": "look", "arm": arm, "columns": list(BINS), "pairs": PAIRS,
        "thumbnail": asdict(THUMBNAIL),
        "chosen_by": [
            settings_digest({"sql": one.manifest.sql, "asked": one.manifest.parameters})
            for one in stages
        ],
    }  # fmt: skip
    place = output / LOOKS / arm
    fresh = not _is_of(place, asked, [one.fingerprint for one in inputs])
    if fresh:
        with new_artifact(place, overwrite=True) as directory:
            found = compare_pools(base, rows, output=directory / _COMPARED, audited=tuple(BINS))
            pairs = draw_pairs(base, stages, shards, captions=captions, output=output)
            pl.DataFrame(pairs, schema=_PAIR_SCHEMA).write_parquet(directory / _PAIRS)
            write_manifest(
                directory,
                Manifest(
                    kind=LOOK_KIND,
                    parameters=asked,
                    inputs=inputs,
                    rows_in=found.a.rows,
                    rows_out=found.both,
                    lost={"not in the arm": found.a.only_here},
                    id_digest=found.b.id_digest,
                    seconds=watch.seconds(),
                    details={"lacking": measurable(pools[0]).lacking},
                ),
            )
    return _read(place, arm, fresh=fresh)


_PAIR_SCHEMA = {
    "id": pl.Int64, "kept": pl.Boolean, "text": pl.String, "why": pl.String,
    "picture": pl.Binary, "refused": pl.String,
}  # fmt: skip


def _is_of(place: Path, asked: dict[str, Any], fingerprints: list[str]) -> bool:
    if not (place / MANIFEST).is_file():
        return False
    made = read_manifest(place, LOOK_KIND)
    same = made.parameters == json.loads(json.dumps(asked))
    return same and [one.fingerprint for one in made.inputs] == fingerprints


def _read(place: Path, arm: str, *, fresh: bool) -> Look:
    found = json.loads((place / _COMPARED / "compare.json").read_text(encoding="utf-8"))
    lacking = read_manifest(place, LOOK_KIND).details["lacking"]
    pairs = [ShownPair(**row) for row in pl.read_parquet(place / _PAIRS).iter_rows(named=True)]
    return Look(arm, place, base_rows(found, lacking), arm_look_rows(arm, found), pairs, fresh)


def base_rows(found: dict[str, Any], lacking: dict[str, str]) -> list[Row]:
    """How the columns of everything are spread, and which there are not.

    Args:
        found: what compare.json holds, A being everything.
        lacking: columns that everything lacks, and why.
    """
    audits, shifts = found["audits"], found["shifts"]
    if DOMAIN not in {audit["name"] for audit in audits}:
        lacking = lacking | {DOMAIN: "no url"}
    return [
        *(_bin_row(EVERYTHING, audit, one, "rows") for audit in audits for one in _bins(audit)),
        *(_mean_row(EVERYTHING, one["name"], one["a"]) for one in shifts if _has_mean(one["a"])),
        *(
            {"kind": "absent", "arm": EVERYTHING, "metric": name, "item": why}
            for name, why in lacking.items()
        ),
    ]


def arm_look_rows(arm: str, found: dict[str, Any]) -> list[Row]:
    """How an arm's columns are spread, how far that is from everything, and whom it leaves out.

    Args:
        arm: its name.
        found: what compare.json holds, A being everything and B the arm.
    """
    rows = [_audit_row(arm, ALL_ROWS, found["overall"])]
    for audit in found["audits"]:
        rows += [_bin_row(arm, audit, one, "kept") for one in _bins(audit)]
        if audit["name"] in (*AUDITED, DOMAIN):
            rows += [_audit_row(arm, audit["name"], one) for one in _bins(audit) if one["rows"]]
    for shift in found["shifts"]:
        if _has_mean(shift["b"]):
            rows.append(_mean_row(arm, shift["name"], shift["b"]))
        if shift["smd"] is not None:
            at = {"kind": "shift", "arm": arm, "metric": shift["name"], "item": "smd"}
            rows.append({**at, "value": float(shift["smd"])})
    return rows


def _bins(audit: dict[str, Any]) -> list[dict[str, Any]]:
    """Bins with rows, and those that are drawn even where they have none."""
    drawn = BINS[audit["name"]].labels if audit["name"] in BINS else ()
    return [one for one in audit["bins"] if one["rows"] or one["label"] in drawn]


def _bin_row(arm: str, audit: dict[str, Any], one: dict[str, Any], figure: str) -> Row:
    at = {"kind": "bin", "arm": arm, "metric": audit["name"], "item": one["label"]}
    return {**at, "value": float(one[figure])}


def _audit_row(arm: str, metric: str, one: dict[str, Any]) -> Row:
    ends = {"value": one["share"], "low": one["low"], "high": one["high"]}
    return {"kind": "audit", "arm": arm, "metric": metric, "item": one["label"], **ends}


def _has_mean(side: dict[str, Any] | None) -> bool:
    return side is not None and side["mean"] is not None


def _mean_row(arm: str, metric: str, side: dict[str, Any]) -> Row:
    at = {"kind": "shift", "arm": arm, "metric": metric, "item": "mean"}
    return {**at, "value": float(side["mean"])}
