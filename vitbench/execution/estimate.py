"""How long a job will take, from what is known before it begins: parameters, resolution, images and records still to be made.

Estimates order the jobs of a run, are printed by `--dry-run`, and decide what `--budget` leaves out. No backbone is loaded for
one: what is remembered of it suffices. Work is counted in floating point operations (`work_of`), a machine is a rate (`speed`),
and `seconds` divides the one by the other.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vitbench.backbones.base import Backbone
from vitbench.execution.job import Job
from vitbench.execution.plan import Estimate
from vitbench.features import heap
from vitbench.features.cost import device_name
from vitbench.features.precision import packed_linears
from vitbench.protocols.base import Cell
from vitbench.protocols.episodes import EpisodeProtocol
from vitbench.protocols.head import Head
from vitbench.protocols.knn import NearestNeighbours
from vitbench.records.costs import Cost
from vitbench.tasks.task import Split
from vitbench.tasks.transforms import Preprocessing

Model = tuple[str, tuple[int, int], str]
"""What a measured cost is a cost of: architecture, height and width in pixels, dtype."""

PATCH = 16
STAGE_STRIDE = 19
TRAINING = 3
"""Forward passes that one trained image costs: its own, and two of its size for the gradients of activations and of weights."""

EFFICIENCY: Mapping[str, Mapping[str, float]] = {
    "cpu": {"float32": 0.65, "bfloat16": 0.5},
    "cuda": {"float32": 0.6, "bfloat16": 0.4, "float16": 0.4},
}
"""Device and dtype to the share of a single linear layer's speed that a whole model reaches.

