"""kakaobrain/align-base's exact architecture with random weights, through the whole of it.

B7 at 289 pixels, BERT-base, 64 tokens; its values of preprocessing. Its own weights and vocabulary
are on the hub, and not needed to see that they would fit.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from coyo_align.checkpoint import load_checkpoint
from coyo_align.config import make_config
from coyo_align.embed import Embedder
from coyo_align.finetune import finetune
from coyo_align.scoring.evaluate import evaluate_retrieval
from coyo_align.tokenizer import train_tokenizer
from PIL import Image
from transformers import (
    AlignConfig,
    AlignModel,
    AlignProcessor,
    AlignTextConfig,
    AlignVisionConfig,
    EfficientNetImageProcessorPil,
)

from align.making import encoded, square, squares, write_tar

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def align_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("align-base")
    torch.manual_seed(0)
    hf = AlignModel(
        AlignConfig(
            text_config=AlignTextConfig().to_dict(), vision_config=AlignVisionConfig().to_dict()
        )
    )
    assert sum(p.numel() for p in hf.parameters()) == pytest.approx(172e6, rel=0.01)
    hf.save_pretrained(folder)
    processor = EfficientNetImageProcessorPil(
        size={"height": 346, "width": 346},
        crop_size={"height": 289, "width": 289},
        resample=Image.Resampling.BILINEAR,
        do_center_crop=True,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
    )
    captions = [files[next(n for n in files if n.endswith(".txt"))].decode() for files in squares()]
    AlignProcessor(processor, train_tokenizer(captions, 500)).save_pretrained(folder)
    return folder


def test_a_step_an_evaluation_and_the_card(align_base: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write_tar(shards / "0.tar", squares()[:6])
    run = tmp_path / "run"
    result = finetune(
        make_config(
            shards=shards, output=run, samples=2, batch_size=2, model=str(align_base),
            checkpoint_activations=True, device="cpu",
        )
    )  # fmt: skip
    assert result.steps == 1
    assert result.temperature == pytest.approx(1.0, abs=1e-3), "align-base's own to begin with"
    scores = evaluate_retrieval(Embedder(run, batch_size=3), shards)
    assert scores.n_images == 6

    (tmp_path / "picture.jpg").write_bytes(encoded(square("red", "left", "white")))
    code = "\n".join(
        block.partition("\n```")[0]
        for block in (run / "README.md").read_text().split("```python\n")[1:]
    ).replace("path/to/this/run", str(run))
    code += "\nassert probabilities.isfinite().all()\nassert probabilities.shape == (1, 2)\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)

    kept = json.loads((run / "config.json").read_text())
    assert kept["vision_config"]["width_coefficient"] == 2.0
    tuned = load_checkpoint(run)
    assert (tuned.image_processor.crop_size.height, tuned.tokenizer.model_max_length) == (289, 64)
