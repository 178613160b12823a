"""The model card of a run: what it was made of, and how it is used in transformers.

Left out: figures of evaluation, which come later, and anything of the data but counts.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from coyo_align.config import TrainConfig, from_scratch

if TYPE_CHECKING:
    from coyo_align.finetune import TrainResult

_CARD = """\
---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [align, image-text]{base}
---

# {title}

An ALIGN (dual encoder of pictures and captions), {start}. {parameters:,} parameters, {pairs:,}
pairs of picture and caption, {samples:,} samples seen ({epochs:.1f} epochs), {loss} loss
{final_loss:.4g} at the end, temperature {temperature:.4g}. `train_config.json` has all settings,
`metrics.jsonl` the course of the run.

Of the pairs, {skipped}.

## Use

```python
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="{path}")
classify("picture.jpg", candidate_labels=["a dog", "a cat"])
```

```python
import torch
from PIL import Image
from transformers import AlignModel, AlignProcessor

model = AlignModel.from_pretrained("{path}")
processor = AlignProcessor.from_pretrained("{path}")
inputs = processor(
    images=Image.open("picture.jpg").convert("RGB"), text=["a dog", "a cat"], return_tensors="pt"
)
with torch.no_grad():
    probabilities = model(**inputs).logits_per_image.softmax(dim=1)
```

One tower alone. Without `key_mapping` transformers finds no weight under the names it looks for and
starts the text or image tower afresh:

```python
from transformers import AlignTextModel, AlignVisionModel

text = AlignTextModel.from_pretrained("{path}", key_mapping={{r"^text_model\\\\.": ""}})
vision = AlignVisionModel.from_pretrained("{path}", key_mapping={{r"^vision_model\\\\.": ""}})
```

The embedding of a picture is the image tower's `pooler_output`; that of a caption is the first
token's last state behind `AlignModel.text_projection`. Neither is normalised.

## What to know

- Captions are cut after {tokens} tokens; pictures become {side} x {side} pixels.
- {differs}
"""

_VIT_CARD = """\
---
library_name: transformers
pipeline_tag: image-classification
tags: [vit]{base}
---

# {title}

A Vision Transformer that names {classes:,} classes, {start}. {parameters:,} parameters,
{pairs:,} labelled pictures, {samples:,} samples seen ({epochs:.1f} epochs), loss {final_loss:.4g}
at the end. `train_config.json` has all settings, `metrics.jsonl` the course of the run.

Of the samples, {skipped}.

## Use

```python
from transformers import pipeline

classify = pipeline("image-classification", model="{path}")
classify("picture.jpg", top_k=5)
```

```python
import torch
from PIL import Image
from transformers import ViTForImageClassification, ViTImageProcessor

model = ViTForImageClassification.from_pretrained("{path}")
processor = ViTImageProcessor.from_pretrained("{path}")
inputs = processor(Image.open("picture.jpg").convert("RGB"), return_tensors="pt")
with torch.no_grad():
    probabilities = model(**inputs).logits.softmax(dim=1)
```

## What to know

- Pictures become {side} x {side} pixels. {names}
- Labels that are lists with probabilities count as far as they go: what they leave open of 1 was
  taught as "one of the other classes".
"""

_COYO_ALIGN = (
    "COYO-ALIGN, whose dimensions these are, has a projection behind the image tower. ALIGN of "
    "transformers has none: the embedding is the last stage itself, {width} wide."
)
_NO_PROJECTION = (
    "There is no projection behind the image tower: the embedding is its last stage, {width} wide."
)


def write_card(config: TrainConfig, result: "TrainResult", hf: Any) -> None:
    """Write ``README.md`` into the run.

    Args:
        config: of the run.
        result: of the run.
        hf: the model's AlignConfig or ViTConfig.
    """
    scratch = from_scratch(config.model)
    on_hub = not scratch and not Path(config.model).is_dir()
    lost = [f"{count:,} were left out: {reason}" for reason, count in result.skipped.items()]
    if result.missing_ids:
        lost.append(f"{result.missing_ids:,} ids had no picture")
    card, name, special = (
        (_VIT_CARD, "ViT", _of_vit(hf)) if config.task == "labels"
        else (_CARD, "ALIGN", _of_align(config, result, hf, scratch))
    )  # fmt: skip
    text = card.format(
        base=f"\nbase_model: {config.model.partition('@')[0]}" if on_hub else "",
        title=f"{name} {config.model}" if scratch else f"A fine-tuned {name}",
        start=f"trained from scratch in the shape {config.model}"
        if scratch
        else f"fine-tuned from {config.model if on_hub else 'a local checkpoint'}",
        parameters=result.parameters,
        pairs=result.pairs,
        samples=result.samples_seen,
        epochs=result.epochs,
        final_loss=result.final_loss,
        skipped="; ".join(lost) or "none was left out",
        path="path/to/this/run",
        **special,
    )
    (config.output / "README.md").write_text(text, encoding="utf-8")


def _of_align(config: TrainConfig, result: "TrainResult", hf: Any, scratch: bool) -> dict[str, Any]:
    differs = _COYO_ALIGN if config.model in ("b3-mini", "b7-base") else _NO_PROJECTION
    return {
        "loss": config.loss,
        "temperature": result.temperature,
        "tokens": min(64, hf.text_config.max_position_embeddings),
        "side": hf.vision_config.image_size if scratch else "the checkpoint's own",
        "differs": differs.format(width=hf.projection_dim),
    }


def _of_vit(hf: Any) -> dict[str, Any]:
    numbered = all(name == str(number) for number, name in hf.id2label.items())
    names = "Classes have numbers only." if numbered else "`config.json` has the classes' names."
    return {"classes": len(hf.id2label), "side": hf.image_size, "names": names}
