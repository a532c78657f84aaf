"""Every task file that ships: valid, pinned, described, with the sizes, slices and label rules of the protocols it is made for.

The checks are plain functions that return what is wrong, so that the last tests can break a copy of a file and see them speak.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pytest
import yaml

from vitbench.errors import DataError, VitbenchError
from vitbench.tasks import transforms
from vitbench.tasks.catalog import suite_spec, suites, task_files, task_folder
from vitbench.tasks.label_rules import apply_rule
from vitbench.tasks.source_spec import HubSource
from vitbench.tasks.spec import TaskSpec, read_task_file
from vitbench.tasks.splits import RowSet, Segment, resolve, whole


class Vtab(NamedTuple):
    """A row of VTAB's own table (task_adaptation, asserted by its tests).

    Attributes:
        classes: K.
        train: Number of images.
        validation: Number of images.
        test: Number of images.
        tfds: Split of TFDS that val200 comes from.
        start: First row of val200 there.
        rows: What that split of TFDS is in terms of VTAB's train, validation and test.
    """

    classes: int
    train: int
    validation: int
    test: int
    tfds: str
    start: int
    rows: str


OWN = "validation"
CUT = "train+validation"
SINGLE = "train+validation+test"
VTAB = {
    "natural/caltech101": Vtab(102, 2754, 306, 6084, "train", 2754, CUT),
    "natural/cifar100": Vtab(100, 45000, 5000, 10000, "train", 45000, CUT),
    "natural/dtd": Vtab(47, 1880, 1880, 1880, "validation", 0, OWN),
    "natural/oxford_flowers102": Vtab(102, 1020, 1020, 6149, "validation", 0, OWN),
    "natural/oxford_iiit_pet": Vtab(37, 2944, 736, 3669, "train", 2944, CUT),
    "natural/sun397": Vtab(397, 76128, 10875, 21750, "validation", 0, OWN),
    "natural/svhn": Vtab(10, 65931, 7326, 26032, "train", 65931, CUT),
    "specialized/diabetic_retinopathy": Vtab(5, 35126, 10906, 42670, "validation", 0, OWN),
    "specialized/eurosat": Vtab(10, 16200, 5400, 5400, "train", 16200, SINGLE),
    "specialized/patch_camelyon": Vtab(2, 262144, 32768, 32768, "validation", 0, OWN),
    "specialized/resisc45": Vtab(45, 18900, 6300, 6300, "train", 18900, SINGLE),
    "structured/clevr_count": Vtab(8, 63000, 7000, 15000, "train", 63000, CUT),
    "structured/clevr_distance": Vtab(6, 63000, 7000, 15000, "train", 63000, CUT),
    "structured/dmlab": Vtab(6, 65550, 22628, 22735, "validation", 0, OWN),
    "structured/dsprites_location": Vtab(16, 589824, 73728, 73728, "train", 589824, SINGLE),
    "structured/dsprites_orientation": Vtab(16, 589824, 73728, 73728, "train", 589824, SINGLE),
    "structured/kitti_distance": Vtab(4, 6347, 423, 711, "validation", 0, OWN),
    "structured/smallnorb_azimuth": Vtab(18, 24300, 12150, 12150, "test", 0, "validation+test"),
    "structured/smallnorb_elevation": Vtab(9, 24300, 12150, 12150, "test", 0, "validation+test"),
}

WITHOUT_VALIDATION = {"specialized/diabetic_retinopathy": (28101, 7025), "structured/dmlab": (52440, 13110)}
"""The tasks whose full-data repository lacks VTAB's validation images: train and validation are cut out of VTAB's train."""

OTHERS = {
    "fewshot/caltech101": (102, 3060, 6084),
    "fewshot/cars": (196, 8144, 8041),
    "fewshot/cifar100": (100, 50000, 10000),
    "fewshot/dtd": (47, 1880, 1880),
    "fewshot/pets": (37, 3680, 3669),
    "fewshot/uc_merced": (21, 1000, 1100),
    "paper/cifar10": (10, 50000, 10000),
    "paper/cifar100": (100, 50000, 10000),
    "paper/imagenet": (1000, 1281167, 50000),
    "paper/oxford_flowers102": (102, 1020, 6149),
    "paper/oxford_pets": (37, 3680, 3669),
    "builtin/digits": (10, 1000, 797),
}


# What a file must say


def described(name: str, spec: TaskSpec) -> Iterator[str]:
    """Every field that tells a reader, or a table, what the task is."""
    for field in ("title", "description", "licence", "citation", "preprocess", "num_classes", "chance", "notes"):
        if not getattr(spec, field):
            yield f"{field} is missing"
    if not spec.synthetic and not re.match(r"https?://\S+$", spec.homepage):
        yield f"homepage is '{spec.homepage}'"
    if len(set(spec.class_names)) < len(spec.class_names):
        yield "a class name is there twice"
    try:
        transforms.check(spec.preprocess)
    except VitbenchError as error:
        yield str(error)


def honest(name: str, spec: TaskSpec) -> Iterator[str]:
    """What nobody has seen or measured is said to be so."""
    notes = " ".join(spec.notes)
    if isinstance(spec.source, HubSource):
        if not spec.unverified and not re.fullmatch(r"[0-9a-f]{40}", spec.source.revision):
            yield "the revision is not pinned"
        if spec.unverified and not any(note.startswith("Unverified: ") for note in spec.notes):
            yield "unverified, and no note says why"
        if spec.download_bytes is None and "nobody has measured" not in notes.lower():
            yield "the download is not known, and no note says so"
    elif spec.unverified or spec.download_bytes != 0:
        yield "nothing is downloaded and there is nothing to verify"


def scored(name: str, spec: TaskSpec) -> Iterator[str]:
    """A metric that has a meaning for the task, and what a guess scores in it."""
    classes, source = spec.num_classes or 0, cast(Any, spec.source)
    several = spec.label_sets is not None or bool(getattr(source, "hits", ""))
    if spec.metric == "top5_accuracy" and classes < 5:
        yield "top-5 accuracy of fewer than 5 classes"
    if spec.metric == "multilabel_hit" and not several:
        yield "multi-label hit without label sets"
    if classes and abs((spec.chance or 0) - 1 / classes) > 1e-6:
        yield f"chance is {spec.chance} for {classes} classes"


# Splits


def rows(spec: TaskSpec, expression: str) -> RowSet:
    """The rows of a split by the sizes that the file declares."""

    def stored(name: str) -> RowSet | None:
        part = spec.stored.get(name)
        return None if part is None else whole(name, part.size or 1 << 20)

    return resolve(expression, spec.selections, stored)


def runs(found: RowSet) -> list[Segment]:
    """Rows as the fewest runs of neighbouring rows, so that equal rows in equal order are equal lists."""
    merged: list[Segment] = []
    for part in found.segments:
        if merged and merged[-1].base == part.base and merged[-1].stop == part.start:
            part = Segment(part.base, merged.pop().start, part.stop)
        merged.append(part)
    return merged


def sized(name: str, spec: TaskSpec) -> Iterator[str]:
    """Every split has its size, and sizes add up."""
    for split, part in spec.splits.items():
        if part.size is None:
            yield f"split '{split}' has no size"
        elif len(rows(spec, split)) != part.size:
            yield f"split '{split}' is {len(rows(spec, split))} rows, not {part.size}"
    sizes = {split: part.size or 0 for split, part in spec.splits.items()}
    for one, other, both in (("train", "validation", "trainval"), ("train800", "val200", "train800val200")):
        if {one, other, both} <= set(sizes) and sizes[one] + sizes[other] != sizes[both]:
            yield f"{one} and {other} are {sizes[one] + sizes[other]} images, {both} is {sizes[both]}"


def apart(name: str, spec: TaskSpec) -> Iterator[str]:
    """No image is learned from and scored, and no file is read for two splits."""
    for one, other in spec.disjoint():
        if shared := rows(spec, one).shared(rows(spec, other))[0]:
            yield f"'{one}' and '{other}' share {shared} rows"
    for one, part in spec.stored.items():
        # A name of the kind that each glob is meant for must fit the globs of no other split.
        meant = [file.replace("*", "00000-of-00001") for file in part.files]
        for other, second in spec.stored.items():
            caught = [file for file in meant for glob in second.files if fnmatch.fnmatchcase(file, glob)]
            if one != other and caught:
                yield f"the files of split '{other}' catch '{caught[0]}' of split '{one}'"


def vtab_splits(name: str, spec: TaskSpec) -> Iterator[str]:
    """VTAB's sizes, its 800 and 200 images, and what is learned from and scored."""
    suite, _, task = name.partition("/")
    if suite not in ("vtab", "vtab_full"):
        return
    own, full = VTAB[task], suite == "vtab_full"
    train, validation = WITHOUT_VALIDATION.get(task, own[1:3]) if full else own[1:3]
    expected = {"train": train, "validation": validation, "trainval": train + validation, "test": own.test}
    expected |= {"train800": 800, "val200": 200, "train800val200": 1000, "first1000": 1000}
    for split, size in expected.items():
        if split not in spec.splits or spec.splits[split].size != size:
            yield f"split '{split}' should have {size} images"
            return
    wanted = {"train800val200": rows(spec, "train800+val200"), "first1000": rows(spec, "trainval").slice(0, 1000)}
    if full:
        source = rows(spec, CUT if own.rows == OWN else own.rows)
        if any((part.start, part.stop) != (0, spec.splits[part.base].size) for part in runs(source)):
            yield "train, validation and test are not cut in the order of what is stored"
        wanted["train800"] = rows(spec, "train").slice(0, 800)
        wanted["val200"] = rows(spec, own.rows).slice(own.start, own.start + 200)
    for split, found in wanted.items():
        if runs(rows(spec, split)) != runs(found):
            yield f"split '{split}' takes other rows than VTAB"
    learned = ("trainval", "test", "train", "validation") if full else ("train800val200", "test", "train800", "val200")
    if tuple(spec.used()) != learned:
        yield f"evaluation reads {spec.used()}"
    if (spec.num_classes, spec.metric, spec.preprocess) != (own.classes, "accuracy", "vtab"):
        yield "classes, metric or preprocessing are not VTAB's"


