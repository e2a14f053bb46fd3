"""Parameters: one flat, validated set of keys per run, in the paper's order. Defaults are the paper's (Cityscapes).

A file of params/ names what differs from the defaults, or, with `base: other.yaml`, from another file.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from carblib.base.errors import CarbError, nearest, refusals
from carblib.base.files import digest_of, parse_yaml, read_yaml
from carblib.classes import ClassSet, class_set
from carblib.variants import TRAINED, VARIANTS, WEAK


def _from_text(value: Any) -> Any:
    # papermill's -p passes lists and null as text ("[256, 512]"); everything else is left to pydantic.
    if isinstance(value, str) and (value.strip().startswith("[") or value.strip().lower() in ("null", "none", "~")):
        try:
            return None if not value.strip().startswith("[") else yaml.safe_load(value)
        except Exception:  # YAML's, or that of a constructor: a date that is none, brackets by the thousand
            return value
    return value


Pixels = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Size = Annotated[tuple[Pixels, Pixels], BeforeValidator(_from_text)]
MaybeSize = Annotated[tuple[Pixels, Pixels] | None, BeforeValidator(_from_text)]
Range = Annotated[tuple[Positive, Positive], BeforeValidator(_from_text)]
_CHECKSUM = "# checksum: "
_SOME = Field(min_length=1)
Scales = Annotated[tuple[Positive, ...], _SOME, BeforeValidator(_from_text)]
Integers = Annotated[tuple[Pixels, ...], _SOME, BeforeValidator(_from_text)]
Variants = Annotated[tuple[Literal[WEAK], ...], BeforeValidator(_from_text)]
Backbone = Literal["resnet50_v1c", "resnet101_v1c", "resnet50", "resnet101", "mobilenet_v2", "small"]
Masker = Literal["value_path", "no_residual", "query_query", "key_key", "sclip", "clearclip", "naclip"]
AblationVariants = Annotated[tuple[Literal[TRAINED], ...], _SOME, BeforeValidator(_from_text)]
AblationPaths = Annotated[tuple[Literal["dual", "single", "single_crf"], ...], _SOME, BeforeValidator(_from_text)]
Maskers = Annotated[tuple[Masker, ...], _SOME, BeforeValidator(_from_text)]
MAX_SEED = 2**32 - 1  # the largest that numpy's and torch's generators all take
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...], _SOME, BeforeValidator(_from_text)]

CACHE_STRIDE = 8  # pixels per cached feature: crops of cached features start at its multiples

# What can depend on a key, through which effects. A key names the first things it changes; what follows stands here:
# training learns from labels and masks, and everything shows in the results. Masks and predictions on disk know their
# labels and their network by checksum, so how those were made does not count for them.
_RESULTS = {"labels", "masks", "training", "inference", "results"}
AFFECTED = {
    "labels": {"labels"},  # image-level labels that are derived from masks
    "masks": {"masks"},  # pseudo-masks on disk
    "training": {"labels", "masks", "training"},  # trained weights
    "inference": {"inference"},  # predictions
    "results": _RESULTS,  # numbers and figures of a run
    "ablations": {*_RESULTS, "ablations"},  # those of its ablations
    "nothing": {"nothing"},  # where, how fast or how lively it works
}


def key(default: Any, affects: str, description: str, **limits: float) -> Any:
    """Return the field of a parameter: `affects` names one or several of `AFFECTED`, `limits` are ge, gt, le and lt."""
    return Field(default, description=description, json_schema_extra={"affects": affects.split()}, **limits)


@dataclass(frozen=True)
class _Origin:
    # Where parameters were read; left out of comparisons, so that equal keys make equal parameters.
    file: str = field(default="PARAMS_FILE", compare=False)
    overrides: Mapping[str, Any] = field(default_factory=dict, compare=False)


class Params(BaseModel):
    """Everything a run depends on. Sizes are [H, W] in pixels; folders are relative to the project root.

    The defaults are the paper's on Cityscapes, on one device: 8 images a step, which were 4 on each of two.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)
    _origin: _Origin = PrivateAttr(default_factory=_Origin)

    # Data
    run: str = key("cityscapes", "results", "name of the run: results in runs/<run>, figures in figures/<run>")
    dataset: Literal["scenes", "camvid", "cityscapes", "wilddash2", "folder"] = key("cityscapes", "results", "reader")
    root: str = key("data/cityscapes", "results", "the dataset's folder; ~ and $VARIABLE are expanded")
    classes: str | list[Any] = key("cityscapes", "labels masks", "class set, or a list of {name, words, colour, small}")
    train_split: str = key("train", "training", "split whose images and image-level labels are learnt from")
    val_split: str = key("val", "results", "split for choices and for curves over training")
    test_split: str = key("test", "results", "split the results are measured on")
    images: str = key("", "results", 'list of split/name, a line each: splits it names hold only those; "" = all')
    scenes_train: int = key(200, "results", "rendered scenes in the train split", ge=1)
    scenes_val: int = key(40, "results", "rendered scenes in the val split", ge=1)
    scenes_test: int = key(120, "results", "rendered scenes in the test split", ge=1)
    scenes_seed: int = key(0, "results", "seed of the rendered scenes", ge=0)
    skip_bad: bool = key(False, "results", "leave out images that are unreadable, or whose masks are")
    labels: str = key("", "results", 'CSV of image-level labels; "" = runs/<run>/labels/<split>.csv')

    # Images (METHOD.md, 6)
    image_size: Size = key((1024, 2048), "masks inference", "base size an image is resized to before anything else")
    resize_ratio: Range = key((0.5, 2.0), "training", "range of the random factor on the base size")
    crop: Size = key((512, 1024), "training", "random crop of the resized image: the global view")
    flip: float = key(0.5, "training", "probability of a horizontal flip", ge=0, le=1)
    photometric: bool = key(True, "training", "random brightness, contrast, saturation and hue")

    # CLIP masker
    clip: str = key("ViT-B/16", "masks", 'an OpenAI name, "small", a file, or "open_clip:<architecture>/<tag>"')
    clip_folder: str = key("", "nothing", 'folder of CLIP weights; "" = ~/.cache/clip')
    masker: Masker = key("value_path", "masks", "what is done in CLIP's last block; value_path is the paper's")
    gate: Literal["labels", "official", "none"] = key("labels", "masks", "how image-level labels gate classes")
    clip_pixels: Literal["clean", "official"] = key("clean", "masks", "official = distorted, ImageNet mean/std")
    official_clip: bool = key(False, "masks", "GELU and LayerNorm eps 1e-6, as the official code has it")
    synonyms: bool = key(False, "masks", "all words of a class, not only the paper's")
    mask_window: MaybeSize = key(None, "masks", "window CLIP is slid with; null = the whole image")
    mask_stride: MaybeSize = key(None, "masks", "stride of that window; null = half the window")
    mask_scales: Scales = key((1.0,), "masks", "scales the similarities are averaged over")
    mask_flip: bool = key(False, "masks", "average similarities with those of the flipped image")

    # Pseudo-masks of the global view: dual path = by CLIP in every step, single path = read from disk
    path: Literal["dual", "single"] = key("dual", "training", "global pseudo-masks online or from disk")
    pseudo_masks: str = key("", "results", 'folder of pseudo-masks; "" = runs/<run>/pseudo_masks/<split>')
    crf: bool = key(False, "training", "dense CRF on the pseudo-masks on disk (single path)")

    # Global-local views
    local_view: bool = key(True, "training", "supervise with CLIP's mask of a zoomed patch as well")
    patch: Size = key((512, 256), "training", "size of the patch cut from the crop: the local view")
    patch_rate: float = key(1.0, "training", "patch scale m = rate * U(0, 1) + offset", ge=0)
    patch_offset: float = key(1.0, "training", "patch scale m = rate * U(0, 1) + offset", gt=0)
    official_views: bool = key(False, "training", "one box for the whole batch, the last position never drawn")

    # Network
    backbone: Backbone = key("resnet50_v1c", "training", "backbone, output stride 8")
    backbone_weights: str = key(
        "weights/resnet50_v1c-2cccc1ad.pth", "training", '"torchvision", "random", "small", or a file'
    )
    freeze_backbone: bool = key(False, "training", "train only the ASPP head")
    cache_features: bool = key(False, "training", "compute a frozen backbone's features once per image and flip")
    input_scale: Literal[1, 2, 4, 8] = key(1, "training", "enlargement of the network's images (1 = the paper)")
    aspp_dilations: Integers = key((6, 12, 18, 24), "training", "dilations of the ASPP head's parallel convolutions")
    supervision: Literal["clip", "masks"] = key("clip", "training", "masks = the true-mask ceiling")

    # Consistency-aware region balancing
    balancing: bool = key(True, "training", "balance consistent and noisy region after the warm-up (CARB)")
    warmup: int = key(16000, "training", "iterations before balancing begins", ge=0)
    carb_coeff: float = key(1.0, "training", "coefficient of the noisy region's weight", ge=0)
    adaptive: bool = key(True, "training", "weight = coeff * mean_5(CE_R) / mean_5(CE_N); false: weight = coeff")
    region_weight: Literal["paper", "class"] = key("paper", "training", "class = one weight per class (ours)")
    carb_floor: float = key(0.0, "training", "lower bound of the adaptive weight (ours; 0 = the paper)", ge=0)
    official_loss: bool = key(
        False, "training", "the official code's gate of predictions, means and padding, to compare"
    )

    # Training
    iterations: int = key(30000, "training", "optimiser steps", ge=1)
    batch_size: int = key(8, "training", "images per device and step", ge=1)
    lr: float = key(0.005, "training", "learning rate at the start (SGD)", gt=0)
    momentum: float = key(0.9, "training", "momentum of SGD", ge=0, lt=1)
    weight_decay: float = key(5e-4, "training", "weight decay", ge=0)
    lr_min: float = key(1e-4, "training", "learning rate at the end of the polynomial decay", ge=0)
    poly_power: float = key(0.9, "training", "power of the polynomial decay", gt=0)
    sync_bn: bool = key(False, "training", "batch statistics over all devices")
    log_every: int = key(10, "nothing", "iterations between lines of log.csv", ge=1)
    val_every: int = key(2000, "results", "iterations between validations; 0 = never", ge=0)
    val_images: int = key(100, "results", "val images a validation looks at; 0 = all", ge=0)
    checkpoint_every: int = key(500, "nothing", "iterations between checkpoints", ge=1)
    monitor_images: int = key(4, "results", "val images whose region maps are kept", ge=0)
    tensorboard: bool = key(False, "nothing", "TensorBoard events beside log.csv; needs the package tensorboard")
    variants: Variants = key(("plain", "paper"), "results", "trainings to compare")
    ceiling: bool = key(True, "results", "also train on true masks: what the network could reach")

    # Inference and evaluation
    infer_window: MaybeSize = key(None, "inference", "window of sliding inference; null = the whole image")
    infer_stride: MaybeSize = key(None, "inference", "stride of that window; null = half the window")
    infer_scales: Scales = key((1.0,), "inference", "scales the probabilities are averaged over")
    infer_flip: bool = key(False, "inference", "average with the flipped image")
    bootstrap: int = key(1000, "results", "bootstrap resamples of images for intervals; 0 = none", ge=0)

    # Ablations (carb ablate): every combination is trained and measured
    ablation_variants: AblationVariants = key(TRAINED, "ablations", "trainings")
    ablation_paths: AblationPaths = key(("single", "single_crf", "dual"), "ablations", "global pseudo-masks")
    ablation_maskers: Maskers = key(("value_path",), "ablations", "what is done in CLIP's last block")
    ablation_seeds: Seeds = key((0, 1, 2), "ablations", "seeds of training")

    # Machine
    seed: int = key(0, "training", "seed of training: weights of the head, order, crops, patches", ge=0, le=MAX_SEED)
    device: Literal["auto", "cpu", "cuda"] = key("auto", "nothing", "auto takes cuda where there is one")
    devices: int = key(1, "training", "devices per node, a process each", ge=1)
    num_nodes: int = key(1, "training", "machines", ge=1)
    precision: Literal["32-true", "bf16-mixed"] = key(
        "32-true", "masks training inference", "of CLIP and the network, in masks, training and inference"
    )
    workers: int = key(
        0,
        "nothing",
        "processes that load a training's data; elsewhere threads that read, and as many that write (0: up to 4)",
        ge=0,
    )
    cache_images: str = key("", "nothing", 'folder that keeps decoded training images, for all runs; "" = none')
    compile: bool = key(False, "training", "torch.compile the network")
    interactive: bool = key(False, "nothing", "live widgets in notebooks; leave off for papermill")

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        given = value if isinstance(value, list | tuple) else [value]
        if cls.model_fields[info.field_name].annotation is not bool and any(isinstance(one, bool) for one in given):
            raise ValueError("true and false, yes and no, on and off are for switches alone")
        return value

    @field_validator("run")
    @classmethod
    def _is_folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", value):
            raise ValueError("must be a plain folder name of letters, digits, '_', '-', '.'")
        if value.lower() == "published":
            raise ValueError("figures/published is what git keeps of one run; choose another name")
        return value

    @field_validator("train_split", "val_split", "test_split")
    @classmethod
    def _is_split_name(cls, value: str) -> str:
        if not is_plain_name(value):
            raise ValueError("must be the plain name of a folder, without / and \\ and no dot before it")
        return value

    @field_validator("classes", mode="before")
    @classmethod
    def _are_classes(cls, value: Any) -> Any:
        try:
            if isinstance(value, str) and value.strip().startswith("["):
                value = parse_yaml(f"classes: {value}", _text_keys())["classes"]
        except Exception as error:  # YAML's, as in `_from_text`
            raise ValueError("is no list that can be read") from error
        try:
            class_set(value)
        except CarbError as error:
            raise ValueError(str(error).removeprefix("classes: ")) from error
        return value

    @model_validator(mode="after")
    def _keys_agree(self) -> Params:
        problems = [message for wrong, message in self._disagreements() if wrong]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _disagreements(self) -> list[tuple[bool, str]]:
        def too_big(inner: Size | None, outer: Size | None) -> bool:
            return inner is not None and outer is not None and (inner[0] > outer[0] or inner[1] > outer[1])

        cached, off_grid = self.cache_features, any(side % CACHE_STRIDE for side in self.crop)
        return [
            (self.warmup > self.iterations, f"warmup {self.warmup} exceeds iterations {self.iterations}; lower warmup"),
            (self.lr_min > self.lr, f"lr_min {self.lr_min} exceeds lr {self.lr}; lower lr_min"),
            (self.resize_ratio[0] > self.resize_ratio[1], "resize_ratio is [low, high]; swap the two"),
            (too_big(self.patch, self.crop), f"patch {[*self.patch]} exceeds crop {[*self.crop]}; shrink patch"),
            (too_big(self.mask_stride, self.mask_window), "mask_stride exceeds mask_window; lower mask_stride"),
            (too_big(self.infer_stride, self.infer_window), "infer_stride exceeds infer_window; lower infer_stride"),
            (bool(self.mask_stride) and not self.mask_window, "mask_stride needs mask_window; set both"),
            (bool(self.infer_stride) and not self.infer_window, "infer_stride needs infer_window; set both"),
            (cached and not self.freeze_backbone, "cache_features needs freeze_backbone: true"),
            (cached and self.resize_ratio != (1.0, 1.0), "cache_features needs resize_ratio: [1.0, 1.0]"),
            (
                cached and self.crop != self.image_size and (too_big(self.crop, self.image_size) or off_grid),
                f"cache_features needs crop equal to image_size, or within it in multiples of {CACHE_STRIDE}",
            ),
            (cached and self.photometric, "cache_features needs photometric: false"),
            (self.crf and self.path != "single", "crf refines pseudo-masks on disk: it needs path: single"),
            (
                self.supervision == "masks" and (self.local_view or self.balancing),
                "supervision: masks needs local_view: false and balancing: false",
            ),
        ]

    def updated(self, **overrides: Any) -> Params:
        """Return a copy with some keys changed, validated as a whole. Raises CarbError."""
        changed = _validated({**self.model_dump(), **overrides}, f"parameters of run {self.run}")
        new = {key: value for key, value in overrides.items() if getattr(changed, key) != getattr(self, key)}
        changed._origin = _Origin(self._origin.file, {**self._origin.overrides, **new})
        return changed

    def variant(self, name: str) -> Params:
        """Return the parameters of a named training of `carblib.variants`: plain, glv, carb, paper, ours, ceiling."""
        if name not in TRAINED:
            raise CarbError(f"no variant '{name}'; {nearest(name, TRAINED) or 'known are ' + ', '.join(TRAINED)}")
        params = self.updated(**VARIANTS[name].overrides)
        params._origin = self._origin  # a training's command names the variant, not what it overrides
        return params

    def command(self, name: str, *more: str) -> str:
        """Return the command line that does something with these parameters: `carb masks params/demo.yaml -p run x`.

        `name` is the sub-command and `more` its options; what a shell would change is quoted. Parameters that no file
        was read for stand as PARAMS_FILE.
        """
        changed = self._origin.overrides.items()
        overrides = [word for key, value in changed for word in ("-p", key, value if value == "" else as_text(value))]
        return shlex.join(["carb", *name.split(), self._origin.file, *overrides, *more])

    def based_on(self, folder: Path, **changes: Any) -> str:
        """Return YAML, for a file in `folder`, of these parameters with some keys changed: their file as `base`, and
        what differs. Parameters that no file was read for are written out."""
        if self._origin.file == _Origin.file:
            return self.updated(**changes).to_yaml()
        base = os.path.relpath(find_params(self._origin.file).resolve(), folder.resolve())
        now = self.model_dump(mode="json")
        differing = {"base": Path(base).as_posix(), **{key: now[key] for key in self._origin.overrides}, **changes}
        return yaml.safe_dump(differing, sort_keys=False, allow_unicode=True, default_flow_style=None)

    @classmethod
    def keys_that_affect(cls, what: str) -> list[str]:
        """Return the keys that one of `AFFECTED` depends on, in their order here."""
        effects = {name: set(field.json_schema_extra["affects"]) for name, field in cls.model_fields.items()}
        return [name for name, own in effects.items() if own & AFFECTED[what]]

    def that_affect(self, what: str) -> dict[str, Any]:
        """Return the parameters that one of `AFFECTED` depends on, as plain types that JSON keeps, in their order here.

        An artefact that records them can be told from one made with others: `params.that_affect("masks")`.
        """
        values = self.model_dump(mode="json")
        return {name: values[name] for name in self.keys_that_affect(what)}

    def to_yaml(self) -> str:
        """Return all keys as YAML that `load_params` reads back to an equal object, and a checksum as a comment."""
        values = self.model_dump(mode="json")
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None)
        return f"{text}{_CHECKSUM}{digest_of(text.encode())}\n"

    @property
    def class_set(self) -> ClassSet:
        """The classes of the run."""
        return class_set(self.classes)

    @property
    def trainings(self) -> tuple[str, ...]:
        """The trainings of the run: its variants, and the ceiling where it is wanted."""
        return (*self.variants, "ceiling") if self.ceiling else self.variants

    @property
    def run_dir(self) -> Path:
        """Folder of the run's results."""
        return project_root() / "runs" / self.run

    @property
    def figures_dir(self) -> Path:
        """Folder of the run's figures."""
        return project_root() / "figures" / self.run

    @property
    def data_root(self) -> Path:
        """Folder of the dataset."""
        return resolve(self.root)


