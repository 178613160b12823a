"""Labels, templates and neighbours, against counting by hand."""

from pathlib import Path

import numpy as np
import pytest
from coyo_align.errors import AlignError
from coyo_align.scoring.labels import read_labels, resolve_labels
from coyo_align.scoring.nearest import chance_of_vote, neighbours, vote
from coyo_align.scoring.templates import IMAGENET_TEMPLATES, fill

from align.test_retrieval import unit_rows


def test_labels_come_from_a_file_or_a_list(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\N{BYTE ORDER MARK}tabby  cat\r\n\ndog, hot\r\n", encoding="utf-8")
    assert read_labels(str(path)) == ["tabby cat", "dog, hot"]
    assert read_labels("cat, dog,horse") == ["cat", "dog", "horse"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "names 0 classes"),
        ("cat\n", "names 1 classes"),
        ("cat\ndog\ncat\n", "names 'cat' 2 times"),
        ("caf\u00e9".encode("latin-1"), "not UTF-8"),
    ],
)
def test_what_are_no_labels_is_said(tmp_path: Path, content: str | bytes, said: str) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AlignError, match=said):
        read_labels(str(path))


def test_a_missing_labels_file_is_said() -> None:
    with pytest.raises(AlignError, match=r"no file names.txt.*cat,dog,horse"):
        read_labels("names.txt")


def test_a_label_is_a_name_or_a_place_in_the_list() -> None:
    given = ["dog", " dog ", "0", 1, 1.0, 2, "horse", None, "", True, [1], "-1", "1" * 5000]
    classes, lost = resolve_labels(given, ["cat", "dog"])
    assert classes.tolist() == [1, 1, 0, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1]
    assert lost == {"label not among the classes": 4, "no label": 4}


def test_where_names_are_numbers_numbers_are_names() -> None:
    assert resolve_labels([1, "2", 0], ["1", "2", "3"])[0].tolist() == [0, 1, -1]


def test_the_80_templates_of_clip() -> None:
    assert len(set(IMAGENET_TEMPLATES)) == len(IMAGENET_TEMPLATES) == 80
    assert IMAGENET_TEMPLATES[0] == "a bad photo of a {}."
    assert IMAGENET_TEMPLATES[-1] == "a tattoo of the {}."
    assert all(template.count("{}") == 1 for template in IMAGENET_TEMPLATES)


def test_templates_are_texts_and_no_code() -> None:
    assert fill(["a {}", "{} {0.__class__} {}"], "x") == ["a x", "x {0.__class__} x"]
    with pytest.raises(AlignError, match=r"'a photo' has no {}"):
        fill(["a photo"], "x")


def test_neighbours_and_votes_are_those_of_a_sorted_list(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, gallery = unit_rows(random, 40), unit_rows(random, 60)
    classes, voters = random.integers(0, 4, 40), random.integers(0, 4, 60)
    monkeypatch.setattr("coyo_align.scoring.nearest._BLOCK", 60 * 7)
    found, cosines = neighbours(queries, classes, gallery, voters)
    won = vote(classes, voters[found], cosines)
    for row in range(40):
        near = np.argsort(-(queries[row] @ gallery.T))[:20]
        assert found[row].tolist() == near.tolist()
        votes = np.bincount(
            voters[near], np.exp((queries[row] @ gallery[near].T) / 0.07), minlength=4
        )
        assert won[row] == (votes.argmax() == classes[row])


def test_of_equal_neighbours_the_wrong_come_first() -> None:
    one = np.full((1, 4), 0.5, dtype=np.float32)
    gallery, voters = np.repeat(one, 3, axis=0), np.asarray([0, 0, 1])
    found, cosines = neighbours(one, np.asarray([1]), gallery, voters)
    assert found[0, 0] != 2
    found, cosines = neighbours(one, np.asarray([0]), gallery[1:], voters[1:])
    assert voters[1:][found[0]].tolist() == [1, 0]
    assert not vote(np.asarray([0]), voters[1:][found], cosines)  # one vote each
    found, cosines = neighbours(one, np.asarray([0]), gallery, voters)
    assert vote(np.asarray([0]), voters[found], cosines)  # two to one


def test_a_model_that_embeds_everything_alike_knows_no_neighbours() -> None:
    rows = np.full((300, 8), 8**-0.5, dtype=np.float32)
    classes = np.arange(300) % 3
    found, cosines = neighbours(rows, classes, rows, classes)
    assert not (classes[found[:, 0]] == classes).any()
    assert not vote(classes, classes[found], cosines).any()


def test_chance_is_what_random_neighbours_score(random: np.random.Generator) -> None:
    queries, gallery = unit_rows(random, 500), unit_rows(random, 300)
    classes = random.choice(3, 500, p=[0.6, 0.3, 0.1])
    voters = random.choice(3, 300, p=[0.6, 0.3, 0.1])
    found, cosines = neighbours(queries, classes, gallery, voters)
    chance, per_class = chance_of_vote(classes, voters, found, cosines)
    assert vote(classes, voters[found], cosines).mean() == pytest.approx(chance, abs=0.06)
    assert chance > 0.5  # the commonest class mostly wins
    assert per_class == pytest.approx(1 / 3, abs=0.03)
