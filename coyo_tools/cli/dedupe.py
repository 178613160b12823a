"""The command dedupe: duplicates, near-duplicates, and evaluation pictures in a training pool."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coyo_tools.cli.output import (
    SOURCE_HELP,
    Json,
    Output,
    Overwrite,
    Threads,
    cell_text,
    examples,
    limit_threads,
    print_json,
    print_table,
    progress_bar,
    say,
)
from coyo_tools.errors import RecipeError

if TYPE_CHECKING:
    from coyo_tools.dedupe import DecontaminateResult, DedupeResult, SemanticResult

_GROUPS_SHOWN = 5
_NAMES_SHOWN = 20


def dedupe_command(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    output: Output,
    by: Annotated[
        str | None,
        typer.Option(
            help="Columns, comma-separated; rows that agree in all are duplicates. "
            "Default image_phash."
        ),
    ] = None,
    radius: Annotated[
        int | None,
        typer.Option(
            help="Hashes that differ in up to so many of 64 bits are duplicates too, 0 to 12. "
            "Default 0; with --against 4.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="ORDER BY terms; the first row stays. Ties end by id. Default id; with "
            "--embeddings least-typical: the picture farthest from its cluster's centroid."
        ),
    ] = None,
    linkage: Annotated[
        str | None,
        typer.Option(
            help="star: a row goes only if one within the radius stays. components: all that hangs "
            "together in chains is one group. Default star."
        ),
    ] = None,
    max_group: Annotated[
        int | None,
        typer.Option(help="With components: groups of more rows are linked by star instead."),
    ] = None,
    flat: Annotated[
        str,
        typer.Option(
            help="Hashes of flat pictures, with fewer than 24 or more than 40 bits set: exact "
            "compares them for equality only, near as any other."
        ),
    ] = "exact",
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize", help="Compare texts without case, punctuation, digits, extra spaces."
        ),
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            help="Remove what is within the radius of an evaluation picture, and nothing else: a "
            "pool or subset, a parquet file with hashes, shards, or a folder of pictures."
        ),
    ] = None,
    augment: Annotated[
        bool,
        typer.Option("--augment", help="With --against: look for them flipped and turned as well."),
    ] = False,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help="Remove rows whose pictures mean the same, by a directory of `coyo embed`."
        ),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(
            help="With --embeddings: rows are duplicates at a cosine of 1 - epsilon or more.",
            show_default=False,
        ),
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(
            help="With --embeddings: only pictures of one cluster are compared; 1 compares all. "
            "Default the square root of the rows.",
            min=1,
        ),
    ] = None,
    overwrite: Overwrite = False,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory for DuckDB and the search together, like 8GB; they spill to disk beyond. "
            "Default 80 % of the machine's."
        ),
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Keep the best row of every group of duplicates, or remove evaluation pictures.

    Hashes are compared by the metadata alone; no picture is fetched. With --embeddings, of pictures
    that mean the same to a model one stays (SemDeDup). What was removed, in favour of
    which row and at what distance, stands in OUTPUT/removed.parquet; the largest groups, with texts
    and urls, in OUTPUT/dedupe.html.
    """
    limit_threads(threads)
    if against is not None:
        given = {
            "--by": by, "--keep": keep, "--linkage": linkage, "--max-group": max_group,
            "--normalize": normalize or None, "--embeddings": embeddings, "--epsilon": epsilon,
            "--clusters": clusters,
        }  # fmt: skip
        _refuse_given(given, "--against removes evaluation pictures, not duplicates")
        _against(
            source, output, against, radius, augment, flat, overwrite, memory, threads, as_json
        )
        return
    if augment:
        raise RecipeError("--augment turns evaluation pictures.", "Name them with --against.")
    if embeddings is not None:
        given = {
            "--by": by, "--radius": radius, "--linkage": linkage, "--max-group": max_group,
            "--normalize": normalize or None, "--flat": None if flat == "exact" else flat,
        }  # fmt: skip
        _refuse_given(given, "--embeddings compares what pictures mean")
        if epsilon is None:
            raise RecipeError(
                "--embeddings needs --epsilon.",
                "Rows are duplicates at a cosine of 1 - epsilon; 0.01 to 0.1 are usual.",
            )
        _by_meaning(
            source, output, embeddings, epsilon, clusters, keep, overwrite, memory, threads, as_json
        )
        return
    for name, value in (("--epsilon", epsilon), ("--clusters", clusters)):
        if value is not None:
            raise RecipeError(f"{name} belongs to --embeddings, which is not given.")
    from coyo_tools.dedupe import dedupe_pool

    columns = by if by is not None else "image_phash"
    with progress_bar("dedupe") as on_progress:
        result = dedupe_pool(
            source,
            output,
            by=tuple(name.strip() for name in columns.split(",") if name.strip()),
            keep=keep if keep is not None else "id",
            radius=radius or 0,
            linkage=linkage or "star",
            max_group=max_group,
            flat=flat,
            normalize=normalize,
            overwrite=overwrite,
            memory=memory,
            threads=threads,
            on_progress=on_progress,
        )
    if as_json:
        print_json(asdict(result))
        return
    _print_groups(result)
    _say_what_was_done(result, columns, radius or 0, flat)
    _say_rows(result, output)


