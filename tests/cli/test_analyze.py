from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.conftest import ImageFolderMaker
from vitbench.analysis import ANALYSES
from vitbench.analysis.run import PartlyFailedError, analyze
from vitbench.cli.main import app
from vitbench.errors import DataError, UsageError, VitbenchError


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["analyze", *arguments])


def test_help_names_every_kind_and_has_an_example() -> None:
    text = invoke("--help").stdout
    assert "Examples" in text
    assert "vitbench analyze filters --backbone" in text
    for kind in ANALYSES.names():
        assert f"• {kind}:" in text


def test_help_and_a_wrong_kind_import_nothing_heavy() -> None:
    heavy = {"torch", "matplotlib", "pandas", "timm", "transformers"}
    code = (
        "import sys\nfrom vitbench.cli.main import main\nsys.argv = ['vitbench', 'analyze', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print('HEAVY', sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("HEAVY []\n"), done.stdout[-200:] + done.stderr


def test_filters_from_end_to_end_without_images(tiny_vit: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke("filters", "--backbone", tiny_vit, "--out", str(out), "--set", "filters=9", "--device", "cpu")
    assert result.exit_code == 0, result.exception
    assert result.stdout == f"{out / 'index.html'}\n"
    assert "24 filters of 16×16 pixels" in result.stderr
    page = (out / "index.html").read_text()
    assert "First 9 of 24 filters" in page
    assert "options: filters=9" in page
    assert {path.name for path in out.iterdir()} == {
        *("index.html", "filters.png", "filters.svg", "components.png", "components.svg"),
        *("filters.npz", "explained-variance.csv"),
    }


def test_similarity_on_a_task_compares_two_backbones_in_one_folder(tiny_vit: str, tmp_path: Path) -> None:
    arguments = ["similarity", "-b", tiny_vit, "-b", tiny_vit, "--task", "digits", "--limit", "8"]
    result = invoke(*arguments, "-o", str(tmp_path), "--device", "cpu")
    assert result.exit_code == 0, result.exception
    assert (tmp_path / "similarity-1-2.png").is_file()
    assert "looked at: 8 images" in (tmp_path / "index.html").read_text()


def test_several_backbones_have_a_subfolder_each(tiny_vit: str, tmp_path: Path) -> None:
    page = analyze("posembed", [tiny_vit, tiny_vit], out=tmp_path, device="cpu")
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert len(folders) == 2
    for folder in folders:
        assert (tmp_path / folder / "index.html").is_file()
        assert f'href="{folder}/index.html"' in page.read_text()


def test_one_backbone_that_fails_does_not_stop_the_others(tiny_vit: str, tmp_path: Path) -> None:
    result = invoke("posembed", "-b", "pixels", "-b", tiny_vit, "-o", str(tmp_path), "--device", "cpu")
    assert result.exit_code == 1
    assert "error: 1 of 2 backbones could not be analysed" in result.stderr
    page = (tmp_path / "index.html").read_text()
    assert "not analysed: the position embeddings of backbone &#39;pixels&#39; cannot be shown" in page
    assert len(list(tmp_path.glob("*/index.html"))) == 1
    with pytest.raises(PartlyFailedError):
        analyze("filters", ["pixels", tiny_vit], out=tmp_path, device="cpu")
    with pytest.raises(UsageError, match="none of the 2 backbones"):
        analyze("filters", ["pixels", "pixels"], out=tmp_path, device="cpu")


def test_images_given_to_a_kind_that_reads_none_are_let_be(tiny_vit: str, tmp_path: Path) -> None:
    result = invoke("filters", "-b", tiny_vit, "--images", "nowhere", "-o", str(tmp_path), "--device", "cpu")
    assert result.exit_code == 0
    assert "looks at weights alone" in result.stderr


def test_images_of_many_sizes(tiny_vit: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index, size in enumerate([(8, 90), (300, 20), (33, 33), (1, 1), (64, 64)]):
        Image.linear_gradient("L").resize(size).convert("RGB").save(tmp_path / "in" / f"{index}.png")
    page = analyze("similarity", [tiny_vit], out=tmp_path / "out", folder=tmp_path / "in", device="cpu")
    assert "over 5 images" in page.read_text()


BAD = [
    (["filter"], "unknown kind of analysis 'filter'; did you mean 'filters'?"),
    (["xyz"], "unknown kind of analysis 'xyz'; choose from attention-distance, faithfulness, filters"),
    (["filters", "--set", "filter=3"], "unknown option of filters 'filter'; did you mean 'filters'?"),
    (["filters", "--set", "filters=many"], "option filters takes a whole number, got 'many'"),
    (["filters", "--set", "filters"], "--set 'filters' is not of the form KEY=VALUE"),
    (["similarity"], "give a folder of images (--images) or a task (--task): similarity looks at images"),
    (["similarity", "--images", ".", "--task", "digits"], "not both"),
    (["similarity", "--images", "nowhere"], "there is no folder nowhere"),
    (["similarity", "--images", "empty"], "there are no images in empty"),
    (["similarity", "--images", "one.png"], "compares at least 2 images, got 1"),
    (["similarity", "--task", "cifar11"], "cifar10"),
    (["similarity", "--task", "digits", "--set", "estimator=x"], "unknown estimator 'x'; choose from biased, unbiased"),
    (["posembed", "-b", "pixel"], "did you mean 'pixels'?"),
    (["posembed", "-b", "pixels"], "cannot be shown: it has no weights"),
    (["filters", "--device", "cudda"], "device 'cudda' cannot be used here"),
    (["filters", "-o", "/dev/null/x"], "cannot be written to"),
]


@pytest.mark.parametrize(("arguments", "expected"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line(
    arguments: list[str], expected: str, tiny_vit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "one.png")
    if "-b" not in arguments:
        arguments = [*arguments, "-b", tiny_vit]
    if "-o" not in arguments:
        arguments = [*arguments, "-o", "out"]
    result = invoke(*arguments)
    assert isinstance(result.exception, VitbenchError), result.exception
    assert expected in str(result.exception)
    assert "\n" not in str(result.exception)


def test_bad_names_are_told_before_any_weights_are_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="estimatr"):
        analyze("similarity", ["timm:resnet18"], out=tmp_path, task="digits", options={"estimatr": "x"})
    with pytest.raises(UsageError, match="at least one backbone"):
        analyze("filters", [], out=tmp_path)
    with pytest.raises(UsageError, match="at least 1, got 0"):
        analyze("similarity", ["pixels"], out=tmp_path, task="digits", limit=0)


def test_a_broken_image_is_named(tiny_vit: str, image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    folder = image_folder()
    (folder / "train" / "boot" / "000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"000\.png"):
        analyze("similarity", [tiny_vit], out=tmp_path / "out", folder=folder, device="cpu")


@pytest.mark.parametrize(
    ("kind", "option"), [("heatmap", "files=-3"), ("rollout", "shown=-1"), ("filters", "components=-2")]
)
def test_a_negative_number_of_things_is_refused(kind: str, option: str, tiny_vit: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"option {option.split('=')[0]} takes a whole number from 0, got -"):
        analyze(kind, [tiny_vit], out=tmp_path, task="digits", options=dict([option.split("=")]), limit=2)
