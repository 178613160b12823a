"""Measures ``coyo embed`` against what transformers brings for the same: pictures a second.

    python benchmarks/use.py --work /tmp/use                      # b0-mini at 128 px, all cores
    python benchmarks/use.py --work /tmp/use --threads 1 --rounds 5
    python benchmarks/use.py --work /tmp/use --device cuda --batch 256

From JPEGs in tars to vectors, the model loaded before the clock starts. All sides have the same
weights, tars, batch and cores, take turns round by round in fresh processes, and give the same unit
vectors to 1e-3, or this fails:

- coyo: ``Embedder.batches``, the command's own loop.
- pipeline: transformers' ``image-feature-extraction`` with ALIGN's image tower, pooled, over a data
  set that reads the tars at known places; as many workers as asked for.
- loop: AlignProcessor and ``get_image_features`` by hand, which decodes and computes in turns.

Pictures are benchmarks/train_data.py's: photograph-like noise, fields and shapes, 384 px, JPEG 90.
The median of the rounds counts; ratios are within a round. On a machine that others use as well,
pictures a second of the processor (all processes of a side together) say more than those on the
wall. Tables to stdout, talk to stderr.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset
from train_data import Row, make_shards, make_start, rows_of

SIDES = ("coyo", "pipeline", "loop")
NAMES = {"coyo": "coyo embed", "pipeline": "HF pipeline", "loop": "HF processor + model"}
TARGET = 1.5
CLOSE = 1e-3


def main() -> None:
    """Run all sides in turns, compare what they give, print the table."""
    chosen = _arguments()
    chosen.work.mkdir(parents=True, exist_ok=True)
    shards = make_shards(chosen.work, chosen.pictures, 384)
    model = make_model(chosen.work, shards, chosen.model, chosen.side)
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    busy: dict[str, list[float]] = {side: [] for side in SIDES}
    vectors: dict[str, npt.NDArray[np.float32]] = {}
    for number in range(chosen.rounds):
        for side in SIDES:
            said = _child(chosen, side, model, shards)
            found[side].append(said["pictures"] / said["seconds"])
            busy[side].append(said["pictures"] / said["busy"])
            vectors[side] = np.load(chosen.work / f"vectors-{side}.npy")
            print(
                f"round {number + 1}, {side}: {found[side][-1]:.1f} pictures/s, "
                f"{busy[side][-1]:.1f} a second of a processor",
                file=sys.stderr,
            )
    for side in SIDES[1:]:
        apart = float(np.abs(vectors["coyo"] - vectors[side]).max())
        print(f"{side}: vectors within {apart:.1e} of coyo's", file=sys.stderr)
        if not apart < CLOSE:
            sys.exit(f"coyo and {side} differ by {apart}")
    print(f"{chosen.model} at {chosen.side} px, batch {chosen.batch}, {chosen.threads} threads on "
          f"as many cores, {chosen.device}, {chosen.precision}, {chosen.pictures} pictures, "
          f"{chosen.rounds} rounds\n")  # fmt: skip
    print("| | pictures/s (least–most) | coyo is | a CPU second | coyo is | target |")
    print("|---|---|---|---|---|---|")
    for side in SIDES:
        cells = [NAMES[side]]
        for speeds in (found, busy):
            own = speeds[side]
            each = np.array(speeds["coyo"]) / np.array(own)
            cells.append(f"{np.median(own):,.1f} ({min(own):,.1f}–{max(own):,.1f})")
            cells.append(f"**{np.median(each):.2f} ×** ({each.min():.2f}–{each.max():.2f})")
        ratio = float(np.median(np.array(found["coyo"]) / np.array(found[side])))
        cells.append(f"≥ {TARGET} × {'met' if ratio >= TARGET else '**missed**'}")
        if side == "coyo":
            cells[2] = cells[4] = cells[5] = ""
        print(f"| {' | '.join(cells)} |")


def make_model(folder: Path, shards: Path, name: str, side: int) -> Path:
    """Return a model with random weights that tells pictures apart: with BatchNorm statistics."""
    import torch
    from coyo_align.checkpoint import load_checkpoint, save_checkpoint
    from coyo_align.model import Align, reestimate_batchnorm

    ready = folder / f"model-{name}-{side}"
    if ready.exists():
        return ready
    checkpoint = load_checkpoint(make_start(folder, shards, name, side))
    pictures = [_open(row) for row in rows_of(shards)[:64]]
    pixels = checkpoint.image_processor(pictures, return_tensors="pt")["pixel_values"]
    reestimate_batchnorm(Align(checkpoint.hf), torch.split(pixels, 32))
    half = ready.with_suffix(".partial")
    save_checkpoint(half, checkpoint)
    return half.rename(ready)


def _open(row: Row) -> Any:
    from PIL import Image

    with row.tar.open("rb") as file:
        file.seek(row.offset)
        return Image.open(io.BytesIO(file.read(row.size))).convert("RGB")


class Tars(Dataset[Any]):
    """Pictures at known places, as torch's DataLoader takes them."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return _open(self.rows[row])


