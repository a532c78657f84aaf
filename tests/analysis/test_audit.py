from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import ImageFolderMaker
from vitbench.analysis import audit_run
from vitbench.analysis.audit import Audit, audit_task, label_facts, write_audit
from vitbench.analysis.audit_images import KINDS, look_at
from vitbench.analysis.audit_run import AuditOptions, audit_tasks
from vitbench.errors import UsageError
from vitbench.execution.reporter import Reporter
from vitbench.tasks.catalog import load_task
from vitbench.tasks.sources.rows import Rows
from vitbench.tasks.task import Task, TaskOptions


def audited(folder: Path, *splits: str, limit: int | None = None) -> Audit:
    return audit_task(load_task(f"imagefolder:{folder}"), splits, limit=limit)


def texts(audit: Audit, level: str) -> list[str]:
    return [finding.text for finding in audit.findings if finding.level == level]


def noise(seed: int, size: tuple[int, int] = (40, 48)) -> Image.Image:
    """A picture that resembles no other: blurred noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                noise(1000 * label + 100 * (split == "test") + index).save(folder / f"{index}.png")
    return tmp_path / "pets"


def test_a_clean_task_has_facts_and_no_findings(clean: Path) -> None:
    audit = audited(clean)
    assert audit.findings == ()
    assert audit.trusted
    train, test = audit.splits
    assert (train.name, train.found, train.expected, test.found) == ("train", 8, None, 4)
    assert train.labels.histogram == {0: 4, 1: 4}
    assert train.labels.checksum == hashlib.sha256(b"0:4,1:4").hexdigest()
    assert (train.labels.lowest, train.labels.highest, train.labels.missing) == (0, 1, 0)
    assert train.images.formats == {"PNG": 8}
    assert (train.images.width, train.images.sizes) == (type(train.images.width)(40, 40, 40), 1)
    assert train.images.aspect is not None
    assert train.images.aspect.median == round(40 / 48, 4)
    assert [(pair.one, pair.other) for pair in audit.overlaps] == [
        *(("train", "train"), ("test", "test")),
        ("train", "test"),
    ]


def test_json_holds_all_of_it_and_nothing_that_is_not_plain(clean: Path, tmp_path: Path) -> None:
    audit = audited(clean)
    write_audit(audit, tmp_path / "out")
    read = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert read == json.loads(json.dumps(audit.as_dict()))
    assert read["trusted"] is True
    assert read["splits"][1]["labels"]["histogram"] == {"0": 2, "1": 2}
    assert set(read["splits"][0]["images"]["kinds"]) == set(KINDS)


def test_unreadable_images_are_counted_named_and_a_problem(clean: Path) -> None:
    (clean / "train" / "cat" / "1.png").write_bytes(b"no image")
    (clean / "train" / "dog" / "2.png").write_bytes((clean / "train" / "dog" / "0.png").read_bytes()[:200])
    audit = audited(clean)
    assert audit.splits[0].images.unreadable == 2
    assert "cat/1.png" in audit.splits[0].images.unreadable_examples[0]
    (problem,) = texts(audit, "problem")
    assert problem.startswith("2 of 8 images of train cannot be read")
    assert "cat/1.png" in problem
    assert not audit.trusted


def test_at_most_a_few_unreadable_images_are_named(clean: Path) -> None:
    for path in [*clean.glob("train/*/*.png")][:7]:
        path.write_bytes(b"")
    images = audited(clean).splits[0].images
    assert (images.unreadable, len(images.unreadable_examples)) == (7, 5)


def test_exact_copies_across_train_and_test_are_a_problem_and_their_labels_are_compared(clean: Path) -> None:
    noise(0).save(clean / "test" / "cat" / "copy.bmp")
    noise(1).save(clean / "test" / "dog" / "copy.bmp")
    audit = audited(clean)
    (problem,) = texts(audit, "problem")
    assert problem.startswith("2 of 6 images of test are pixel for pixel in train, 1 of them with another label")
    assert "such as test row 5 (test/dog/copy.bmp) and train row 1 (train/cat/1.png)" in problem


def test_near_copies_across_are_a_warning_and_leave_the_numbers_trusted(clean: Path) -> None:
    # Twelve more images, so that one look-alike is not every fourth.
    for index in range(12):
        noise(5000 + index).save(clean / "test" / "dog" / f"more{index}.png")
    noise(0).resize((96, 110)).save(clean / "test" / "cat" / "larger.jpg")
    audit = audited(clean)
    (warning,) = texts(audit, "warning")
    assert warning.startswith("1 of 17 images of test have a near duplicate in train, with the same label")
    assert audit.trusted


def test_copies_within_a_split_with_two_labels_are_label_noise(clean: Path) -> None:
    noise(0).save(clean / "train" / "dog" / "same.png")
    audit = audited(clean)
    (warning,) = texts(audit, "warning")
    assert warning.startswith("2 of 9 images of train are pixel for pixel there twice, 2 of them with another label")
    assert audit.trusted


def test_a_class_without_images_is_told(clean: Path) -> None:
    for path in (clean / "test" / "dog").iterdir():
        path.unlink()
    audit = audited(clean)
    assert texts(audit, "warning") == [
        "test has no image of 1 of 2 classes ('dog'): they are never scored; is a file of the split missing?"
    ]
    assert "always answering 'cat' would score 100.0 % accuracy on test" in texts(audit, "note")[0]


def test_other_sizes_are_a_problem_when_they_are_accepted(clean: Path, tmp_path: Path) -> None:
    task_file = tmp_path / "pets.yaml"
    task_file.write_text(
        "title: Pets\nsource: {kind: imagefolder, path: pets}\n"
        "splits:\n  train: {folder: train, size: 9}\n  test: {folder: test, size: 4}\n"
    )
    audit = audit_task(load_task(str(task_file), TaskOptions(accept_sizes=True)))
    assert (audit.splits[0].expected, audit.splits[0].found) == (9, 8)
    (problem,) = texts(audit, "problem")
    assert problem.startswith("split 'train' has 8 images where the task file expects 9")


def rows_of(*contents: bytes | Path | np.ndarray, pixel_scale: int = 1) -> Rows:
    return Rows(
        labels=np.zeros(len(contents), np.int64),
        class_names=(),
        fingerprint="",
        raw=lambda row: contents[row],
        where=lambda row: f"row {row}",
        pixel_scale=pixel_scale,
    )


def kinds_of(rows: Rows, count: int) -> list[set[str]]:
    table = look_at([(rows, row) for row in range(count)])
    assert table.problems == {}
    return [{kind for kind, holds in zip(KINDS, line, strict=True) if holds} for line in table.kinds]


def test_every_way_of_storing_an_image_is_told_apart(tmp_path: Path) -> None:
    colour, gray = noise(0), noise(0).convert("L")
    see_through = colour.convert("P")
    exif = Image.Exif()
    exif[0x0112] = 6
    files: dict[str, tuple[Callable[[Path], None], set[str]]] = {
        "rgb.png": (colour.save, set()),
        "gray.png": (gray.save, {"gray"}),
        "gray-in-colour.png": (gray.convert("RGB").save, {"gray_in_colour"}),
        "palette.gif": (colour.convert("P").save, {"palette"}),
        "see-through.png": (lambda path: see_through.save(path, transparency=0), {"palette", "alpha"}),
        "alpha.png": (colour.convert("RGBA").save, {"alpha"}),
        "gray-alpha.png": (gray.convert("LA").save, {"gray", "alpha"}),
        "cmyk.jpg": (colour.convert("CMYK").save, {"cmyk"}),
        "16.png": (Image.fromarray(np.full((40, 40), 9000, np.uint16)).save, {"gray", "sixteen_bit"}),
        "1.png": (gray.convert("1").save, {"gray", "one_bit"}),
        "film.gif": (
            lambda path: colour.convert("P").save(path, save_all=True, append_images=[noise(1).convert("P")]),
            {"palette", "many_frames"},
        ),
        "turned.jpg": (lambda path: colour.save(path, exif=exif), {"exif_rotated"}),
        # Pillow turns a TIFF as it opens it: nothing is ignored there.
        "turned.tif": (lambda path: colour.save(path, exif=exif), set()),
    }
    for name, (save, _) in files.items():
        save(tmp_path / name)
    found = kinds_of(rows_of(*(tmp_path / name for name in files)), len(files))
    assert dict(zip(files, found, strict=True)) == {name: kinds for name, (_, kinds) in files.items()}


def test_arrays_are_gray_or_colour_by_their_shape() -> None:
    plane = np.arange(1600, dtype=np.uint8).reshape(40, 40)
    rows = rows_of(plane, plane[..., None], np.repeat(plane[..., None], 3, axis=2))
    assert kinds_of(rows, 3) == [{"gray"}, {"gray"}, {"gray_in_colour"}]
    assert look_at([(rows, 0)]).formats == ["array"]


def test_masks_are_looked_at_as_they_are_scaled() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20] = 1
    table = look_at([(rows_of(mask), 0), (rows_of(mask, pixel_scale=255), 0)])
    assert table.prints.detailed.tolist() == [False, True]


def test_a_limit_is_spread_evenly_and_marked(clean: Path) -> None:
    audit = audited(clean, limit=2)
    assert [split.images.looked_at for split in audit.splits] == [2, 2]
    assert audit.splits[0].found == 8
    assert audit.splits[0].labels.histogram == {0: 4, 1: 4}
    assert texts(audit, "note")[-1].startswith(
        "limited: only 2 of 8 images of train and 2 of 4 images of test were looked at"
    )
    assert audited(clean, limit=8).limit is None


def test_each_stored_image_is_looked_at_once(clean: Path) -> None:
    class Counting(Reporter):
        total, done = 0, 0

        @contextmanager
        def track(self, label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
            self.total = total

            def advance(done: int) -> None:
                self.done += done

            yield advance

    reporter = Counting()
    audit = audit_task(load_task(f"imagefolder:{clean}"), ["train", "train[:4]"], reporter=reporter)
    assert (reporter.total, reporter.done) == (8, 8)
    across = audit.overlaps[-1]
    assert (across.other, across.images, across.exact) == ("train[:4]", 0, 0)
    assert audit.splits[1].partial


def test_digits_are_gray_and_too_small_to_compare() -> None:
    audit = audit_task(load_task("digits"))
    assert audit.trusted
    assert audit.splits[0].images.kinds["gray"] == 1000
    assert audit.splits[0].images.compared == 0
    assert all(pair.exact == pair.near == 0 for pair in audit.overlaps)


def test_synthetic_look_alikes_are_no_warning() -> None:
    audit = audit_task(load_task("synthetic_x_position"), ["train800val200"])
    assert audit.synthetic
    assert audit.overlaps[0].near > 0
    assert {finding.level for finding in audit.findings} == {"note"}
    assert "rendered scenes look alike by design" in texts(audit, "note")[0]


def test_label_facts_by_hand() -> None:
    facts = label_facts(np.array([0, 0, 0, 2, 2, 4]), 5, ("a", "b", "c", "d", "e"))
    assert facts.histogram == {0: 3, 2: 2, 4: 1}
    assert (facts.min, facts.median, facts.max) == (1, 2.0, 3)
    assert (facts.classes, facts.missing, facts.missing_examples) == (5, 2, ("b", "d"))
    assert (facts.majority_class, facts.majority_share) == ("a", 0.5)
    assert facts.checksum == hashlib.sha256(b"0:3,2:2,4:1").hexdigest()


def test_labels_outside_their_range_are_told_as_they_are() -> None:
    facts = label_facts(np.array([-1, -1, 0, 7]), 3, ("a", "b", "c"))
    assert (facts.lowest, facts.highest, facts.majority_class) == (-1, 7, "-1")
    assert facts.histogram == {-1: 2, 0: 1, 7: 1}
    assert (facts.missing, facts.missing_examples) == (2, ("b", "c"))


@pytest.mark.parametrize("top", [10**18, 2**63 - 1])
def test_a_label_of_eighteen_digits_takes_no_memory(top: int) -> None:
    facts = label_facts(np.array([0, 0, top]), top + 1, ())
    assert facts.histogram == {0: 2, top: 1}
    assert (facts.classes, facts.missing) == (top + 1, top - 1)
    assert facts.missing_examples == ("1", "2", "3", "4", "5")


@settings(max_examples=60)
@given(labels=st.lists(st.integers(0, 30), min_size=1, max_size=60), more=st.integers(0, 9))
def test_label_facts_are_those_of_a_dense_histogram(labels: list[int], more: int) -> None:
    classes = max(labels) + 1 + more
    facts, dense = label_facts(np.array(labels), classes, ()), np.bincount(labels, minlength=classes)
    assert facts.histogram == {label: count for label, count in enumerate(dense.tolist()) if count}
    assert (facts.min, facts.median, facts.max) == (dense[dense > 0].min(), np.median(dense[dense > 0]), dense.max())
    empty = [str(label) for label in np.flatnonzero(dense == 0)]
    assert (facts.missing, list(facts.missing_examples)) == (len(empty), empty[:5])
    assert facts.majority_class == str(dense.argmax())


def test_wrong_splits_and_limits_are_refused(clean: Path) -> None:
    with pytest.raises(UsageError, match="tran"):
        audited(clean, "tran")
    with pytest.raises(UsageError, match="named twice"):
        audited(clean, "train", "train")
    with pytest.raises(UsageError, match="at least 1, got 0"):
        audited(clean, limit=0)


def test_a_task_that_fails_does_not_stop_the_others(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    folder = image_folder()
    patterns = [f"imagefolder:{tmp_path / 'nowhere'}", f"imagefolder:{folder}"]
    failed, done = audit_tasks(patterns, tmp_path / "out", AuditOptions())
    assert failed.audit is None
    assert "there is no image folder" in failed.error
    assert "\n" not in failed.error
    assert done.audit is not None
    assert [path.name for path in done.files] == ["audit.json", "sheet.png"]
    assert all(path.is_file() for path in done.files)


def test_two_names_that_are_one_as_a_folder_name_have_a_folder_each(
    image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    patterns = [f"imagefolder:{image_folder(name)}" for name in ("my shoes", "my-shoes")]
    outcomes = list(audit_tasks(patterns, tmp_path / "out", AuditOptions(sheet=False)))
    assert len({outcome.files[0] for outcome in outcomes}) == 2


def test_what_cannot_be_meant_is_told_before_anything_is_looked_at(tmp_path: Path) -> None:
    for options, expected in (
        (AuditOptions(preprocess="vtabb"), "vtab"),
        (AuditOptions(task_data={"cifar10": "here"}), "not among the tasks"),
    ):
        with pytest.raises(UsageError, match=expected):
            next(audit_tasks(["digits"], tmp_path / "out", options))
    assert not (tmp_path / "out").exists()


def test_a_task_of_absurd_labels_is_audited(tmp_path: Path) -> None:
    for split in ("train", "test"):
        images = np.random.default_rng(len(split)).integers(0, 256, (4, 40, 40, 3), np.uint8)
        np.savez(tmp_path / f"{split}.npz", image=images, label=np.array([0, 1, 10**18, 10**18]))
    (tmp_path / "ids.yaml").write_text(
        "title: Ids\nsource: {kind: npz, image: image, label: label}\n"
        "splits:\n  train: {files: [train.npz], partial: true}\n  test: {files: [test.npz], partial: true}\n"
    )
    (outcome,) = audit_tasks([str(tmp_path / "ids.yaml")], tmp_path / "out", AuditOptions())
    assert "MiB" not in outcome.error
    assert "unexpected" not in outcome.error


def test_many_classes_without_images_are_counted_and_a_few_named() -> None:
    audit = audit_task(load_task("digits"), ["train[:1]"])
    (line,) = [finding.text for finding in audit.findings if "has no image" in finding.text]
    assert "9 of 10 classes" in line
    assert "and 6 more)" in line


def test_out_of_memory_in_one_task_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(task: Task, *arguments: object, **options: object) -> Audit:
        if "count" in task.name:
            raise MemoryError("Unable to allocate 6.94 EiB")
        return audit_task(task, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(audit_run, "audit_task", greedy)
    failed, done = audit_tasks(["synthetic_count", "digits"], tmp_path, AuditOptions(sheet=False, limit=3))
    assert failed.audit is None
    assert "MemoryError: Unable to allocate 6.94 EiB (unexpected; traceback in" in failed.error
    assert done.audit is not None
