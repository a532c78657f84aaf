"""Images that come twice: pixel for pixel, and nearly (resized, recompressed, another contrast).

An exact duplicate has the same decoded pixels (sha256 of its size and RGB values), whatever its file format. A near duplicate is
found by two witnesses that must agree:

1. the 64-bit perceptual hashes of `imagehash.phash` differ in at most `HASH_BOUND` bits, which says where to look, and
2. the gray 16×16 thumbnails correlate by at least `SIMILARITY`, which says whether it is so.

The bounds were set by eye on photographs: on CIFAR-10, flowers, ImageNet and Tiny-ImageNet the hash alone joins many images that
share no more than a dark blob in the middle; with both witnesses every pair that was looked at was one picture.

The hash looks at 32×32 gray values, so smaller images have no detail for it to hold on to, and neither have images of one colour:
both are left out of the search for near duplicates, and counted. Drawings, digits and rendered scenes do look alike without being
copies; where there are more such pairs than `PAIRS_PER_IMAGE` for each image, the search gives up and says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
HashArray = npt.NDArray[np.uint64]
ByteArray = npt.NDArray[np.uint8]

HASH_BITS = 64
HASH_BOUND = 8
SIMILARITY = 0.92
SMALLEST_SIDE = 32
PLAIN_STD = 4.0
THUMBNAIL = 16
PAIRS_PER_IMAGE = 20
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Prints:
    """What N images are recognised by.

    Attributes:
        digests: `[N]` of 32 bytes: sha256 of size and RGB values.
        hashes: `[N]` uint64: perceptual hash.
        thumbnails: `[N, 16, 16]` uint8: gray.
        readable: `[N]` bool: the image could be decoded; the other fields mean nothing where it could not.
        detailed: `[N]` bool: large and varied enough for the perceptual hash to mean something.
    """

    digests: npt.NDArray[np.bytes_]
    hashes: HashArray
    thumbnails: ByteArray
    readable: BoolArray
    detailed: BoolArray

    @classmethod
    def empty(cls, count: int) -> Prints:
        """Room for `count` images, none of them readable yet."""
        return cls(
            digests=np.zeros(count, "S32"),
            hashes=np.zeros(count, np.uint64),
            thumbnails=np.zeros((count, THUMBNAIL, THUMBNAIL), np.uint8),
            readable=np.zeros(count, np.bool_),
            detailed=np.zeros(count, np.bool_),
        )

    def take(self, row: int, image: Image.Image) -> None:
        """Take the prints of an RGB image as those of `row`; several threads may, for rows of their own."""
        import imagehash

        self.digests[row] = hashlib.sha256(f"{image.width}x{image.height} ".encode() + image.tobytes()).digest()
        gray = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        self.thumbnails[row] = np.asarray(gray)
        self.detailed[row] = min(image.size) >= SMALLEST_SIDE and self.thumbnails[row].std() >= PLAIN_STD
        if self.detailed[row]:
            self.hashes[row] = np.packbits(imagehash.phash(image).hash).view(">u8")[0]
        self.readable[row] = True


@dataclass(frozen=True)
class Copies:
    """Which images are one picture.

    Attributes:
        content: `[N]` int64: images with the same pixels have the same number; -1 where the image is unreadable.
        pairs: `[M, 2]` int64: pairs of contents that are near duplicates, each once.
        gave_up: The images look so much alike that near duplicates were not counted.
    """

    content: IntArray
    pairs: IntArray
    gave_up: bool

    @property
    def contents(self) -> int:
        """Number of different contents."""
        return int(self.content.max(initial=-1)) + 1


@dataclass(frozen=True)
class Example:
    """An image and its copy.

    Attributes:
        one: Where the copy in the split that is looked into is.
        other: Where the image that is counted is.
        one_label: Label of the first.
        other_label: Label of the second.
        exact: Whether they have the same pixels.
    """

    one: str
    other: str
    one_label: int
    other_label: int
    exact: bool


@dataclass(frozen=True)
class Overlap:
    """The images of one split that have a copy in another, or in the same one (but for themselves).

    Attributes:
        one: Name of the split that is looked into.
        other: Name of the split whose images are counted; the same name for copies within a split.
        images: Number of images of `other` that were looked for.
        exact: How many of them have the same pixels as an image of `one`.
        exact_other_label: How many of these are labelled otherwise there.
        near: How many have a near duplicate in `one`, and no exact one.
        near_other_label: How many of these are labelled otherwise there.
        examples: Some of them, those with other labels first.
    """

    one: str
    other: str
    images: int
    exact: int
    exact_other_label: int
    near: int
    near_other_label: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Part:
    """A split, or the rows of it that are looked at.

    Attributes:
        name: The split's name.
        rows: `[n]` int64, rows of the split.
        images: `[n]` int64, which of the N images each is.
        labels: `[n]` int64.
        where: Row of the split to where its image is.
    """

    name: str
    rows: IntArray
    images: IntArray
    labels: IntArray
    where: Callable[[int], str]


def find_copies(prints: Prints) -> Copies:
    """Find which of N images are exact and which are near duplicates.

    Near duplicates are looked for among different contents; the search costs about N² / 28 comparisons of two integers.
    """
    content = np.full(len(prints.digests), -1, np.int64)
    _, content[prints.readable] = np.unique(prints.digests[prints.readable], return_inverse=True)
    numbers, first = np.unique(content, return_index=True)
    candidates = first[(numbers >= 0) & prints.detailed[first]]
    found = near_pairs(prints.hashes[candidates], prints.thumbnails[candidates])
    if found is None:
        return Copies(content, np.empty((0, 2), np.int64), gave_up=True)
    return Copies(content, content[candidates[found]], gave_up=False)


def near_pairs(hashes: HashArray, thumbnails: ByteArray) -> IntArray | None:
    """The pairs of images that both witnesses call one picture.

    Pairs within b bits agree in at least one of b + 1 bands of bits, so only images that share a band are compared: sorted by a
    band, image i is compared with images i + 1, i + 2, … as long as their bands are equal.

    Args:
        hashes: `[N]` uint64.
        thumbnails: `[N, 16, 16]` uint8.

    Returns:
        `[M, 2]` int64, each pair once and its lower row first; None when the images look too much alike for the hash to tell.
    """
    most = PAIRS_PER_IMAGE * max(len(hashes), 50)
    found: list[IntArray] = [np.empty((0, 2), np.int64)]
    count = 0
    for band in _bands(hashes, HASH_BOUND + 1):
        order = np.argsort(band, kind="stable")
        ordered, hashed = band[order], hashes[order]
        start, step = np.arange(len(order)), 1
        while len(start):
            start = start[start + step < len(order)]
            start = start[ordered[start] == ordered[start + step]]
            close = start[_bits(hashed[start] ^ hashed[start + step]) <= HASH_BOUND]
            if len(close):
                pairs = np.sort(np.stack([order[close], order[close + step]], axis=1), axis=1)
                pairs = pairs[_alike(thumbnails, pairs)]
                found.append(pairs)
                count += len(pairs)
                if count > most:
                    return None
            step += 1
    return np.unique(np.concatenate(found), axis=0)


def _bands(hashes: HashArray, count: int) -> list[HashArray]:
    """The bits of each hash dealt out to `count` bands, so that no band has the coarse or the fine ones alone."""
    return [hashes & np.uint64(sum(1 << bit for bit in range(start, HASH_BITS, count))) for start in range(count)]


_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)


def _bits(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Number of ones in each of N 64-bit words; NumPy has its own for that only from version 2."""
    return np.asarray(_BITS_OF_BYTE[values.view(np.uint8).reshape(-1, 8)].sum(axis=1, dtype=np.uint8))


