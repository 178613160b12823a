"""The command that trains: train."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coyo_tools.cli.output import (
    SHARDS_HELP,
    Json,
    Overwrite,
    Subset,
    Threads,
    examples,
    print_json,
    print_table,
    say,
    say_left_out,
    training_progress,
)

if TYPE_CHECKING:
    from coyo_align.dryrun import DryRun

_LEARNING = "Learning"
_LABELS = "Labels"
_MUCH_WAITING = 0.1
_REGULAR = "Against learning by heart"
_COMPUTE = "Computing"


def train_command(
    shards: Annotated[Path, typer.Argument(help=SHARDS_HELP)],
    samples: Annotated[
        int, typer.Option(help="Budget: pairs, or labelled pictures, seen; repeats counted.", min=1)
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory for the run.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="From scratch: compact (64 px), b0-mini (128), b3-mini or b7-base (289); for "
            "labels vit-tiny (64) or vit-b16 (224). To be fine-tuned: a local ALIGN or ViT "
            "directory, or a name on the hub such as kakaobrain/align-base or "
            "google/vit-base-patch16-224, with @revision if need be."
        ),
    ] = "compact",
    task: Annotated[
        str | None,
        typer.Option(help="pairs (default): an ALIGN on captions. labels: a ViT on classes."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Names of the classes: a file with one a line, or names like cat,dog,horse. "
            "Default numbers.",
            rich_help_panel=_LABELS,
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            help="How many classes, if they have no names; default the highest number in the "
            "data + 1.",
            min=2,
            rich_help_panel=_LABELS,
        ),
    ] = None,
    label_field: Annotated[
        str | None,
        typer.Option(
            help="Field of the samples' json: a list of class numbers beside label_probs (default: "
            "labels, as in COYO-Labeled-300M), or one class; cls is the .cls file.",
            rich_help_panel=_LABELS,
        ),
    ] = None,
    subset: Subset = None,
    captions: Annotated[
        str | None,
        typer.Option(
            help="Pool or subset whose column text stands in place of the tars' captions; samples "
            "without one are left out."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
    batch_size: Annotated[
        int | None, typer.Option(help="Pairs a step, over all processes; default 128.", min=2)
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Peak; default 2e-3 from scratch, else 1e-5; of a ViT 1e-3, else 5e-5.",
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Way down from the peak: cosine (default) or linear.", rich_help_panel=_LEARNING
        ),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(help="Share of the steps; default 0.1.", rich_help_panel=_LEARNING),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="infonce (default) or siglip.", rich_help_panel=_LEARNING),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Where it starts; default .07 from scratch, else the checkpoint's.",
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    clip_norm: Annotated[
        float | None,
        typer.Option(help="Longest gradient; default 1.", rich_help_panel=_LEARNING),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            help="image or text (a tower, embedded only once), or batchnorm; repeatable.",
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(
            help="Rank of updates that are trained instead of the towers' weights, and merged in "
            "the end.",
            min=1,
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(
            help="Decay of averaged weights, which are then saved, such as 0.999.",
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            help="Of AdamW, on matrices; default 1 from scratch, 0.1 for a checkpoint or a ViT.",
            rich_help_panel=_REGULAR,
        ),
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Of infonce or labels, 0 to 1.", rich_help_panel=_REGULAR)
    ] = None,
    smallest_crop: Annotated[
        float | None,
        typer.Option(
            help="Least share of a picture that a random crop keeps; 1 for no crop.",
            rich_help_panel=_REGULAR,
        ),
    ] = None,
    masked_tokens: Annotated[
        float | None,
        typer.Option(
            help="Share of a caption's tokens hidden at random.", rich_help_panel=_REGULAR
        ),
    ] = None,
    text_dropout: Annotated[
        float | None,
        typer.Option(help="Default the model's own, 0.1.", rich_help_panel=_REGULAR),
    ] = None,
    drop_path: Annotated[
        float | None,
        typer.Option(
            help="Stochastic depth of the image tower; default the model's own.",
            rich_help_panel=_REGULAR,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Side in pixels, for models from scratch.", min=32, rich_help_panel=_COMPUTE
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu or cuda; default what is there.", rich_help_panel=_COMPUTE),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="bf16 (default on CUDA) or fp32, of the towers.", rich_help_panel=_COMPUTE
        ),
    ] = None,
    compile_towers: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="torch.compile; default on CUDA only.",
            rich_help_panel=_COMPUTE,
        ),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            help="Take a batch in so many parts, where that gives the same gradients.",
            min=1,
            rich_help_panel=_COMPUTE,
        ),
    ] = None,
    checkpoint_activations: Annotated[
        bool,
        typer.Option(
            "--checkpoint-activations",
            help="Compute activations twice instead of keeping them: less memory, more time.",
            rich_help_panel=_COMPUTE,
        ),
    ] = False,
    fast_decode: Annotated[
        bool,
        typer.Option(
            "--fast-decode",
            help="Decode JPEGs at a fraction of their size: three times as fast, coarser edges.",
            rich_help_panel=_COMPUTE,
        ),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Directory for decoded pictures: made once, used by every run on them. Takes "
            "3 x width x height bytes a picture.",
            rich_help_panel=_COMPUTE,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Decoding processes.", min=1, rich_help_panel=_COMPUTE),
    ] = None,
    threads: Threads = None,
    log_every: Annotated[
        int | None, typer.Option(help="Steps between lines of metrics.jsonl; default 10.", min=1)
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints; default ten minutes.", min=1)
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard's files.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only say what the run would take: parameters, FLOPs, memory, hours.",
        ),
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what a stopped run of this name has done.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train an ALIGN, or a ViT on labels; the run loads in transformers as it is.

    Runs with the same --samples are compared at the same compute, however large their data. A run
    that is stopped goes on when the same command is given again. With several GPUs put
    `torchrun --nproc-per-node 4 --no-python` before the command: each batch is shared among them.
    """
    from coyo_tools.training import TrainSettings, plan_training, train_model

    settings = TrainSettings(
        samples=samples,
        model=model,
        task=task,
        labels=labels,
        classes=classes,
        label_field=label_field,
        seed=seed,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        schedule=schedule,
        warmup_share=warmup,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        loss=loss,
        label_smoothing=label_smoothing,
        temperature=temperature,
        smallest_crop=smallest_crop,
        masked_tokens=masked_tokens,
        text_dropout=text_dropout,
        drop_path=drop_path,
        freeze=tuple(freeze) if freeze else None,
        lora=lora,
        ema=ema,
        image_size=image_size,
        device=device,
        precision=precision,
        compile=compile_towers,
        checkpoint_activations=checkpoint_activations or None,
        fast_decode=fast_decode or None,
        cache=cache,
        workers=workers,
        threads=threads,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        tensorboard=tensorboard or None,
    )
    if dry_run:
        _print_plan(
            plan_training(shards, settings, subset=subset, captions=captions), _what(task), as_json
        )
        return
    if output is None:
        raise typer.BadParameter("a run needs a directory", param_hint="'--output' / '-o'")
    with training_progress() as (on_load, on_progress):
        result = train_model(
            shards,
            output,
            settings,
            subset=subset,
            captions=captions,
            overwrite=overwrite,
            restart=restart,
            on_progress=on_progress,
            on_load=on_load,
        )
    if not result.leads:
        return
    if as_json:
        print_json(asdict(result))
        return
    print_table(
        [_what(task), "samples seen", "epochs", "parameters", "final loss", "images/s"]
        + ["data wait"],
        [
            [result.pairs, result.samples_seen, result.epochs, result.parameters]
            + [result.final_loss, round(result.samples_per_second), f"{result.data_wait:.1%}"]
        ],
    )
    for remark in result.remarks:
        say(f"note: {remark}.")
    if result.resumed_at:
        say(f"note: went on from step {result.resumed_at:,} of {result.steps:,}.")
    say_left_out(result, str(shards))
    if result.data_wait > _MUCH_WAITING:
        say(
            f"note: {result.data_wait:.0%} of the time went by waiting for pictures. --cache "
            "decodes them once, --fast-decode faster, --workers in more processes."
        )
    say(f"{result.seconds:.0f} s on {result.device} -> {output}")


