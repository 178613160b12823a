"""The command that scores a pool: score."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coyo_tools.cli.output import (
    SHARDS_HELP,
    SOURCE_HELP,
    Json,
    Memory,
    Output,
    Overwrite,
    Threads,
    examples,
    limit_threads,
    print_json,
    print_table,
    progress_bar,
    say,
)

if TYPE_CHECKING:
    from coyo_tools.score import ScoreResult

_CLIP = "a CLIP directory or a name on the hub"


def score_command(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    output: Output,
    model: Annotated[
        str | None,
        typer.Option(
            help="align_similarity: a run, an ALIGN directory, or a name on the hub.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help=f"{SHARDS_HELP} Needed for all but texts.")
    ] = None,
    clip_vitb32: Annotated[
        str | None,
        typer.Option(help=f"clip_similarity_vitb32: {_CLIP}, openai/clip-vit-base-patch32."),
    ] = None,
    clip_vitl14: Annotated[
        str | None,
        typer.Option(help=f"clip_similarity_vitl14: {_CLIP}, openai/clip-vit-large-patch14."),
    ] = None,
    faces: Annotated[
        str | None,
        typer.Option(
            help="num_faces: haar, OpenCV's own detector, or the file of YuNet's weights (.onnx). "
            "COYO's are SCRFD's; these are others."
        ),
    ] = None,
    sizes: Annotated[
        bool, typer.Option("--sizes", help="width, height: of the stored pictures.")
    ] = False,
    phash: Annotated[
        bool,
        typer.Option(
            "--phash",
            help="image_phash: of the stored pictures, nearly that of the originals.",
        ),
    ] = False,
    text: Annotated[bool, typer.Option("--text", help="text_length, word_count.")] = False,
    bert_tokenizer: Annotated[
        str | None,
        typer.Option(
            help="num_tokens_bert: a directory or a name on the hub, google-bert/bert-base-uncased."
        ),
    ] = None,
    gpt_tokenizer: Annotated[
        str | None,
        typer.Option(
            help="num_tokens_gpt: a directory or a name on the hub, openai-community/gpt2."
        ),
    ] = None,
    replace: Annotated[
        list[str] | None,
        typer.Option(help="A column that is there already and is to be replaced; repeatable."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pairs embedded at a time.", min=1)] = 256,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default what is there.")] = None,
    processes: Annotated[
        int | None, typer.Option(help="That decode pictures; default one per core.", min=1)
    ] = None,
    overwrite: Overwrite = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what a stopped run has done.")
    ] = False,
    memory: Memory = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Add scores to a pool: how well picture and text agree by your model or CLIP, faces, and more.

    Every row stays, in its order. A row whose picture is not in the shards or doesn't decode has
    NULL, and the reasons are counted. A stopped run goes on with the same command.
    """
    limit_threads(threads)
    from coyo_tools.score import score_pool
    from coyo_tools.score_settings import ScoreSettings

    settings = ScoreSettings(
        model=model,
        clip_vitb32=clip_vitb32,
        clip_vitl14=clip_vitl14,
        faces=faces,
        sizes=sizes,
        phash=phash,
        text=text,
        bert_tokenizer=bert_tokenizer,
        gpt_tokenizer=gpt_tokenizer,
        replace=tuple(replace or ()),
        batch_size=batch_size,
        device=device,
        processes=processes,
    )
    with progress_bar("score") as on_progress:
        result = score_pool(
            source,
            output,
            settings,
            shards=data,
            overwrite=overwrite,
            restart=restart,
            memory=memory,
            threads=threads,
            on_progress=on_progress,
        )
    if as_json:
        print_json(asdict(result))
        return
    _print_result(result)


def _print_result(result: "ScoreResult") -> None:
    figures = ("rows", "mean", "min", "max")
    print_table(
        ["column", *figures, "NULL"],
        [
            [name, *(found.get(figure) for figure in figures), sum(found["null"].values())]
            for name, found in result.columns.items()
        ],
    )
    for name, found in result.columns.items():
        for reason, count in found["null"].items():
            say(f"note: {count:,} rows have no {name}: {reason}.")
    among = "" if result.in_shards is None else f", {result.in_shards:,} with a picture"
    say(f"{result.rows:,} rows{among} -> {result.output}")


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(
        "score",
        epilog=examples(
            "coyo score clean --model run --data shards -o scored",
            "coyo score pool --text --sizes --faces haar --data shards -o measured",
        ),
    )(score_command)
