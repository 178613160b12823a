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
    download_progress,
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
    resize: Resize = "keep_ratio_largest",
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
    keep_drifted: Annotated[
        bool, typer.Option("--keep-drifted", help="Keep drifted pictures, marked in their .json.")
    ] = False,
    samples_per_shard: SamplesPerShard = 10_000,
    retry: Annotated[
        bool,
        typer.Option("--retry", help="Ask again, in a finished result, for what could still come."),
    ] = False,
    pilot: Annotated[
        int | None,
        typer.Option(help="First fetch so many urls, forecast the rest, and stop.", min=100),
    ] = None,
    go_on: Annotated[
        bool, typer.Option("--go-on", help="With --pilot: do not stop after the forecast.")
    ] = False,
    processes: Processes = None,
    threads: Annotated[int, typer.Option(help="Requests at a time, per process.", min=1)] = 32,
    per_host: Annotated[
        int, typer.Option(help="Requests at a time to one host; at least one per process.", min=1)
    ] = 16,
    timeout: Annotated[
        int, typer.Option(help="Seconds before a silent request is given up.", min=1)
    ] = 10,
    deadline: Annotated[
        int, typer.Option(help="Seconds before a slow request is given up.", min=1)
    ] = 60,
    attempts: Annotated[
        int, typer.Option(help="How often to ask for what could come another time.", min=1)
    ] = 3,
    backoff: Annotated[
        float,
        typer.Option(help="Seconds before the second attempt; 4 times as long before each next."),
    ] = 5.0,
    max_bytes: Annotated[
        int, typer.Option(help="Bytes beyond which a file is too large.", min=1)
    ] = 20_000_000,
    ignore_opt_outs: Annotated[
        bool,
        typer.Option("--ignore-opt-outs", help="Fetch in spite of robots.txt and X-Robots-Tag."),
    ] = False,
    blocklist: Annotated[
        list[Path] | None,
        typer.Option(help="A file of domains, one a line, never to ask; may be repeated."),
    ] = None,
    allow_network: Annotated[
        list[str] | None,
        typer.Option(help="A private network that may be asked, as 10.1.0.0/16; may be repeated."),
    ] = None,
    allow_private_networks: Annotated[
        bool,
        typer.Option("--allow-private-networks", help="Ask any address, also of this machine."),
    ] = False,
    distributor: Annotated[
        str, typer.Option(help="Who runs img2dataset's workers: multiprocessing or pyspark.")
    ] = "multiprocessing",
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what a stopped download has fetched.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fetch the pictures with img2dataset into WebDataset tars keyed by id, with a ledger.

    Every url is fetched once. ledger.parquet has one row for every id asked for, with its fate;
    download.html says what was lost, and whether what is left is still like what was selected.
    A download that was stopped goes on when the same command is given again. Proxies are taken
    from http_proxy and https_proxy.
    """
    from coyo_tools.download import (
        EVERY_NETWORK,
        DownloadSettings,
        Pace,
        download_pictures,
        forecast_lines,
        pilot_download,
    )
    from coyo_tools.fetching import read_blocklist
    from coyo_tools.pictures import PictureSettings

    settings = DownloadSettings(
        picture=PictureSettings(image_size, quality, resize),
        max_drift=max_drift,
        keep_drifted=keep_drifted,
        samples_per_shard=samples_per_shard,
        max_bytes=max_bytes,
        honour_opt_outs=not ignore_opt_outs,
        allowed_networks=EVERY_NETWORK if allow_private_networks else tuple(allow_network or ()),
        blocked_domains=frozenset().union(*map(read_blocklist, blocklist or ())),
        pace=Pace(processes, threads, per_host, timeout, deadline, attempts, backoff, distributor),
    )
    if pilot is not None:
        with download_progress("pilot") as on_progress:
            forecast = pilot_download(
                subset,
                output,
                settings,
                pilot,
                overwrite=overwrite,
                restart=restart,
                on_progress=on_progress,
            )
        if not go_on:
            if as_json:
                print_json(asdict(forecast))
                return
            print_table(["forecast", "value", "95 % interval"], forecast_lines(forecast))
            say("To go on, give the command without --pilot; what was fetched is used.")
            return
        for what, value, interval in forecast_lines(forecast):
            say(f"{what}: {value}" + (f" ({interval})" if interval else ""))
    with download_progress("download") as on_progress:
        result = download_pictures(
            subset, output, settings,
            overwrite=overwrite, retry=retry, restart=restart and pilot is None,
            on_progress=on_progress,
        )  # fmt: skip
    if as_json:
        print_json(asdict(result))
        return
    print_table(
        ["outcome", "rows", "share"],
        [[name, rows, f"{rows / result.rows_in:.1%}"] for name, rows in result.outcomes.items()],
    )
    if result.finished_before:
        say(f"Finished before; nothing was fetched. {result.rows_out:,} pictures -> {output}")
    else:
        say(
            f"{result.rows_in:,} rows asked for, {result.urls:,} urls, "
            f"{result.rows_out:,} pictures in {result.seconds:.0f} s -> {output}"
        )
    if result.retryable:
        say(f"{result.retryable:,} rows could still come another time: add --retry.")


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
            "coyo download clean -o shards --pilot 2000",
            "coyo download clean -o shards --image-size 384 --processes 8 --threads 64",
            "coyo download clean -o shards --retry",
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
