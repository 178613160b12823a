"""Studies whose answers are known: they must come out right. Minutes each."""

from contextlib import nullcontext
from pathlib import Path

import polars as pl
import pytest

from coyo_tools.demo import DEMO_WEB, run_demo
from coyo_tools.pipeline import find_pipeline
from coyo_tools.progress import no_progress
from coyo_tools.study.run import run_study


def verdicts(table: pl.DataFrame) -> dict[str, str]:
    rows = table.filter(pl.col("kind") == "verdict")
    return dict(rows.select("arm", "verdict").iter_rows())


@pytest.mark.slow
def test_clips_cut_is_better_noise_is_nothing_and_the_worst_half_is_worse(tmp_path: Path) -> None:
    done = run_demo(
        tmp_path / "demo",
        DEMO_WEB,
        study=find_pipeline("toy-truth"),
        watch=lambda _: nullcontext(no_progress),
        tell=print,
    )
    assert verdicts(done.table) == {
        "clip": "better",
        "luck": "inconclusive",
        "upside-down": "worse",
    }


@pytest.mark.slow
def test_on_real_figures_the_oracle_has_a_gain_of_which_the_filter_recovers_a_share(
    shared: Path, tmp_path: Path
) -> None:
    captions = shared / "openstax_alt_text" / "captions.parquet"
    study = find_pipeline("openstax-noise")
    done = run_study(study, tmp_path / "noise", {"captions": str(captions)}, tell=print)
    effects = done.table.filter(
        pl.col("kind") == "effect",
        pl.col("arm") == "oracle",
        pl.col("control") == "control",
        pl.col("metric") == "text_to_image AUC",
    )
    assert effects["value"].min() > 0
    kept = done.table.filter(pl.col("kind") == "planted")
    wrong = dict(kept.filter(pl.col("item") == "shuffled: yes").select("arm", "value").iter_rows())
    assert "oracle" not in wrong
    assert wrong["align"] < 0.45 * wrong["everything"]
    assert done.table.filter(pl.col("kind") == "recovered")["value"].null_count() == 0
