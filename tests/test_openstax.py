"""The road of docs/openstax.md on the real figures, which are not part of this repository."""

from pathlib import Path

import pytest

from coyo_tools.pipeline import find_pipeline, run_pipeline


@pytest.mark.slow
def test_held_out_books_are_found_more_than_twice_as_often_as_by_chance(
    shared: Path, tmp_path: Path
) -> None:
    captions = shared / "openstax_alt_text" / "captions.parquet"
    outcomes = run_pipeline(find_pipeline("openstax"), tmp_path, {"captions": str(captions)})
    scores = outcomes[-1].manifest.details
    for way in ("image_to_text", "text_to_image"):
        assert scores[way]["recall"]["10"] > 2 * scores[way]["chance_recall"]["10"]
