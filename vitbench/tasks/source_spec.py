"""The typed models of a task's source: where its images and labels are read from. Every field is documented here."""

from __future__ import annotations

import itertools
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """A part of a task file: frozen, and a field it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


Int64 = Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)]
Float32 = Annotated[float, Field(ge=-3e38, le=3e38, allow_inf_nan=False)]
"""A finite number that keeps its size in float32, in which distances are compared."""


class FloorDivide(Strict):
    """Label = floor(value / by), in floating point: dSprites' 40 orientations become 16 (by 2.5)."""

    kind: Literal["floor_divide"]
    by: float = Field(ge=1e-6, le=1e12, allow_inf_nan=False)


class Offset(Strict):
    """Label = value + add: the count of CLEVR's objects, 3 to 10, becomes 0 to 7 (add -3)."""

    kind: Literal["offset"]
    add: Int64


class Count(Strict):
    """Label = number of items of a list + add."""

    kind: Literal["count"]
    add: Int64 = 0


class Threshold(Strict):
    """Label = the largest i with thresholds[i] < d, strictly, where d is the smallest of an image's distances.

    So bucket i holds thresholds[i] < d <= thresholds[i + 1], and K + 1 thresholds make K buckets. A `sentinel` above the last
    threshold makes one more, open above, which is the class of images without an object. CLEVR's 7 thresholds make 6 buckets;
    KITTI's 4 thresholds and the sentinel 1000 make 4. A distance in no bucket is refused.

    A value of the column is one distance, a list of distances, or a list of objects: lists of numbers (`item` picks the
    distance) or mappings (`field` does, and `item` again where the field is a list of numbers). A mapping of lists is read as a
    list of mappings.
    """

    kind: Literal["threshold"]
    thresholds: tuple[Float32, ...] = Field(
        min_length=2, description="increasing; K + 1 of them make K buckets, or K with a sentinel above the last"
    )
    item: int | None = Field(
        None, ge=0, lt=1 << 31, description="which number of each object, where objects are lists of numbers"
    )
    field: str = Field("", description="which field of each object, where objects are mappings, such as location")
    types: str = Field("", description="field (of each object) or column that holds the objects' types")
    below: Int64 | None = Field(None, description="only objects whose type is below this number count")
    sentinel: Float32 | None = Field(None, description="a distance that every image has besides its objects'")

    @property
    def buckets(self) -> int:
        """The number of labels."""
        open_above = self.sentinel is not None and self.sentinel > self.thresholds[-1]
        return len(self.thresholds) - 1 + open_above

    @model_validator(mode="after")
    def _makes_sense(self) -> Threshold:
        if any(one >= two for one, two in itertools.pairwise(self.thresholds)):
            raise ValueError(f"thresholds must increase, got {', '.join(f'{number:g}' for number in self.thresholds)}")
        if bool(self.types) != (self.below is not None):
            raise ValueError("types and below are given together or not at all")
        return self


LabelRule = Annotated[FloorDivide | Offset | Count | Threshold, Field(discriminator="kind")]


class _Columns(Strict):
    image: str = Field("image", description="name of the image column (of a tar: extension, or several with | between)")
    label: str = Field("label", description="name of the label column (of a tar: extension)")
    label_rule: LabelRule | None = Field(None, description="how a value of the label column becomes a label")
    hits: str = Field("", description="column with the list of every right label of an image (multi-label hit)")
    pixel_scale: int = Field(
        1, ge=1, le=255, description="pixel values are multiplied: 255 for masks stored as 0 and 1"
    )
    class_names_file: str = Field("", description="text file with one class name a line, beside the data")