def _say_rows(result: "DedupeResult | SemanticResult", output: Path) -> None:
    removed = result.rows_in - result.rows_out
    say(
        f"{result.rows_in:,} rows in, {removed:,} duplicates removed, "
        f"{result.rows_out:,} out -> {output}"
    )


def _refuse_given(given: Mapping[str, object], why: str) -> None:
    """Raise ``RecipeError`` if an option is given that says nothing here."""
    other = [name for name, value in given.items() if value is not None]
    if other:
        raise RecipeError(
            f"{why}: {', '.join(other)} has no meaning there.",
            "Run coyo dedupe twice, once with and once without.",
        )


def _by_meaning(
    source: str,
    output: Path,
    embeddings: Path,
    epsilon: float,
    clusters: int | None,
    keep: str | None,
    overwrite: bool,
    memory: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    from coyo_tools.dedupe import LEAST_TYPICAL, dedupe_by_meaning

    with progress_bar("dedupe") as on_progress:
        result = dedupe_by_meaning(
            source,
            output,
            embeddings=embeddings,
            epsilon=epsilon,
            clusters=clusters,
            keep=keep if keep is not None else LEAST_TYPICAL,
            overwrite=overwrite,
            memory=memory,
            threads=threads,
            on_progress=on_progress,
        )
    if as_json:
        print_json(asdict(result))
        return
    _print_groups(result, "1 - cosine, up to")
    for count, what in (
        (result.without_key, "rows have no embedding; they are kept"),
        (result.not_in_pool, "embeddings have an id that no row has"),
        (result.without_id, "embeddings have no id"),
        (result.repeated, "embeddings have an id that came before; the first counts"),
    ):
        if count:
            say(f"note: {count:,} {what}.")
    if result.clusters > 1:
        say(
            f"note: compared within {result.clusters:,} clusters, the largest of "
            f"{result.largest_cluster:,} rows; duplicates in different clusters stay."
        )
    _say_rows(result, output)


def _print_groups(
    result: "DedupeResult | SemanticResult", distance: str = "bits from the row that stays"
) -> None:
    from coyo_tools.dedupe import size_bins

    print_table(
        ["rows in a group", "groups", "rows removed"],
        [[size.label, size.groups, size.removed] for size in size_bins(result.group_sizes)],
    )
    if len(result.by_distance) > 1 or any(result.by_distance):
        typer.echo()
        print_table(
            [distance, "rows removed"],
            [[str(far), rows] for far, rows in result.by_distance.items()],
        )
    if result.largest:
        typer.echo()
        print_table(
            ["largest groups", "id that stays", "text", "url"],
            [
                [group.rows, str(group.kept.id), _short(group.kept.text), _short(group.kept.url)]
                for group in result.largest[:_GROUPS_SHOWN]
            ],
        )


def _say_what_was_done(result: "DedupeResult", by: str, radius: int, flat: str) -> None:
    if result.without_key:
        what = "no hash of 16 hex digits" if by == "image_phash" else f"no {by}"
        say(f"note: {result.without_key:,} rows have {what}; they are kept.")
    if radius and result.flat and flat == "exact":
        say(
            f"note: {result.flat:,} rows have the hash of a flat picture; of those, only equal "
            "ones were removed (--flat near compares them as the others)."
        )
    if result.split:
        say(f"note: {result.split:,} components were larger than --max-group; star linked them.")
    if result.chained:
        say(
            f"warning: {result.chained:,} rows are farther than {radius} bits from the row that "
            f"stays for them, up to {result.farthest}: chains. --linkage star makes none; "
            "--max-group N splits the long ones."
        )


def _against(
    source: str,
    output: Path,
    against: str,
    radius: int | None,
    augment: bool,
    flat: str,
    overwrite: bool,
    memory: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    from coyo_tools.dedupe import DEFAULT_RADIUS, decontaminate_pool

    distance = DEFAULT_RADIUS if radius is None else radius
    with progress_bar("decontaminate") as on_progress:
        result = decontaminate_pool(
            source,
            output,
            against=against,
            radius=distance,
            augment=augment,
            flat=flat,
            overwrite=overwrite,
            memory=memory,
            threads=threads,
            on_progress=on_progress,
        )
    if as_json:
        print_json(asdict(result))
        return
    _print_found(result)
    if result.without_key:
        say(f"note: {result.without_key:,} rows have no hash of 16 hex digits; they are kept.")
    if result.evaluation_without_hash:
        say(f"note: {result.evaluation_without_hash:,} evaluation rows have no hash.")
    if result.refused:
        name, why = result.refused[0]
        say(
            f"note: {len(result.refused):,} files of {against} were not hashed, such as "
            f"{cell_text(name)}: {cell_text(why)}."
        )
    removed = result.rows_in - result.rows_out
    say(
        f"{result.rows_in:,} rows in, {removed:,} within {distance} bits of "
        f"{len(result.found):,} of {result.evaluation_pictures:,} evaluation pictures removed, "
        f"{result.rows_out:,} out -> {output}"
    )


def _print_found(result: "DecontaminateResult") -> None:
    if not result.found:
        return
    found = list(result.found.items())
    rows: list[list[object]] = [[name, rows] for name, rows in found[:_NAMES_SHOWN]]
    if len(found) > _NAMES_SHOWN:
        rest = sum(rows for _, rows in found[_NAMES_SHOWN:])
        rows.append([f"and {len(found) - _NAMES_SHOWN:,} others, in removed.parquet", rest])
    print_table(["evaluation picture", "rows removed"], rows)
    typer.echo()
    print_table(
        ["bits", "rows removed"], [[str(bits), rows] for bits, rows in result.by_distance.items()]
    )
    if set(result.by_turn) - {"as_is"}:
        typer.echo()
        print_table(
            ["turned", "rows removed"],
            [[turn.replace("_", " "), rows] for turn, rows in result.by_turn.items()],
        )


def _short(text: str | None, width: int = 60) -> str | None:
    return text if text is None or len(text) <= width else text[: width - 1] + "…"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "dedupe",
        epilog=examples(
            'coyo dedupe clean -o unique --radius 2 --keep "clip_similarity_vitl14 DESC"',
            "coyo dedupe clean -o unique-pairs --by url,text",
            "coyo dedupe clean -o unique-texts --by text --normalize",
            "coyo dedupe clean -o train --against imagenet/val --augment",
            "coyo dedupe clean -o meant --embeddings emb --epsilon 0.05",
        ),
    )(dedupe_command)
