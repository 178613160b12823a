"""Commands on pictures: download, index, phash."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from coyo_tools.cli.output import (
    SOURCE_HELP,
    Json,
    Output,
    Overwrite,
    cell_text,
    examples,
    print_json,
    print_table,
    progress_bar,
    say,
)

ImageSize = Annotated[
    int,
    typer.Option(
        help="Size of the stored pictures, pixels: their longest side, unless --resize says "
        "otherwise; never enlarged.",
        min=16,
    ),
]
Resize = Annotated[
    str,
    typer.Option(
        help="What --image-size bounds: the longest side (keep_ratio_largest; border also pads "
        "with white to a square), the shortest (keep_ratio; center_crop also cuts to a square), or "
        "nothing (no)."
    ),
]
Quality = Annotated[int, typer.Option(help="JPEG quality.", min=1, max=95)]
SamplesPerShard = Annotated[int, typer.Option(help="Samples in a tar.", min=1)]
Processes = Annotated[int | None, typer.Option(help="Processes; default one per core.", min=1)]


def download_command(
    subset: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    output: Output,
    image_size: ImageSize = 256,
    quality: Quality = 90,
    max_drift: Annotated[
        int,
        typer.Option(
            help="Bits by which the pHash of what is served may differ from image_phash; "
            "beyond, the picture has drifted and is kept out.",
            min=0,
            max=64,
        ),
    ] = 8,
    samples_per_shard: SamplesPerShard = 10_000,
    processes: Processes = None,
    threads: Annotated[int, typer.Option(help="Requests at a time, per process.", min=1)] = 32,
    timeout: Annotated[int, typer.Option(help="Seconds before a request is given up.", min=1)] = 10,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fetch the pictures with img2dataset into WebDataset tars keyed by id, with a ledger.

    Every url is fetched once. ledger.parquet has one row for every id asked for, with its fate.
    Proxies are taken from http_proxy and https_proxy.
    """
    from coyo_tools.download import DownloadSettings, download_pictures
    from coyo_tools.pictures import PictureSettings

    settings = DownloadSettings(
        picture=PictureSettings(image_size, quality),
        max_drift=max_drift,
        samples_per_shard=samples_per_shard,
        processes=processes,
        threads=threads,
        timeout=timeout,
    )
    with progress_bar("download") as on_progress:
        result = download_pictures(
            subset, output, settings, overwrite=overwrite, on_progress=on_progress
        )
    if as_json:
        print_json(asdict(result))
        return
    print_table(
        ["outcome", "rows", "share"],
        [[name, rows, f"{rows / result.rows_in:.1%}"] for name, rows in result.outcomes.items()],
    )
    say(
        f"{result.rows_in:,} rows asked for, {result.urls:,} urls, {result.rows_out:,} pictures "
        f"in {result.seconds:.0f} s -> {output}"
    )


def index_command(
    captions: Annotated[
        Path, typer.Argument(help="A .csv, .jsonl or .parquet with one row a picture.")
    ],
    output: Output,
    image_column: Annotated[str, typer.Option(help="Column with the picture files.")],
    text_column: Annotated[str, typer.Option(help="Column with the captions.")],
    image_root: Annotated[
        Path | None, typer.Option(help="Folder of the pictures; default that of CAPTIONS.")
    ] = None,
    image_size: ImageSize = 256,
    resize: Resize = "keep_ratio_largest",
    quality: Quality = 90,
    samples_per_shard: SamplesPerShard = 10_000,
    processes: Processes = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a pool and shards of your own captioned pictures.

    OUTPUT/pool has COYO's columns that can be computed: id, text, width, height, image_phash,
    text_length, word_count; OUTPUT/shards has the pictures, and a ledger with every caption's fate.
    """
    from coyo_tools.index import index_pictures
    from coyo_tools.pictures import PictureSettings

    with progress_bar("index") as on_progress:
        result = index_pictures(
            captions,
            output,
            image_column=image_column,
            text_column=text_column,
            image_root=image_root,
            settings=PictureSettings(image_size, quality, resize),
            samples_per_shard=samples_per_shard,
            processes=processes,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    if as_json:
        print_json(asdict(result))
        return
    if result.refused:
        print_table(
            ["refused", "reason", "detail"],
            [[picture.file, picture.reason, picture.detail] for picture in result.refused],
        )
    for old, new in result.renamed.items():
        say(f"note: your column {old} is called {new}, since coyo computes {old}.")
    say(
        f"{result.rows_in:,} captions, {len(result.refused):,} refused, "
        f"{result.rows_out:,} pictures -> {output}/pool and {output}/shards"
    )


def phash_command(
    images: Annotated[
        list[str],
        typer.Argument(help="Picture files, and folders of them.", metavar="IMAGE"),
    ],
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Print in how many of 64 bits two differ; each is a picture file or a hash of 16 "
            "hex digits.",
        ),
    ] = False,
    processes: Processes = None,
    as_json: Json = False,
) -> None:
    """Print pictures' perceptual hashes as COYO's image_phash has them.

    The hash is that of the file as stored: before resizing, and not turned as EXIF says. What is
    no picture is named on stderr, and the exit code is 2 then; a folder's hidden files don't count.
    """
    from coyo_tools.hashing import HIDDEN, compare_pictures, hash_paths
    from coyo_tools.pictures import Refusal

    if compare:
        if len(images) != 2:
            raise typer.BadParameter(f"--compare takes two pictures or hashes, not {len(images)}.")
        compared = compare_pictures(*images)
        if as_json:
            print_json(asdict(compared))
            return
        for name, hashed in zip(images, (compared.one, compared.other), strict=True):
            typer.echo(f"{hashed}  {cell_text(name)}")
        typer.echo(f"{compared.distance} of 64 bits differ")
        return
    records: list[dict[str, str]] = []
    refused = False
    for name, result in hash_paths([Path(image) for image in images], processes=processes):
        if isinstance(result, Refusal):
            refused |= result != HIDDEN
            say(f"{cell_text(name)}: {result.reason} ({cell_text(result.detail)})")
        elif as_json:
            records.append({"image_phash": result, "file": name})
        else:
            typer.echo(f"{result}  {cell_text(name)}")
    if as_json:
        print_json(records)
    if refused:
        raise typer.Exit(2)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(
        "download",
        epilog=examples(
            "coyo download clean -o shards",
            "coyo download clean -o shards --image-size 384 --processes 8 --threads 64",
        ),
    )(download_command)
    app.command(
        "index",
        epilog=examples(
            "coyo index captions.csv -o mine --image-column file --text-column caption",
            "coyo index captions.jsonl -o mine --image-column path --text-column alt "
            "--image-root photos",
        ),
    )(index_command)
    app.command(
        "phash",
        epilog=examples(
            "coyo phash photo.jpg logos/",
            "coyo phash logos/ --json",
            "coyo phash --compare photo.jpg copy.webp",
            "coyo phash --compare photo.jpg aca29c1c33dc23d7",
        ),
    )(phash_command)