def other_splits(name: str, spec: TaskSpec) -> Iterator[str]:
    """The sizes of the suites that are not VTAB."""
    if name not in OTHERS:
        return
    classes, train, test = OTHERS[name]
    found = (spec.num_classes, spec.splits[spec.evaluation.train].size, spec.splits[spec.evaluation.test].size)
    if found != (classes, train, test):
        yield f"classes, train and test are {found}"
    if name == "fewshot/uc_merced" and (rows(spec, "train"), rows(spec, "test")) != (
        rows(spec, "all").slice(0, 1000),
        rows(spec, "all").slice(1000, 2100),
    ):
        yield "train and test are not the first 1,000 images and the rest"


# Label rules: every value that a data set can have, and VTAB's label for it


def edges(thresholds: list[float], low: float, high: float) -> list[float]:
    """Each threshold, its neighbours in float32, and values between, of those within low (excluded) and high (included)."""
    near = [
        float(np.nextafter(np.float32(edge), np.float32(side))) for edge in thresholds for side in (-np.inf, np.inf)
    ]
    between = np.linspace(low, high, 41).tolist()
    return sorted(value for value in {*near, *thresholds, *between} if low < value <= high)


def vtab_bucket(thresholds: list[float], distance: float) -> int:
    """`max(where(thrs - dist < 0))`, as in task_adaptation's clevr.py and kitti.py."""
    return int(np.flatnonzero(np.array(thresholds, np.float32) - np.float32(distance) < 0).max())


