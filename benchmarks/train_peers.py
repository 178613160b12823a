"""The sides of the training benchmark; each run of one is a process of its own.

    python benchmarks/train_peers.py JOB.json

A job is the fields of ``Job``; the last line that is printed is the result. ``ours`` is
``coyo_align.finetune.finetune``. ``plain`` is a loop as open_clip's is built: webdataset with
Pillow in worker processes, float pictures in NCHW, texts padded to 64 there too, eager, autocast
around model and loss, AdamW, a look at the loss every 100 steps. ``trainer`` is transformers'
Trainer around AlignProcessor. ``roofline`` measures the device and counts what a step costs.

The plain loop is given what makes open_clip fast (TF32, cuDNN's search for the fastest convolution,
pinned memory, workers that stay) and is spared gradient clipping, as open_clip clips on request
alone. All sides crop at random to 0.9 of the area or more, except Trainer, which doesn't crop.
"""

import dataclasses
import io
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from train_data import rows_of

LENGTH = 64
BETAS, DECAY, RATE, WARMUP = (0.9, 0.98), 0.1, 5e-4, 0.1
LEAST = 0.9  # open_clip's default for the area that a crop keeps


@dataclass(frozen=True)
class Job:
    """What a side is to run.

    ``warmup`` steps are not counted; ``cache`` is for ``ours``. A job with ``order_seed`` is for
    loss curves: fp32, no crops, the rows in the order of that seed, the loss of every ``every``
    steps.
    """

    side: str
    start: str
    shards: str
    device: str
    precision: str
    batch: int
    warmup: int
    steps: int
    workers: int
    cache: str | None = None
    compile: bool | None = None
    order_seed: int | None = None
    every: int = 5


class Clock:
    """Times steps after the warm-up, and the part of them that passed waiting for data."""

    def __init__(self, job: Job) -> None:
        self.job, self.waited, self.began = job, 0.0, 0.0

    def waits(self, step: int, seconds: float) -> None:
        """Note a wait before a step, counted from 0."""
        if step >= self.job.warmup:
            self.waited += seconds

    def ends(self, step: int) -> None:
        """Note the end of a step; the last one of the warm-up starts the clock."""
        if step == self.job.warmup - 1:
            _finish(self.job)
            self.began = time.perf_counter()

    def result(self) -> dict[str, Any]:
        """Stop the clock."""
        _finish(self.job)
        seconds = time.perf_counter() - self.began
        return {
            "samples_per_second": self.job.steps * self.job.batch / seconds,
            "data_wait": self.waited / seconds,
        }


def _finish(job: Job) -> None:
    if job.device == "cuda":
        torch.cuda.synchronize()


def ours(job: Job) -> dict[str, Any]:
    """Train with coyo_align; speed is read from its metrics.jsonl, behind the warm-up."""
    from coyo_align.config import TrainConfig, make_config
    from coyo_align.finetune import finetune

    with tempfile.TemporaryDirectory() as folder:
        chosen: dict[str, Any] = {
            "shards": Path(job.shards), "output": Path(folder, "run"), "model": job.start,
            "samples": (job.warmup + job.steps) * job.batch, "batch_size": job.batch,
            "device": job.device, "precision": job.precision, "workers": job.workers,
            "cache": Path(job.cache) if job.cache else None, "compile": job.compile,
            "learning_rate": RATE, "weight_decay": DECAY, "warmup_share": WARMUP,
            "smallest_crop": LEAST, "masked_tokens": 0.0, "log_every": math.gcd(job.warmup, 5),
        }  # fmt: skip
        if job.order_seed is not None:
            chosen |= {"seed": job.order_seed, "smallest_crop": 1.0, "log_every": job.every}
        known = {field.name for field in dataclasses.fields(TrainConfig)}
        unknown = sorted(chosen.keys() - known)  # an older loop has fewer options
        result = finetune(make_config(**{k: v for k, v in chosen.items() if k in known}))
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    logged = [line for line in map(json.loads, lines) if "step" in line]
    return {
        **_speed(logged, job),
        "losses": [line["loss"] for line in logged],
        "load_seconds": result.load_seconds,
        "without": [name for name in unknown if chosen[name] is not None],
    }


def _speed(logged: list[dict[str, Any]], job: Job) -> dict[str, Any]:
    seconds = waited = samples = 0.0
    before = 0
    for line in logged:
        seen, before = line["samples_seen"] - before, line["samples_seen"]
        if line["step"] > job.warmup:
            samples += seen
            seconds += seen / line["samples_per_second"]
            waited += line["data_wait"] * seen / line["samples_per_second"]
    return {"samples_per_second": samples / seconds, "data_wait": waited / seconds}