class HubSource(_Columns):
    """Parquet files or webdataset tars of a dataset repository on the Hugging Face hub, read without its loading script."""

    own_keys: ClassVar[frozenset[str]] = frozenset({"files"})

    kind: Literal["hub"]
    repo: str = Field(description="repository id, such as uoft-cs/cifar10", pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(
        "",
        description="full commit hash, so that the data cannot change; only an unverified task may leave it out, and is then "
        "pinned to the commit that its first fetch finds",
        pattern=r"^([0-9a-f]{40})?$",
    )
    format: Literal["parquet", "webdataset"] = "parquet"


class FileSource(_Columns):
    """Local parquet or arrow files, or webdataset tars."""

    own_keys: ClassVar[frozenset[str]] = frozenset({"files"})

    kind: Literal["parquet", "arrow", "webdataset"]
    path: str = Field("", description="the files' folder: absolute, or relative to the task file; empty for its own")


class NpzSource(Strict):
    """Local NumPy archives. `{split}` in an array's name stands for the name of the split (`{split}_images`)."""

    own_keys: ClassVar[frozenset[str]] = frozenset({"files"})

    kind: Literal["npz"]
    path: str = Field("", description="the files' folder: absolute, or relative to the task file; empty for its own")
    image: str = Field("images", description="array of images: [N, H, W], [N, H, W, 1] or [N, H, W, 3], uint8")
    label: str = Field("labels", description="array of labels: [N], [N, 1], or [N, L] of which `label_item` picks one")
    label_item: int | None = Field(None, ge=0, description="column of the array of labels")
    label_rule: LabelRule | None = Field(None, description="how a value becomes a label")
    pixel_scale: int = Field(
        1, ge=1, le=255, description="pixel values are multiplied: 255 for masks stored as 0 and 1"
    )


class CifarSource(Strict):
    """CIFAR-10 and CIFAR-100 in their authors' binary version (data_batch_1.bin, train.bin), which holds no pickle."""

    own_keys: ClassVar[frozenset[str]] = frozenset({"files"})

    kind: Literal["cifar_binary"]
    path: str = Field("", description="the files' folder: absolute, or relative to the task file; empty for its own")
    label: Literal["label", "coarse_label", "fine_label"] = Field(
        "label", description="label for CIFAR-10, coarse_label or fine_label for CIFAR-100"
    )


class ListSource(Strict):
    """Text files with a path, blanks or tabs, and a label a line, as the VTAB-1k archives that go around hold them; local."""

    own_keys: ClassVar[frozenset[str]] = frozenset({"files"})

    kind: Literal["imagelist"]
    path: str = Field("", description="the folder of lists and images: absolute, or relative to the task file")
    pixel_scale: int = Field(
        1, ge=1, le=255, description="pixel values are multiplied: 255 for masks stored as 0 and 1"
    )


class FolderSource(Strict):
    """A folder of images: one folder per split if `splits` name them, and in it one folder per class."""

    own_keys: ClassVar[frozenset[str]] = frozenset({"folder", "fraction"})

    kind: Literal["imagefolder"]
    path: str = Field(description="the folder: absolute, or relative to the task file")
    pixel_scale: int = Field(
        1, ge=1, le=255, description="pixel values are multiplied: 255 for masks stored as 0 and 1"
    )


class SklearnSource(Strict):
    """A data set that ships with scikit-learn."""

    own_keys: ClassVar[frozenset[str]] = frozenset({"rows"})

    kind: Literal["sklearn"]
    dataset: Literal["digits"]


class SyntheticSource(Strict):
    """Scenes of coloured shapes, rendered on the fly; row i of a seed is the same image everywhere, whatever is read of it."""

    own_keys: ClassVar[frozenset[str]] = frozenset({"rows"})

    kind: Literal["synthetic"]
    factor: Literal["count", "x_position", "orientation", "size"] = Field(
        description="what the label tells of the scene"
    )
    seed: int = Field(0, ge=0, description="seed of every scene")
    side: int = Field(64, ge=16, le=512, description="height and width of the images, in pixels")


Source = Annotated[
    HubSource | FileSource | NpzSource | CifarSource | ListSource | FolderSource | SklearnSource | SyntheticSource,
    Field(discriminator="kind"),
]

SOURCE_MODELS: tuple[type[Strict], ...] = (
    HubSource,
    FileSource,
    NpzSource,
    CifarSource,
    ListSource,
    FolderSource,
    SklearnSource,
    SyntheticSource,
)
RULE_MODELS: tuple[type[Strict], ...] = (FloorDivide, Offset, Count, Threshold)
