"""The schema of a record: one measured outcome with its full identity."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Literal[1] = 1


class Provenance(BaseModel):
    """Where a record comes from. Nothing here is part of its identity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    created: str = Field(description="when the record was written, UTC, ISO 8601")
    command: str = Field(description="the command or call that made it")
    host: str = Field(description="name of the machine")
    device: str = Field(description="device of the forward pass, such as cpu or cuda:0 (NVIDIA H200)")
    python: str = Field(description="version of Python")
    versions: dict[str, str] = Field(description="versions of vitbench and of the libraries that compute")
    git_commit: str | None = Field(
        description="commit of the vitbench checkout, with -dirty when it was changed; null when installed"
    )
    weights_notes: list[str] = Field(description="what was ignored or resized when the weights were loaded")


class Record(BaseModel):
    """One measured outcome: one JSON file, one row of `vitbench.load_results`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    key: str = Field(description="name of the identity; also the file's name")
    identity: dict[str, Any] = Field(description="what must be equal for this result to be used again")
    backbone: str = Field(description="the backbone's spec as it was written")
    backbone_name: str = Field(description="short name of backbone and weights, the folder of its records")
    representation: str
    representation_dim: int = Field(description="length of the feature vector")
    representation_provenance: Literal["trained", "untrained"]
    alias_of: str | None = Field(description="the representation that this one equals exactly on this backbone")
    num_parameters: int = Field(description="parameters of the backbone, without any classifier")
    task: str
    num_classes: int
    metric: str = Field(description="the score that tables show, one of the names in `scores`")
    chance: float = Field(description="expected value of that score for a guess that is uniform over the classes")
    splits: dict[str, str] = Field(
        {}, description="what was learned from and scored: role (train, test) to the split's name or expression"
    )
    source: str = Field("", description="where the data is from: repository@commit, or kind and path")
    deviations: list[str] = Field([], description="what differs from the task file and was taken by --accept-sizes")
    synthetic: bool = Field(False, description="whether the images were rendered by a program")
    protocol: str
    protocol_label: str = Field(description="the protocol's parameters in a few words, for titles")
    parameters: dict[str, Any] = Field(description="parameters of the protocol")
    shot: int
    seed: int
    limit: int | None = Field(
        description="number of test images when --limit was given; limited records never mix with full ones"
    )
    preprocessing: str
    dtype: str = Field(description="of the forward pass")
    features_dtype: Literal["float32", "float16"] = Field(
        "float32", description="what the features were kept as, and so rounded to before they were scored"
    )
    scores: dict[str, float] = Field(description="metric to value, each a fraction")
    details: dict[str, Any] = Field(description="what else the protocol reports, such as the l2 that was used")
    warnings: list[str]
    n_support: int
    n_test: int
    seconds: float = Field(description="time of this outcome's evaluation, without extraction")
    provenance: Provenance

    @property
    def score(self) -> float:
        """The value of the task's own metric."""
        return self.scores[self.metric]