def plain(job: Job) -> dict[str, Any]:
    """Train with a loop as open_clip's."""
    from transformers import AlignModel

    _fast()
    model = AlignModel.from_pretrained(job.start).to(job.device).train()
    optimizer = _adamw(model)
    loader = iter(_webdataset(job))
    clock, steps = Clock(job), job.warmup + job.steps
    ended = time.perf_counter()
    for step in range(steps):
        _set_rate(optimizer, step, steps)
        pixels, ids, mask = (tensor.to(job.device, non_blocking=True) for tensor in next(loader))
        clock.waits(step, time.perf_counter() - ended)
        optimizer.zero_grad()
        with torch.autocast(job.device, torch.bfloat16, enabled=job.precision == "bf16"):
            found = model(pixel_values=pixels, input_ids=ids, attention_mask=mask)
            target = torch.arange(len(pixels), device=job.device)
            loss = (
                functional.cross_entropy(found.logits_per_image, target)
                + functional.cross_entropy(found.logits_per_text, target)
            ) / 2
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.temperature.clamp_(0.01, 1.0)
        if step % 100 == 0:
            loss.item()
        clock.ends(step)
        ended = time.perf_counter()
    return clock.result()


def _fast() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def _adamw(model: nn.Module, *more: nn.Parameter) -> torch.optim.AdamW:
    trained = [p for p in [*model.parameters(), *more] if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=RATE, betas=BETAS)


def _set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    from coyo_align.optim import learning_rate_at

    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, steps, RATE, WARMUP)