Measured on a CPU in float32, best batch against best layer: ViTs 0.54 (32 px, 3 M parameters), 0.63 (tiny), 0.74 (small) and
0.82 (base), resnet50 and convnext_tiny 0.53, mobilenetv2 0.16, because depthwise convolutions wait for memory. Those of CUDA
are assumed, no GPU was at hand; a measured cost goes before any of them.
"""
_OTHER_EFFICIENCY = 0.4

# In operations of a product of matrices of the same speed: per similarity that is sorted, per feature of an episode, per cubed
# side of a matrix that is factored or decomposed, and passes over the residuals of rows left out.
_SORTED, _GATHERED, _CHOLESKY, _EIGEN, _LEFT_OUT = 100.0, 20.0, 4.0, 20.0, 6.0
RECORD_SECONDS = 0.004
"""To score a small record, and to write it with its predictions."""

_IMAGE_SECONDS_UNKNOWN = 0.004
_LOAD_SECONDS, _READ_BYTES, _PARAMETER_BYTES = 0.3, 5e8, 4
_SAMPLED_IMAGES, _REPEATS, _MOST_DECODERS = 3, 6, 16
_ROWS = {"cpu": 4 * 197, "cuda": 64 * 197}

_PATCH_IN_NAME = (
    re.compile(r"patch_?size=(\d+)"),
    re.compile(r"patch[=_-]?(\d+)"),
    re.compile(r"vit[tsblhg]_?(\d+)\b"),
)
_PATCHES = (16, 14, 32, 8, 4, 2)


@dataclass(frozen=True)
class Work:
    """What a job has to do.

    Attributes:
        embed_flops: Of the forward passes of images whose features are missing.
        score_flops: Of what makes the records from features, float64.
        train_flops: Of trainings, their evaluations included.
        images: Images that go through the backbone, each time that they do.
        decode_seconds: What one core takes to read, decode and resize them.
        records: Records to be made.
        image_flops: Of one forward pass of one image.
        model: What computes.
    """

    embed_flops: float = 0.0
    score_flops: float = 0.0
    train_flops: float = 0.0
    images: int = 0
    decode_seconds: float = 0.0
    records: int = 0
    image_flops: float = 1.0
    model: Model = ("", (0, 0), "float32")


@dataclass(frozen=True)
class Rate:
    """What one slot (a device with its share of the machine's cores) does in a second. Plain data, to be sent to other processes.

    Attributes:
        flops: Dtype to floating point operations of a forward pass per second.
        score_flops: The same for the solves, in float64 on the CPU.
        decoders: Images that are decoded at a time.
        apart: Whether decoding does not take the time of the forward pass: another device computes that.
        measured: Model to images per second, for the models whose cost was measured on this device.
    """

    flops: Mapping[str, float]
    score_flops: float
    decoders: int
    apart: bool
    measured: Mapping[Model, float] = field(default_factory=dict)

    def forward(self, work: Work) -> float:
        """Floating point operations of a forward pass per second, for the model of some work."""
        if work.model in self.measured:
            return self.measured[work.model] * work.image_flops
        return self.flops.get(work.model[2], self.flops["float32"])


def flops_per_image(backbone: Backbone) -> float:
    """Floating point operations of one image, from parameters, width, depth and resolution; a multiply-add is two.

    Every weight of a layer is multiplied once for each place that the layer is applied to, so that P parameters cost 2·P·T
    operations at T places. In a ViT T is the number of tokens, (H/p)·(W/p) + 1 for patches of p pixels; beside it, each of the
    L blocks compares T tokens with T and sums T values for each, two products of T·T·D, 4·L·T²·D in all:

        2·P·T + 4·L·T²·D.

    What this overstates is the embeddings, which are added and not multiplied. The patch is read off the name where that says
    it, else found from P (`_patch`). A net of stages has weights at many strides, large counts at the coarse ones and many
    places at the fine ones; over the nets named below 2·P·T comes out right for one stride of 19 pixels, T = H·W/19².

    Of an exported program nobody may have counted the parameters: its file holds them as float32 constants, four bytes each.
    Where there is no file either, a ViT of 12 blocks of the width of its representations is assumed, 12·L·D² parameters.
    Pixels cost one operation for each number.

    Against `vitbench.features.cost.count_flops`, the larger over the smaller: at most 1.02 for 16 plain ViTs of timm (tiny to
    base, patch 8, 14, 16 and 32, 224 to 518 px, distilled or not, beit, eva02, dinov3) and 1.1 for cait and xcit; for 18 nets of
    stages 1.25 in the middle and 3.4 at most (resnet50 and convnext_tiny 1.2, mobilenetv2 1.03, densenet121 2.9,
    mobilenetv3_small_050 3.4); 7 for a convmixer, which never reduces its map.
    """
    height, width = backbone.input_size
    if backbone.is_floor or backbone.architecture == "pixels":
        return 3.0 * height * width
    parameters = backbone.num_parameters or _unknown_parameters(backbone)
    dims = [dim for dim in backbone.layer_dims if dim]
    if len(set(dims)) > 1 or "resnet=" in backbone.architecture or (dims and not backbone.layer_dims[0]):
        return 2.0 * parameters * max(1.0, height * width / STAGE_STRIDE**2)
    patch = _patch(backbone, parameters)
    tokens = max(1, height // patch) * max(1, width // patch) + 1
    return 2.0 * parameters * tokens + (4.0 * backbone.depth * tokens**2 * dims[-1] if dims else 0.0)


def work_of(job: Job) -> Work:
    """What a job has still to do; nothing for what is cached. It may read a few images of the task, to see how long they take."""
    backbone, forward = job.backbone, flops_per_image(job.backbone)
    model = (backbone.architecture, (backbone.input_size[0], backbone.input_size[1]), backbone.dtype)
    work = Work(records=job.records_wanted, image_flops=forward, model=model)
    if not job.records_wanted:
        return work
    if job.protocol.trains:
        from vitbench.execution.training import training_images

        images = training_images(job)
        scored = 2 * len(job.rows["test"]) * job.records_wanted
        each = 1 if getattr(getattr(job.protocol, "recipe", None), "head_only", False) else TRAINING
        return replace(
            work,
            train_flops=forward * (scored + (images - scored) * each),
            images=images,
            decode_seconds=images * image_seconds(job.splits["train"], job.preprocessing),
        )
    missing = job.images_missing()
    bases = {base.name: base for split in job.splits.values() for base in split.bases}
    return replace(
        work,
        embed_flops=forward * sum(missing.values()),
        score_flops=sum(_score_flops(job, name, cells) for name, cells in job.wanted.items()),
        images=sum(missing.values()),
        decode_seconds=sum(
            count * image_seconds(bases[name], job.preprocessing) for name, count in missing.items() if count
        ),
    )


def speed(
    device: torch.device | str,
    *,
    dtypes: Collection[str] = ("float32",),
    costs: Iterable[Cost] = (),
    workers: int | None = None,
    share: float = 1.0,
) -> Rate:
    """What this machine does in a second, from products of matrices that take a few hundredths of one, once per process.

    Args:
        device: Where backbones compute.
        dtypes: Those in which they do.
        costs: Measured costs (`vitbench.records.costs.read_costs`); one of this very device goes before any estimate.
        workers: Threads that decode; None is as many as a run takes.
        share: The share of the device, and on a CPU of its cores, that one slot has.
    """
    place = torch.device(device)
    efficiency = EFFICIENCY.get(place.type, {})
    name = device_name(place)
    cores = max(1.0, share * _cores())
    return Rate(
        flops={
            dtype: share * _linear_rate(str(place), dtype) * efficiency.get(dtype, _OTHER_EFFICIENCY)
            for dtype in sorted({"float32", *dtypes})
        },
        score_flops=min(1.0, cores / _cores()) * _double_rate(),
        decoders=workers or min(_MOST_DECODERS, max(1, round(cores))),
        apart=place.type != "cpu",
        measured={
            (cost.architecture, cost.input_size, cost.dtype): share * cost.images_per_second
            for cost in costs
            if cost.device == name
        },
    )


def seconds(work: Work, rate: Rate, slots: int = 1) -> float:
    """How long some work takes where `slots` of this rate share it.

    Images are spread over the slots as they come; a training, or what makes one record, is not divided.
    """
    forward = rate.forward(work)
    decode = work.decode_seconds / rate.decoders
    compute = (work.embed_flops + work.train_flops) / forward
    passes = max(compute, decode) if rate.apart else compute + decode
    alone = max(1, min(slots, work.records))
    divided = alone if work.train_flops else max(1, slots)
    return passes / divided + (work.score_flops / rate.score_flops + work.records * RECORD_SECONDS) / alone


def load_seconds(backbone: Backbone) -> float:
    """How long it takes to build a backbone and to read its weights."""
    return _LOAD_SECONDS + _PARAMETER_BYTES * backbone.num_parameters / _READ_BYTES


def estimate_of(backbone: Backbone, work: Work, rate: Rate, slots: int = 1) -> Estimate:
    """How long a job of a backbone takes in a run of so many slots."""
    return Estimate(load_seconds(backbone), seconds(work, rate), seconds(work, rate, slots))


def image_seconds(split: Split, preprocessing: Preprocessing) -> float:
    """What one core takes to read, decode and resize one image of a split: the median of three, kept for the process."""
    place = (split.fingerprint, str(preprocessing))
    if place not in _IMAGE_SECONDS:
        taken = []
        for row in np.linspace(0, len(split) - 1, _SAMPLED_IMAGES).astype(int).tolist():
            began = time.perf_counter()
            try:
                preprocessing.geometry(split.image(row), split.where(row))
            except Exception:  # a broken image is told by the run itself
                continue
            taken.append(time.perf_counter() - began)
        _IMAGE_SECONDS[place] = float(np.median(taken)) if taken else _IMAGE_SECONDS_UNKNOWN
    return _IMAGE_SECONDS[place]


def longest_first(jobs: Sequence[tuple[Job, float]]) -> list[Job]:
    """Jobs, given with their seconds, in the order in which a run is over soonest: those of one backbone together, longest first.

    Backbones go by the sum of their jobs' seconds, and the jobs of each by their own; equals stay in order.
    """
    groups: dict[str, list[tuple[Job, float]]] = {}
    for job, took in jobs:
        groups.setdefault(job.backbone.spec.text, []).append((job, took))
    ordered = sorted(groups.values(), key=lambda group: -sum(took for _, took in group))
    return [job for group in ordered for job, _ in sorted(group, key=lambda pair: -pair[1])]


def _patch(backbone: Backbone, parameters: int) -> int:
    """The side of a patch in pixels, from the name; else from the parameters; else 16, and on small images an eighth of the side.

    A plain ViT of L blocks of width D has 12·D² + 13·D parameters a block (4·D² in attention and 8·D² in the MLP, their 9·D
    biases, 4·D in two norms), 2·D in the final norm, D² + D in a dense pooler where it has one, and in its embeddings 3·p² + 1
    for each of the D features, H·W/p² for the places, and 2 for the class token and its place. What is left of P after the
    blocks, divided by D, tells p where the others are as they are written here.
    """
    text = f"{backbone.spec.text} {backbone.architecture}".lower()
    for pattern in _PATCH_IN_NAME:
        if found := [int(number) for number in pattern.findall(text) if int(number)]:
            return found[-1]
    height, width = backbone.input_size
    if backbone.depth and backbone.layer_dims:
        dim, pooler = backbone.layer_dims[-1], backbone.representations.get("pooler")
        left = parameters - backbone.depth * (12 * dim**2 + 13 * dim) - 2 * dim
        if pooler and pooler.provenance != "absent" and pooler.alias_of is None:
            left -= dim**2 + dim
        for patch in _PATCHES:
            if math.isclose(left / dim, 3 * patch**2 + 3 + height * width / patch**2, rel_tol=0.03):
                return patch
    return PATCH if min(height, width) >= 7 * PATCH else max(1, min(height, width) // 8)


def _unknown_parameters(backbone: Backbone) -> int:
    """Parameters of a program of which nobody counted them."""
    file = Path(backbone.spec.name).expanduser()
    if file.is_file():
        return max(1, file.stat().st_size // _PARAMETER_BYTES)
    width = max([item.dim for item in backbone.representations.values()], default=0)
    return max(1, 12 * 12 * width**2)


def _score_flops(job: Job, name: str, cells: Sequence[Cell]) -> float:
    """Of the records of one representation, as products of matrices in float64 that would take as long."""
    protocol, dim, classes = job.protocol, job.backbone.dim(name), job.task.num_classes
    test, train = len(job.rows["test"]), len(job.splits["train"])
    if isinstance(protocol, NearestNeighbours):
        return test * train * (2.0 * dim + _SORTED)
    if isinstance(protocol, Head):
        return 2.0 * test * dim * classes
    if isinstance(protocol, EpisodeProtocol):
        queries = protocol.way * protocol.queries
        return sum(
            protocol.episodes * _GATHERED * dim * (queries + protocol.way * cell.shot)
            + protocol.episodes * _solve_flops(protocol.way * cell.shot, dim, protocol.way, False)
            for cell in cells
        )
    counts = np.bincount(job.splits["train"].labels, minlength=classes)
    chosen = isinstance(rule := getattr(protocol, "l2", ""), str) and rule not in ("", "paper")
    return sum(
        _solve_flops(int(np.minimum(counts, cell.shot).sum()) if cell.shot else train, dim, classes, chosen)
        + 2.0 * test * dim * classes
        for cell in cells
    )


def _solve_flops(rows: int, dim: int, classes: int, chosen: bool) -> float:
    """Of one ridge regression: a Gram matrix, its factor (where the penalty is chosen, its eigenvectors), K targets."""
    side = min(rows, dim)
    gram, solves = 2.0 * rows * dim * side, 2.0 * rows * side * classes
    return gram + (_EIGEN * side**3 + _LEFT_OUT * solves if chosen else _CHOLESKY * side**3 + solves)


@cache
def _linear_rate(device: str, dtype: str) -> float:
    """Operations per second of a ViT's linear layer on this machine, as extraction computes it."""
    place = torch.device(device)
    layer, rows = nn.Linear(768, 3072).to(place), _ROWS.get(place.type, _ROWS["cpu"])
    values = torch.zeros(rows, 768, device=place)
    autocast = torch.autocast(place.type, getattr(torch, dtype), enabled=dtype != "float32")
    packed = packed_linears([layer], place, dtype, rows)
    with heap.kept(place), torch.inference_mode(), autocast, packed:
        return 2.0 * rows * 768 * 3072 / _least_seconds(lambda: layer(values))


def _least_seconds(compute: Callable[[], torch.Tensor]) -> float:
    """Of a few calls, the seconds of the fastest: what else the machine does only makes them slower."""
    taken = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        float(compute()[0, 0])  # waits for the device
        taken.append(time.perf_counter() - began)
    return min(taken)


@cache
def _double_rate() -> float:
    """Operations per second of a product in float64 on the CPU, where scores are computed."""
    matrix = torch.eye(512, dtype=torch.float64)
    return 2.0 * 512**3 / _least_seconds(lambda: matrix @ matrix)


def _cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_IMAGE_SECONDS: dict[tuple[str, str], float] = {}
