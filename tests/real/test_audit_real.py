"""Audits of real images, whose findings were checked by eye."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vitbench.analysis.audit import Audit, audit_task
from vitbench.analysis.contact_sheet import sheet_preprocessing, write_sheet
from vitbench.tasks.catalog import load_task


def counts(audit: Audit) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    return {
        (pair.one, pair.other): (pair.exact, pair.exact_other_label, pair.near, pair.near_other_label)
        for pair in audit.overlaps
    }


def test_flowers_hold_one_picture_in_train_and_test(test_data: Path, tmp_path: Path) -> None:
    task = load_task(f"imagefolder:{test_data}/images/flowers12")
    audit = audit_task(task)
    # All 62 pairs were looked at: each is one picture, resized or compressed anew.
    assert counts(audit) == {
        ("train", "train"): (0, 0, 72, 0),
        ("test", "test"): (0, 0, 2, 0),
        ("train", "test"): (0, 0, 25, 0),
    }
    assert audit.trusted
    assert [finding.level for finding in audit.findings].count("warning") == 1
    assert audit.splits[0].images.width is not None
    write_sheet(task, ["train", "test"], sheet_preprocessing(task), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 12 * 128


def test_imagenette_is_clean(test_data: Path) -> None:
    audit = audit_task(load_task(f"imagefolder:{test_data}/images/imagenette160"))
    assert set(counts(audit).values()) == {(0, 0, 0, 0)}
    assert [split.images.kinds["gray_in_colour"] for split in audit.splits] == [11, 6]
    assert {finding.level for finding in audit.findings} == {"note"}


def test_cifar10_holds_the_pairs_that_it_is_known_for(test_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "cifar10_subset.yaml"
    file.write_text(
        f"title: CIFAR-10 subset\nsource: {{kind: parquet, path: {test_data}/images/cifar10_subset}}\n"
        "splits:\n  train: {files: [train.parquet], size: 4000}\n  test: {files: [test.parquet], size: 1000}\n"
        "num_classes: 10\npreprocess: bigvision_fewshot\n"
    )
    audit = audit_task(load_task(str(file)))
    # Seven pairs, all true by eye; one is a photograph in colour and in gray.
    assert counts(audit) == {
        ("train", "train"): (0, 0, 6, 0),
        ("test", "test"): (0, 0, 0, 0),
        ("train", "test"): (0, 0, 4, 0),
    }


def test_one_of_sixty_thousand_pictures_is_there_twice(test_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(
        f"title: Tiny-ImageNet at 32 px\nsource: {{kind: parquet, path: {test_data}/images/tinyimagenet32_pretrain}}\n"
        "splits:\n  train: {files: [train-*.parquet]}\n  test: {files: [val.parquet]}\n"
    )
    audit = audit_task(load_task(str(file)))
    # The lion. The perceptual hash alone joins 97 pairs here, of which this one is a pair.
    assert counts(audit)["train", "train"] == (0, 0, 2, 0)
    assert counts(audit)["train", "test"] == (0, 0, 0, 0)
