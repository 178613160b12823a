"""Measures ``coyo train`` against a plain loop and transformers' Trainer, on GPU or CPU.

    python benchmarks/train.py --work /tmp/train                        # all that this machine can
    python benchmarks/train.py --work /tmp/train --setting b0-128-cached --json out.json
    python benchmarks/train.py --work /tmp/train --curves

Sides take turns, round by round, every run in a fresh process (benchmarks/train_peers.py says what
they are): same fresh weights, tokenizer, shards, batch, worker processes. Steps before the clock
starts are the same for all; compiling falls into them, and so does filling the queues, which
flatters whoever decodes slower than it computes by up to two batches a worker. The median over
rounds counts, and the least and most stand beside it. Data wait is the share of wall time between
the end of a step and the arrival of the next batch, as open_clip measures it. Memory is what torch
held on the GPU at most, or, on a CPU, the most of all processes together (PSS; Linux alone). The
roofline line compares with the bytes that a step has to move (``coyo_align.estimate``) at the speed
of a large copy on this device, and says how many FLOPs a second were reached.

``--curves`` trains ours and the plain arithmetic in fp32 from the same weights on the same batches
without crops or dropout, and compares losses along the run with how far seeds lie apart. Talk goes
to stderr, tables to stdout as Markdown.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from processes import GB, measured_tree
from train_data import make_shards, make_start
from train_peers import Job

HERE = Path(__file__).parent
SIDES = ("ours", "plain", "trainer")
NAMES = {"ours": "coyo", "plain": "plain loop", "trainer": "HF Trainer"}


@dataclass(frozen=True)
class Setting:
    """A row of the table; targets are least ratios to the sides named."""

    model: str
    side: int
    batch: int
    warmup: int
    steps: int
    rounds: int
    cached: bool = False
    targets: tuple[tuple[str, float], ...] = ()


# Batches fit 80 GB without compiling; steps are as many as fit ten minutes with all rounds.
GPU = {
    "b0-128-cached": Setting(
        "b0-mini", 128, 1024, 20, 60, 3, cached=True, targets=(("plain", 2.0), ("trainer", 4.0))
    ),
    "b0-224-jpeg": Setting("b0-mini", 224, 512, 20, 50, 3, targets=(("plain", 1.5),)),
    "b7-289": Setting("b7-base", 289, 64, 10, 30, 2, cached=True, targets=(("plain", 1.3),)),
}
CPU = {
    "cpu compact 64 px": Setting("compact", 64, 64, 5, 30, 3),
    "cpu b0-mini 128 px": Setting("b0-mini", 128, 16, 5, 10, 2),
}


def main() -> None:
    """Run what was asked for."""
    chosen = _arguments()
    chosen.work.mkdir(parents=True, exist_ok=True)
    settings = {} if chosen.curves else _settings(chosen)
    print(f"{_machine(chosen.device)}\n", flush=True)
    found: dict[str, Any] = {"machine": _machine(chosen.device), "settings": {}}
    if chosen.curves:
        found["curves"] = curves(chosen)
    else:
        print(_HEAD, flush=True)
        for name, setting in settings.items():
            found["settings"][name] = measured(chosen, name, setting)
        for setting in found["settings"].values():
            print(f"\n{setting['roofline']}")
        if chosen.device == "cpu":
            print(f"\nOn a GPU, {', '.join(GPU)}: not yet measured.")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")


_HEAD = """\
| setting | | samples/s (least–most) | coyo is | target | data wait | peak memory |
|---|---|---|---|---|---|---|"""


def measured(chosen: argparse.Namespace, name: str, setting: Setting) -> dict[str, Any]:
    """Run all sides of a setting in turns; print its rows as soon as they are known."""
    on_gpu = chosen.device == "cuda"
    pictures, longest = (16_384, 384) if on_gpu else (1024, 256)
    shards = chosen.data or make_shards(chosen.work, chosen.pictures or pictures, longest)
    start = make_start(chosen.work, shards, setting.model, setting.side)
    cache = chosen.work / f"cache-{shards.name}-{setting.side}" if setting.cached else None
    job = Job(
        side="ours",
        start=str(start),
        shards=str(shards),
        device=chosen.device,
        precision=chosen.precision or ("bf16" if on_gpu else "fp32"),
        batch=chosen.batch or setting.batch,
        warmup=setting.warmup,
        steps=chosen.steps or setting.steps,
        workers=chosen.workers,
    )
    limit = _child(chosen, dataclasses.replace(job, side="roofline"))
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in chosen.sides}
    for number in range(chosen.rounds or setting.rounds):
        for side in chosen.sides:
            own = dataclasses.replace(job, side=side)
            if side == "ours" and cache:
                own = dataclasses.replace(own, cache=str(cache))
            run = _child(chosen, own)
            runs[side].append(run)
            print(
                f"{name}, round {number + 1}, {side}: {run['samples_per_second']:.1f} samples/s, "
                f"data wait {run['data_wait']:.1%}, {run['command_seconds']:.0f} s",
                file=sys.stderr,
            )
    for row in _rows(name, setting, job.batch, runs):
        print(row, flush=True)
    told = _roofline(name, limit, runs, setting)
    return {"job": dataclasses.asdict(job), "limit": limit, "runs": runs, "roofline": told}


def _rows(
    name: str, setting: Setting, batch: int, runs: dict[str, list[dict[str, Any]]]
) -> list[str]:
    rows = []
    for side, found in runs.items():
        speeds = [run["samples_per_second"] for run in found]
        # Runs of the same round are compared, so that a machine that slows down slows both.
        ratio, target = "", ""
        if side != "ours" and "ours" in runs:
            pairs = zip(runs["ours"], found, strict=True)
            each = [a["samples_per_second"] / b["samples_per_second"] for a, b in pairs]
            least = dict(setting.targets).get(side)
            ratio = f"**{np.median(each):.2f} ×** ({min(each):.2f}–{max(each):.2f})"
            if least:
                target = f"≥ {least} × {'met' if np.median(each) >= least else '**missed**'}"
        wait = float(np.median([run["data_wait"] for run in found]))
        peak = max(run.get("gpu_peak", run["pss"]) for run in found)
        label = f"{name}, batch {batch}" if side == next(iter(runs)) else ""
        rows.append(
            f"| {label} | {NAMES[side]} | {np.median(speeds):,.1f} ({min(speeds):,.1f}–"
            f"{max(speeds):,.1f}) | {ratio} | {target} | {wait:.1%} | {peak / GB:.2f} GB |"
        )
    return rows


def _roofline(
    name: str, limit: dict[str, Any], runs: dict[str, list[dict[str, Any]]], setting: Setting
) -> str:
    first = next(iter(runs))
    speed = float(np.median([run["samples_per_second"] for run in runs[first]]))
    told = (
        f"{name}: {limit['step_flops'] / 1e9:.2f} GFLOP and {limit['moved_bytes'] / 1e6:.0f} MB a "
        f"sample ({limit['text_length']:.0f} tokens); {NAMES[first]} reaches "
        f"{speed * limit['step_flops'] / 1e12:.3g} TFLOP/s. A copy moves "
        f"{limit['bandwidth'] / 1e9:.0f} GB/s: memory bound {limit['memory_bound']:,.0f} "
        f"samples/s, of which {speed / limit['memory_bound']:.0%} are reached"
    )
    if setting.cached and "ours" in runs:
        told += f"; cache built or opened in {runs['ours'][0]['load_seconds']:.1f} s"
    missing = runs[first][0].get("without")
    if missing:
        told += f"; this loop knows no {', '.join(missing)}"
    return told + "."


def curves(chosen: argparse.Namespace) -> dict[str, Any]:
    """Compare losses along the run with the spread of seeds.

    The criterion, at each point: the two means differ by less than twice the standard error of
    their difference, from the spread of the seeds on both sides.
    """
    on_gpu = chosen.device == "cuda"
    model, side, batch = ("b0-mini", 128, 256) if on_gpu else ("compact", 64, 64)
    steps = chosen.steps or (300 if on_gpu else 150)
    steps -= steps % 5
    pictures = chosen.pictures or (8192 if on_gpu else 1024)
    shards = chosen.data or make_shards(chosen.work, pictures, 256)
    found: dict[str, list[list[float]]] = {"ours": [], "plain_in_order": []}
    for seed in range(chosen.seeds):
        start = make_start(chosen.work, shards, model, side, seed, dropout=False)
        for peer, losses in found.items():
            job = Job(
                peer, str(start), str(shards), chosen.device, "fp32", chosen.batch or batch,
                0, steps, chosen.workers, compile=False, order_seed=seed,
            )  # fmt: skip
            losses.append(_child(chosen, job)["losses"])
            print(f"seed {seed}, {peer}: ends at {losses[-1][-1]:.4f}", file=sys.stderr)
    ours, plain = (np.asarray(found[peer]) for peer in ("ours", "plain_in_order"))
    points = np.unique(np.linspace(0, ours.shape[1] - 1, 8).astype(int))
    print(f"{model} at {side} px, batch {chosen.batch or batch}, fp32, {chosen.seeds} seeds; means "
          "over 5 steps ± standard deviation of seeds\n")  # fmt: skip
    print("| step | coyo | plain loop | difference | twice its standard error | within |")
    print("|---|---|---|---|---|---|")
    difference = ours.mean(0) - plain.mean(0)
    error = 2 * np.sqrt((ours.var(0, ddof=1) + plain.var(0, ddof=1)) / chosen.seeds)
    for point in points:
        print(
            f"| {5 * point + 5} | {ours[:, point].mean():.4f} ± {ours[:, point].std(ddof=1):.4f} | "
            f"{plain[:, point].mean():.4f} ± {plain[:, point].std(ddof=1):.4f} | "
            f"{difference[point]:+.4f} | {error[point]:.4f} | "
            f"{'yes' if abs(difference[point]) < error[point] else '**no**'} |"
        )
    inside = int((np.abs(difference) < error).sum())
    apart = float(np.abs(ours - plain).mean())
    print(
        f"\nOurs lies within seed noise at {inside} of {len(error)} points of the run (criterion: "
        "the means differ by less than twice the standard error of their difference). Two runs of "
        f"the same seed are {apart:.2g} apart on average."
    )
    return {"ours": ours.tolist(), "plain": plain.tolist(), "every": 5, "steps": steps}


def _child(chosen: argparse.Namespace, job: Job) -> dict[str, Any]:
    path = chosen.work / "job.json"
    path.write_text(json.dumps(dataclasses.asdict(job)))
    environment = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    tree = measured_tree(
        [sys.executable, HERE / "train_peers.py", path.resolve()],
        chosen.work,
        every=0.25,
        environment=environment,
    )
    tree.check()
    result: dict[str, Any] = json.loads(tree.told.splitlines()[-1])
    return {**result, "pss": tree.peak().pss, "command_seconds": tree.seconds}


def _settings(chosen: argparse.Namespace) -> dict[str, Setting]:
    if chosen.device == "cpu":
        if chosen.setting not in ("all", "cpu"):
            sys.exit(f"{chosen.setting} needs a GPU, and torch sees none here: try --setting cpu.")
        return CPU
    if chosen.setting == "all":
        return GPU
    if chosen.setting == "cpu":
        sys.exit("The setting cpu is for --device cpu.")
    return {chosen.setting: GPU[chosen.setting]}


def _machine(device: str) -> str:
    name = platform.processor() or platform.machine()
    if device == "cuda":
        import torch

        name = torch.cuda.get_device_name()
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
        name = models[0] if models else name
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607
        cwd=HERE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    versions = ", ".join(f"{what} {version(what)}" for what in ("torch", "transformers"))
    return (
        f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}, commit "
        f"{git.stdout.strip() or 'unknown'}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="for data, models, caches")
    parser.add_argument("--setting", choices=[*GPU, "cpu", "all"], default="all")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda if there is one")
    parser.add_argument("--data", type=Path, help="a directory of shards (default: drawn)")
    parser.add_argument("--pictures", type=int, help="how many are drawn")
    parser.add_argument("--rounds", type=int, help="default: the setting's")
    parser.add_argument("--steps", type=int, help="timed ones; default: the setting's")
    parser.add_argument("--batch", type=int, help="default: the setting's")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="decoding processes")
    parser.add_argument("--precision", choices=["bf16", "fp32"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--curves", action="store_true", help="compare losses, not speed")
    parser.add_argument("--seeds", type=int, default=4, help="of --curves, 2 or more")
    parser.add_argument("--json", type=Path, help="all figures, to a file")
    chosen = parser.parse_args()
    if chosen.device is None:
        import torch

        chosen.device = "cuda" if torch.cuda.is_available() else "cpu"
    if chosen.seeds < 2:
        parser.error("--seeds has to be 2 or more: their spread is the measure")
    chosen.work = chosen.work.resolve()
    chosen.data = chosen.data and chosen.data.resolve()
    return chosen


if __name__ == "__main__":
    main()
