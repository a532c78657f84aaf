"""The Hugging Face adapter: vision models of transformers, from the hub or from a local folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor

from vitbench.backbones import from_scratch, hf_families
from vitbench.backbones.base import Backbone, count_parameters, weights_digest
from vitbench.backbones.checkpoints import read_json
from vitbench.backbones.classifier import Classifier, make_classifier, read_head_file
from vitbench.backbones.hf_families import Family
from vitbench.backbones.hf_loading import (
    Loaded,
    Source,
    build,
    find_source,
    load_config,
    load_weights,
    quiet,
    stored_tensors,
)
from vitbench.backbones.hf_positions import check_positions, resized_model
from vitbench.backbones.hf_preprocessing import ImagePreprocessing, image_preprocessing
from vitbench.backbones.positions import named_architecture
from vitbench.backbones.spec import Atom, BackboneSpec
from vitbench.errors import UsageError, first_line, listed

_POOLER_SEED = 0
_UNKNOWN_SIZE = (224, 224)

_CLASSIFIER_READS = {
    "vit": "cls",
    "deit": "cls",
    "dinov2": "cls+gap",
    "dinov2_with_registers": "cls+gap",
    "siglip_vision_model": "gap",
    "swin": "gap",
    "swinv2": "gap",
    "convnext": "gap",
    "convnextv2": "gap",
    "resnet": "gap",
    "bit": "gap",
}
"""What the `ForImageClassification` of a family classifies. CLIP's reads patch tokens before their norm, DINOv3 has none."""


