"""Classes of a checkpoint matched with a task's: by name, by index, by a file; and what is said where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitbench.backbones.classifier import imagenet_classes, wordnet_words
from vitbench.errors import UsageError
from vitbench.protocols.label_mapping import LabelMapping, Labels, check_mode, map_labels, missing_text, normal

IMAGENET = Labels("the checkpoint", imagenet_classes(1000)[0], 1000)
IMAGENETTE = ["English_springer", "French_horn", "cassette_player", "chain_saw", "church", "garbage_truck"]
IMAGENETTE += ["gas_pump", "golf_ball", "parachute", "tench"]
IMAGENETTE_INDICES = [217, 566, 482, 491, 497, 569, 571, 574, 701, 0]


def of_task(*names: str) -> Labels:
    return Labels("task 'x'", names, len(names))


def of_checkpoint(*names: str) -> Labels:
    return Labels("the checkpoint", names, len(names))


def refusal(*given: Any) -> str:
    with pytest.raises(UsageError) as caught:
        map_labels(*given, wordnet_words)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_imagenette_among_imagenets_ids() -> None:
    """The indices are those of the public class lists of Imagenette."""
    found = map_labels("auto", IMAGENET, of_task(*IMAGENETTE), wordnet_words)
    assert found == LabelMapping(tuple((index,) for index in IMAGENETTE_INDICES), "by name")
    ids = [IMAGENET.names[index] for index in IMAGENETTE_INDICES]
    assert map_labels("auto", IMAGENET, of_task(*ids), wordnet_words).groups == found.groups


@pytest.mark.parametrize(
    ("checkpoint", "task"),
    [
        ("Golden_Retriever", "golden retriever"),
        ("golden retriever, Goldie", "goldie"),
        ("n01440764", "tench"),
        ("tench, Tinca tinca", "n01440764"),
        ("n01440764", "0 n01440764_tench"),
        ("jack-o'-lantern", "Jack O Lantern"),
        ("É", "É"),
        ("7", "7"),
    ],
)
def test_names_that_are_one(checkpoint: str, task: str) -> None:
    found = map_labels(
        "name", of_checkpoint("something else", checkpoint), of_task(task, "something else"), wordnet_words
    )
    assert found.groups == ((1,), (0,))


def test_the_name_itself_goes_before_a_synonym() -> None:
    found = map_labels("name", of_checkpoint("horn, French horn", "french horn"), of_task("French horn"), wordnet_words)
    assert found.groups == ((1,),)


def test_two_cranes_are_not_guessed() -> None:
    message = refusal("auto", IMAGENET, of_task("crane", "tench"))
    assert message.startswith("class 'crane' of task 'x' fits 2 of the checkpoint's classes (134 'n02012849 (crane)'")
    assert "labels=FILE" in message
    found = map_labels("auto", IMAGENET, of_task("n02012849 crane", "n03126707 crane"), wordnet_words)
    assert found.groups == ((134,), (517,))


def test_one_class_cannot_be_two() -> None:
    assert "both fit the checkpoint's class" in refusal(
        "name", of_checkpoint("cat, kitty", "b"), of_task("cat", "kitty")
    )


def test_missing_classes_are_told_with_the_nearest() -> None:
    task = of_task("English springer", "parachutes", "unicorn")
    found = map_labels("name", IMAGENET, task, wordnet_words)
    assert found.known == (0,)
    text = missing_text(found, IMAGENET, task, wordnet_words)
    assert text.startswith("the checkpoint lacks 2 of the 3 classes of task 'x': parachutes, unicorn")
    assert "nearest to parachutes: n03888257 (parachute)" in text
    assert missing_text(map_labels("name", task, task, wordnet_words), task, task, wordnet_words) == ""


def test_by_index() -> None:
    nameless = Labels("the checkpoint", (), 3)
    assert map_labels("auto", nameless, of_task("a", "b", "c"), wordnet_words) == LabelMapping(
        ((0,), (1,), (2,)), "by index"
    )
    assert map_labels("index", nameless, of_task("a", "b"), wordnet_words).groups == ((0,), (1,))
    assert map_labels("index", nameless, Labels("task 'x'", (), 4), wordnet_words).known == (0, 1, 2)


def test_what_auto_cannot_do() -> None:
    nameless = Labels("the checkpoint", (), 5)
    assert refusal("auto", nameless, of_task("a", "b")).startswith(
        "the classes cannot be matched: the checkpoint has no class names, and they are not equally many (5 and 2)"
    )
    assert "task 'x' has no class names" in refusal("name", of_checkpoint("a", "b"), Labels("task 'x'", (), 2))


FILES: list[tuple[str, str]] = [
    ("map.json", json.dumps({"0": "dog", "collie": "dog", "siamese": "cat", "3": None})),
    ("map.json", json.dumps(["dog", "dog", "cat", None]).replace('"dog"', "1").replace('"cat"', "0")),
    ("map.csv", "checkpoint,task\n0,dog\ncollie,DOG\nsiamese,0\n3,\n"),
    ("map.csv", "pug,1\n1,dog\n\nsiamese,cat\n"),
]


@pytest.mark.parametrize(("name", "text"), FILES)
def test_a_file_says_which_is_which(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    checkpoint = of_checkpoint("pug", "collie", "siamese", "car")
    found = map_labels(str(tmp_path / name), checkpoint, of_task("cat", "dog"), wordnet_words)
    assert found == LabelMapping(((2,), (0, 1)), f"by {name}")


def test_a_file_with_the_checkpoints_names(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text(json.dumps(["n01440764", "car", "cat"]))
    nameless = Labels("the checkpoint", (), 3)
    found = map_labels(str(tmp_path / "names.json"), nameless, of_task("cat", "tench", "moon"), wordnet_words)
    assert found.groups == ((2,), (0,), ())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"pgu": "dog"}', r"a\.json: the checkpoint has no class 'pgu'; did you mean 'pug'"),
        ("a.json", '{"pug": "dgo"}', r"task 'x' has no class 'dgo'; did you mean 'dog'"),
        (
            "a.csv",
            "checkpoint,task\npug,dog\npug,cat\n",
            r"a\.csv:3: the checkpoint's class pug was given already, as 'pug'",
        ),
        ("a.csv", "pug,dog,cat\n", r"a\.csv:1: 3 columns"),
        ("a.csv", "9,dog\n", r"a\.csv:1: the checkpoint has no class 9: they go from 0 to 1"),
        ("a.json", "[1]", r"lists 1 classes, and the checkpoint has 2"),
        ("a.json", "{", r"cannot be read as JSON"),
        ("a.json", "3", r"a mapping of the checkpoint's classes to the task's is expected"),
    ],
)
def test_a_file_that_is_wrong(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        map_labels(str(tmp_path / name), of_checkpoint("pug", "car"), of_task("cat", "dog"), wordnet_words)
    assert "\n" not in str(caught.value)


def test_a_mode_that_is_neither_a_word_nor_a_file(tmp_path: Path) -> None:
    assert check_mode("auto") == "auto"
    with pytest.raises(UsageError, match="did you mean name"):
        check_mode("nmae")
    (tmp_path / "labels.json").write_text("{}")
    with pytest.raises(UsageError, match=r"did you mean .*labels\.json"):
        check_mode(str(tmp_path / "label.json"))


@given(st.lists(st.text(st.characters(categories=["Ll", "Lu", "Nd"]), min_size=1, max_size=8), min_size=2, max_size=8))
def test_equal_lists_match_one_to_one_in_any_order(names: list[str]) -> None:
    unique = list({normal(name): name for name in names if normal(name)}.values())
    if len(unique) < 2:
        return
    found = map_labels("name", of_checkpoint(*unique), of_task(*(name.upper() for name in unique[::-1])), lambda _: ())
    expected = [(len(unique) - 1 - label,) for label in range(len(unique))]
    if all(normal(name.upper()) == normal(name) for name in unique):
        assert list(found.groups) == expected
