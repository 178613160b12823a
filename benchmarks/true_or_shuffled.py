"""Can a model tell true captions from shuffled ones, in books that it has not read?

    python benchmarks/true_or_shuffled.py openstax_alt_text/captions.parquet --work /tmp/tos

Walks the road of docs/openstax.md with the real commands: index, clean, deduplicate, hold three
books out, train on the others. Of the held-out rows a half, drawn at random, gets captions of one
another, none its own and none of the same words; `coyo score` gives each row ``align_similarity``.
The AUC is how often a true pair scores higher than a shuffled one, .5 by chance; its interval is
the bootstrap's over pictures (95 %). Different pairs of rows share pictures, which is why pictures
are drawn and not pairs. What is there already is used again. Tables go to stdout as Markdown.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
from coyo_align.scoring.bootstrap import auc, interval

HELD_OUT = "('american-government', 'introduction-sociology', 'psychology')"
TRAINING = (  # docs/openstax.md's
    *("--samples", 40_000, "--label-smoothing", 0.1, "--smallest-crop", 0.3),
    *("--masked-tokens", 0.3, "--weight-decay", 1.0),
)


def coyo(work: Path, output: str, *arguments: object) -> Path:
    """Run a command that makes ``output``, unless that is there."""
    if not (work / output).exists():
        command = [sys.executable, "-c", "from coyo_tools.cli import main; main()"]
        command += [*map(str, arguments), "-o", output]
        subprocess.run(command, cwd=work, check=True, stdout=sys.stderr)
    return work / output


def prepare(captions: Path, work: Path) -> None:
    """The road up to the held-out and the training books."""
    coyo(
        work, "figures", "index", captions.absolute(), "--image-column", "file", "--text-column",
        "alt",
    )  # fmt: skip
    limits = "word_count BETWEEN 3 AND 256 AND text_length <= 1000"
    coyo(work, "clean", "filter", "figures/pool", limits)
    coyo(work, "unique", "dedupe", "clean", "--by", "image_phash")
    coyo(work, "heldout", "filter", "unique", f"book IN {HELD_OUT}")
    coyo(work, "training", "filter", "unique", f"book NOT IN {HELD_OUT}")


def shuffled(work: Path, seed: int) -> tuple[Path, pl.DataFrame]:
    """The held-out rows, half of them with another's caption; and which those are."""
    rows = pl.read_parquet(work / "heldout" / "part-*.parquet")
    random = np.random.default_rng(seed)
    texts = rows["text"].to_list()
    chosen = random.permutation(len(rows))[: len(rows) // 2]
    while True:
        ring = random.permutation(chosen)  # each gets the next one's: nobody keeps their own
        own = dict(zip(ring.tolist(), np.roll(ring, 1).tolist(), strict=True))
        if all(texts[row] != texts[other] for row, other in own.items()):
            break
    said = [texts[own.get(row, row)] for row in range(len(rows))]
    true = [row not in own for row in range(len(rows))]
    path = work / f"mixed-{seed}.parquet"
    rows.with_columns(pl.Series("text", said)).write_parquet(path)
    return path, rows.select("id", "image_phash").with_columns(pl.Series("true", true))


def judge(work: Path, seed: int) -> dict[str, float]:
    """Train with a seed, score the mixed pairs, and tell how well the score parts them."""
    coyo(
        work, f"run-{seed}", "train", "figures/shards", "--subset", "training", "--seed", seed,
        *TRAINING,
    )  # fmt: skip
    path, truth = shuffled(work, seed)
    scored = coyo(
        work, f"scored-{seed}", "score", path.name, "--model", f"run-{seed}", "--data",
        "figures/shards",
    )  # fmt: skip
    found = truth.join(pl.read_parquet(scored / "part-*.parquet"), on="id", how="left")
    found = found.filter(pl.col("align_similarity").is_not_null())
    scores = found["align_similarity"].to_numpy().astype(np.float64)
    true = found["true"].to_numpy()
    clusters = np.unique(found["image_phash"].to_numpy(), return_inverse=True)[1]
    figure = auc(scores, true)
    low, high = interval(figure, clusters)
    value = float(figure(np.ones((1, len(scores))))[0])
    return {"seed": seed, "auc": value, "low": low, "high": high, "rows": len(scores)} | {
        "true_mean": float(scores[true].mean()),
        "shuffled_mean": float(scores[~true].mean()),
    }


def main() -> None:
    """Parse, walk, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("captions", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    prepare(given.captions, given.work)
    print("| seed | AUC (95 %) | mean of true | mean of shuffled | rows |")
    print("|---|---|---|---|---|")
    rows = []
    for seed in given.seeds:
        row = judge(given.work, seed)
        rows.append(row)
        print(
            f"| {seed} | {row['auc']:.3f} ({row['low']:.3f}–{row['high']:.3f}) | "
            f"{row['true_mean']:.3f} | {row['shuffled_mean']:.3f} | {row['rows']:,} |",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