def is_plain_name(name: str) -> bool:
    """Tell whether a name names something within a folder: no path, nothing hidden, not empty."""
    return bool(name.strip()) and not name.startswith(".") and not {*name} & {"/", "\\", "\0"}


def as_text(value: Any) -> str:
    """Write a parameter's value as a person does and -p takes it: paper, true, null, [1, 2], ""."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def project_root() -> Path:
    """Return the folder that holds params/, runs/ and figures/.

    It is $CARB_HOME, else the nearest parent of the working directory with carblib/ and params/, else the checkout
    carblib was imported from, else the working directory.
    """
    if home := os.path.expanduser(os.environ.get("CARB_HOME", "")):
        if home.startswith("~"):
            raise CarbError(f"CARB_HOME: {home}: there is no such user; write the folder")
        return Path(os.path.realpath(home))
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parent.parent):
        if (folder / "carblib").is_dir() and (folder / "params").is_dir():
            return folder
    return here


def resolve(path: str | os.PathLike[str]) -> Path:
    """Return an absolute path: `~` and $VARIABLE expanded, relative ones taken from the project root."""
    expanded = os.path.expandvars(os.fspath(path))
    undefined = re.search(r"\$\{?(\w+)", expanded)
    if undefined:
        raise CarbError(f"{path}: the environment variable {undefined[1]} is not set; set it or write the folder")
    return project_root() / os.path.expanduser(expanded)


def below_root(path: Path) -> str:
    """Return a path as it is written from the project root where it lies there, so that a project can be moved."""
    root = project_root()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def load_params(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Params:
    """Read a YAML file of parameters; defaults < the file named by its `base` < file < overrides.

    A relative path is looked for in the working directory, then in the project root; a `base` in the file's folder.
    Raises CarbError, in one line, for a missing or malformed file, a base that leads back to its file, unknown keys
    (with the nearest right one), wrong values and keys that disagree.
    """
    overrides = dict(overrides or {})
    params = _validated({**_read_file(path), **overrides}, str(path), overrides)
    params._origin = _Origin(os.fspath(path), overrides)
    return params


def is_as_written(path: Path) -> bool:
    """Tell whether a file is as `Params.to_yaml` wrote it; true of one that a person wrote, which has no checksum."""
    text, mark, checksum = path.read_bytes().rpartition(_CHECKSUM.encode())
    return not mark or checksum.strip() == digest_of(text).encode()


def notebook_params(given: Mapping[str, Any]) -> Params:
    """Return the parameters of a notebook from what its parameters cells hold: `params_file` and keys that override it.

    None is the file's value where a key cannot be None itself. Raises CarbError for a name that is no parameter.
    """
    overrides = {name: value for name, value in given.items() if name != "params_file"}
    if "base" in overrides:
        raise CarbError("base: papermill's -f cannot follow it; give the file as -p params_file <file>")
    for name, value in overrides.items():
        if name in _text_keys() and type(value) in (int, float, bool):
            raise CarbError(
                f"{name}: a text that came as {value!r}, perhaps not as written; under papermill give it raw, "
                f"-r {name} <text>, in a cell in quotes"
            )
    defaults = {name: field.default for name, field in Params.model_fields.items()}
    kept = {name: value for name, value in overrides.items() if value is not None or defaults.get(name) is None}
    return load_params(given["params_file"], kept)


def _read_file(path: str | os.PathLike[str], readers: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return what a file sets; with a `base`, all of that file's parameters under it. `readers` have it as a base."""
    values = _read_yaml(path)
    if "base" not in values:
        return values
    name, file = values.pop("base"), find_params(path)
    base = file.parent / str(name)
    if not isinstance(name, str) or not base.is_file():
        raise CarbError(f"{path}: its base {name!r} is no file of {file.parent}; mend the line, or leave it out")
    readers = (*readers, file.resolve())
    if base.resolve() in readers:
        raise CarbError(f"{path}: its base {name} leads back to {readers[0].name}; leave out one of the lines 'base:'")
    return {**_validated(_read_file(base, readers), str(base)).model_dump(), **values}


