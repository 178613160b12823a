"""Semantic dedupe: with one cluster what a row-by-row loop finds, with many nearly that."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import coyo, read_ids, write_pool
from vector_making import on_sphere, write_vectors

from coyo_tools.clusters import assign, cluster
from coyo_tools.dedupe import REMOVED, dedupe_by_meaning
from coyo_tools.dedupe.semantic import SLACK
from coyo_tools.errors import CoyoError, EmptyResultError, RecipeError, SourceError
from coyo_tools.manifest import read_manifest
from coyo_tools.pipeline import load_pipeline, run_pipeline
from coyo_tools.vectors import Matrix
from coyo_tools.verify import verify_subset


def in_groups(rows: int, width: int = 16, seed: int = 0, spread: float = 0.12) -> Matrix:
    """Unit vectors around a tenth as many centres, nearer to and farther from each other."""
    random = np.random.default_rng(seed)
    centres = on_sphere(max(1, rows // 10), width, seed)
    near = centres[random.integers(0, len(centres), rows)]
    near = near + random.normal(size=(rows, width)) * random.uniform(0, spread, (rows, 1))
    return (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)


def by_rows(matrix: Matrix, order: list[int], epsilon: float) -> dict[int, int]:
    """Who goes, and for whom: best first, each free row claims the free ones that are near."""
    cosines = matrix.astype(np.float64) @ matrix.T.astype(np.float64)
    gone: dict[int, int] = {}
    for place, row in enumerate(order):
        if row in gone:
            continue
        for other in order[place + 1 :]:
            if other not in gone and cosines[row, other] >= 1 - epsilon - SLACK:
                gone[other] = row
    return gone


def removed(output: Path) -> dict[int, int]:
    table = pl.read_parquet(output / REMOVED)
    return dict(zip(table["id"], table["duplicate_of"], strict=True))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 90),
    epsilon=st.sampled_from([0.0, 0.01, 0.05, 0.3]),
    seed=st.integers(0, 10**6),
    shuffled=st.booleans(),
)
def test_one_cluster_finds_what_a_loop_over_rows_finds(
    tmp_path_factory, rows, epsilon, seed, shuffled
):
    tmp_path = tmp_path_factory.mktemp("one")
    random = np.random.default_rng(seed)
    matrix = in_groups(rows, seed=seed)
    ids = np.arange(100, 100 + rows)
    embedded = random.permutation(rows) if shuffled else np.arange(rows)
    write_vectors(
        tmp_path / "emb", {"image": matrix[embedded]}, part_rows=13, id=ids[embedded].tolist()
    )
    scores = random.integers(0, 5, rows)
    pool = write_pool(tmp_path / "pool.parquet", id=ids.tolist(), score=scores.tolist())
    result = dedupe_by_meaning(
        pool, tmp_path / "out", embeddings=tmp_path / "emb", epsilon=epsilon, clusters=1,
        keep="score DESC",
    )  # fmt: skip
    order = np.lexsort((ids, -scores)).tolist()
    wanted = {100 + row: 100 + for_ for row, for_ in by_rows(matrix, order, epsilon).items()}
    assert removed(tmp_path / "out") == wanted
    assert read_ids(tmp_path / "out") == [id_ for id_ in ids if id_ not in wanted]
    assert result.rows_out + len(wanted) == rows
    assert sum((size - 1) * groups for size, groups in result.group_sizes.items()) == len(wanted)
    table = pl.read_parquet(tmp_path / "out" / REMOVED)
    cosines = [
        float(matrix[id_ - 100].astype(np.float64) @ matrix[for_ - 100])
        for id_, for_ in wanted.items()
    ]
    by_id = dict(zip(table["id"], table["distance"], strict=True))
    np.testing.assert_allclose(
        [by_id[id_] for id_ in wanted], np.maximum(0, 1 - np.array(cosines)), atol=1e-6
    )


def test_the_least_typical_of_each_group_stays(tmp_path: Path):
    matrix = in_groups(300)
    write_vectors(tmp_path / "emb", {"image": matrix})
    pool = write_pool(tmp_path / "pool.parquet", id=list(range(300)))
    dedupe_by_meaning(pool, tmp_path / "out", embeddings=tmp_path / "emb", epsilon=0.02, clusters=7)
    made = cluster(lambda rows: matrix[rows], 300, 7)
    typical = made.cosines
    gone = removed(tmp_path / "out")
    assert len(gone) > 20
    for row, for_ in gone.items():
        assert (typical[for_], for_) < (typical[row], row)
        assert made.labels[row] == made.labels[for_]
    wanted: dict[int, int] = {}
    for label in range(7):
        members = np.flatnonzero(made.labels == label)
        order = members[np.lexsort((members, typical[members]))]
        inside = by_rows(matrix[order], list(range(len(order))), 0.02)
        wanted |= {int(order[row]): int(order[for_]) for row, for_ in inside.items()}
    assert gone == wanted


def test_clusters_are_those_of_plain_lloyd_and_miss_few_pairs():
    matrix = in_groups(3000, 32, seed=4)
    made = cluster(lambda rows: matrix[rows], 3000, 55, seed=1)
    again = cluster(lambda rows: matrix[rows], 3000, 55, seed=1)
    assert np.array_equal(made.labels, again.labels)
    scores = matrix.astype(np.float64) @ made.centroids.T.astype(np.float64)
    assert np.array_equal(made.labels, scores.argmax(axis=1))
    np.testing.assert_allclose(made.cosines, scores.max(axis=1), atol=1e-12)
    # A fixed point: the centroids are the directions of their own clusters, or nearly.
    for label in np.unique(made.labels):
        mean = matrix[made.labels == label].sum(axis=0)
        assert made.centroids[label] @ mean / np.linalg.norm(mean) > 0.99
    near = np.argwhere(np.triu(matrix @ matrix.T >= 0.95, 1))
    together = made.labels[near[:, 0]] == made.labels[near[:, 1]]
    assert len(near) > 1000
    assert together.mean() > 0.97
    other_blocks, _ = assign(matrix[:777], made.centroids)
    assert np.array_equal(other_blocks, made.labels[:777])


def test_vectors_that_repeat_leave_clusters_empty():
    matrix = on_sphere(3, 8)[np.arange(60) % 3]
    made = cluster(lambda rows: matrix[rows], 60, 10)
    assert len(np.unique(made.labels)) == 3
    assert np.isfinite(made.centroids).all()


def test_large_clusters_go_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    matrix = in_groups(400, seed=9)
    write_vectors(tmp_path / "emb", {"image": matrix}, part_rows=90)
    pool = write_pool(tmp_path / "pool.parquet", id=list(range(400)))
    asked = {"embeddings": tmp_path / "emb", "epsilon": 0.03, "clusters": 2}
    dedupe_by_meaning(pool, tmp_path / "whole", **asked)
    monkeypatch.setattr("coyo_tools.dedupe.semantic._BLOCK", 16)
    monkeypatch.setattr(
        "coyo_tools.dedupe.semantic.memory_share", lambda *_: ("1GB", 16 * 4 * 40 * 4)
    )
    dedupe_by_meaning(pool, tmp_path / "blocks", **asked)
    assert removed(tmp_path / "whole") == removed(tmp_path / "blocks")
    assert len(removed(tmp_path / "whole")) > 50


def test_what_has_no_counterpart_is_counted(tmp_path: Path):
    matrix = on_sphere(4, 8)[[0, 0, 1, 2, 2, 3]]
    ids = [1, 2, 2, None, 99, 5]  # 2 twice, one without, 99 not in the pool
    write_vectors(tmp_path / "emb", {"image": matrix}, id=ids)
    pool = write_pool(tmp_path / "pool.parquet", id=[7, 5, 2, 1], text=list("abcd"))
    result = dedupe_by_meaning(pool, tmp_path / "out", embeddings=tmp_path / "emb", epsilon=0.01)
    assert (result.without_key, result.not_in_pool, result.without_id, result.repeated) == (
        1, 1, 1, 1,
    )  # fmt: skip
    assert removed(tmp_path / "out") == {2: 1}
    assert read_ids(tmp_path / "out") == [7, 5, 1]
    manifest = read_manifest(tmp_path / "out")
    assert manifest.rows_in == manifest.rows_out + sum(manifest.lost.values())
    assert "cosine of 0.99 or more" in (tmp_path / "out" / "dedupe.html").read_text()


def test_verify_makes_it_again(tmp_path: Path):
    write_vectors(tmp_path / "emb", {"image": in_groups(200)})
    pool = write_pool(tmp_path / "pool.parquet", id=list(range(200)))
    dedupe_by_meaning(pool, tmp_path / "out", embeddings=tmp_path / "emb", epsilon=0.02)
    assert verify_subset(tmp_path / "out").replays
    path = tmp_path / "emb" / "part-00000.image.npy"
    np.save(path, in_groups(200, seed=3))
    assert not verify_subset(tmp_path / "out").replays


def test_the_command_and_the_pipeline_do_the_same(tmp_path: Path):
    write_vectors(tmp_path / "emb", {"image": in_groups(200)})
    pool = write_pool(
        tmp_path / "pool.parquet", id=list(range(200)), text=["<script>x</script>"] * 200
    )
    done = coyo(
        "dedupe", pool, "-o", tmp_path / "out", "--embeddings", tmp_path / "emb", "--epsilon",
        "0.02", "--clusters", "5", "--keep", "id DESC",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "200 rows in" in done.stderr
    assert "<script>" not in (tmp_path / "out" / "dedupe.html").read_text()
    (tmp_path / "p.toml").write_text(
        '[inputs.pool]\nabout = "a pool"\n[inputs.emb]\nabout = "its embeddings"\n'
        '[[stages]]\nname = "meant"\ndoes = "dedupe"\nsource = "pool"\nembeddings = "emb"\n'
        'epsilon = 0.02\nclusters = 5\nkeep = "id DESC"\n'
    )
    run_pipeline(
        tmp_path / "p.toml", tmp_path / "road", {"pool": str(pool), "emb": str(tmp_path / "emb")}
    )
    assert removed(tmp_path / "road" / "meant") == removed(tmp_path / "out")
    assert "cosine of 0.98 or more" in (tmp_path / "road" / "report.html").read_text()
    (tmp_path / "wrong.toml").write_text(
        (tmp_path / "p.toml").read_text().replace("clusters = 5", "radius = 5")
    )
    with pytest.raises(CoyoError, match="radius"):
        load_pipeline(tmp_path / "wrong.toml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--embeddings", "emb"], "--embeddings needs --epsilon"),
        (["--epsilon", "0.1"], "--epsilon belongs to --embeddings"),
        (["--embeddings", "emb", "--epsilon", "1.5"], "--epsilon 1.5 is not within 0 to 1"),
        (["--embeddings", "emb", "--epsilon", "nan"], "is not within 0 to 1"),
        (["--embeddings", "emb", "--epsilon", "0.1", "--radius", "2"], "--radius"),
        (["--embeddings", "emb", "--epsilon", "0.1", "--keep", "nothing"], "nothing"),
        (["--embeddings", "pool.parquet", "--epsilon", "0.1"], "embeddings directory"),
        (["--embeddings", "none", "--epsilon", "0.1"], "none does not exist"),
        (["--embeddings", "text", "--epsilon", "0.1"], "no image embeddings"),
    ],
)
def test_what_can_not_be_done_is_said(tmp_path: Path, options, message):
    write_vectors(tmp_path / "emb", {"image": on_sphere(5, 8)})
    write_vectors(tmp_path / "text", {"text": on_sphere(5, 8)})
    write_pool(tmp_path / "pool.parquet", id=list(range(5)))
    done = coyo("dedupe", "pool.parquet", "-o", "out", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_damaged_embedding_or_a_foreign_pool_leaves_nothing(tmp_path: Path):
    write_vectors(tmp_path / "emb", {"image": on_sphere(50, 8)})
    foreign = write_pool(tmp_path / "foreign.parquet", id=[1000, 1001])
    with pytest.raises(EmptyResultError, match="No id of"):
        dedupe_by_meaning(foreign, tmp_path / "out", embeddings=tmp_path / "emb", epsilon=0.1)
    pool = write_pool(tmp_path / "pool.parquet", id=list(range(50)))
    matrix = np.load(tmp_path / "emb" / "part-00000.image.npy")
    matrix[31] = np.nan
    np.save(tmp_path / "emb" / "part-00000.image.npy", matrix)
    with pytest.raises(SourceError, match="row 31 is not finite"):
        dedupe_by_meaning(pool, tmp_path / "out", embeddings=tmp_path / "emb", epsilon=0.1)
    with pytest.raises(RecipeError, match="clusters 0"):
        dedupe_by_meaning(
            pool, tmp_path / "out", embeddings=tmp_path / "emb", epsilon=0.1, clusters=0
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "emb", "foreign.parquet", "pool.parquet",
    ]  # fmt: skip