def _alike(thumbnails: ByteArray, pairs: IntArray) -> BoolArray:
    """`[M]` bool: whether the thumbnails of each pair correlate: the cosine between them, each less its mean."""
    found = [
        (_normalised(thumbnails[part[:, 0]]) * _normalised(thumbnails[part[:, 1]])).sum(axis=1) >= SIMILARITY
        for part in np.split(pairs, range(_CHUNK, len(pairs), _CHUNK))
    ]
    return np.concatenate(found)


def _normalised(thumbnails: ByteArray) -> npt.NDArray[np.float32]:
    """Thumbnails as vectors `[n, 256]` of mean 0 and length 1."""
    vectors = thumbnails.reshape(len(thumbnails), THUMBNAIL * THUMBNAIL).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors


def overlap(one: Part, other: Part, copies: Copies, examples: int = 5) -> Overlap:
    """The images of `other` that have a copy in `one`; with itself, the images that have another copy in the same split.

    An image that both splits take from the same stored row is one image, no copy of itself, and is not counted.
    """
    content = copies.content
    same = one is other
    counted = np.ones(len(other.images), np.bool_) if same else ~np.isin(other.images, one.images)
    counted &= content[other.images] >= 0
    known = one.images[content[one.images] >= 0]
    known_labels = one.labels[content[one.images] >= 0]
    lowest, highest = _label_range(content[known], known_labels, copies.contents)
    times = np.bincount(content[known], minlength=copies.contents)
    near_lowest, near_highest = _neighbours(lowest, highest, copies.pairs)

    mine, labels = content[other.images], other.labels
    exact = counted & (times[mine] > (1 if same else 0))
    near = counted & ~exact & (near_highest[mine] >= 0)
    relabelled = exact & ((lowest[mine] != labels) | (highest[mine] != labels))
    near_relabelled = near & ((near_lowest[mine] != labels) | (near_highest[mine] != labels))
    shown = [
        *np.flatnonzero(relabelled),
        *np.flatnonzero(near_relabelled),
        *np.flatnonzero(exact),
        *np.flatnonzero(near),
    ]
    shown = list(dict.fromkeys(int(place) for place in shown))
    return Overlap(
        one=one.name,
        other=other.name,
        images=int(counted.sum()),
        exact=int(exact.sum()),
        exact_other_label=int(relabelled.sum()),
        near=int(near.sum()),
        near_other_label=int(near_relabelled.sum()),
        examples=tuple(_example(place, bool(exact[place]), one, other, copies) for place in shown[:examples]),
    )


