from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_image

from vitbench.analysis.duplicates import (
    HASH_BOUND,
    SIMILARITY,
    Copies,
    Part,
    Prints,
    find_copies,
    near_pairs,
    overlap,
)


def prints_of(*images: Image.Image) -> Prints:
    prints = Prints.empty(len(images))
    for row, image in enumerate(images):
        prints.take(row, image)
    return prints


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Twelve different pictures: tiles of two photographs."""
    found = []
    for name in ("china.jpg", "flower.jpg"):
        photograph = Image.fromarray(load_sample_image(name))
        found += [photograph.crop((x, y, x + 200, y + 200)) for x in (0, 210, 420) for y in (0, 210)]
    return found


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def part(name: str, images: list[int], labels: list[int]) -> Part:
    return Part(name, np.arange(len(images)), np.array(images), np.array(labels), lambda row: f"row {row}")


def brute_force(hashes: np.ndarray, thumbnails: np.ndarray) -> set[tuple[int, int]]:
    """Every pair compared, one bit and one number at a time."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float64)
    found = set()
    for one in range(len(hashes)):
        for two in range(one + 1, len(hashes)):
            distance = bin(int(hashes[one]) ^ int(hashes[two])).count("1")
            if distance <= HASH_BOUND and np.corrcoef(flat[one], flat[two])[0, 1] >= SIMILARITY:
                found.add((one, two))
    return found


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), flips=st.integers(0, 12))
def test_the_search_finds_what_comparing_every_pair_finds(seed: int, flips: int) -> None:
    generator = np.random.default_rng(seed)
    hashes = generator.integers(0, 2**64, 40, dtype=np.uint64)
    thumbnails = generator.integers(0, 256, (40, 16, 16), dtype=np.uint8)
    for row in range(20, 40):
        bits = generator.choice(64, flips, replace=False)
        hashes[row] = hashes[row - 20] ^ np.uint64(sum(1 << int(bit) for bit in bits))
        noise = generator.normal(0, generator.uniform(0, 60), (16, 16))
        thumbnails[row] = np.clip(thumbnails[row - 20] + noise, 0, 255)
    found = near_pairs(hashes, thumbnails)
    assert found is not None
    assert set(map(tuple, found.tolist())) == brute_force(hashes, thumbnails)
    assert len(found) == len(np.unique(found, axis=0))


def test_a_pair_at_the_bound_is_found_and_one_beyond_is_not() -> None:
    thumbnails = np.tile(np.arange(256, dtype=np.uint8).reshape(1, 16, 16), (2, 1, 1))
    for distance, count in ((HASH_BOUND, 1), (HASH_BOUND + 1, 0)):
        hashes = np.array([0, (1 << distance) - 1], np.uint64)
        found = near_pairs(hashes, thumbnails)
        assert found is not None
        assert len(found) == count, distance


def test_sixty_thousand_hashes_are_searched() -> None:
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**64, 60_000, dtype=np.uint64)
    hashes[-1] = hashes[0] ^ np.uint64(0b1011)
    thumbnails = np.zeros((60_000, 16, 16), np.uint8)
    thumbnails[[0, -1], :8] = 200
    found = near_pairs(hashes, thumbnails)
    assert found is not None
    assert found.tolist() == [[0, 59_999]]


def test_no_and_one_image_have_no_pairs() -> None:
    for count in (0, 1):
        found = near_pairs(np.zeros(count, np.uint64), np.zeros((count, 16, 16), np.uint8))
        assert found is not None
        assert found.shape == (0, 2)


def test_images_that_all_look_alike_are_given_up() -> None:
    thumbnails = np.tile(np.arange(256, dtype=np.uint8).reshape(1, 16, 16), (200, 1, 1))
    assert near_pairs(np.full(200, 7, np.uint64), thumbnails) is None


def test_other_sizes_compressions_and_contrasts_are_near_and_other_pictures_are_not(
    photographs: list[Image.Image],
) -> None:
    first = photographs[0]
    altered = [
        first.resize((64, 64), Image.Resampling.LANCZOS),
        recompressed(first, 30),
        ImageEnhance.Contrast(first).enhance(1.3),
        first.convert("L").convert("RGB"),
    ]
    copies = find_copies(prints_of(*photographs, *altered))
    assert copies.contents == len(photographs) + len(altered)
    mine = set(copies.content[[0, *range(len(photographs), len(photographs) + len(altered))]].tolist())
    assert {number for pair in copies.pairs.tolist() for number in pair} == mine
    assert {frozenset(pair) for pair in copies.pairs.tolist()} >= {
        frozenset((int(copies.content[0]), number)) for number in mine if number != copies.content[0]
    }