def _webdataset(job: Job) -> Any:
    import webdataset as wds
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.start)
    side = _side(job)

    def picture(image: Image.Image) -> Tensor:
        return _floats(image.resize((side, side), Image.Resampling.BILINEAR, _crop(image.size)))

    def words(text: str) -> tuple[Tensor, Tensor]:
        row = tokenizer(text, padding="max_length", truncation=True, max_length=LENGTH)
        return torch.tensor(row["input_ids"]), torch.tensor(row["attention_mask"])

    def flat(sample: tuple[Tensor, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        return sample[0], *sample[1]

    tars = [str(path) for path in sorted(Path(job.shards).glob("*.tar"))]
    dataset = (
        wds.WebDataset(tars, resampled=True, shardshuffle=False, handler=wds.warn_and_continue)
        .shuffle(1000)
        .decode("pilrgb", handler=wds.warn_and_continue)
        .to_tuple("jpg", "txt")
        .map_tuple(picture, words)
        .map(flat)
        .batched(job.batch, partial=False)
    )
    return wds.WebLoader(
        dataset,
        batch_size=None,
        shuffle=False,
        num_workers=job.workers,
        persistent_workers=job.workers > 0,
        pin_memory=job.device == "cuda",
    )


def _floats(image: Image.Image) -> Tensor:
    """To (3, height, width) in [-1, 1]: the values that the saved image processor gives."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().contiguous() / 127.5 - 1


def _crop(size: tuple[int, int]) -> tuple[float, float, float, float]:
    share = torch.empty(1).uniform_(LEAST, 1).sqrt().item()
    width, height = size[0] * share, size[1] * share
    x, y = (torch.rand(2) * torch.tensor([size[0] - width, size[1] - height])).tolist()
    return x, y, x + width, y + height


def _side(job: Job) -> int:
    config = json.loads(Path(job.start, "config.json").read_text())
    return int(config["vision_config"]["image_size"])


class _Pictures(torch.utils.data.Dataset[dict[str, Any]]):
    """A picture and its caption by number, read from where they stand in the tars."""

    def __init__(self, shards: str) -> None:
        self.rows = rows_of(Path(shards))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = self.rows[number]
        with row.tar.open("rb") as stream:
            stream.seek(row.offset)
            image = Image.open(io.BytesIO(stream.read(row.size))).convert("RGB")
        return {"image": image, "text": row.caption}


def trainer(job: Job) -> dict[str, Any]:
    """Train with transformers' Trainer, as its documentation has it for a model with a loss."""
    from transformers import AlignModel, AlignProcessor, Trainer, TrainerCallback, TrainingArguments

    processor = AlignProcessor.from_pretrained(job.start)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = processor(
            images=[row["image"] for row in rows],
            text=[row["text"] for row in rows],
            padding="max_length",
            max_length=LENGTH,
            truncation=True,
            return_tensors="pt",
        )
        return {**batch, "return_loss": True}

    clock = Clock(job)

    class Timing(TrainerCallback):  # type: ignore[misc]
        ended = time.perf_counter()

        def on_step_begin(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            clock.waits(state.global_step, time.perf_counter() - self.ended)

        def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            clock.ends(state.global_step - 1)
            self.ended = time.perf_counter()

    measured: dict[str, Any] = {}

    class Last(TrainerCallback):  # type: ignore[misc]
        def on_train_end(self, *_: Any, **__: Any) -> None:
            measured.update(clock.result())

    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=AlignModel.from_pretrained(job.start),
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=job.batch,
                max_steps=job.warmup + job.steps,
                learning_rate=RATE,
                weight_decay=DECAY,
                lr_scheduler_type="cosine",
                bf16=job.precision == "bf16",
                use_cpu=job.device == "cpu",
                remove_unused_columns=False,
                dataloader_num_workers=job.workers,
                dataloader_persistent_workers=job.workers > 0,
                dataloader_drop_last=True,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=_Pictures(job.shards),
            data_collator=collate,
            callbacks=[Timing(), Last()],
        ).train()
    return measured


def plain_in_order(job: Job) -> dict[str, Any]:
    """The plain loop's arithmetic in fp32, on the pictures and in the order that ours has.

    Only for loss curves: clipping, decay and schedule are ours, and the temperature is learned as
    open_clip learns its logit scale. Everything else is the plain model's own forward pass.
    """
    from coyo_align.batch import order_of
    from transformers import AlignModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.start)
    model = AlignModel.from_pretrained(job.start).to(job.device).train()
    model.text_model.pooler.requires_grad_(False)
    scale = nn.Parameter(-model.temperature.detach().log())
    model.temperature.requires_grad_(False)
    optimizer = _adamw(model, scale)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    pictures, side = _Pictures(job.shards), _side(job)

    def batches() -> Iterator[tuple[Tensor, Any]]:
        assert job.order_seed is not None
        for rows, _ in order_of(len(pictures), job.batch, job.order_seed):
            found = [pictures[row] for row in rows]
            pixels = [
                _floats(row["image"].resize((side, side), Image.Resampling.BILINEAR))
                for row in found
            ]
            texts = tokenizer(
                [row["text"] for row in found],
                padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt",
            )  # fmt: skip
            yield torch.stack(pixels).to(job.device), texts.to(job.device)

    losses: list[float] = []
    for step, (pixels, texts) in zip(range(job.steps), batches(), strict=False):
        _set_rate(optimizer, step, job.steps)
        found = model(
            pixel_values=pixels,
            input_ids=texts["input_ids"],
            attention_mask=texts["attention_mask"],
        )
        logits = scale.exp() * found.image_embeds @ found.text_embeds.T
        target = torch.arange(len(logits), device=job.device)
        loss = (
            functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
        ) / 2
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        with torch.no_grad():
            scale.clamp_(0, math.log(100))
    means = np.asarray(losses).reshape(-1, job.every).mean(1)
    return {"losses": means.tolist()}


def roofline(job: Job) -> dict[str, Any]:
    """What a step of ours costs, and how many bytes a second the device copies."""
    from coyo_align.checkpoint import load_checkpoint
    from coyo_align.estimate import estimate
    from coyo_align.model import Align
    from coyo_align.tokenizer import encode

    checkpoint: Any = load_checkpoint(job.start)  # type: ignore[arg-type, unused-ignore]
    texts = [row.caption for row in rows_of(Path(job.shards))]
    lengths = encode(checkpoint.tokenizer, texts).lengths
    said = estimate(
        Align(checkpoint.hf),
        _side(job),
        round(float(np.mean(lengths))),
        job.batch,
        "bf16" if job.precision == "bf16" else "fp32",
        device=torch.device(job.device),
    )
    bandwidth = _bandwidth(job.device)
    return {
        "text_length": float(np.mean(lengths)),
        "step_flops": said.step_flops,
        "moved_bytes": said.moved_bytes,
        "estimated_peak": said.peak_bytes,
        "bandwidth": bandwidth,
        "memory_bound": said.memory_bound(bandwidth),
    }


def _bandwidth(device: str) -> float:
    size = (2**30 if device == "cuda" else 2**28) // 4
    source, target = torch.rand(size, device=device), torch.empty(size, device=device)
    times = []
    for _ in range(12):
        begun = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return 2 * 4 * size / float(np.median(times[2:]))


SIDES: dict[str, Callable[[Job], dict[str, Any]]] = {
    "ours": ours,
    "plain": plain,
    "trainer": trainer,
    "plain_in_order": plain_in_order,
    "roofline": roofline,
}


def main() -> None:
    """Run the job of a file and print what came out."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    result = SIDES[job.side](job)
    if job.device == "cuda":
        result["gpu_peak"] = torch.cuda.max_memory_allocated()
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