class HuggingFaceBackbone(Backbone):
    """A vision model of transformers: `hf:org/name[@revision]` or `hf:./local/folder`, options `resolution`, `positions`.

    Only safetensors, or PyTorch files without code (`weights_only`), are read, in float32; a checkpoint's own code is never
    run. The families, and what their outputs mean, are the table in `vitbench.backbones.hf_families`. `cls@L` and `gap@L` are
    the output of block L through the final norm. For a pyramid (Swin, ConvNeXt, ResNet, BiT) `gap@L` is the plain mean of the
    output of stage L, before patches are merged for the next; layer 0 is the stem's output (DINOv3 ConvNeXt: the image).

    Raises:
        UsageError: There is no such folder, the model's family is not supported, or an option cannot be meant.
        WeightsError: The weights are missing, damaged, out of reach, or do not fit the model.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        self.spec = spec
        where = f"backbone '{spec.text}'"
        if spec.checkpoint:
            raise UsageError(
                f"{where}: checkpoint= is not for hf: name a folder with config.json and weights, hf:./folder"
            )
        if spec.model_options:
            raise UsageError(
                f"{where}: model.{spec.model_options[0][0]}= is for timm only; edit config.json in a local folder"
            )
        with quiet():
            source = find_source(spec, where)
            self._family, config = load_config(source, where)
            processing, problem = _preprocessing(source, spec, where)
            self.input_size = _input_size(self._family, config, spec, processing, where)
            if spec.initialise:
                config = hf_families.sized_config(config, self.input_size)
                loaded = Loaded(build(self._family, config, from_scratch.FIRST_SEED), (), ())
            else:
                loaded = load_weights(source, self._family, config, where)
            model, aligned = loaded.model, ""
            if spec.positions == "jax":
                check_positions(self._family, config, self.input_size, where)
                model, aligned = resized_model(model, self._family, config, self.input_size)
        self._model: Any = model
        self._source, self._ignored = source, loaded.ignored
        if source.local and not spec.initialise:
            self.files = (source.config.parent,)
        self._prefix = hf_families.prefix_tokens(self._family, config)
        self.layer_dims = hf_families.layer_dims(self._family, config)
        self.depth = len(self.layer_dims) - 1
        self.layer_poolings = ("cls", "gap") if self._family.prefix else ("gap",)
        self.representations = hf_families.representations(self._family, config, bool(loaded.untrained))
        self.architecture = hf_families.architecture(config)
        if aligned:
            self.architecture, config = named_architecture(self.architecture), self._model.config
        if loaded.untrained:
            _reset_pooler(self._model.pooler, config.initializer_range)
        with _without_pooler(self._model) if loaded.untrained else nullcontext():
            self.weights_digest = from_scratch.WEIGHTS_DIGEST if spec.initialise else weights_digest(self._model)
            self.num_parameters = count_parameters(self._model)
        # Where the checkpoint has no usable image processor, its own preprocessing is unknown and the spec names another.
        self.preprocessing = processing.text if processing else ""
        self.mean = processing.mean if processing else (0.5, 0.5, 0.5)
        self.std = processing.std if processing else (0.5, 0.5, 0.5)
        resized = hf_families.resize_note(self._family, config, self.input_size)
        self._flags = hf_families.forward_flags(self._family, resized)
        newly = f"newly initialised, not in the checkpoint: {listed(loaded.untrained)}" if loaded.untrained else ""
        scratch = from_scratch.NOTE if spec.initialise else ""
        unread = f"not read from the checkpoint: {listed(loaded.ignored)}" if loaded.ignored else ""
        unsized = (
            ""
            if processing or spec.resolution or hf_families.native_size(config)
            else "input size unknown, 224x224 assumed"
        )
        notes = (source.note, scratch, unread, newly, resized, aligned, problem, unsized)
        self.provenance_notes = [note for note in notes if note]

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The vision trunk."""
        return [self._model]

    def initialise(self, seed: int) -> None:
        """As `Backbone.initialise`, by transformers' own scheme for the family."""
        from_scratch.check_initialised(self.spec)
        with quiet():
            from_scratch.copy_weights(self._model, build(self._family, self._model.config, seed))

    def save(self, folder: str | Path, head: Classifier | None = None, preprocessing: str = "") -> str:
        """As `Backbone.save`, as transformers' `save_pretrained` does."""
        from vitbench.backbones.saving import save_huggingface

        untrained = self.representations["pooler"].provenance == "untrained"
        model_type = self._model.config.model_type
        # SigLIP's classifier comes with the config of both its towers, of which this is one.
        own = "" if model_type == "siglip_vision_model" else _CLASSIFIER_READS.get(model_type, "")
        trunk = _without_pooler(self._model) if untrained else nullcontext()
        return save_huggingface(self, Path(folder), head, preprocessing, own, trunk)

    def _stored_classifier(self) -> Classifier | str:
        if self.spec.initialise:
            return "it is trained from scratch"
        if self._source.local and (beside := read_head_file(Path(self._source.name))) is not None:
            return beside
        others = [name for name in self._ignored if re.fullmatch(r"\w+_classifier\.weight", name)]
        if others:
            return f"it has {len(others)} classifiers ({listed(others)})"
        weight = next((name for name in self._ignored if re.fullmatch(r"classifier(\.\d+)?\.weight", name)), None)
        if weight is None:
            return "the checkpoint holds no classifier"
        model_type = self._model.config.model_type
        if model_type not in _CLASSIFIER_READS:
            return f"what a classifier of {model_type} reads is none of its representations"
        bias, reads = weight.replace(".weight", ".bias"), _CLASSIFIER_READS[model_type]
        tensors = stored_tensors(self._source, {weight, bias})
        labels = read_json(self._source.config).get("id2label") or {}
        names = [str(labels[index]) for index in sorted(labels, key=int)]
        if all(re.fullmatch(r"LABEL_\d+", name) for name in names):  # what transformers writes where nobody named them
            names = []
        where = f"{weight} of '{Path(self._source.name).name}'"
        return make_classifier(reads, self.dim(reads), tensors.get(weight), tensors.get(bias), names, where)

    def _forward(self, pixels: Tensor, atoms: frozenset[Atom]) -> dict[Atom, Tensor]:
        self._check_pixels(pixels)
        layers = {atom.layer for atom in atoms if atom.layer is not None and atom.layer != self.depth}
        with _stage_outputs(self._model, self._family, bool(layers)) as stages:
            output = self._model(pixels, output_hidden_states=bool(layers), return_dict=True, **self._flags)
        hidden = [*output.hidden_states[:1], *stages] if stages else output.hidden_states
        return {
            # Layer `depth` is the output itself: whether hidden_states[-1] is normed depends on the family and the version.
            atom: self._pooled(output, atom.pooling)
            if atom.layer is None or atom.layer == self.depth
            else self._pooled_layer(hidden[atom.layer], atom.pooling)
            for atom in atoms
        }

    def _pooled(self, output: Any, pooling: str) -> Tensor:
        """`[N, D]`, one representation of the model's output."""
        pooling = self.representations[pooling].alias_of or pooling
        if self._family.staged or pooling == "pooler":
            # Pyramids: LN(mean) for ConvNeXt, the mean of normed tokens for Swin, the mean of the map for ResNet and BiT.
            return torch.flatten(output.pooler_output, 1)
        return self._pooled_tokens(output.last_hidden_state, pooling, normed=self._family.output_normed)

    def _pooled_layer(self, state: Tensor, pooling: str) -> Tensor:
        """`[N, D]` from the output of one block, `[N, T, D]`, or of one stage, `[N, T, D]` or `[N, D, H, W]`."""
        if not self._family.staged:
            return self._pooled_tokens(state, pooling, normed=False)
        return state.float().mean((2, 3) if state.ndim == 4 else 1)

    def _pooled_tokens(self, tokens: Tensor, pooling: str, normed: bool) -> Tensor:
        # The norm works on each token, so it is spent on no more tokens than are wanted.
        tokens = tokens[:, :1] if pooling == "cls" else tokens[:, self._prefix :]
        if not normed:
            tokens = _final_norm(self._model, self._family)(tokens)
        return tokens.float().mean(1)

    def _check_pixels(self, pixels: Tensor) -> None:
        height, width = pixels.shape[-2:]
        if self._family.positions != "none" and (height, width) != self.input_size:
            raise UsageError(
                f"images of {height}x{width} pixels for backbone '{self.spec.text}', which was loaded for "
                f"{self.input_size[0]}x{self.input_size[1]}: add the option resolution={height}"
            )


