"""The command that turns pictures and captions into vectors: embed."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from coyo_tools.cli.output import (
    Json,
    Output,
    Overwrite,
    Subset,
    Threads,
    download_progress,
    examples,
    print_json,
    print_table,
    say,
    say_left_out,
)


def embed_command(
    model: Annotated[
        str,
        typer.Argument(
            help="A run, any ALIGN directory, or a name on the hub: owner/name[@revision]."
        ),
    ],
    data: Annotated[
        Path, typer.Argument(help="Directory of shards, or a folder with pictures in or below it.")
    ],
    output: Output,
    only: Annotated[
        str | None,
        typer.Option(help="image or text; default both, of a folder the pictures."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="As the model gives them, not scaled to length 1.")
    ] = False,
    hidden_states: Annotated[
        bool,
        typer.Option(
            "--hidden-states",
            help="The towers' own outputs: pooled pictures, and [CLS] before the projection.",
        ),
    ] = False,
    subset: Subset = None,
    batch_size: Annotated[int, typer.Option(help="Pictures or captions at a time.", min=1)] = 256,
    precision: Annotated[
        str, typer.Option(help="fp32, or bf16 where the hardware has it: faster, 3 digits.")
    ] = "fp32",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default what is there.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Decoding processes; default as --threads.", min=1)
    ] = None,
    threads: Threads = None,
    part_rows: Annotated[
        int, typer.Option(help="Samples a part; a stop costs at most the part it was at.", min=1)
    ] = 8192,
    overwrite: Overwrite = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what a stopped command has done.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Embed the pictures and captions of shards, or a folder of pictures, for search and more.

    Writes part-00000.image.npy and .text.npy, float32 (rows, width), and part-00000.parquet with
    the id, key and caption of each row and the place of its picture. Stopped, the same command goes
    on with the next part.
    """
    from coyo_tools.embedding import EmbedSettings, embed_data

    settings = EmbedSettings(
        only=only,
        raw=raw,
        hidden_states=hidden_states,
        precision=precision,
        batch_size=batch_size,
        part_rows=part_rows,
        device=device,
        threads=threads,
        workers=workers,
    )
    with download_progress("embed") as on_progress:
        result = embed_data(
            model,
            data,
            output,
            settings,
            subset=subset,
            overwrite=overwrite,
            restart=restart,
            on_progress=on_progress,
        )
    if as_json:
        print_json(asdict(result))
    else:
        rows = [[side, result.rows, width] for side, width in result.widths.items()]
        print_table(["embeddings", "rows", "width"], rows)
    say_left_out(result, str(data))
    if result.resumed_rows:
        say(f"note: {result.resumed_rows:,} rows were done before.")
    say(
        f"{output}: {result.rows:,} rows of model {result.fingerprint}, "
        f"{result.rows_per_second:,.0f} rows/s."
    )


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(
        "embed",
        epilog=examples(
            "coyo embed run shards -o emb",
            "coyo embed kakaobrain/align-base photos -o emb --only image",
            "coyo embed run shards -o hidden --hidden-states --subset best --json",
        ),
    )(embed_command)
