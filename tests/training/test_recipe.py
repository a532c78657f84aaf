"""Recipes: what they may say, what the command line overrides, and that every one that ships can be read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitbench.errors import UsageError
from vitbench.training.recipe import Lora, Recipe, load_recipe, recipe_names, recipe_yaml
from vitbench.training.recipe_files import recipe_folders

SHIPPED = recipe_names(recipe_folders())


def written(folder: Path, text: str, name: str = "mine") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def load(folder: Path, text: str, **overrides: str) -> Recipe:
    return load_recipe(written(folder, text), [], {name.replace("__", "."): value for name, value in overrides.items()})


def test_what_issue_4_names_is_there() -> None:
    assert {"paper", "vtab_light", "vit_jax", "bigvision_transfer"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_round_trips(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, recipe_folders(), {})
    assert recipe.name == name
    assert recipe.description
    assert load(tmp_path, recipe_yaml(recipe)).parameters() == recipe.parameters()
    for pattern in recipe.tasks:
        one = recipe.for_task(pattern.replace("*", "x"))
        assert one.tasks == {}
        assert load(tmp_path, recipe_yaml(one)).parameters() == one.parameters()
    assert all(trial.steps > trial.warmup_steps for trial in recipe.trials())


def test_the_paper_recipe_is_the_paper_s() -> None:
    recipe = load_recipe("paper", recipe_folders(), {})
    told = recipe.for_task("paper/cifar10").model_dump()
    assert (told["optimizer"], told["momentum"], told["weight_decay"], told["clip_norm"]) == ("sgd", 0.9, 0.0, 1.0)
    assert (told["resolution"], told["batch_size"], told["warmup_steps"], told["steps"]) == (384, 512, 500, 10_000)
    assert (told["head_init"], told["schedule"], told["crop"]) == ("zeros", "cosine", "inception")
    assert recipe.for_task("paper/oxford_pets").steps == 500
    assert recipe.for_task("paper/imagenet").grid.learning_rate == (0.003, 0.01, 0.03, 0.06)
    assert recipe.for_task("anything").steps == 2500


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rte: 0.1\n", r"mine\.yaml:1: a recipe has no field 'learning_rte'; did you mean learning_rate\?"),
        ("flip: true\nzzz: 1\n", r"mine\.yaml:2: a recipe has no field 'zzz' \(it has name, "),
        ("grid: {learning_rates: [1]}\n", r"no field 'grid\.learning_rates'; did you mean learning_rate\?"),
        ("lora: {rnak: 2}\n", r"no field 'lora\.rnak'; did you mean rank\?"),
        ("pad: 4\n", "pad is not used with crop: random_resized \\(it belongs to pad\\)"),
        ("crop: none\ncrop_area: [0.1, 1]\n", "crop_area is not used with crop: none"),
        (
            "optimizer: adamw\nmomentum: 0.8\n",
            "momentum is not used with optimizer: adamw \\(it belongs to sgd or nesterov",
        ),
        ("decay_rate: 0.5\n", "decay_rate is not used with schedule: cosine"),
        ("schedule: step\nfinal_learning_rate: 0.0\n", "final_learning_rate is not used with schedule: step"),
        ("head_only: true\ndrop_path: 0.1\n", "drop_path is not used with head_only"),
        ("head_only: true\ndropout: 0.1\n", "dropout is not used with head_only"),
        ("head_only: true\nlora: {rank: 2}\n", "lora is not used with head_only"),
        ("from_scratch: true\nlora: {rank: 2}\n", "lora adapts trained weights"),
        ("from_scratch: true\nhead_init: checkpoint\n", "has no head to begin with"),
        ("steps: 0\n", r"mine\.yaml:1: steps must be at least 1, got 0"),
        ("batch_size: 0\n", "batch_size must be at least 1, got 0"),
        ("learning_rate: -1\n", "learning_rate must be above 0.*, got -1"),
        ("learning_rate: .inf\n", "learning_rate .*finite"),
        ("learning_rate: .nan\n", "learning_rate "),
        ("steps: 50\n", r"warmup_steps \(100\) must be fewer than steps \(50\)"),
        ("final_learning_rate: 1\n", "final_learning_rate 1 is above learning_rate 0.01"),
        ("crop_area: [0.5, 0.1]\n", "the smaller one first, got 0.5 and 0.1"),
        ("crop_area: [0.5, 1.5]\n", "at most 1, got 1.5"),
        ("grid: {learning_rate: [0.1, 0]}\n", "takes numbers above 0"),
        ("crop: zoom\n", "crop takes inception, random_resized, .* got 'zoom'"),
        ("- a\n- b\n", "a recipe is a mapping of fields to values"),
        ("flip: yes\nflip: no\n", "given twice"),
        ("flip: [\n", "not valid YAML"),
        ("tasks: {cifar10: {stepz: 5}}\n", "tasks: 'cifar10': a recipe has no field 'stepz'; did you mean steps"),
        ("tasks: {cifar10: 7}\n", "tasks.cifar10 takes a mapping"),
        ("tasks: {cifar10: {resolution: 64}}\n", "cannot have its own resolution: the backbone is loaded once"),
        ("tasks: {cifar10: {positions: jax}}\n", "cannot have its own positions: the backbone is loaded once"),
        ("tasks: {cifar10: {from_scratch: true}}\n", "cannot have its own from_scratch: the backbone is loaded once"),
        ("tasks: {cifar10: {tasks: {}}}\n", "cannot have its own tasks"),
    ],
)
def test_a_mistake_is_one_clear_line(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_no_such_recipe_offers_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown recipe 'papper'; did you mean 'paper'"):
        load_recipe("papper", recipe_folders(), {})
    written(tmp_path, "flip: true\n")
    with pytest.raises(UsageError, match=r"there is no recipe .*mien\.yaml; did you mean .*mine\.yaml"):
        load_recipe(str(tmp_path / "mien.yaml"), [], {})


def test_overrides_are_read_as_yaml_and_go_first(tmp_path: Path) -> None:
    text = "learning_rate: 0.5\ncrop: resmall\nresize: 40\ntasks: {'cifar*': {learning_rate: 0.7, flip: false}}\n"
    recipe = load(tmp_path, text, learning_rate="1e-3", grid__learning_rate="1e-3,3e-3", clip_norm="null")
    assert recipe.learning_rate == recipe.for_task("cifar10").learning_rate == 0.001
    assert recipe.for_task("cifar10").flip is False
    assert recipe.for_task("pets").flip is True
    assert recipe.grid.learning_rate == (0.001, 0.003)
    assert recipe.clip_norm is None
    assert load(tmp_path, text, crop="none").resize is None, "what an override makes useless goes"
    assert load(tmp_path, text, lora__rank="4").lora == Lora(rank=4)
    assert load(tmp_path, text, grid__steps="150").grid.steps == (150,)
    assert load(tmp_path, text, randaugment="rand-m9-n2-mstd0.5").randaugment == "rand-m9-n2-mstd0.5"
    with pytest.raises(UsageError, match="recipe 'mine' with learning_rte: a recipe has no field 'learning_rte'"):
        load(tmp_path, text, learning_rte="1")
    with pytest.raises(UsageError, match="recipe 'mine' with pad: pad is not used"):
        load(tmp_path, text, pad="3")
    with pytest.raises(UsageError, match="learning_rate takes a number, got 'fast'"):
        load(tmp_path, text, learning_rate="fast")


def test_entries_of_tasks_apply_in_order_and_together_must_fit(tmp_path: Path) -> None:
    text = "steps: 200\ntasks: {'a*': {steps: 300}, 'ab*': {warmup_steps: 250, steps: 400}, 'x/ab': {steps: 251}}\n"
    recipe = load(tmp_path, text)
    assert [recipe.for_task(name).steps for name in ("b", "ac", "q/abc", "x/ab")] == [200, 300, 400, 251]
    wrong = load(tmp_path, "steps: 200\ntasks: {'a*': {warmup_steps: 190}, 'ab': {steps: 150}}\n")
    with pytest.raises(
        UsageError, match=r"recipe 'mine' for ab: warmup_steps \(190\) must be fewer than steps \(150\)"
    ):
        wrong.for_task("ab")


def test_parameters_are_what_decides_a_number(tmp_path: Path) -> None:
    plain = load(tmp_path, "learning_rate: 0.01\n")
    assert plain.parameters() == load(tmp_path, "description: other\n").parameters(), "texts and defaults spelled out"
    assert not {"name", "description", "tasks", "pad", "resize", "decay_at"} & set(plain.parameters())
    assert "crop_area" in plain.parameters()
    assert "dropout" not in load(tmp_path, "head_only: true\n").parameters()


def test_trials_are_every_combination(tmp_path: Path) -> None:
    recipe = load(tmp_path, "steps: 200\ngrid: {learning_rate: [0.1, 0.2], steps: [150, 300]}\n")
    told = [(trial.steps, trial.learning_rate) for trial in recipe.trials()]
    assert told == [(150, 0.1), (150, 0.2), (300, 0.1), (300, 0.2)]
    assert [trial.steps for trial in load(tmp_path, "steps: 200\n").trials()] == [200]


@pytest.mark.parametrize("field", ["tasks", "name", "description"])
def test_what_belongs_to_the_file_is_no_override(field: str) -> None:
    with pytest.raises(UsageError, match=f"{field} is for the file, and no field to override"):
        load_recipe("light", recipe_folders(), {field: "3"})


def test_commas_inside_parentheses_stay() -> None:
    text = "resize(32x32,bicubic)|normalize(0.5,0.5)"
    assert load_recipe("light", recipe_folders(), {"preprocess": text}).preprocess == text


def test_a_recipe_of_the_paper_leaves_tasks_of_other_suites_alone() -> None:
    paper = load_recipe("paper", recipe_folders(), {})
    assert paper.for_task("paper/oxford_flowers102").steps == 500
    flowers = paper.for_task("vtab/natural/oxford_flowers102")
    assert (flowers.steps, flowers.warmup_steps) == (2500, 500)
    assert paper.for_task("imagefolder/imagenette160").steps == 2500
