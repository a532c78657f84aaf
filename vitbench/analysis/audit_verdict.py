"""What an audit's numbers mean: a line for each thing that is wrong or worth knowing, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vitbench.analysis.duplicates import PAIRS_PER_IMAGE, SMALLEST_SIDE, Example, Overlap

if TYPE_CHECKING:
    from vitbench.analysis.audit import Audit, SplitAudit

Level = Literal["problem", "warning", "note"]
LEVELS: tuple[Level, ...] = ("problem", "warning", "note")

_KIND_NOTES = {
    "gray": "stored in gray and read as RGB with equal channels",
    "gray_in_colour": "stored in colour and gray in every pixel",
    "palette": "stored with a palette and read as RGB",
    "alpha": "stored with transparency, which is dropped, not blended",
    "cmyk": "CMYK, converted without a colour profile",
    "sixteen_bit": "stored with 16 bits, of which the high 8 are used",
    "one_bit": "stored with 1 bit a pixel",
    "many_frames": "animations or of many pages: only the first is used",
    "exif_rotated": "to be turned by their EXIF orientation, which vitbench ignores, as TensorFlow and timm do",
}
_MANY = 0.25
_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """One line of the verdict.

    Attributes:
        level: `problem` makes numbers untrustworthy, `warning` may, `note` is worth knowing.
        text: What is wrong, and what to do.
    """

    level: Level
    text: str


def verdict(audit: Audit, scored: str) -> list[Finding]:
    """The findings of an audit, the worst first.

    Args:
        audit: The audit, without findings yet.
        scored: Name of the split whose images are scored.
    """
    found = [
        *_sizes(audit),
        *(finding for split in audit.splits for finding in (*_broken(split), *_classes(split, scored))),
        *(finding for pair in audit.overlaps for finding in _copies(pair, audit.synthetic)),
        *_images(audit.splits),
        *_limits(audit),
    ]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def _sizes(audit: Audit) -> Iterator[Finding]:
    for line in audit.deviations:
        yield Finding(
            "problem",
            f"{line}: scores cannot be compared with published ones; get the data that the task names, or correct its file",
        )
    if audit.unverified:
        yield Finding(
            "warning", "unverified: nobody has seen this source on the hub; compare sizes and sheet with the paper"
        )


def _broken(split: SplitAudit) -> Iterator[Finding]:
    if split.images.unreadable:
        yield Finding(
            "problem",
            f"{_of(split.images.unreadable, split)} cannot be read, and a run stops at the first; replace or remove them, "
            f"such as {split.images.unreadable_examples[0]}",
        )


def _classes(split: SplitAudit, scored: str) -> Iterator[Finding]:
    labels = split.labels
    classes = labels.classes
    if labels.missing:
        names = ", ".join(f"'{name}'" for name in labels.missing_examples[:_NAMED])
        names += f" and {labels.missing - _NAMED:,} more" if labels.missing > _NAMED else ""
        effect = "they are never scored" if split.name == scored else "they cannot be learned"
        advice = "" if split.partial else "; is a file of the split missing?"
        yield Finding(
            "note" if split.partial else "warning",
            f"{split.name} has no image of {labels.missing:,} of {classes:,} classes ({names}): {effect}{advice}",
        )
    if split.name == scored and labels.majority_share * classes >= 1.5:
        yield Finding(
            "note",
            f"always answering '{labels.majority_class}' would score {100 * labels.majority_share:.1f} % accuracy on "
            f"{split.name}, where a uniform guess scores {100 / classes:.1f} %",
        )


def _copies(pair: Overlap, synthetic: bool) -> Iterator[Finding]:
    across = pair.one != pair.other
    if pair.exact:
        labelled = _labelled(pair.exact_other_label, pair.exact)
        what = (
            f"{_share(pair.exact, pair)} are pixel for pixel in {pair.one}{labelled}"
            if across
            else (f"{_share(pair.exact, pair)} are pixel for pixel there twice{labelled}")
        )
        then = (
            f"scores on {pair.other} count what was learned by heart; remove them from one of the two"
            if across
            else (
                "remove the copies"
                if not pair.exact_other_label
                else "at most one label can be right; correct or remove them"
            )
        )
        level: Level = "problem" if across else "warning" if pair.exact_other_label else "note"
        yield Finding(level, f"{what}: {then}{_such_as(pair, exact=True)}")
    if pair.near:
        yield _near(pair, synthetic)


def _near(pair: Overlap, synthetic: bool) -> Finding:
    across = pair.one != pair.other
    if synthetic:
        what, then = "a look-alike", "rendered scenes look alike by design"
    elif pair.near > _MANY * pair.images:
        what = "a look-alike"
        then = (
            "so many are usual for drawings, rendered scenes and frames of a film, and need not be copies; look at some"
        )
    else:
        what = "a near duplicate"
        then = "look at them, and remove what is the same picture" if across else "the same picture may be there twice"
    level: Level = "warning" if (across or pair.near_other_label) and not synthetic else "note"
    place = f"in {pair.one}" if across else "there"
    labelled = _labelled(pair.near_other_label, pair.near)
    return Finding(
        level, f"{_share(pair.near, pair)} have {what} {place}{labelled}: {then}{_such_as(pair, exact=False)}"
    )


def _images(splits: Sequence[SplitAudit]) -> Iterator[Finding]:
    for kind, what in _KIND_NOTES.items():
        if counts := _counts((split, split.images.kinds[kind]) for split in splits):
            yield Finding("note", f"{counts} are {what}")
    if counts := _counts((split, split.images.without_detail) for split in splits):
        yield Finding(
            "note",
            f"{counts} are smaller than {SMALLEST_SIDE} pixels or of one colour: near duplicates are not looked for among them",
        )


def _counts(parts: Iterable[tuple[SplitAudit, int]]) -> str:
    return " and ".join(_of(count, split) for split, count in parts if count)


def _limits(audit: Audit) -> Iterator[Finding]:
    if not audit.near_counted:
        yield Finding(
            "warning",
            f"near duplicates were not counted: there are more than {PAIRS_PER_IMAGE} pairs that look alike for each image, so "
            f"the perceptual hash cannot tell these images apart",
        )
    if audit.limit is not None:
        seen = " and ".join(
            f"{split.images.looked_at:,} of {split.found:,} images of {split.name}" for split in audit.splits
        )
        yield Finding("note", f"limited: only {seen} were looked at; copies of the others do not show")


def _of(count: int, split: SplitAudit) -> str:
    return f"{count:,} of {split.images.looked_at:,} images of {split.name}"


def _share(count: int, pair: Overlap) -> str:
    return f"{count:,} of {pair.images:,} images of {pair.other}"


def _labelled(differing: int, count: int) -> str:
    if not differing:
        return ", with the same label" if count == 1 else ", with the same labels"
    return f", {differing:,} of them with another label"


def _such_as(pair: Overlap, exact: bool) -> str:
    example: Example | None = next((example for example in pair.examples if example.exact == exact), None)
    return f", such as {example.other} and {example.one}" if example else ""
