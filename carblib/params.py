"""Parameters: one flat, validated set of keys per run, in the paper's order; `params/demo.yaml` repeats them."""

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
    field_validator,
    model_validator,
)

from carblib.base.errors import CarbError, nearest, refusals
from carblib.base.files import read_yaml
from carblib.base.progress import is_live
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

# Keys that may change between a stop and its resumption: the trained weights do not depend on them.
NOT_TRAINING = frozenset(
    "run val_split test_split scenes_val scenes_test variants ceiling tensorboard log_every val_every val_images "
    "checkpoint_every monitor_images infer_window infer_stride infer_scales infer_flip bootstrap device workers "
    "interactive ablation_variants ablation_paths ablation_maskers ablation_seeds".split()
)


@dataclass(frozen=True)
class _Origin:
    # Where parameters were read; left out of comparisons, so that equal keys make equal parameters.
    file: str = field(default="PARAMS_FILE", compare=False)
    overrides: Mapping[str, Any] = field(default_factory=dict, compare=False)


class Params(BaseModel):
    """Everything a run depends on. Sizes are [H, W] in pixels; folders are relative to the project root."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)
    _origin: _Origin = PrivateAttr(default_factory=_Origin)

    # Data
    run: str = Field("demo", description="name of the run: results in runs/<run>, figures in figures/<run>")
    dataset: Literal["scenes", "camvid", "cityscapes", "wilddash2", "folder"] = Field("scenes", description="reader")
    root: str = Field("data/scenes", description="the dataset's folder; ~ and $VARIABLE are expanded")
    classes: str | list[Any] = Field("camvid", description="class set, or a list of {name, words, colour, small}")
    train_split: str = Field("train", description="split whose images and image-level labels are learnt from")
    val_split: str = Field("val", description="split for choices and for curves over training")
    test_split: str = Field("test", description="split the results are measured on")
    scenes_train: int = Field(200, ge=1, description="rendered scenes in the train split")
    scenes_val: int = Field(40, ge=1, description="rendered scenes in the val split")
    scenes_test: int = Field(120, ge=1, description="rendered scenes in the test split")
    scenes_seed: int = Field(0, ge=0, description="seed of the rendered scenes")
    labels: str = Field("", description='CSV of image-level labels; "" = runs/<run>/labels/<split>.csv')

    # Images (METHOD.md, 6)
    image_size: Size = Field((256, 512), description="base size an image is resized to before anything else")
    resize_ratio: Range = Field((1.0, 1.0), description="range of the random factor on the base size")
    crop: Size = Field((128, 256), description="random crop of the resized image: the global view")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    photometric: bool = Field(False, description="random brightness, contrast, saturation and hue")

    # CLIP masker
    clip: str = Field("small", description='an OpenAI name, "small", a file, or "open_clip:<architecture>/<tag>"')
    clip_folder: str = Field("", description='folder of CLIP weights; "" = ~/.cache/clip')
    masker: Masker = Field("value_path", description="what is done in CLIP's last block; value_path is the paper's")
    gate: Literal["labels", "official", "none"] = Field("labels", description="how image-level labels gate classes")
    clip_pixels: Literal["clean", "official"] = Field("clean", description="official = distorted, ImageNet mean/std")
    official_clip: bool = Field(False, description="GELU and LayerNorm eps 1e-6, as the official code has it")
    synonyms: bool = Field(False, description="all words of a class, not only the paper's")
    mask_window: MaybeSize = Field(None, description="window CLIP is slid with; null = the whole image")
    mask_stride: MaybeSize = Field(None, description="stride of that window; null = half the window")
    mask_scales: Scales = Field((1.0,), description="scales the similarities are averaged over")
    mask_flip: bool = Field(False, description="average similarities with those of the flipped image")

    # Pseudo-masks of the global view: dual path = by CLIP in every step, single path = read from disk
    path: Literal["dual", "single"] = Field("single", description="global pseudo-masks online or from disk")
    pseudo_masks: str = Field("", description='folder of pseudo-masks; "" = runs/<run>/pseudo_masks/<split>')
    crf: bool = Field(False, description="dense CRF on the pseudo-masks on disk (single path)")

    # Global-local views
    local_view: bool = Field(True, description="supervise with CLIP's mask of a zoomed patch as well")
    patch: Size = Field((64, 64), description="size of the patch cut from the crop: the local view")
    patch_rate: float = Field(1.0, ge=0, description="patch scale m = rate * U(0, 1) + offset")
    patch_offset: float = Field(1.0, gt=0, description="patch scale m = rate * U(0, 1) + offset")
    official_views: bool = Field(False, description="one box for the whole batch, the last position never drawn")

    # Network
    backbone: Backbone = Field("small", description="backbone, output stride 8")
    backbone_weights: str = Field("small", description='"torchvision", "random", "small", or a file')
    freeze_backbone: bool = Field(True, description="train only the ASPP head")
    cache_features: bool = Field(True, description="compute a frozen backbone's features once per image and flip")
    input_scale: Literal[1, 2, 4, 8] = Field(2, description="enlargement of the network's images (1 = the paper)")
    aspp_dilations: Integers = Field((1, 3, 6, 12), description="dilations of the ASPP head's parallel convolutions")
    supervision: Literal["clip", "masks"] = Field("clip", description="masks = the true-mask ceiling")

    # Consistency-aware region balancing
    balancing: bool = Field(True, description="balance consistent and noisy region after the warm-up (CARB)")
    warmup: int = Field(130, ge=0, description="iterations before balancing begins")
    carb_coeff: float = Field(1.0, ge=0, description="coefficient of the noisy region's weight")
    adaptive: bool = Field(True, description="weight = coeff * mean_5(CE_R) / mean_5(CE_N); false: weight = coeff")
    region_weight: Literal["paper", "class"] = Field("paper", description="class = one weight per class (ours)")
    carb_floor: float = Field(0.0, ge=0, description="lower bound of the adaptive weight (ours; 0 = the paper)")
    official_loss: bool = Field(False, description="the official code's reductions and queues, for comparison")

    # Training
    iterations: int = Field(260, ge=1, description="optimiser steps")
    batch_size: int = Field(8, ge=1, description="images per device and step")
    lr: float = Field(0.3, gt=0, description="learning rate at the start (SGD)")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay")
    lr_min: float = Field(1e-4, ge=0, description="learning rate at the end of the polynomial decay")
    poly_power: float = Field(0.9, gt=0, description="power of the polynomial decay")
    sync_bn: bool = Field(False, description="batch statistics over all devices")
    log_every: int = Field(10, ge=1, description="iterations between lines of log.csv")
    val_every: int = Field(65, ge=0, description="iterations between validations; 0 = never")
    val_images: int = Field(20, ge=0, description="val images a validation looks at; 0 = all")
    checkpoint_every: int = Field(65, ge=1, description="iterations between checkpoints")
    monitor_images: int = Field(4, ge=0, description="val images whose region maps are kept")
    tensorboard: bool = Field(False, description="TensorBoard events beside log.csv; needs the package tensorboard")
    variants: Variants = Field(("plain", "paper", "ours"), description="trainings to compare")
    ceiling: bool = Field(True, description="also train on true masks: what the network could reach")

    # Inference and evaluation
    infer_window: MaybeSize = Field(None, description="window of sliding inference; null = the whole image")
    infer_stride: MaybeSize = Field(None, description="stride of that window; null = half the window")
    infer_scales: Scales = Field((1.0,), description="scales the probabilities are averaged over")
    infer_flip: bool = Field(False, description="average with the flipped image")
    bootstrap: int = Field(1000, ge=0, description="bootstrap resamples of images for intervals; 0 = none")

    # Ablations (carb ablate): every combination is trained and measured
    ablation_variants: AblationVariants = Field(TRAINED, description="trainings")
    ablation_paths: AblationPaths = Field(("single", "single_crf", "dual"), description="global pseudo-masks")
    ablation_maskers: Maskers = Field(("value_path",), description="what is done in CLIP's last block")
    ablation_seeds: Seeds = Field((0, 1, 2), description="seeds of training")

    # Machine
    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of training: weights of the head, order, crops, patches")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = cuda where there is one")
    devices: int = Field(1, ge=1, description="devices per node")
    num_nodes: int = Field(1, ge=1, description="machines")
    precision: Literal["32-true", "bf16-mixed"] = Field("32-true", description="floating-point precision of training")
    workers: int = Field(0, ge=0, description="processes that load data; results do not depend on it")
    compile: bool = Field(False, description="torch.compile the network")
    interactive: bool = Field(False, description="live widgets in notebooks; leave off for papermill")

    @field_validator("run")
    @classmethod
    def _is_folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", value):
            raise ValueError("must be a plain folder name of letters, digits, '_', '-', '.'")
        return value

    @field_validator("classes", mode="before")
    @classmethod
    def _are_classes(cls, value: Any) -> Any:
        value = _from_text(value)
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
            (
                too_big(self.patch, self.crop),
                f"patch {[*self.patch]} exceeds crop {[*self.crop]}; shrink patch",
            ),
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
        # JSON is the YAML that -p takes: true, null, [1, 2].
        texts = {
            key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in self._origin.overrides.items()
        }
        overrides = [word for key, text in texts.items() for word in ("-p", key, text)]
        return shlex.join(["carb", *name.split(), self._origin.file, *overrides, *more])

    def training_dump(self) -> dict[str, Any]:
        """Return the keys that trained weights depend on, as plain types: a run resumes only if they are the same."""
        return {key: value for key, value in self.model_dump(mode="json").items() if key not in NOT_TRAINING}

    def to_yaml(self) -> str:
        """Return all keys as YAML that `load_params` reads back to an equal object."""
        values = self.model_dump(mode="json")
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None)

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


def project_root() -> Path:
    """Return the folder that holds params/, runs/ and figures/.

    It is $CARB_HOME, else the nearest parent of the working directory with carblib/ and params/, else the checkout
    carblib was imported from, else the working directory.
    """
    if os.environ.get("CARB_HOME"):
        return Path(os.path.realpath(os.path.expanduser(os.environ["CARB_HOME"])))
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


def load_params(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Params:
    """Read a YAML file of parameters; defaults < file < overrides.

    A relative path is looked for in the working directory, then in the project root. Raises CarbError, in one line,
    for a missing or malformed file, unknown keys (with the nearest right one), wrong values and keys that disagree.
    """
    overrides = dict(overrides or {})
    params = _validated({**_read_yaml(path), **overrides}, str(path), overrides)
    params._origin = _Origin(os.fspath(path), overrides)
    return params


def notebook_params(namespace: Mapping[str, Any]) -> Params:
    """Return the parameters of a notebook: `params = notebook_params(globals())` right after the parameters cell.

    `params_file` names the YAML; every other public global that is a literal was injected by papermill (-p, -f, -y)
    or typed into the cell, and overrides it. Raises CarbError for a name that is no parameter.
    """
    literals = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in ("In", "Out", "exit", "quit", "get_ipython", "params_file")
        and (value is None or type(value) in (str, int, float, bool, list, dict))
    }
    try:
        return load_params(namespace.get("params_file", "params/demo.yaml"), literals)
    except CarbError as error:
        foreign = set(literals) - set(Params.model_fields)
        hint = " (made by a later cell? restart the kernel)" if foreign and is_live() else ""
        raise CarbError(f"{error}{hint}") from None


def _read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    with refusals():
        content = read_yaml(_params_file(path))
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CarbError(f"{path}: must be lines of 'key: value', one per parameter; see params/demo.yaml")
    return content


def _params_file(path: str | os.PathLike[str]) -> Path:
    for place in (Path(os.path.expanduser(path)), resolve(path)):
        if os.path.lexists(place):
            return place
    known = [str(p.relative_to(project_root())) for p in sorted((project_root() / "params").glob("*.yaml"))]
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
        hint = nearest(key, Params.model_fields) or "the keys are those of params/demo.yaml"
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