def _label_range(content: IntArray, labels: IntArray, count: int) -> tuple[IntArray, IntArray]:
    """`[count]` int64 each: lowest and highest label of the images of each content; the highest is -1 where there are none."""
    lowest, highest = np.full(count, np.iinfo(np.int64).max), np.full(count, -1, np.int64)
    np.minimum.at(lowest, content, labels)
    np.maximum.at(highest, content, labels)
    return lowest, highest


def _neighbours(lowest: IntArray, highest: IntArray, pairs: IntArray) -> tuple[IntArray, IntArray]:
    """The same over the near duplicates of each content, itself left out."""
    near_lowest, near_highest = np.full_like(lowest, np.iinfo(np.int64).max), np.full_like(highest, -1)
    for here, there in ((pairs[:, 0], pairs[:, 1]), (pairs[:, 1], pairs[:, 0])):
        np.minimum.at(near_lowest, here, lowest[there])
        np.maximum.at(near_highest, here, highest[there])
    return near_lowest, near_highest


def _example(place: int, exact: bool, one: Part, other: Part, copies: Copies) -> Example:
    """An image of `other` and its copy in `one`: one with another label where there is one."""
    mine = copies.content[other.images[place]]
    pairs = copies.pairs
    alike = [mine] if exact else [*pairs[pairs[:, 0] == mine, 1], *pairs[pairs[:, 1] == mine, 0]]
    places = np.flatnonzero(np.isin(copies.content[one.images], alike) & (one.images != other.images[place]))
    differing = places[one.labels[places] != other.labels[place]]
    found = int(differing[0] if len(differing) else places[0])
    return Example(
        one=f"{one.name} {one.where(int(one.rows[found]))}",
        other=f"{other.name} {other.where(int(other.rows[place]))}",
        one_label=int(one.labels[found]),
        other_label=int(other.labels[place]),
        exact=exact,
    )
