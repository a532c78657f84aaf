from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vitbench
from tests.conftest import ImageFolderMaker
from vitbench.backbones.base import Representation
from vitbench.execution import estimate
from vitbench.execution.config import make_config
from vitbench.execution.estimate import (
    Rate,
    Work,
    flops_per_image,
    image_seconds,
    load_seconds,
    longest_first,
    seconds,
    speed,
    work_of,
)
from vitbench.execution.job import Job, load_for, prepare
from vitbench.execution.plan import Estimate, duration_text, plan_rows, planned_job
from vitbench.features.cost import count_flops, device_name, measure_cost
from vitbench.features.load import load_backbone
from vitbench.protocols import PROTOCOLS
from vitbench.records.store import ResultStore
from vitbench.tasks.catalog import load_task

RATE = Rate({"float32": 1e9}, 1e9, decoders=2, apart=False)
MODEL = ("timm:vit_small", (224, 224), "float32")


def described(**changes: Any) -> Any:
    """What an estimate reads of a backbone: ViT-B/16 at 224 px."""
    values = {
        "spec": SimpleNamespace(text="hf:local/folder", name="local/folder"),
        "architecture": "hf:vit#0",
        "is_floor": False,
        "num_parameters": 85_798_656,
        "input_size": (224, 224),
        "depth": 12,
        "layer_dims": (768,) * 13,
        "representations": {},
        "device": "cpu",
    }
    return SimpleNamespace(**values | changes)


def job_of(spec: str, task: str, out: Path, protocol: str = "fewshot", **options: Any) -> Job:
    config = make_config({"backbones": [spec], "tasks": [task], "protocol": protocol, "options": options, "out": out})
    used = PROTOCOLS.load(protocol).from_options(options)
    return prepare(config, load_for(spec, config, used), load_task(task), used, ResultStore(out))


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("vit_tiny_patch16_224,model.depth=2", 1.05),
        ("vit_tiny_patch16_224,model.depth=2,model.patch_size=32", 1.3),
        ("vit_tiny_patch16_224,model.depth=2,resolution=96", 1.1),
        ("deit_tiny_distilled_patch16_224,model.depth=2", 1.05),
        ("resnet18", 1.5),
        ("convnext_atto", 1.5),
        ("mobilenetv3_small_050", 3.5),
    ],
)
def test_operations_against_counted_ones(name: str, factor: float) -> None:
    backbone = load_backbone(f"timm:{name}", device="cpu", from_scratch=True)
    counted = count_flops(backbone)
    assert counted
    assert counted / factor < flops_per_image(backbone) < counted * factor