def _read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    with refusals():
        content = read_yaml(find_params(path), _text_keys())
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CarbError(f"{path}: must be lines of 'key: value', one per parameter; see params/demo.yaml")
    return content


def _text_keys() -> set[str]:
    """The keys of a parameters file whose values are texts, those of a class and `base` among them."""
    return {name for name, field in Params.model_fields.items() if field.annotation is str} | {
        "base", "classes", "name", "words"
    }  # fmt: skip


def find_params(path: str | os.PathLike[str]) -> Path:
    """Return where a parameters file lies: relative to the working directory, else to the project. Raises CarbError."""
    for place in (Path(os.path.expanduser(path)), resolve(path)):
        if os.path.lexists(place):
            return place
    known = [below_root(p) for p in sorted((project_root() / "params").glob("*.yaml"))]
    raise CarbError(f"{path}: no such file; {nearest(str(path), known) or 'there are ' + ', '.join(known)}")


def _validated(values: dict[str, Any], source: str, overrides: Mapping[str, Any] | None = None) -> Params:
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
    # A list whose items are wrong is also called too short; say only what is wrong with the items.
    with_items = {e["loc"][0] for e in found if len(e["loc"]) > 1}
    found = [e for e in found if e["type"] != "too_short" or e["loc"][0] not in with_items or len(e["loc"]) > 1]
    given = [bool(overrides) and bool(e["loc"]) and e["loc"][0] in overrides for e in found]
    source = source if not any(given) else "-p" if all(given) else f"{source} and -p"
    raise CarbError(f"{source}: {'; '.join(_problem(e) for e in found)}")