def _coyo(model: Path, shards: Path, job: dict[str, Any]) -> tuple[float, float, Any]:
    from coyo_align.batch import cut
    from coyo_align.embed import Embedder
    from coyo_align.input.data import load_pairs

    embedder = Embedder(
        model, job["batch"], job["threads"], job["device"], precision=job["precision"]
    )
    clock = Clock()
    pairs = load_pairs(shards, embedder.preprocess, in_memory=0, workers=job["workers"])
    batches = cut(np.arange(len(pairs)), job["batch"])
    found = np.concatenate([vectors for _, vectors in embedder.batches(pairs, batches)])
    return *clock.read(), found


def _pipeline(model: Path, shards: Path, job: dict[str, Any]) -> tuple[float, float, Any]:
    import torch
    from transformers import AlignModel, EfficientNetImageProcessorPil, pipeline

    extract = pipeline(
        "image-feature-extraction",
        # AlignVisionModel.from_pretrained finds none of its weights in an ALIGN checkpoint.
        model=AlignModel.from_pretrained(model).vision_model.eval(),
        image_processor=EfficientNetImageProcessorPil.from_pretrained(model),
        device=job["device"],
        pool=True,
        dtype=_dtype(job),
    )
    clock = Clock()
    data = Tars(rows_of(shards))
    # One core decodes and computes in turns: a process more would only be in the way.
    workers = job["workers"] if job["workers"] > 1 else 0
    given = extract(data, batch_size=job["batch"], num_workers=workers, return_tensors=True)
    found = torch.cat([vector.reshape(1, -1).float().cpu() for vector in given])
    return *clock.read(), _unit(found)


def _loop(model: Path, shards: Path, job: dict[str, Any]) -> tuple[float, float, Any]:
    import torch
    from transformers import AlignModel, AlignProcessor

    hf = AlignModel.from_pretrained(model).to(job["device"], _dtype(job)).eval()
    processor = AlignProcessor.from_pretrained(model)
    clock = Clock()
    data = Tars(rows_of(shards))
    found = []
    with torch.inference_mode():
        for start in range(0, len(data), job["batch"]):
            some = [data[row] for row in range(start, min(start + job["batch"], len(data)))]
            pixels = processor(images=some, return_tensors="pt").to(job["device"], _dtype(job))
            found.append(hf.get_image_features(**pixels).pooler_output.float().cpu())
    return *clock.read(), _unit(torch.cat(found))


def _dtype(job: dict[str, Any]) -> Any:
    import torch

    return torch.bfloat16 if job["precision"] == "bf16" else torch.float32


def _unit(found: Any) -> Any:
    return (found / found.norm(dim=1, keepdim=True)).numpy()


def _child(chosen: argparse.Namespace, side: str, model: Path, shards: Path) -> dict[str, Any]:
    job = {
        "side": side, "model": str(model), "shards": str(shards), "batch": chosen.batch,
        "threads": chosen.threads, "workers": chosen.threads, "device": chosen.device,
        "precision": chosen.precision, "vectors": str(chosen.work / f"vectors-{side}.npy"),
    }  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": str(chosen.threads), "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def _do(job: dict[str, Any]) -> None:
    """Run one side on as many cores as it has threads, its children included."""
    cores = sorted(os.sched_getaffinity(0))[-job["threads"] :]
    os.sched_setaffinity(0, cores)
    import torch

    torch.set_num_threads(job["threads"])
    work = {"coyo": _coyo, "pipeline": _pipeline, "loop": _loop}[job["side"]]
    seconds, busy, vectors = work(Path(job["model"]), Path(job["shards"]), job)
    np.save(job["vectors"], vectors)
    print(json.dumps({"seconds": seconds, "busy": busy, "pictures": len(vectors)}))


class Clock:
    """Seconds on the wall, and of the processor in this process and its ended children."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), self._busy()

    def read(self) -> tuple[float, float]:
        """Return both, since it was made."""
        return time.perf_counter() - self._started[0], self._busy() - self._started[1]

    @staticmethod
    def _busy() -> float:
        used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)


def _arguments() -> argparse.Namespace:
    if sys.argv[1:2] == ["--job"]:
        _do(json.loads(sys.argv[2]))
        sys.exit()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="for pictures and models")
    parser.add_argument("--model", default="b0-mini", help="a shape of coyo_align.config.SHAPES")
    parser.add_argument("--side", type=int, default=128, help="of the model's pictures, in pixels")
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    return parser.parse_args()


if __name__ == "__main__":
    main()
