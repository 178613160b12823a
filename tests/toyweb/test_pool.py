"""The pool looks like COYO's metadata, and every planted fault is visible in it as it is there."""

import io
from collections import Counter
from statistics import mean

import pyarrow.parquet as pq
from PIL import Image

from coyo_tools.columns import COYO_SCHEMA, text_length, word_count
from coyo_tools.phash import hamming, phash
from coyo_tools.toyweb.encode import NEAR
from coyo_tools.toyweb.make import APART
from toyweb.making import ToyWeb


def test_schema_is_coyos(toy: ToyWeb) -> None:
    schema = pq.read_schema(toy.directory / "pool" / "part-00000.parquet")
    assert schema.equals(COYO_SCHEMA)


def test_ids_are_distinct_and_say_nothing(toy: ToyWeb) -> None:
    ids = list(toy.pool)
    assert ids == sorted(ids) == list(toy.truth)
    assert max(ids) > 2**40
    half = len(ids) // 2
    faults = [toy.truth[row]["duplicate_kind"] != "none" for row in ids]
    assert any(faults[:half])
    assert any(faults[half:])


def test_values_stay_in_coyos_ranges(toy: ToyWeb) -> None:
    ranges = {
        "width": (200, 22_507),
        "height": (200, 22_507),
        "text_length": (6, 1000),
        "word_count": (3, 323),
        "num_tokens_bert": (3, 811),
        "num_tokens_gpt": (3, 1523),
        "num_faces": (0, 736),
        "clip_similarity_vitb32": (-0.081, 0.592),
        "clip_similarity_vitl14": (-0.176, 0.582),
        "nsfw_score_opennsfw2": (0, 0.4999),
        "nsfw_score_gantman": (0, 0.4999),
        "watermark_score": (0, 1),
        "aesthetic_score_laion_v2": (1.17, 8.08),
    }
    for row in toy.pool.values():
        for name, (low, high) in ranges.items():
            assert low <= row[name] <= high, (name, row[name])
        assert max(row["width"], row["height"]) <= 3 * min(row["width"], row["height"])
        assert row["text_length"] == text_length(row["text"])
        assert row["word_count"] == word_count(row["text"])
        assert row["url"].isascii()
        assert row["url"].split("/")[2].endswith((".example", ".test"))


def test_pairs_are_distinct_and_texts_seldom_repeat(toy: ToyWeb) -> None:
    pairs = {(row["image_phash"], row["text"]) for row in toy.pool.values()}
    assert len(pairs) == len(toy.pool)
    assert max(Counter(row["text"] for row in toy.pool.values()).values()) <= 10


def test_metadata_was_measured_on_the_bytes_that_are_served(toy: ToyWeb) -> None:
    checked = 0
    for fate in ("ok", "slow", "moved", "wrong-content-type", "opt-out"):
        for row in toy.rows(link_fate=fate):
            data = toy.file(row)
            assert len(data) >= 5000
            with Image.open(io.BytesIO(data)) as image:
                assert image.size == (toy.pool[row]["width"], toy.pool[row]["height"])
                assert phash(image) == toy.pool[row]["image_phash"]
            checked += 1
    assert checked > 100


def test_changed_bytes_are_near_or_far_as_planned(toy: ToyWeb) -> None:
    distances = {}
    for fate in ("recompressed", "replaced", "placeholder"):
        for row in toy.rows(link_fate=fate):
            with Image.open(io.BytesIO(toy.file(row))) as image:
                distance = hamming(phash(image), toy.pool[row]["image_phash"])
            distances.setdefault(fate, []).append(distance)
    assert max(distances["recompressed"]) <= NEAR
    assert min(distances["replaced"]) >= APART
    assert min(distances["placeholder"]) > 8


def test_swapped_captions_are_captions_of_other_pictures(toy: ToyWeb) -> None:
    swapped = toy.rows(caption_fault="swapped")
    for row in swapped:
        donor = toy.truth[row]["caption_of"]
        assert toy.pool[row]["text"] == toy.truth[donor]["true_text"]
        own, other = toy.truth[row], toy.truth[donor]
        assert own["picture"] != other["picture"]
        assert (own["shape"], own["colour"]) != (other["shape"], other["colour"])
    # Among themselves: no caption is lost, none is used twice.
    assert {toy.truth[row]["caption_of"] for row in swapped} == set(swapped)