def _preprocessing(source: Source, spec: BackboneSpec, where: str) -> tuple[ImagePreprocessing | None, str]:
    """What the checkpoint's image processor does, or None and a note why that is not known."""
    auto: Any = AutoImageProcessor
    try:
        processor = auto.from_pretrained(source.name, trust_remote_code=False, **source.arguments)
        return image_preprocessing(processor, spec.resolution), ""
    except UsageError as error:
        problem = str(error)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        files = ("preprocessor_config.json", "processor_config.json")
        absent = source.local and not any((Path(source.name) / file).is_file() for file in files)
        problem = "it has no preprocessor_config.json" if absent else f"its image processor: {first_line(error)}"
    if spec.preprocess == "auto":
        raise UsageError(
            f"{where}: {problem}; say how images are prepared, as in preprocess=resize(224x224,bicubic)|normalize(0.5,0.5)"
        )
    return None, f"own preprocessing unknown ({problem}); mean and std 0.5 where a preset asks for the model's own"


def _input_size(
    family: Family, config: Any, spec: BackboneSpec, processing: ImagePreprocessing | None, where: str
) -> tuple[int, int]:
    """Height and width in pixels: the one asked for, else the image processor's, else the model's."""
    native = hf_families.native_size(config)
    if spec.resolution:
        size = (spec.resolution, spec.resolution)
    elif processing is None:
        size = native or _UNKNOWN_SIZE
    elif family.positions == "learned" and native and processing.size != native:
        # transformers itself fails on such a checkpoint; DINOv2 is different, it resizes its embeddings and says nothing.
        if spec.preprocess == "auto":
            raise UsageError(
                f"{where}: its image processor makes {processing.size[0]}x{processing.size[1]} pixels and the model is built "
                f"for {native[0]}x{native[1]}: choose with resolution={native[0]} or resolution={processing.size[0]}"
            )
        size = native
    else:
        size = processing.size
    hf_families.check_size(family, config, size, where)
    return size


def _final_norm(model: Any, family: Family) -> nn.Module:
    # transformers 5.0 has CLIP's and SigLIP's inside `vision_model`, later versions in the model itself.
    norm: nn.Module = getattr(getattr(model, "vision_model", model), family.final_norm)
    return norm


@contextmanager
def _stage_outputs(model: Any, family: Family, wanted: bool) -> Iterator[list[Tensor]]:
    """Collect the outputs of Swin's stages during a forward pass; nothing for other families.

    Swin's `hidden_states[L]` have already been through the patch merging that belongs to stage L + 1, in the paper and in timm.
    """
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = []
    if wanted and family.positions == "windows":
        hooks = [stage.blocks[-1].register_forward_hook(keep) for stage in model.encoder.layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _reset_pooler(pooler: Any, std: float) -> None:
    """Initialise ViT's or DeiT's pooling layer as transformers does, but the same in every run."""
    generator = torch.Generator().manual_seed(_POOLER_SEED)
    with torch.no_grad():
        pooler.dense.weight.normal_(0.0, std, generator=generator)
        pooler.dense.bias.zero_()


@contextmanager
def _without_pooler(model: Any) -> Iterator[None]:
    pooler, model.pooler = model.pooler, None
    try:
        yield
    finally:
        model.pooler = pooler
