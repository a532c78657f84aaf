"""What differs between two models apart from their weights, and what of it makes them two architectures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from vitbench.backbones.base import Backbone
from vitbench.backbones.vit_names import canonical_weights, configuration
from vitbench.errors import UsageError
from vitbench.tasks import transforms

Kind = Literal["architecture", "computation", "information"]

# In the order in which a verdict names them: what moves features most comes first.
_COMPUTATION = {
    "gelu": "gelu",
    "layer_norm_eps": "eps",
    "position_resize": "position_resize",
    "map_heads": "map_heads",
    "final_norm": "final_norm",
    "pooling": "pooling",
    "image_size": "image_size",
    "input_size": "input_size",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "architecture": "architecture",
    "preprocessing": "preprocessing",
}
_ARCHITECTURE: tuple[str, ...] = (
    "width",
    "depth",
    "heads",
    "mlp",
    "mlp_kind",
    "patch_size",
    "cls_token",
    "dist_token",
    "register_tokens",
)
_ARCHITECTURE += ("qkv_bias", "layer_scale", "pre_norm")
# Where the position of the CLS token is kept moves nothing: the weights that are compared have it in the token.
_INFORMATION = ("position_embedding", "source")
_UNSAID = {"dropout", "attention_dropout"}
_POOLINGS = ("cls", "gap", "pooler")


@dataclass(frozen=True)
class Description:
    """What is compared of one model.

    Attributes:
        vit: Whether it is a plain ViT, whose tensors and fields have one naming in all libraries.
        weights: Name to float32 tensor on the CPU.
        fields: Its configuration (see `vitbench.backbones.vit_names.configuration`).
        module: Name of the model's class.
    """

    vit: bool
    weights: Mapping[str, Tensor]
    fields: Mapping[str, Any]
    module: str


@dataclass(frozen=True)
class FieldDifference:
    """A field of the configuration that differs.

    Attributes:
        field: Its name, as a verdict gives it.
        a: A's value.
        b: B's value.
        kind: `architecture` makes them two architectures; `computation` makes one model compute, or be fed, otherwise;
            `information` changes no feature.
    """

    field: str
    a: str
    b: str
    kind: Kind


def describe(backbone: Backbone) -> Description:
    """What there is to compare of a backbone; of one that is no plain ViT, its state dict.

    Raises:
        UsageError: Its weights cannot be seen: it is a compiled program.
    """
    if not backbone.modules and not backbone.is_floor:
        raise UsageError(
            f"backbone '{backbone.spec.text}' is a program whose weights cannot be seen: parity compares checkpoints; "
            "compare its scores by vitbench run"
        )
    preprocessing = transforms.resolve(
        backbone.spec.preprocess, backbone.preprocessing, backbone.input_size, backbone.mean, backbone.std
    )
    module = type(backbone.modules[0]).__name__ if backbone.modules else backbone.spec.kind
    try:
        weights, fields = canonical_weights(backbone), configuration(backbone)
    except UsageError:
        fields = {
            "source": backbone.spec.kind,
            "architecture": backbone.architecture,
            "input_size": backbone.input_size,
        }
        return Description(False, _state(backbone), fields | {"preprocessing": str(preprocessing)}, module)
    if not _is_resized(backbone):
        fields["position_resize"] = None
    fields["map_heads"] = fields["map_heads"] or None  # that one lacks the head, its missing weights say
    return Description(True, weights, fields | {"preprocessing": str(preprocessing)}, module)


def _is_resized(backbone: Backbone) -> bool:
    """Whether its position embeddings are not those of the checkpoint; only then does it matter how they are resized."""
    return backbone.spec.resolution is not None or any("resized" in note for note in backbone.provenance_notes)


def _state(backbone: Backbone) -> dict[str, Tensor]:
    """Every tensor by the library's own name; how many batches a BatchNorm has seen is read in training alone."""
    return {
        name: tensor.detach().cpu().float()
        for module in backbone.modules
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def compare_fields(a: Description, b: Description) -> list[FieldDifference]:
    """The fields that differ, architecture first, then in the order in which a verdict names them.

    A field that one of them does not say (dropout in a JAX file; resizing, where nothing is resized) is no difference.
    """
    found = []
    for field in (*_ARCHITECTURE, *_COMPUTATION, *_INFORMATION):
        one, other = (item.fields.get(field) for item in (a, b))
        unsaid = field in _UNSAID and "jax" in (a.fields.get("source"), b.fields.get("source"))
        if one == other or one is None or other is None or unsaid:
            continue
        kind: Kind = "architecture" if field in _ARCHITECTURE else "computation"
        if field in _INFORMATION:
            kind = "information"
        found.append(FieldDifference(_COMPUTATION.get(field, field), _text(one), _text(other), kind))
    return found


def compare_representations(a: Backbone, b: Backbone) -> list[FieldDifference]:
    """The representations of which the models give different accounts: trained, untrained, absent, an alias."""
    found = []
    for name in _POOLINGS:
        one, other = (_account(backbone, name) for backbone in (a, b))
        if one != other:
            found.append(FieldDifference(name, one, other, "information"))
    return found


def _account(backbone: Backbone, name: str) -> str:
    item = backbone.representations.get(name)
    if item is None or item.provenance == "absent":
        return "absent"
    return f"{item.provenance}{f', equal to {item.alias_of}' if item.alias_of else ''}"


def architecture_difference(
    a: Description, b: Description, fields: Sequence[FieldDifference], weights_equal: bool
) -> str | None:
    """What makes two models two architectures, for the verdict's parentheses; None where nothing does.

    Raises:
        UsageError: Nobody can say: they come from two libraries, and there is no common naming for their tensors.
    """
    if a.vit and b.vit:
        differing = [item for item in fields if item.kind == "architecture"]
        # Another number of heads changes the shape of no tensor: with equal weights it is one model, run otherwise.
        if not differing or (weights_equal and all(item.field == "heads" for item in differing)):
            return None
        return ", ".join(f"{item.field} {item.a} against {item.b}" for item in differing)
    if a.vit != b.vit or (a.fields["source"] == b.fields["source"] and _shapes(a) != _shapes(b)):
        names = (a.module, b.module) if a.module != b.module else (a.fields["architecture"], b.fields["architecture"])
        return f"{names[0]} against {names[1]}"
    if a.fields["source"] != b.fields["source"]:
        raise UsageError(
            f"a {a.module} of {a.fields['source']} and a {b.module} of {b.fields['source']} cannot be compared: they are no "
            "plain ViTs, and the two libraries have no common names for their tensors; give two of one library"
        )
    return None


def _shapes(item: Description) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in item.weights.items()}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ("x" if all(isinstance(item, int) for item in value) else ", ").join(_text(item) for item in value)
    return str(value)
