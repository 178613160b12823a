"""Shuffle: a share of the rows get each another's text, so that a study can be wrong visibly.

Which rows those are stands in the column ``shuffled``; the pictures stay where they are, and
training takes the texts from here (``captions``). What was measured of a text before is left out
rather than carried over to another.
"""

from dataclasses import dataclass
from pathlib import Path

from coyo_tools.columns import ALIGN_SIMILARITY, TEXT
from coyo_tools.engine import (
    digest_ids,
    open_session,
    read_sql,
    recipe_errors,
    refuse_pool_with_duplicate_ids,
    write_parts,
)
from coyo_tools.errors import ColumnError, EmptyResultError, RecipeError
from coyo_tools.manifest import Manifest, Stopwatch, new_artifact, write_manifest
from coyo_tools.source import NOTES, open_source

SHUFFLED = "shuffled"
_OF_TEXTS = (
    "text_length", "word_count", "num_tokens_bert", "num_tokens_gpt", "clip_similarity_vitb32",
    "clip_similarity_vitl14", ALIGN_SIMILARITY,
)  # fmt: skip


@dataclass(frozen=True)
class ShuffleResult:
    """What a shuffling did: rows, those with another's text, the columns that were left out."""

    output: Path
    rows: int
    shuffled: int
    left_out: tuple[str, ...]


def check_share(share: float) -> None:
    """Raise ``RecipeError`` unless this is a share of rows above 0 and up to 1."""
    if not 0 < share <= 1:
        raise RecipeError(f"The share {share} shuffles nothing: it is above 0 and at most 1.")


def shuffle_texts(
    source: str | Path,
    output: Path,
    *,
    share: float,
    seed: int = 0,
    overwrite: bool = False,
    memory: str | None = None,
    threads: int | None = None,
) -> ShuffleResult:
    """Write all rows of a pool, a share of them with the text of another, by id.

    Args:
        source: the pool or subset.
        output: the subset to write.
        share: of the rows that have a text, above 0 and at most 1; rounded to whole rows. Those of
            them whose partner says the same are no different and are not counted.
        seed: another one draws other rows.
        overwrite: replace an earlier result.
        memory: DuckDB's memory limit.
        threads: how many threads.

    Raises:
        CoyoError: of the kind that says which of source, share or output is at fault; or no row got
            another text.
    """
    watch = Stopwatch()
    check_share(share)
    pool = open_source(source)
    if TEXT not in pool.schema.names:
        raise ColumnError(f"{source} has no column {TEXT} to shuffle.")
    if SHUFFLED in pool.schema.names:
        raise ColumnError(
            f"{source} has a column {SHUFFLED} already.", "Shuffle what it came from."
        )
    left_out = tuple(name for name in _OF_TEXTS if name in pool.schema.names)
    with (
        new_artifact(output, overwrite=overwrite) as directory,
        open_session(pool, output=directory, memory=memory, threads=threads) as session,
        recipe_errors(pool),
    ):
        refuse_pool_with_duplicate_ids(session, str(source))
        asked = {"seed": seed, "share": share}
        session.execute(f"CREATE TEMP TABLE moved AS {read_sql('shuffle/moved.sql')}", asked)
        shuffled = session.table("moved").count("*").fetchall()[0][0]
        if not shuffled:
            raise EmptyResultError(
                f"No row of {source} got another's text.", "Are there two different ones?"
            )
        rows = session.sql(read_sql("shuffle/rows.sql"))
        names = [name for name in rows.columns if name not in left_out]
        digest = digest_ids(write_parts(rows.select(*names), directory))
        write_manifest(
            directory,
            Manifest(
                kind="subset",
                parameters={"stage": "shuffle", "share": share, "seed": seed},
                inputs=[pool.as_input("pool")],
                rows_in=pool.rows,
                rows_out=digest.count,
                lost={},
                id_digest=digest.hexdigest(),
                seconds=watch.seconds(),
                details={SHUFFLED: shuffled, "left_out": left_out, NOTES: dict(pool.notes)},
            ),
        )
    return ShuffleResult(output, pool.rows, shuffled, left_out)