def test_exact_means_pixels_and_size_and_not_bytes() -> None:
    generator = np.random.default_rng(0)
    noise = Image.fromarray(generator.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, "BMP")
    turned = Image.frombytes("RGB", (40, 60), noise.tobytes())
    copies = find_copies(prints_of(noise, Image.open(buffer).convert("RGB"), turned))
    assert copies.content[0] == copies.content[1] != copies.content[2]


def test_small_and_plain_images_are_not_compared_but_their_exact_copies_count() -> None:
    ramp = Image.linear_gradient("L").convert("RGB")
    small, plain = ramp.resize((31, 40)), Image.new("RGB", (64, 64), "gray")
    almost = [image.copy() for image in (small, plain)]
    for image in almost:
        image.putpixel((0, 0), (1, 2, 3))
    prints = prints_of(small, plain, small, plain, *almost, ramp)
    assert prints.detailed.tolist() == [False] * 6 + [True]
    copies = find_copies(prints)
    assert copies.content[0] == copies.content[2]
    assert copies.content[1] == copies.content[3]
    assert len(copies.pairs) == 0


def copies_of(content: list[int], pairs: list[tuple[int, int]]) -> Copies:
    return Copies(np.array(content), np.array(pairs, np.int64).reshape(-1, 2), gave_up=False)


def test_across_splits_counts_the_images_of_the_second_and_their_labels() -> None:
    # Images 0-3 are train, 4-8 test: 4 equals 0, 5 equals 1 with another label, 6 is near 2, 7 is near 3 with another, 8 is new.
    copies = copies_of([0, 1, 2, 3, 0, 1, 4, 5, 6], [(2, 4), (5, 3)])
    found = overlap(part("train", [0, 1, 2, 3], [0, 1, 2, 3]), part("test", [4, 5, 6, 7, 8], [0, 9, 2, 9, 0]), copies)
    assert (found.images, found.exact, found.exact_other_label, found.near, found.near_other_label) == (5, 2, 1, 2, 1)
    first, second = found.examples[:2]
    assert (first.one, first.other, first.one_label, first.other_label) == ("train row 1", "test row 1", 1, 9)
    assert first.exact
    assert (second.one, second.other, second.exact) == ("train row 3", "test row 3", False)


def test_an_image_is_no_copy_of_itself() -> None:
    copies = copies_of([0, 1, 2], [])
    shared = overlap(part("train", [0, 1], [0, 0]), part("train800", [1, 2], [0, 0]), copies)
    assert (shared.images, shared.exact, shared.near) == (1, 0, 0)
    mine = part("train", [0, 1, 2], [0, 0, 0])
    assert overlap(mine, mine, copies).exact == 0


def test_within_a_split_every_image_with_a_copy_counts() -> None:
    copies = copies_of([0, 0, 1, 2, 3, -1], [(1, 2)])
    mine = part("train", [0, 1, 2, 3, 4, 5], [0, 1, 2, 2, 0, 0])
    found = overlap(mine, mine, copies)
    assert (found.images, found.exact, found.exact_other_label, found.near, found.near_other_label) == (5, 2, 2, 2, 0)


def test_exact_copies_are_not_counted_as_near_too() -> None:
    copies = copies_of([0, 1, 0], [(0, 1)])
    found = overlap(part("train", [0, 1], [0, 0]), part("test", [2], [0]), copies)
    assert (found.exact, found.near) == (1, 0)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_counts_equal_a_plain_count(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 12))
    content = np.unique(data.draw(st.lists(st.integers(0, 5), min_size=size, max_size=size)), return_inverse=True)[1]
    highest = int(content.max())
    every = [(one, two) for one in range(highest + 1) for two in range(one + 1, highest + 1)]
    pairs = data.draw(st.lists(st.sampled_from(every), unique=True)) if every else []
    labels = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    cut = data.draw(st.integers(1, size - 1))
    train, test = list(range(cut)), list(range(cut, size))
    near: set[tuple[int, int]] = {*pairs, *((two, one) for one, two in pairs)}

    exact = [image for image in test if any(content[image] == content[other] for other in train)]
    close = [
        image
        for image in test
        if image not in exact and any((content[image], content[other]) in near for other in train)
    ]
    noisy = [
        image for image in exact if any(content[image] == content[o] and labels[image] != labels[o] for o in train)
    ]
    found = overlap(
        part("train", train, labels[:cut]), part("test", test, labels[cut:]), copies_of(content.tolist(), pairs)
    )
    assert (found.exact, found.exact_other_label, found.near) == (len(exact), len(noisy), len(close))