def test_the_demo_is_estimated_from_its_parameters_as_no_name_tells_its_patch() -> None:
    backbone = load_backbone("demo", device="cpu")
    counted = count_flops(backbone)
    assert counted
    assert flops_per_image(backbone) == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize(
    ("text", "patch"),
    [
        ("timm:vit_base_patch32_224", 32),
        ("timm:vit_base_patch16_224,model.patch_size=8", 8),
        ("hf:facebook/dino-vitb8", 8),
        ("hf:openai/clip-vit-large-patch14", 14),
        ("hf:google/vit-base-patch16-224-in21k", 16),
        ("hf:local/folder", 16),
    ],
)
def test_the_patch_is_read_off_the_name(text: str, patch: int) -> None:
    tokens = (224 // patch) ** 2 + 1
    expected = 2 * 85_798_656 * tokens + 4 * 12 * tokens**2 * 768
    assert flops_per_image(described(spec=SimpleNamespace(text=text, name=text))) == expected


@pytest.mark.parametrize(("patch", "parameters"), [(32, 87_455_232), (16, 85_798_656)])
def test_without_a_name_the_patch_follows_from_the_parameters(patch: int, parameters: int) -> None:
    tokens = (224 // patch) ** 2 + 1
    expected = 2 * parameters * tokens + 4 * 12 * tokens**2 * 768
    assert flops_per_image(described(num_parameters=parameters)) == expected


def test_what_is_remembered_of_a_backbone_suffices(tiny_vit: str, tmp_path: Path) -> None:
    from vitbench.features.remembered import RememberedBackbone

    backbone = load_backbone(tiny_vit, device="cpu")
    names = ("depth", "first_layer", "architecture", "weights_digest", "num_parameters", "layer_poolings")
    names = (*names, "layer_dims", "input_size", "mean", "std", "provenance_notes", "preprocessing")
    content = {name: getattr(backbone, name) for name in names}
    content["representations"] = {name: vars(item) for name, item in backbone.representations.items()}
    assert flops_per_image(RememberedBackbone(backbone.spec, content)) == flops_per_image(backbone)


def test_pixels_cost_next_to_nothing_and_not_nothing() -> None:
    backbone = load_backbone("pixels", device="cpu")
    assert flops_per_image(backbone) == 3 * 32 * 32


def test_a_program_without_a_count_is_estimated_from_its_file_else_from_its_width(tmp_path: Path) -> None:
    file = tmp_path / "model.jaxexport"
    file.write_bytes(bytes(4_000_000))
    bare = {"num_parameters": 0, "depth": 0, "layer_dims": (), "architecture": "jaxexport(a,input=224x224)"}
    with_file = described(**bare, spec=SimpleNamespace(text=f"jax:{file}", name=str(file)))
    assert flops_per_image(with_file) == 2 * 1_000_000 * 197
    wide = described(**bare, representations={"cls": Representation("cls", 768)})
    assert flops_per_image(wide) == 2 * 144 * 768**2 * 197
    assert flops_per_image(described(**bare)) > 0


def test_what_a_job_has_to_do_and_nothing_for_what_is_cached(
    tiny_vit: str, image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    shoes, options = f"imagefolder:{image_folder()}", {"shots": [1, 2], "seeds": 1}
    job = job_of(tiny_vit, shoes, tmp_path, **options)
    work = work_of(job)
    assert work.images == 3 * 2 + 12 == planned_job(job).images
    assert work.embed_flops == work.images * flops_per_image(job.backbone) == work.images * work.image_flops
    assert work.records == 3 * 2
    assert work.score_flops > 0
    assert work.train_flops == 0
    assert work.decode_seconds > 0
    vitbench.run(tiny_vit, shoes, shots=[1], seeds=1, out=tmp_path)
    assert work_of(job_of(tiny_vit, shoes, tmp_path, **options)).images == 3
    vitbench.run(tiny_vit, shoes, out=tmp_path, **options)
    done = work_of(job_of(tiny_vit, shoes, tmp_path, **options))
    assert (done.images, done.records, seconds(done, RATE)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        ("knn", {"k": [1]}),
        ("ridge", {}),
        ("ridge", {"l2": "loo"}),
        ("episodes", {"way": 3, "queries": 2, "episodes": 5, "shots": [1]}),
        ("episodes", {"way": 3, "queries": 2, "episodes": 5, "shots": [1], "classifier": "prototype"}),
    ],
)
def test_every_protocol_has_an_estimate(
    protocol: str, options: dict[str, Any], image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    work = work_of(job_of("pixels", f"imagefolder:{image_folder()}", tmp_path, protocol, **options))
    assert work.score_flops > 0
    assert work.records == 1


def test_choosing_a_penalty_costs_more_than_a_given_one(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    shoes = f"imagefolder:{image_folder()}"
    given, chosen = (work_of(job_of("pixels", shoes, tmp_path, "ridge", l2=l2)) for l2 in ("paper", "loo"))
    assert chosen.score_flops > given.score_flops
    assert work_of(job_of("pixels", shoes, tmp_path, "ridge", l2=3.0)).score_flops == given.score_flops


def test_a_trained_image_is_three_forward_passes_and_a_scored_one_one(
    tiny_vit: str, image_folder: ImageFolderMaker, tmp_path: Path
) -> None:
    shoes = f"imagefolder:{image_folder()}"
    options = {"steps": 5, "batch_size": 4, "warmup_steps": 1, "seeds": 2}
    job = job_of(tiny_vit, shoes, tmp_path, "finetune", **options)
    work, forward = work_of(job), flops_per_image(job.backbone)
    assert work.images == 2 * (5 * 4 + 2 * 12) == planned_job(job).images
    assert work.train_flops == 2 * (3 * 5 * 4 + 2 * 12) * forward
    assert work.embed_flops == work.score_flops == 0
    frozen = work_of(job_of(tiny_vit, shoes, tmp_path, "finetune", head_only=True, **options))
    assert frozen.train_flops == 2 * (5 * 4 + 2 * 12) * forward


def test_an_image_is_timed_once_and_a_broken_one_is_the_run_s_to_tell(
    image_folder: ImageFolderMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of("pixels", f"imagefolder:{image_folder()}", tmp_path)
    read = []
    train = replace(job.splits["train"], fingerprint="timed here")

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(train, name)

        def __len__(self) -> int:
            return len(train)

        def image(self, row: int) -> Any:
            read.append(row)
            return train.image(row)

    split: Any = Counting()
    first = image_seconds(split, job.preprocessing)
    assert first > 0
    assert len(read) == 3
    assert image_seconds(split, job.preprocessing) == first
    assert len(read) == 3
    for path in (tmp_path / "shoes").rglob("*.png"):
        path.write_bytes(b"no image")
    assert image_seconds(replace(job.splits["test"], fingerprint="broken"), job.preprocessing) > 0


@given(
    flops=st.floats(0, 1e15),
    trained=st.floats(0, 1e15),
    score=st.floats(0, 1e15),
    decode=st.floats(0, 1e6),
    records=st.integers(0, 100),
    slots=st.integers(1, 64),
    apart=st.booleans(),
)
def test_more_slots_are_never_slower_and_never_more_than_as_many_times_faster(
    flops: float, trained: float, score: float, decode: float, records: int, slots: int, apart: bool
) -> None:
    work = Work(flops, score, trained, 1, decode, records, 1e6, MODEL)
    rate = replace(RATE, apart=apart)
    one, several = seconds(work, rate), seconds(work, rate, slots)
    assert one / slots * 0.999 <= several <= one * 1.001


def test_a_training_is_not_divided() -> None:
    work = Work(train_flops=8e9, records=2, model=MODEL)
    assert seconds(work, RATE, 8) == pytest.approx(seconds(work, RATE) / 2)
    assert seconds(replace(work, records=1), RATE, 8) == pytest.approx(seconds(replace(work, records=1), RATE))


def test_decoding_takes_the_time_of_the_processor_and_none_of_another_device() -> None:
    work = Work(embed_flops=4e9, decode_seconds=6.0, model=MODEL)
    assert seconds(work, RATE) == pytest.approx(4 + 6 / 2)
    assert seconds(work, replace(RATE, apart=True)) == pytest.approx(4)
    assert seconds(replace(work, decode_seconds=20.0), replace(RATE, apart=True)) == pytest.approx(10)


def test_a_measured_cost_goes_before_the_estimate_and_holds_for_its_device_alone(tiny_vit: str) -> None:
    cost = measure_cost(tiny_vit, device="cpu", images=4, batch_size=2)
    elsewhere = cost.model_copy(update={"device": "cuda (another)"})
    rate = speed("cpu", costs=[cost])
    assert cost.device == device_name(load_backbone(tiny_vit, device="cpu").device)
    assert speed("cpu", costs=[elsewhere]).measured == {}
    backbone = load_backbone(tiny_vit, device="cpu")
    forward = flops_per_image(backbone)
    work = Work(
        embed_flops=100 * forward, images=100, image_flops=forward, model=(cost.architecture, (32, 32), "float32")
    )
    assert seconds(work, rate) == pytest.approx(100 / cost.images_per_second)
    assert seconds(work, replace(rate, measured={})) != seconds(work, rate)


def test_the_speed_of_this_machine_is_measured_once_and_shared_out() -> None:
    whole, half = speed("cpu"), speed("cpu", share=0.5)
    assert whole.flops["float32"] > 1e8
    assert whole.score_flops > 1e7
    assert half.flops["float32"] == pytest.approx(whole.flops["float32"] / 2)
    assert speed("cpu") == whole
    assert not whole.apart
    assert set(speed("cpu", dtypes=["bfloat16"]).flops) == {"float32", "bfloat16"}
    assert speed("cpu", workers=7).decoders == 7


def test_loading_takes_longer_the_more_there_is_to_read() -> None:
    assert 0 < load_seconds(described(num_parameters=0)) < load_seconds(described())


def test_jobs_of_one_backbone_are_together_and_the_longest_come_first() -> None:
    def job(backbone: str, task: str) -> Any:
        return SimpleNamespace(backbone=SimpleNamespace(spec=SimpleNamespace(text=backbone)), task=task)

    small, large = [job("small", task) for task in "abc"], [job("large", task) for task in "abc"]
    took = [1.0, 9.0, 2.0, 4.0, 5.0, 5.0]
    order = longest_first(list(zip([*small, *large], took, strict=True)))
    assert [(item.backbone.spec.text, item.task) for item in order] == [
        *[("large", task) for task in "bca"],
        *[("small", task) for task in "bca"],
    ]
    assert longest_first([]) == []


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.floats(0, 1e6)), max_size=12))
def test_no_job_is_lost_in_the_order(given_jobs: list[tuple[str, float]]) -> None:
    jobs: list[Any] = [
        (SimpleNamespace(backbone=SimpleNamespace(spec=SimpleNamespace(text=name))), took) for name, took in given_jobs
    ]
    order = longest_first(jobs)
    assert sorted(map(id, order)) == sorted(id(job) for job, _ in jobs)
    names = [job.backbone.spec.text for job in order]
    assert len([i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]) == len(set(names))


@pytest.mark.parametrize(
    ("took", "text"),
    [
        (0, "0 s"),
        (0.2, "1 s"),
        (1, "1 s"),
        (40.4, "40 s"),
        (89, "89 s"),
        (90, "1.5 min"),
        (180, "3 min"),
        (1800, "30 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (86400, "24 h"),
        (5 * 86400, "5 days"),
        (4000 * 86400, "4,000 days"),
    ],
)
def test_durations_in_words(took: float, text: str) -> None:
    assert duration_text(took) == text


def test_the_rows_of_a_dry_run(image_folder: ImageFolderMaker, tmp_path: Path) -> None:
    job = job_of("pixels", f"imagefolder:{image_folder()}", tmp_path, shots=[1], seeds=1)
    rows = plan_rows([planned_job(job, Estimate(1.0, 180.0, 90.0)), planned_job(job)])
    assert rows[1]["estimate"] == "0 s"
    assert rows[:1] == [
        {
            "backbone": "pixels",
            "task": "imagefolder/shoes",
            "representations": "pixels",
            "records": 1,
            "present": 0,
            "images": 15,
            "cached": 0,
            "estimate": "3 min",
        }
    ]


def test_a_job_that_is_there_reads_no_image(
    image_folder: ImageFolderMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shoes = f"imagefolder:{image_folder()}"
    vitbench.run("pixels", shoes, shots=[1], seeds=1, out=tmp_path)
    monkeypatch.setattr(estimate, "image_seconds", lambda *given: pytest.fail("an image was read"))
    assert np.isclose(seconds(work_of(job_of("pixels", shoes, tmp_path, shots=[1], seeds=1)), RATE), 0)