def _what(task: str | None) -> str:
    return "pictures" if task == "labels" else "pairs"


def _print_plan(plan: "DryRun", what: str, as_json: bool) -> None:
    if as_json:
        print_json(asdict(plan))
        return
    cost = plan.cost
    total, trained = sum(cost.parameters.values()), sum(cost.trained.values())
    towers = ", ".join(f"{count:,} {name}" for name, count in cost.parameters.items())
    print_table(
        ["what", "takes"],
        [
            [what, f"{plan.pairs:,}, each seen {plan.epochs:.2f} times in {plan.steps:,} steps"],
            ["parameters", f"{total:,} ({towers})"],
            ["trained", f"{trained:,}"],
            ["FLOPs a sample", f"{cost.step_flops / 1e9:.2f} G, of them forward "
             f"{cost.forward_flops / 1e9:.2f} G"],
            ["memory", f"{cost.peak_bytes / 1e9:.2f} GB with batches of {cost.batch_size} in "
             f"{cost.precision}, {plan.free_bytes / 1e9:.1f} GB free on {plan.device}"],
            ["largest batch", f"about {plan.fitting_batch:,}"],
            ["pace", f"{plan.samples_per_second:,.1f} samples/s, timed on batches of "
             f"{plan.timed_batch}"],
            ["expected", f"{plan.hours:.2f} hours without waiting for pictures"],
        ],
    )  # fmt: skip
    say_left_out(plan, "the shards")
    say("Pictures have not been looked at; nothing was written.")


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(
        "train",
        epilog=examples(
            "coyo train shards -o run --samples 200000",
            "coyo train shards -o run-clean --subset clean --samples 200000 --seed 1",
            "coyo train shards -o tuned --model kakaobrain/align-base --freeze batchnorm --dry-run",
            "coyo train labelled -o vit --samples 200000 --model vit-tiny --task labels",
        ),
    )(train_command)