def test_right_captions_are_their_own_and_boilerplate_is_nobodys(toy: ToyWeb) -> None:
    for row in toy.rows(caption_fault="none"):
        assert toy.pool[row]["text"] == toy.truth[row]["true_text"]
        assert toy.truth[row]["caption_of"] == row
    captions = {truth["true_text"] for truth in toy.truth.values()}
    for row in toy.rows(caption_fault="boilerplate"):
        assert toy.pool[row]["text"] not in captions
        assert toy.truth[row]["caption_of"] is None


def test_similarity_tells_right_from_wrong_mostly(toy: ToyWeb) -> None:
    for model, right, wrong in (("vitb32", 0.31, 0.17), ("vitl14", 0.27, 0.13)):
        scores: dict[bool, list[float]] = {True: [], False: []}
        for row, truth in toy.truth.items():
            score = toy.pool[row][f"clip_similarity_{model}"]
            scores[truth["caption_fault"] == "none"].append(score)
        assert abs(mean(scores[True]) - right) < 0.02
        assert abs(mean(scores[False]) - wrong) < 0.03


def test_marks_show_in_the_scores(toy: ToyWeb) -> None:
    for row, truth in toy.truth.items():
        scores = toy.pool[row]
        assert (scores["watermark_score"] > 0.5) == truth["watermarked"]
        assert (scores["nsfw_score_opennsfw2"] >= 0.2) == truth["nsfw"]
        assert (scores["nsfw_score_gantman"] >= 0.2) == truth["nsfw"]
        assert scores["num_faces"] == truth["faces"]


def test_exact_duplicates_share_bytes_but_not_urls(toy: ToyWeb) -> None:
    compared = 0
    for row in toy.rows(duplicate_kind="exact"):
        own, first = toy.pool[row], toy.pool[toy.truth[row]["duplicate_of"]]
        assert own["image_phash"] == first["image_phash"]
        assert own["url"] != first["url"]
        for name in ("width", "height", "num_faces", "watermark_score"):
            assert own[name] == first[name]
        if toy.truth[row]["link_fate"] == toy.truth[first["id"]]["link_fate"] == "ok":
            assert toy.file(row) == toy.file(first["id"])
            compared += 1
    assert compared > 0


def test_near_duplicates_are_near_and_not_the_same_file(toy: ToyWeb) -> None:
    for kind in ("reencoded", "resized"):
        compared = 0
        for row in toy.rows(duplicate_kind=kind):
            own, first = toy.pool[row], toy.pool[toy.truth[row]["duplicate_of"]]
            assert hamming(own["image_phash"], first["image_phash"]) <= NEAR
            same_size = (own["width"], own["height"]) == (first["width"], first["height"])
            assert same_size == (kind == "reencoded")
            if toy.truth[row]["link_fate"] == toy.truth[first["id"]]["link_fate"] == "ok":
                assert toy.file(row) != toy.file(first["id"])
                compared += 1
        assert compared > 0


def test_different_pictures_are_far_apart(toy: ToyWeb) -> None:
    rows = list(toy.pool)
    for number, row in enumerate(rows):
        for other in rows[:number]:
            if toy.truth[row]["picture"] != toy.truth[other]["picture"]:
                distance = hamming(toy.pool[row]["image_phash"], toy.pool[other]["image_phash"])
                assert distance >= APART


def test_shared_urls_carry_another_text_for_the_same_picture(toy: ToyWeb) -> None:
    for row in toy.rows(shared_url=True):
        own, first = toy.pool[row], toy.pool[toy.truth[row]["duplicate_of"]]
        for name in ("url", "image_phash", "width", "height"):
            assert own[name] == first[name]
        assert toy.truth[row]["true_text"] != toy.truth[first["id"]]["true_text"]
        assert toy.truth[row]["link_fate"] == toy.truth[first["id"]]["link_fate"]