def clevr_objects(depths: list[list[float]]) -> pa.Array:
    return pa.array(
        [
            {
                "size": [0] * len(image),
                "pixel_coords": [[500.0, 600.0, depth] for depth in image],
                "color": [1] * len(image),
            }
            for image in depths
        ]
    )


def clevr_count() -> tuple[pa.Array, list[int]]:
    return clevr_objects([[9.0] * count for count in range(3, 11)]), list(range(8))


def clevr_distance() -> tuple[pa.Array, list[int]]:
    thresholds = [0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0]
    nearest = edges(thresholds, 0, 100)
    farther = [[min(depth + 20, 100), depth] for depth in nearest]
    return clevr_objects(farther), [vtab_bucket(thresholds, depth) for depth in nearest]


def kitti_distance() -> tuple[pa.Array, list[int]]:
    """Each distance by a car, a van or a truck, with a pedestrian and a tram before it; and no vehicle at all."""
    thresholds = [-100.0, 8.0, 20.0, 999.0]
    distances = edges(thresholds, -100, 900)
    images = [
        {"location": [[1.0, 2.0, 1.5], [3.0, -4.0, z], [0.0, 0.0, 3.0]], "type": [3, number % 3, 6]}
        for number, z in enumerate(distances)
    ]
    images += [{"location": [[1.0, 2.0, 5.0]], "type": [3]}, {"location": [], "type": []}]
    kind = pa.struct([("location", pa.list_(pa.list_(pa.float32()))), ("type", pa.list_(pa.int64()))])
    return pa.array(images, kind), [*(vtab_bucket(thresholds, z) for z in distances), 3, 3]