def _problem(error: Mapping[str, Any]) -> str:
    if not error["loc"]:
        return error["msg"].removeprefix("Value error, ")
    key = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        hint = nearest(key, Params.model_fields) or "`carb params` lists them all"
        return f"'{key}' is no parameter; {hint}"
    place = key + "".join(f"[{part}]" for part in error["loc"][1:] if isinstance(part, int))
    message, given = error["msg"].removeprefix("Value error, "), repr(error["input"])
    given = given if len(given) <= 60 else f"{given[:60]}…"
    if error["type"] in ("tuple_type", "missing", "too_short", "too_long"):
        return f"'{key}' cannot be {given}: {_how_to_write(key, error['input'])}"
    if error["type"] == "literal_error":
        hint = nearest(str(error["input"]), re.findall(r"'([^']*)'", error["ctx"]["expected"]))
        message += f"; {hint}" if hint else ""
    return f"'{place}' cannot be {given}: {message[0].lower()}{message[1:]}"


def _how_to_write(key: str, given: Any) -> str:
    """Say how a key of several values is written."""
    kind = Params.model_fields[key].annotation
    if kind == tuple[Positive, Positive]:
        return "write [low, high], as in [0.5, 2.0]"
    if kind in (tuple[Pixels, Pixels], tuple[Pixels, Pixels] | None):
        return "write [H, W], as in [256, 512]"
    items = [given] if isinstance(given, str | int | float) and given != "" else Params.model_fields[key].default
    return f"write a list: [{', '.join(map(str, items))}]"
