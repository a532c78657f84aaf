"""Backbones from timm: any model of its registry, of the Hub, or of a local folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from vitbench.backbones import from_scratch
from vitbench.backbones.base import Backbone, Representation, count_parameters, weights_digest
from vitbench.backbones.checkpoints import find_file
from vitbench.backbones.classifier import Classifier, make_classifier, read_head_file
from vitbench.backbones.positions import named_architecture
from vitbench.backbones.spec import Atom, BackboneSpec
from vitbench.backbones.timm_build import FOLDER_PREFIX, Source, build, find_source
from vitbench.backbones.timm_heads import (
    class_names,
    feature_stages,
    find_linear_head,
    mean_of_patches,
    post_pool_norm,
    probe_pooler,
    random_features,
    read_layout,
)
from vitbench.backbones.timm_positions import check_positions
from vitbench.backbones.timm_weights import Loaded, load_weights, without_weights
from vitbench.errors import RepresentationError, UsageError, WeightsError

_data: Any = timm.data  # its re-exports are not typed
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


class TimmBackbone(Backbone):
    """A model of timm, without its classifier.

    Representations:

    * `cls`: the class token after the final norm.
    * `gap`: the mean of the patch tokens after the final norm; for models that give a map, its spatial mean.
    * `pooler`: the model's own pooling, `forward_head(pre_logits=True)`. Where that equals `cls` or `gap` it is an alias of it.
      Where the checkpoint brings a dense pooler (`vitbench convert --keep-pooler`), it is that: tanh(dense(cls)).

    Where a model's trained path has the norm after the pooling (ViTs with `fc_norm`, ConvNeXt's head), `gap` is that norm of the
    mean of the un-normed tokens, and `cls` that norm of the un-normed class token.

    Layers: for a plain ViT (or Mixer), `@L` is the output of block L, and `@0` the input of the first block, with the model's
    final norm, so that `cls@depth` is `cls`. For a model with stages, `gap@L` is the plain spatial mean of stage L as timm counts
    them (`feature_info`; the first of a ResNet is its stem), and `gap@depth` is `gap`; there is no layer 0.

    The model is built with its own default pooling and loaded strictly; see `vitbench.backbones.timm_weights`.

    Args:
        spec: `timm:MODEL[.tag]`, `timm:hf-hub:ORG/NAME[@REVISION]` or `timm:local-dir:PATH`, with the options `resolution`,
            `positions` (how position embeddings are resized to it), `checkpoint=FILE` (in the place of the pretrained weights),
            `model.KEY=VALUE` (constructor arguments) and `model.norm_eps=VALUE` (the eps of every LayerNorm).

    Raises:
        UsageError: No such model, tag or option (the nearest are offered), or a value that the model cannot be built with.
        WeightsError: There are no weights, they cannot be fetched or read, or they do not fit the model.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        self.spec = spec
        where = f"backbone '{spec.text}'"
        source = find_source(spec)
        path = None if spec.initialise else _weights_file(spec, source, where)
        if spec.initialise and spec.checkpoint:
            raise UsageError(f"{where}: from scratch no weights are read: drop checkpoint=")
        built = build(spec, source)
        self._model: Any = built.model
        align = spec.positions == "jax"
        if align:
            check_positions(self._model, where)
        self._layout = read_layout(self._model)
        self.input_size = built.input_size
        self._model_args = built.model_args
        self._head = find_linear_head(self._model, self._layout, built.input_size)
        self._describe_pixels()
        loaded = without_weights(built) if path is None else load_weights(built, self._layout, path, align)
        self._model.requires_grad_(False)
        self._weights_file, self._loaded = path, loaded
        if path is not None:
            folder = Path(source.create_name.removeprefix(FOLDER_PREFIX))
            in_cache = path.parent.parent.name == "snapshots" and not spec.checkpoint
            self.files = (path.parent if in_cache else path, *([folder] if folder.is_dir() else []))
        self.architecture = named_architecture(built.architecture) if loaded.aligned else built.architecture
        self.provenance_notes = loaded.notes
        self.weights_digest = from_scratch.WEIGHTS_DIGEST if spec.initialise else weights_digest(self._model)
        self.num_parameters = count_parameters(self._model)
        self._describe_features(loaded)

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The one module that holds the weights, without a classifier."""
        return (self._model,)

    def initialise(self, seed: int) -> None:
        """As `Backbone.initialise`, by timm's own scheme for the model (a ViT's is chosen by `model.weight_init`)."""
        from_scratch.check_initialised(self.spec)
        built = build(self.spec, find_source(self.spec), seed)
        without_weights(built)
        from_scratch.copy_weights(self._model, built.model)

    def save(self, folder: str | Path, head: Classifier | None = None, preprocessing: str = "") -> str:
        """As `Backbone.save`, in timm's `local-dir:` layout."""
        from vitbench.backbones.saving import save_timm

        return save_timm(self, Path(folder), head, preprocessing, self._head, self._model_args)

    def _stored_classifier(self) -> Classifier | str:
        if self._weights_file is None:
            return "it is trained from scratch"
        name = self.spec.name
        if name.startswith(FOLDER_PREFIX) and not self.spec.checkpoint:
            beside = read_head_file(Path(name.removeprefix(FOLDER_PREFIX)).expanduser())
            if beside is not None:
                return beside
        if self._loaded.no_classifier or (self._loaded.classifier and not self._head.name):
            return self._loaded.no_classifier or self._head.reason
        if self.representations["pooler"].provenance != "trained":
            return "the checkpoint holds no classifier on a trained pooling"
        weight, bias = (self._loaded.classifier.get(f"{self._head.name}.{part}") for part in ("weight", "bias"))
        names, source = class_names(
            self._weights_file, self._model.pretrained_cfg, 0 if weight is None else len(weight)
        )
        reads = self.representations["pooler"].alias_of or "pooler"
        where = f"'{self._weights_file.name}', {self._head.name}{source}"
        return make_classifier(reads, self.representations["pooler"].dim, weight, bias, names, where)

    def _describe_pixels(self) -> None:
        config = _data.resolve_model_data_config(self._model)
        config["input_size"] = (3, *self.input_size)
        self.mean, self.std = (_triple(config[key]) for key in ("mean", "std"))
        try:
            self.preprocessing = preprocessing_string(config)
        except UsageError as error:
            if self.spec.preprocess == "auto":
                raise UsageError(
                    f"backbone '{self.spec.text}': {error}; give the option preprocess, for example "
                    f"preprocess=resize({_size(self.input_size)},bicubic)|{_normalize(self.mean, self.std)}"
                ) from error
            self.preprocessing = self.spec.preprocess

    def _describe_features(self, loaded: Loaded) -> None:
        model, layout = self._model, self._layout
        norm_name, self._post_norm = post_pool_norm(model)
        if any(name.rpartition(".")[0] == norm_name for name in loaded.untrained_head):
            # The head's norm is newly initialised, as is all that follows: what the checkpoint trained ends before it.
            self._post_norm = nn.Identity()
        opaque = f"{layout.opaque_reason}: use pooler"
        width = int(model.num_features)
        if layout.kind == "opaque":
            cls, gap = (
                Representation("cls", 0, "absent", reason=opaque),
                Representation("gap", 0, "absent", reason=opaque),
            )
        elif not layout.has_class_token:
            cls, gap = Representation("cls", 0, "absent", reason="it has no class token"), Representation("gap", width)
        else:
            cls, gap = Representation("cls", width), Representation("gap", width)
        self._poolings: dict[str, Callable[[Tensor], Tensor]] = {
            item.name: getattr(self, f"_{item.name}") for item in (cls, gap) if item.provenance == "trained"
        }
        features = random_features(model, layout, self.input_size)
        pooler = probe_pooler(model, features, self._poolings)
        self._pooler = loaded.pooler
        if self._pooler is not None:
            item = Representation("pooler", self._pooler.dense.out_features)
        elif not pooler.dim:
            item = Representation("pooler", 0, "absent", reason="it is built without pooling")
        elif loaded.untrained_head:
            lacking = ", ".join(loaded.untrained_head[:3])
            item = Representation(
                "pooler", pooler.dim, "untrained", reason=f"the checkpoint lacks its weights ({lacking})"
            )
        else:
            item = Representation("pooler", pooler.dim, alias_of=pooler.alias_of)
        self.representations: Mapping[str, Representation] = {"cls": cls, "gap": gap, "pooler": item}
        self._describe_layers(width)

    def _describe_layers(self, width: int) -> None:
        if self._layout.plain:
            self.depth = len(self._model.blocks)
            self.layer_poolings = tuple(self._poolings)
            self.layer_dims = (width,) * (self.depth + 1)
        elif stages := feature_stages(self._model, self._layout):
            self.depth, self.first_layer = len(stages), 1
            self.layer_poolings = ("gap",)
            self.layer_dims = (0, *(int(stage["num_chs"]) for stage in stages[:-1]), width)

    def _forward(self, pixels: Tensor, atoms: frozenset[Atom]) -> dict[Atom, Tensor]:
        self._check_size(pixels)
        features, layers = self._run_trunk(
            pixels, {atom.layer for atom in atoms if atom.layer not in (None, self.depth)}
        )
        self._check_features(features)
        computed = {}
        for atom in atoms:
            if atom.pooling == "pooler":
                computed[atom] = self._pool(features)
            elif atom.layer in (None, self.depth):
                computed[atom] = self._poolings[atom.pooling](features)
            elif self._layout.plain:
                computed[atom] = self._poolings[atom.pooling](self._final_norm(layers[atom.layer]))
            else:
                computed[atom] = layers[atom.layer].float().mean(dim=(2, 3))
        return computed

    def _run_trunk(self, pixels: Tensor, wanted: set[int | None]) -> tuple[Any, dict[int | None, Tensor]]:
        """One pass: the model's features, and the raw output of every wanted layer."""
        if self._layout.plain:
            with _tapped(self._model.blocks, wanted) as layers:
                return self._model.forward_features(pixels), layers
        if not wanted:
            return self._model.forward_features(pixels), {}
        # Hiera stops after the last stage it is asked for: the last one is always asked for, or the features would be another's.
        order = [*sorted(layer for layer in wanted if layer is not None), self.depth]
        features, stages = self._model.forward_intermediates(pixels, indices=[layer - 1 for layer in order])
        return features, dict(zip(order, stages, strict=True))

    def _final_norm(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self._model.norm(tokens)
        return normed

    def _pool(self, features: Tensor) -> Tensor:
        if self._pooler is not None:
            return self._pooler(self._cls(features))  # type: ignore[no-any-return]
        pooled: Tensor = self._model.forward_head(features, pre_logits=True)
        return pooled

    def _cls(self, features: Tensor) -> Tensor:
        return self._post_norm(features[:, 0])

    def _gap(self, features: Tensor) -> Tensor:
        return self._post_norm(mean_of_patches(features, self._layout))

    def _check_size(self, pixels: Tensor) -> None:
        embed = getattr(self._model, "patch_embed", None)
        if getattr(embed, "strict_img_size", False) and tuple(pixels.shape[-2:]) != self.input_size:
            raise UsageError(
                f"backbone '{self.spec.text}' takes images of {_size(self.input_size)} pixels, got "
                f"{_size(tuple(pixels.shape[-2:]))}: its position embeddings fit no other size (see resolution=)"
            )

    def _check_features(self, features: Any) -> None:
        """The layout was read from the model's attributes; a family unknown to this module must not be misread."""
        layout = self._layout
        if layout.kind == "opaque":
            return
        axis = 1 if layout.kind == "nchw" else -1
        rank = 3 if layout.kind == "tokens" else 4
        if (
            not isinstance(features, Tensor)
            or features.ndim != rank
            or features.shape[axis] != self._model.num_features
        ):
            got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise RepresentationError(
                f"backbone '{self.spec.text}': its features ({got}) are not laid out as its family's are known to be"
            )


def _weights_file(spec: BackboneSpec, source: Source, where: str) -> Path:
    if spec.checkpoint:
        return find_file(spec.checkpoint, where)
    if source.pretrained is None:
        raise WeightsError(
            f"{where}: timm has no pretrained weights for '{source.create_name}', and an untrained model is not scored: "
            "give weights by checkpoint=FILE, or another model or tag (timm.list_pretrained() has them all)"
        )
    return source.pretrained()


@contextmanager
def _tapped(blocks: Sequence[nn.Module], wanted: set[int | None]) -> Iterator[dict[int | None, Tensor]]:
    """Collect the input of the first block (layer 0) and the output of block L (layer L) of the forward pass inside."""
    layers: dict[int | None, Tensor] = {}
    handles = []

    def keep_input(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        layers[0] = arguments[0]

    def keep_output(layer: int | None) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def keep(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            layers[layer] = output

        return keep

    try:
        for layer in wanted:
            if layer == 0:
                handles.append(blocks[0].register_forward_pre_hook(keep_input))
            elif layer is not None:
                handles.append(blocks[layer - 1].register_forward_hook(keep_output(layer)))
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def preprocessing_string(config: Mapping[str, Any]) -> str:
    """The evaluation transform of timm as a preprocessing string.

    Args:
        config: What `timm.data.resolve_model_data_config` gives.

    Raises:
        UsageError: The transform has no form as a string: it pads a border, or keeps the aspect for an oblong input.
    """
    height, width = config["input_size"][-2:]
    interpolation = config["interpolation"]
    if interpolation not in _INTERPOLATIONS:
        raise UsageError(f"timm's interpolation '{interpolation}' has no form as a preprocessing string")
    crop_pct = config["crop_pct"] or _data.DEFAULT_CROP_PCT
    scaled = (math.floor(height / crop_pct), math.floor(width / crop_pct))
    mode = config["crop_mode"]
    if mode == "border" or (mode != "squash" and height != width):
        raise UsageError(
            f"timm's preprocessing ({mode}, {height}x{width} pixels) has no form as a preprocessing string"
        )
    if mode == "squash":
        ops = [f"resize({_size(scaled)},{interpolation})"]
        if scaled != (height, width):
            ops.append(f"center_crop({height if height == width else _size((height, width))})")
    else:
        ops = [f"resize({scaled[0]},{interpolation})", f"center_crop({height})"]
    return "|".join([*ops, _normalize(_triple(config["mean"]), _triple(config["std"]))])


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _normalize(mean: tuple[float, float, float], std: tuple[float, float, float]) -> str:
    return f"normalize({_channels(mean)},{_channels(std)})"


def _channels(values: tuple[float, float, float]) -> str:
    # The shortest decimal that reads back as the same number: 0.485, and 1 instead of 1.0.
    texts = [repr(value).removesuffix(".0") for value in values]
    return texts[0] if len(set(texts)) == 1 else "/".join(texts)


def _size(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}"