def binned(values: int) -> Callable[[], tuple[pa.Array, list[int]]]:
    """`floordiv(float32(value), values / 16)`, as in task_adaptation's dsprites.py."""
    division = np.float32(values / 16)
    return lambda: (pa.array(range(values)), [int(np.float32(value) // division) for value in range(values)])


VALUES: dict[str, Callable[[], tuple[pa.Array, list[int]]]] = {
    "vtab_full/structured/clevr_count": clevr_count,
    "vtab_full/structured/clevr_distance": clevr_distance,
    "vtab_full/structured/dsprites_location": binned(32),
    "vtab_full/structured/dsprites_orientation": binned(40),
    "vtab_full/structured/kitti_distance": kitti_distance,
}


def labelled(name: str, spec: TaskSpec) -> Iterator[str]:
    """A rule has VTAB's label for every value, within the classes, and reaches every class."""
    rule: Any = getattr(spec.source, "label_rule", None)
    if rule is None:
        if name in VALUES:
            yield "the label rule is missing"
        return
    if name not in VALUES:
        yield "nobody says which values the label rule meets"
        return
    values, expected = VALUES[name]()
    try:
        found = apply_rule(rule, values, lambda row: f"row {row}").tolist()
    except DataError as error:
        yield f"the label rule is not total: {error}"
        return
    if set(found) != set(range(spec.num_classes or 0)):
        yield f"the label rule gives {sorted(set(found))} for {spec.num_classes} classes"
    if found != expected:
        row = next(row for row, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
        yield f"the label of {values[row]} is {found[row]}, VTAB's is {expected[row]}"


CHECKS = (described, honest, scored, sized, apart, vtab_splits, other_splits, labelled)


def wrong(name: str, path: Path) -> list[str]:
    """Everything that is wrong with a task file; what makes it invalid hides the rest."""
    text = path.read_text(encoding="utf-8")
    hosts = re.findall(r"//(?:\w+\.)*(?:huggingface|hf|pypi)\b", text)
    try:
        spec = read_task_file(path)
    except DataError as error:
        return [str(error)]
    return [
        *(f"names the registry {host}" for host in hosts),
        *(line for check in CHECKS for line in check(name, spec)),
    ]


@pytest.mark.parametrize("name", task_files())
def test_a_task_file_that_ships(name: str) -> None:
    assert wrong(name, task_files()[name]) == []


def test_the_suites_are_complete() -> None:
    found = suites()
    for suite in ("vtab", "vtab_full"):
        assert set(found[suite]) == {f"{suite}/{task}" for task in VTAB}
        assert [len(found[f"{suite}/{group}"]) for group in ("natural", "specialized", "structured")] == [7, 4, 8]
    for suite, size in (("fewshot", 6), ("paper", 5)):
        assert set(found[suite]) == {name for name in OTHERS if name.startswith(f"{suite}/")}
        assert len(found[suite]) == size
    synthetic = {f"builtin/synthetic_{factor}" for factor in ("count", "orientation", "size", "x_position")}
    assert set(found["builtin"]) == {"builtin/digits", *synthetic}


@pytest.mark.parametrize(
    ("suite", "protocol"), [("vtab", "ridge"), ("vtab_full", "ridge"), ("fewshot", "fewshot"), ("paper", "fewshot")]
)
def test_a_suite_is_evaluated_as_its_tasks_say(suite: str, protocol: str) -> None:
    spec = suite_spec(suite)
    assert spec.protocol == protocol
    assert {read_task_file(task_files()[name]).preprocess for name in suites()[suite]} == {spec.preprocess}
    assert spec.title
    assert spec.citation


def test_no_name_and_no_data_is_there_twice_in_a_suite() -> None:
    folded = [name.lower() for name in task_files()]
    assert len(set(folded)) == len(folded)
    for suite in ("vtab", "vtab_full", "fewshot", "paper", "builtin"):
        read = [read_task_file(task_files()[name]) for name in suites()[suite]]
        contents = [(str(spec.source), str(spec.splits)) for spec in read]
        assert len(set(contents)) == len(contents)


def test_the_files_are_plain_and_narrow() -> None:
    for path in task_folder().rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert "\t" not in text, path
        assert text == text.rstrip() + "\n", path
        assert all(line == line.rstrip() for line in text.splitlines()), path


def test_what_is_read_of_the_first_tasks_is_what_their_records_were_made_of() -> None:
    """The fingerprints of results that exist depend on these words."""
    kept = {
        "paper/cifar10": ("uoft-cs/cifar10", "0b27149", "img", "label", "plain_text/train-*.parquet"),
        "paper/cifar100": ("uoft-cs/cifar100", "aadb3af", "img", "fine_label", "cifar100/train-*.parquet"),
        "paper/oxford_flowers102": (
            "Donghyun99/Oxford-Flower-102",
            "7e43fe3",
            "image",
            "label",
            "data/train-*.parquet",
        ),
        "paper/oxford_pets": ("timm/oxford-iiit-pet", "089695c", "image", "label", "data/train-*.parquet"),
    }
    for name, expected in kept.items():
        spec = read_task_file(task_files()[name])
        source: Any = spec.source
        files = spec.splits["train"].files
        assert (source.repo, source.revision[:7], source.image, source.label, *files) == expected
        assert (spec.evaluation.train, spec.evaluation.test) == ("train", "test")
    digits = read_task_file(task_files()["builtin/digits"])
    assert [(split, part.rows) for split, part in digits.splits.items()] == [
        ("train", (0, 1000)),
        ("test", (1000, 1797)),
    ]


# The checks can fail

CIFAR = "vtab_full/natural/cifar100"
NORB = "vtab_full/structured/smallnorb_azimuth"
MUTATIONS: list[tuple[str, dict[str, str], str]] = [
    # sizes
    ("vtab/natural/caltech101", {"size: 6084": "size: 6085"}, "split 'test' should have 6084 images"),
    ("vtab/natural/dtd", {"size: 3760": "size: 3761"}, "train and validation are 3760 images, trainval is 3761"),
    ("vtab/structured/kitti_distance", {"size: 711": ""}, "split 'test' has no size"),
    ("fewshot/cars", {"size: 8041": "size: 8144"}, r"classes, train and test are \(196, 8144, 8144\)"),
    (CIFAR, {'"trainval[:45000]"': '"trainval[:44000]"'}, "size is 45000 but 'trainval.:44000.' takes 44000 rows"),
    # slices that are consistent in themselves, and not VTAB's
    (
        CIFAR,
        {'[:45000]", size: 45000': '[:44000]", size: 44000', '[45000:]", size: 5000': '[44000:]", size: 6000'},
        "split 'train' should have 45000 images",
    ),
    (CIFAR, {"validation[:200]": "validation[200:400]"}, "split 'val200' takes other rows than VTAB"),
    (CIFAR, {"train[:800]": "train[800:1600]"}, "split 'train800' takes other rows than VTAB"),
    (CIFAR, {"train800+val200": "val200+train800"}, "split 'train800val200' takes other rows than VTAB"),
    ("vtab/natural/svhn", {"trainval[:1000]": "trainval[1:1001]"}, "split 'first1000' takes other rows than VTAB"),
    (
        NORB,
        {
            'validation: {select: "official_test[:50%]': 'validation: {select: "official_test[50%:]',
            'test: {select: "official_test[50%:]': 'test: {select: "official_test[:50%]',
        },
        "not cut in the order of what is stored",
    ),
    ("fewshot/uc_merced", {"all[:1000]": "all[1100:]", "all[1000:]": "all[:1100]"}, "not the first 1,000 images"),
    # train images among those that are scored
    ("vtab_full/natural/svhn", {"test: test,": "test: validation,"}, "share 7,326 images"),
    (CIFAR, {"tune_validation: validation": "tune_validation: train800"}, "share 800 images"),
    ("vtab/natural/svhn", {"data/train-*": "data/train*"}, "of split 'train' catch 'data/train800-00000-of-00001"),
    # rules
    ("vtab_full/structured/dsprites_location", {"by: 2}": "by: 4}"}, "gives .* for 16 classes"),
    ("vtab_full/structured/dsprites_orientation", {"by: 2.5": "by: 2.6"}, "VTAB's is 2"),
    ("vtab_full/structured/clevr_count", {"add: -3": "add: -2"}, "the label rule gives"),
    ("vtab_full/structured/clevr_count", {"add: -3": "add: -4"}, "the label rule is not total"),
    ("vtab_full/structured/clevr_distance", {"8.5,": "8.6,"}, "VTAB's is 2"),
    ("vtab_full/structured/clevr_distance", {", item: 2": ", item: 1"}, "the label rule"),
    ("vtab_full/structured/kitti_distance", {" 20,": " 20.001,"}, "VTAB's is 2"),
    ("vtab_full/structured/kitti_distance", {"below: 3": "below: 4"}, "VTAB's is"),
    (
        "vtab_full/structured/kitti_distance",
        {", sentinel: 1000": ""},
        "num_classes is 4 but the thresholds make 3 buckets",
    ),
    ("vtab_full/structured/kitti_distance", {"sentinel: 1000": "sentinel: 500"}, "thresholds make 3 buckets"),
    # what a reader and a table need
    ("paper/cifar100", {"chance: 0.01": "chance: 0.1"}, "chance is 0.1 for 100 classes"),
    ("paper/cifar10", {"preprocess: bigvision_fewshot": "preprocess: bigvision_fewshoot"}, "bigvision_fewshoot"),
    ("paper/cifar10", {"truck]": "ship]"}, "'ship' twice"),
    ("paper/cifar10", {"metric: accuracy": "metric: multilabel_hit"}, "multi-label hit without label sets"),
    ("vtab/structured/kitti_distance", {"metric: accuracy": "metric: top5_accuracy"}, "means nothing for 4 classes"),
    ("paper/cifar10", {"0b2714987fa478483af9968de7c934580d0bb9a2": "main"}, "revision"),
    ("paper/cifar10", {"  revision: 0b2714987fa478483af9968de7c934580d0bb9a2\n": ""}, "pin the full commit hash"),
    ("vtab/natural/dtd", {"Unverified: ": "Perhaps, "}, "no note says why"),
    ("fewshot/cars", {"nobody has measured": "who knows"}, "the download is not known"),
    ("paper/oxford_pets", {"licence: CC-BY-SA-4.0\n": ""}, "licence is missing"),
    ("paper/oxford_pets", {"homepage: https://www.robots.ox.ac.uk/~vgg/data/pets/\n": ""}, "homepage is ''"),
    ("paper/oxford_pets", {"https://www.robots.ox.ac.uk/~vgg": "https://huggingface/"}, "names the registry"),
]


@pytest.mark.parametrize(
    ("name", "changes", "message"), MUTATIONS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_broken_copy_is_noticed(name: str, changes: dict[str, str], message: str, tmp_path: Path) -> None:
    text = task_files()[name].read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text, "the mutation must touch the file"
        text = text.replace(old, new, 1)
    copy = tmp_path / "copy.yaml"
    copy.write_text(text, encoding="utf-8")
    assert yaml.safe_load(text) != yaml.safe_load(task_files()[name].read_text(encoding="utf-8"))
    assert re.search(message, " | ".join(wrong(name, copy)))
