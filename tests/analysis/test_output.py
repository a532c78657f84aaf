from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vitbench.analysis.base import Images, Options, images_of_folder, images_of_task, only, spread
from vitbench.analysis.output import Output
from vitbench.backbones.load import load_backbone
from vitbench.errors import DataError, UsageError


def figure() -> Figure:
    made = Figure()
    made.subplots().plot([1, 2])
    return made


def test_every_file_is_there_and_on_the_page(tmp_path: Path) -> None:
    output = Output(tmp_path)
    output.figure("a b/c", "a <title>", figure())
    output.arrays("numbers", {"x": np.arange(3)})
    output.table("rows", "some rows", pd.DataFrame({"a": [1]}))
    output.link("another page", "sub/index.html")
    page = output.index("heading & more", ["a line < another"])
    text = page.read_text()
    for name in ("a-b-c.png", "a-b-c.svg", "numbers.npz", "rows.csv", "sub/index.html"):
        assert f'href="{name}"' in text
        assert name.startswith("sub/") or (tmp_path / name).stat().st_size > 0
    assert "a &lt;title&gt;" in text
    assert "heading &amp; more" in text
    assert "a line &lt; another" in text
    assert np.load(tmp_path / "numbers.npz", allow_pickle=False).files == ["x"]
    assert not list(tmp_path.glob(".tmp-*"))


def test_names_that_are_one_as_file_names_do_not_overwrite_each_other(tmp_path: Path) -> None:
    output = Output(tmp_path)
    for name in ("猫", "犬", "Unnamed"):
        output.arrays(name, {"x": np.zeros(1)})
    assert sorted(path.name.lower() for path in tmp_path.iterdir()) == ["unnamed-2.npz", "unnamed-3.npz", "unnamed.npz"]


def test_a_figure_and_arrays_of_one_name_keep_it(tmp_path: Path) -> None:
    output = Output(tmp_path)
    output.figure("same", "title", figure())
    output.arrays("same", {"x": np.zeros(1)})
    assert {path.name for path in tmp_path.iterdir()} == {"same.png", "same.svg", "same.npz"}


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        Output(tmp_path / folder).figure("x", "x", figure())
    for kind in ("png", "svg"):
        assert (tmp_path / "a" / f"x.{kind}").read_bytes() == (tmp_path / "b" / f"x.{kind}").read_bytes()


def test_objects_are_never_pickled(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="pickle"):
        Output(tmp_path).arrays("x", {"x": np.array([{}], dtype=object)})
    assert not list(tmp_path.iterdir())


def picture(path: Path, size: tuple[int, int] = (20, 10), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 7).save(path)
    return path


def test_images_of_a_folder(tmp_path: Path) -> None:
    for name in ("b/1.png", "b/1.jpg", "a/x.PNG", "b-1.png", ".hidden/y.png", "a/._x.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    images = images_of_folder(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in images.sources] == [
        "a/x.PNG",
        "b/1.jpg",
        "b/1.png",
        "b-1.png",
    ]
    assert len(set(images.names)) == 4
    assert images.names[0] == "a-x"


def test_a_limit_spreads_over_the_whole_folder(tmp_path: Path) -> None:
    for label in "abcd":
        for index in range(5):
            picture(tmp_path / label / f"{index}.png")
    images = images_of_folder(tmp_path, 4)
    assert list(images.names) == ["a-0", "b-0", "c-0", "d-0"]
    assert len(images_of_folder(tmp_path, 100)) == 20
    assert list(images_of_folder(tmp_path).subset(2).names) == ["a-0", "c-0"]


def test_one_image_and_none(tmp_path: Path) -> None:
    assert list(images_of_folder(picture(tmp_path / "one" / "x.png")).names) == ["x"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="there are no images in"):
        images_of_folder(tmp_path / "empty")
    with pytest.raises(UsageError, match=r"did you mean .*empty"):
        images_of_folder(tmp_path / "emtpy")


def test_images_of_many_sizes_and_modes_are_one_batch(tmp_path: Path) -> None:
    for index, (size, mode) in enumerate([((20, 10), "RGB"), ((300, 7), "L"), ((1, 1), "P"), ((50, 90), "RGBA")]):
        picture(tmp_path / f"{index}.png", size, mode)
    images, backbone = images_of_folder(tmp_path), load_backbone("pixels,resolution=8", device="cpu")
    batches = list(images.batches(backbone, 3))
    assert [indices for indices, _ in batches] == [[0, 1, 2], [3]]
    assert [tuple(pixels.shape) for _, pixels in batches] == [(3, 3, 8, 8), (1, 3, 8, 8)]
    assert tuple(images.crop(backbone, 1).shape) == (8, 8, 3)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"bad\.png"):
        images_of_folder(tmp_path).picture(0)


def test_images_of_a_task() -> None:
    images = images_of_task("digits", 3)
    assert [name.rpartition("-")[0] for name in images.names] == ["digits"] * 3
    assert images.picture(2).mode == "RGB"
    with pytest.raises(UsageError, match="cifar10"):
        images_of_task("cifar11")


def test_spread() -> None:
    assert spread(10, 3) == [0, 3, 6]
    assert spread(2, 5) == spread(2, None) == [0, 1]


DEFAULTS = {"heads": "mean", "layer": -1, "share": 0.5, "on": True, "other": None}


def test_options_take_the_type_of_their_default() -> None:
    given = {"heads": "max", "layer": "3", "share": "1", "on": "false", "other": "text"}
    options = Options(given, DEFAULTS)
    options.check("rollout")
    assert {key: options[key] for key in given} == {
        "heads": "max",
        "layer": 3,
        "share": 1.0,
        "on": False,
        "other": "text",
    }
    assert {key: Options({}, DEFAULTS)[key] for key in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"layer": "1.5"}, "option layer takes a whole number, got '1.5'"),
        ({"share": "x"}, "option share takes a number, got 'x'"),
        ({"on": "maybe"}, "option on takes true or false, got 'maybe'"),
        ({"laier": "1"}, "unknown option of rollout 'laier'; did you mean 'layer'?"),
    ],
)
def test_bad_options_are_one_line(given: dict[str, str], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        Options(given, DEFAULTS).check("rollout")
    assert str(caught.value) == expected


def test_a_kind_without_options_says_so() -> None:
    with pytest.raises(UsageError, match="attention-distance has no options, got 'layer'"):
        Options({"layer": "1"}, {}).check("attention-distance")


def test_one_backbone_where_one_is_taken() -> None:
    backbone = load_backbone("pixels", device="cpu")
    assert only([backbone], "filters") is backbone
    with pytest.raises(UsageError, match="filters takes one backbone, got 2"):
        only([backbone] * 2, "filters")
    assert isinstance(Images([], []), Images)
