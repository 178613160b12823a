"""Equal configs give equal bytes, and amounts are what the config says."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from coyo_tools.phash import hamming
from coyo_tools.toyweb import LinkFaults, ToyWebConfig, make_toy_web
from coyo_tools.toyweb.encode import Copy, PictureJob, make_picture
from coyo_tools.toyweb.make import APART, redraw_alike
from coyo_tools.toyweb.scenes import Background, Scene, Thing
from toyweb.making import SMALL, ToyWeb, digests

TINY = replace(SMALL, pictures=40, heldout=8, links=LinkFaults(timeouts=1))

MAKE_TINY = """
import sys
from pathlib import Path
from coyo_tools.toyweb import make_toy_web
from toyweb.test_make import TINY
if __name__ == "__main__":
    make_toy_web(Path(sys.argv[1]), TINY, processes=2)
"""


def test_the_same_config_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    make_toy_web(here, TINY)
    script = tmp_path / "make_tiny.py"
    script.write_text(MAKE_TINY)
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tests), str(tests.parent)])
    environment = {**os.environ, "PYTHONHASHSEED": "99", "PYTHONPATH": paths}
    subprocess.run([sys.executable, script, there], env=environment, check=True)
    assert digests(here) == digests(there)
    assert len(digests(here)) > 40


def test_another_seed_gives_another_web(tmp_path: Path) -> None:
    webs = []
    for seed in (1, 2):
        directory = tmp_path / str(seed)
        directory.mkdir()
        make_toy_web(directory, ToyWebConfig(seed=seed, pictures=16, heldout=4, links=CLEAN))
        webs.append(digests(directory))
    one, other = webs
    pictures = [set(web.values()) for web in webs]
    assert not pictures[0] & pictures[1]
    assert one["pool/part-00000.parquet"] != other["pool/part-00000.parquet"]


def test_another_kind_of_fault_leaves_the_pictures_alone(tmp_path: Path) -> None:
    base = ToyWebConfig(seed=1, pictures=16, heldout=4, links=CLEAN)
    webs = []
    for number, config in enumerate((base, replace(base, swapped=0.5, nsfw=0.2))):
        directory = tmp_path / str(number)
        directory.mkdir()
        make_toy_web(directory, config)
        webs.append(digests(directory))
    jpegs = [{name: value for name, value in web.items() if ".jpg" in name} for web in webs]
    assert jpegs[0] == jpegs[1]
    assert webs[0]["truth.parquet"] != webs[1]["truth.parquet"]


CLEAN = LinkFaults(
    **{
        name: 0
        for name in LinkFaults.__dataclass_fields__
        if name not in ("slow_seconds", "timeout_seconds")
    }
)


def test_progress_counts_every_picture(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    config = ToyWebConfig(pictures=10, heldout=3, links=CLEAN)
    make_toy_web(tmp_path, config, lambda done, total: seen.append((done, total)))
    assert seen == [(done, 13) for done in range(1, 14)]


def test_a_picture_too_like_another_is_drawn_again() -> None:
    scene = Scene(Thing("circle", "red"), Background("plain", "white"), 1, "large", "centre")
    job = PictureJob(0, "test", 0, scene, copies=(Copy("resized"),))
    jobs = [job, job]
    measured = [make_picture(job) for job in jobs]
    for number, files in redraw_alike(jobs, measured):
        measured[number] = files
    assert jobs[0] == job
    assert jobs[1].attempt > 0
    for one in measured[0]:
        assert min(hamming(one.phash, other.phash) for other in measured[1]) >= APART


def test_amounts_are_exact(toy: ToyWeb) -> None:
    rows = len(toy.pool)
    assert rows == toy.summary.rows == SMALL.rows()
    fractions = {
        "swapped": SMALL.swapped,
        "boilerplate": SMALL.boilerplate,
        "watermarked": SMALL.watermarked,
        "with_faces": SMALL.faces,
        "nsfw": SMALL.nsfw,
        "exact": SMALL.exact,
        "reencoded": SMALL.reencoded,
        "resized": SMALL.resized,
        "shared_url": SMALL.shared_url,
    }
    counted = toy.summary.as_dict()
    assert {name: counted[name] for name in fractions} == {
        name: round(fraction * rows) for name, fraction in fractions.items()
    }


def test_the_summary_counts_what_the_tables_hold(toy: ToyWeb) -> None:
    truth = list(toy.truth.values())
    summary = toy.summary
    assert summary.swapped == sum(row["caption_fault"] == "swapped" for row in truth)
    assert summary.boilerplate == sum(row["caption_fault"] == "boilerplate" for row in truth)
    assert summary.watermarked == sum(row["watermarked"] for row in truth)
    assert summary.with_faces == sum(row["faces"] > 0 for row in truth)
    assert summary.nsfw == sum(row["nsfw"] for row in truth)
    for kind in ("exact", "reencoded", "resized"):
        assert summary.as_dict()[kind] == sum(row["duplicate_kind"] == kind for row in truth)
    assert summary.shared_url == sum(row["shared_url"] for row in truth)
    assert summary.intact_rows == sum(row["intact"] for row in truth)
    assert summary.link_rows == {
        fate: sum(row["link_fate"] == fate for row in truth) for fate in summary.link_rows
    }
    urls = {row["url"] for row in toy.pool.values()}
    assert summary.urls == len(urls) == sum(summary.links.values())
    assert summary.hosts == len({url.split("/")[2] for url in urls})


def test_link_fates_are_as_many_as_planned_and_as_routed(toy: ToyWeb) -> None:
    urls = {row["url"] for row in toy.pool.values()}
    faults = SMALL.links
    planned = {
        "404": faults.not_found,
        "410": faults.gone,
        "dead-host": faults.dead_host,
        "reset": faults.reset,
        "truncated": faults.truncated,
        "short-body": faults.short_body,
        "html-as-jpeg": faults.html_as_jpeg,
        "replaced": faults.replaced,
        "placeholder": faults.placeholder,
        "opt-out": faults.opt_out,
        "slow": faults.slow,
        "recompressed": faults.recompressed,
        "moved": faults.moved,
        "wrong-content-type": faults.wrong_content_type,
    }
    expected = {fate: round(fraction * len(urls)) for fate, fraction in planned.items()}
    expected["timeout"] = faults.timeouts
    expected["ok"] = len(urls) - sum(expected.values())
    assert toy.summary.links == expected
    assert min(expected.values()) > 0
    for row, truth in toy.truth.items():
        assert toy.routes[toy.pool[row]["url"]].fate.value == truth["link_fate"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"swapped": 1.2}, "swapped is a fraction"),
        ({"swapped": 0.7, "boilerplate": 0.4}, "more than all captions"),
        ({"exact": 0.5, "resized": 0.45}, "more than 90 %"),
        ({"pictures": 1}, "pictures >= 2"),
    ],
)
def test_impossible_amounts_are_refused(settings: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ToyWebConfig(**settings)  # type: ignore[arg-type]


def test_too_many_link_faults_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="add up to"):
        LinkFaults(not_found=0.9, gone=0.2)
    with pytest.raises(ValueError, match="too few"):
        make_toy_web(tmp_path, ToyWebConfig(pictures=4, links=LinkFaults(timeouts=50)))
