"""The table of what `carb bench` measures: a stage, both ways of doing it, and how it is seen that they give the same.

Networks and CLIP have random weights and the size of the recipes' (ResNet-50-v1c, ViT-B/16): time and memory do not
depend on what was learnt. What goes through files takes rendered scenes, and the small models that come with carblib:
there files are measured, not networks.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from carblib import step
from carblib.clip_files import clip
from carblib.clip_models import ClipModel
from carblib.data.batches import sample_plan, train_loader
from carblib.data.labels import training_labels
from carblib.data.mask_folders import write_mask
from carblib.data.readers import open_split
from carblib.data.split import Split
from carblib.loss import RegionBalancedLoss
from carblib.masker import Masker, build_masker, pseudo_mask
from carblib.metrics import confusion
from carblib.network import build_network
from carblib.params import Params
from carblib.prompts import TextEmbeddings
from carblib.run.bench import plain
from carblib.scenes.folders import write_scenes
from carblib.stages.crf import refine
from carblib.stages.dataset_analysis import analyse_split
from carblib.stages.evaluate import evaluate_folder
from carblib.stages.predict import predict_split
from carblib.stages.pseudo_masks import export_masks
from carblib.transforms import distorted, resized_argmax
from carblib.views import LocalView, crop_view

Size = tuple[int, int]
RENDERED = 24
NETWORK = {"backbone": "resnet50_v1c", "backbone_weights": "random", "aspp_dilations": (6, 12, 18, 24)}


@dataclass(frozen=True)
class Setting:
    """What stages are measured at. `size` (H, W) of whole images, `crop` of a training's; `folder` is for files.

    images: how many lie on disk. precision: that of ours; the official formulation is float32, as it was shipped.
    """

    folder: Path
    size: Size
    crop: Size
    batch: int = 2
    classes: int = 19
    images: int = 8
    processes: int = 1
    device: torch.device = torch.device("cpu")
    precision: str = "32-true"

    def halved(self) -> Setting:
        """The same with images of half the height and width."""
        return dataclasses.replace(self, size=(self.size[0] // 2, self.size[1] // 2))

    def params(self, **changes: Any) -> Params:
        """Parameters of this setting: rendered scenes, and the small models."""
        root = self.folder / f"{self.size[0]}x{self.size[1]}_{self.images}"
        values = {
            "run": "bench", "dataset": "scenes", "root": str(root), "classes": "camvid",
            "image_size": self.size, "crop": self.crop, "batch_size": self.batch,
            "patch": (self.crop[0], self.crop[1] // 4), "patch_rate": 0.0, "patch_offset": 1.5, "clip": "small",
            "backbone": "small", "backbone_weights": "small", "aspp_dilations": (1, 3, 6, 12), "bootstrap": 0,
            "device": self.device.type, "precision": self.precision,
        }  # fmt: skip
        return Params(**values | changes)

    def scenes(self, **changes: Any) -> tuple[Params, Split]:
        """Parameters, and the scenes on disk: a few that are rendered where there are none yet, and copies of them."""
        params = self.params(**changes)
        root = params.data_root
        if not root.is_dir():
            write_scenes(root, "train", min(self.images, RENDERED), 0, self.size)
            for number in range(RENDERED, self.images):
                for folder in (root / "train", root / "trainannot"):
                    shutil.copy(folder / f"{number % RENDERED + 1:06d}.png", folder / f"{number + 1:06d}.png")
        return params, open_split(params, "train")


class Ways(NamedTuple):
    """Both ways of one stage at one setting. `about` says what is worked on.

    `before` makes room for the next time, and is not measured.
    """

    about: str
    ours: Callable[[], Any]
    plain: Callable[[], Any]
    before: Callable[[], None] = lambda: None


class Stage(NamedTuple):
    """One row: its name, how both ways are made ready, and the check of their results (ours, plain) -> the same?"""

    name: str
    ready: Callable[[Setting], Ways]
    same: Callable[[Any, Any], bool]


# --- are both the same? ----------------------------------------------------------------------------------------------


def same_ids(ours: Any, plain: Any, share: float = 0.9999) -> bool:
    """Ids are the same but for equal scores: at least `share` of them."""
    one, other = (torch.as_tensor(ids).cpu().long() for ids in (ours, plain))
    return one.shape == other.shape and (one == other).double().mean().item() >= share


def same_values(ours: Any, plain: Any, tolerance: float = 1e-3) -> bool:
    """Values, or each of a tuple, are the same to a share of the largest."""
    if isinstance(ours, tuple):
        return all(same_values(*pair, tolerance) for pair in zip(ours, plain, strict=True))
    one, other = (torch.as_tensor(values).detach().cpu().double() for values in (ours, plain))
    return one.shape == other.shape and bool((one - other).abs().max() <= tolerance * other.abs().max())


def same_folders(ours: Path, plain: Path) -> bool:
    """Folders hold the same masks; image and network were rounded otherwise on the way, so 99.5 % of the pixels."""
    names = sorted(path.name for path in plain.glob("*.png"))
    found = [[np.array(Image.open(folder / name)).ravel() for name in names] for folder in (ours, plain)]
    return bool(names) and same_ids(*map(np.concatenate, found), 0.995)


def same_crops(ours: Any, plain: Any) -> bool:
    """Crops (distorted, clean) are of the same place: Pillow's HSV has 8 bits, its resizing another rounding."""
    differences = [np.abs(one.astype(int) - other).mean() for one, other in zip(ours, plain, strict=True)]
    return differences[0] < 4 and differences[1] < 0.5


# --- the stages ------------------------------------------------------------------------------------------------------


@functools.lru_cache(1)
def _clip(device: torch.device) -> ClipModel:
    # OpenAI's ViT-B/16 but for the text tower, which is not run.
    text = {"context_length": 8, "vocab_size": 16, "transformer_width": 64, "transformer_heads": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = clip.model.CLIP(512, 224, 12, 768, 16, transformer_layers=1, **text)
    return ClipModel(model, "random ViT-B/16", "").to(device)


def _masker(setting: Setting, strategy: str = "value_path") -> Masker:
    model, generator = _clip(setting.device), torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(setting.classes, model.dim, generator=generator), dim=-1)
    text = TextEmbeddings(vectors, torch.arange(setting.classes), vectors)
    return Masker(model, text, strategy, precision=setting.precision).to(setting.device)


def _random(setting: Setting) -> tuple[Tensor, Tensor, torch.Generator]:
    """Random images (B, 3, H, W) uint8, and labels (B, C) bool of half the classes, which ours leaves on the host."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (setting.batch, 3, *setting.size), generator=generator, dtype=torch.uint8)
    labels = torch.rand(setting.batch, setting.classes, generator=generator) < 0.5
    labels[:, 0] = True
    return images.to(setting.device), labels, generator


def _about(size: Size, count: int = 0, classes: int = 0) -> str:
    return " × ".join([*[str(count)] * bool(count), f"{size[0]}×{size[1]}", *[f"{classes} classes"] * bool(classes)])


def clip_masks(setting: Setting, strategy: str) -> Ways:
    """Pseudo-masks by what CLIP's last block does."""
    images, labels, _ = _random(dataclasses.replace(setting, batch=1))
    masker = _masker(setting, strategy)

    def ours() -> Tensor:
        with torch.inference_mode():
            return masker(images, labels)

    def official() -> Tensor:
        with torch.no_grad():
            return plain.masks(plain.similarity(masker, images), labels.to(setting.device), setting.size)

    return Ways(f"ViT-B/16, {_about(setting.size)}", ours, official)


def loss(setting: Setting) -> Ways:
    """CARB's loss and its gradient, after the warm-up."""
    size, (_, labels, generator) = setting.size, _random(setting)
    coarse = (size[0] // 8, size[1] // 8)
    logits = torch.randn(setting.batch, setting.classes, *coarse, generator=generator).to(setting.device)
    ids = pseudo_mask(torch.randn(logits.shape, generator=generator), labels, size).to(setting.device)
    box = torch.tensor([size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4])
    view = LocalView(box.expand(setting.batch, 4), 1.0)
    local = crop_view(ids, view)

    def ours() -> tuple[Tensor, Tensor]:
        leaf = logits.clone().requires_grad_()
        total = RegionBalancedLoss(0).to(setting.device)(leaf, ids, labels, 0, view=view, local_mask=local).total
        total.backward()
        return total.detach(), leaf.grad

    def official() -> tuple[Tensor, Tensor]:
        leaf = logits.clone().requires_grad_()
        total = plain.Loss()(leaf, ids, labels.to(setting.device), view, local)
        total.backward()
        return total.detach(), leaf.grad

    return Ways(_about(size, setting.batch, setting.classes), ours, official)


def training_step(setting: Setting) -> Ways:
    """One iteration of the dual path: two CLIP passes, network, loss, SGD."""
    params = setting.params(**NETWORK, classes="cityscapes", warmup=0)
    images, labels, _ = _random(dataclasses.replace(setting, size=setting.crop, classes=19))
    valid = torch.ones(setting.batch, *setting.crop, dtype=torch.bool, device=setting.device)
    batch = {"image": images, "clip_image": images, "labels": labels, "valid": valid, "mask": valid.byte() * 255}
    plainly = {name: tensor.to(setting.device) for name, tensor in batch.items()}
    masker = _masker(dataclasses.replace(setting, classes=19))
    accelerator = "cuda" if setting.device.type == "cuda" else "cpu"
    training = step.build(params, Fabric(accelerator=accelerator, devices=1, precision=params.precision), masker)
    other = copy.deepcopy(training.network.module).to(memory_format=torch.contiguous_format)
    sgd = {"lr": params.lr, "momentum": params.momentum, "weight_decay": params.weight_decay}
    optimizer, criterion = torch.optim.SGD(other.parameters(), **sgd), plain.Loss()
    iterations = iter(range(10**9))

    def official() -> Tensor:
        return plain.step(other, optimizer, criterion, masker, params, plainly, next(iterations))

    about = f"ResNet-50-v1c, ViT-B/16, {_about(setting.crop, setting.batch)}"
    return Ways(about, lambda: step.step(training, batch).total.detach(), official)


def upsampling(setting: Setting) -> Ways:
    """From logits to the mask of one image."""
    coarse = (setting.size[0] // 8, setting.size[1] // 8)
    logits = torch.randn(1, setting.classes, *coarse, generator=torch.Generator().manual_seed(0))
    logits, size = logits.to(setting.device), setting.size
    return Ways(
        _about(size, 0, setting.classes),
        lambda: resized_argmax(logits[0], size),
        lambda: plain.upsampled_argmax(logits, size),
    )


def loader(setting: Setting, cache: str = "") -> Ways:
    """One batch of training crops; with `cache`, a folder, from decoded images of ours."""
    params, split = setting.scenes(iterations=10**6, cache_images=cache and str(setting.folder / cache))
    batches = iter(train_loader(params, split, np.ones((len(split), 11), bool)))
    iterations = iter(range(10**6))

    def ours() -> tuple[np.ndarray, ...]:
        batch = next(batches)
        if "clip_image" not in batch:  # left to a GPU
            tensors = {key: value.to(setting.device) for key, value in batch.items() if isinstance(value, Tensor)}
            batch = distorted(tensors, params)
        return tuple(batch[key].permute(0, 2, 3, 1).cpu().numpy() for key in ("image", "clip_image"))

    def official() -> list[np.ndarray]:
        plan = sample_plan(params.seed, next(iterations), setting.batch, len(split))
        crops = [plain.sample(split.image_paths[index], params, seed) for index, seed in plan]
        return [np.stack(kind) for kind in zip(*crops, strict=True)]

    return Ways(f"{_about(setting.crop, setting.batch)} of {_about(setting.size)}", ours, official)


def export(setting: Setting) -> Ways:
    """Pseudo-masks of a folder, from image files to mask files: smaller ones, since it has a Transformer for each."""
    setting = setting.halved()
    params, split = setting.scenes()
    folders = params.run_dir / "pseudo_masks", setting.folder / "masks"
    labels, masker = training_labels(params, split), build_masker(params, setting.device)
    return Ways(
        f"small CLIP, {_about(setting.size, len(split))}",
        lambda: export_masks(params, "train", setting.processes),
        lambda: plain.export(masker, split.image_paths, labels, setting.size, folders[1]),
        lambda: [shutil.rmtree(folder, ignore_errors=True) for folder in folders],
    )


def prediction(setting: Setting) -> Ways:
    """A network's predictions of a folder, from image files to mask files."""
    params, split = setting.scenes()
    text = torch.randn(11, 128, generator=torch.Generator().manual_seed(0))
    network = build_network(params, text).to(setting.device).eval()
    other = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    folders = setting.folder / "predicted", setting.folder / "plainly"
    return Ways(
        f"small network, {_about(setting.size, len(split))}",
        lambda: predict_split(network, split, params, folders[0], "bench", pictures=False),
        lambda: plain.predict(other, split.image_paths, folders[1]),
        lambda: [shutil.rmtree(folder, ignore_errors=True) for folder in folders],
    )


def evaluation(setting: Setting) -> Ways:
    """Scores of a folder of predictions."""
    (params, split), folder = setting.scenes(), setting.folder / f"shifted_{setting.size[0]}"
    for i, name in enumerate(split.names):
        write_mask(folder, name, np.roll(split.mask(i), setting.size[1] // 64, 1), split.class_set)
    paths = [folder / f"{name}.png" for name in split.names]
    small = split.class_set.small_ids

    def ours() -> np.ndarray:
        found = evaluate_folder(folder, split, params, "bench")
        return np.array(found["confusion"])[:, :11]

    return Ways(_about(setting.size, len(split)), ours, lambda: plain.evaluate(paths, split.mask_paths, 11, small))


def analysis(setting: Setting) -> Ways:
    """Frequency of classes, and their objects."""
    params, split = setting.scenes()

    def ours() -> tuple[np.ndarray, int]:
        found = analyse_split(split, params)
        return np.array(found["pixel_share"]), sum(found["object_count"].values())

    return Ways(_about(setting.size, len(split)), ours, lambda: plain.analyse(split.mask_paths, 11))


def crf(setting: Setting) -> Ways:
    """Refinement of one mask by a dense CRF."""
    split = setting.halved().scenes()[1]
    image, mask = split.image(0), np.roll(split.mask(0), 3, 1)
    mask[mask > 10] = 0
    return Ways(_about(mask.shape), lambda: refine(image, mask, 19), lambda: plain.crf(image, mask, 19))


def counting(setting: Setting) -> Ways:
    """Confusion of one image."""
    generator = np.random.default_rng(0)
    ids = generator.integers(0, setting.classes + 1, (2, *setting.size), dtype=np.uint8)
    ids[ids == setting.classes] = 255
    ids[0][ids[0] == 255] = 0
    found, truth = np.repeat(np.repeat(ids[:, ::4, ::4], 4, 1), 4, 2)
    classes = setting.classes
    return Ways(
        _about(setting.size, 0, classes),
        lambda: confusion(found, truth, classes)[:, :classes],
        lambda: plain.confusion(found, truth, classes),
    )


# --- the table -------------------------------------------------------------------------------------------------------

STAGES = (
    *(
        Stage(f"masks, {strategy.replace('_', ' ')}", functools.partial(clip_masks, strategy=strategy), same_ids)
        for strategy in plain.LAST
    ),
    Stage("loss", loss, same_values),
    Stage("training step", training_step, same_values),
    Stage("loader", loader, same_crops),
    Stage("loader, cache_images", functools.partial(loader, cache="decoded"), same_crops),
    Stage("mask export", export, same_folders),
    Stage("prediction", prediction, same_folders),
    Stage("upsampling, argmax", upsampling, same_ids),
    Stage("evaluation", evaluation, same_values),
    Stage("confusion", counting, same_values),
    Stage("analysis", analysis, same_values),
    Stage("CRF", crf, functools.partial(same_ids, share=0.999)),
)
QUICK = [stage for stage in STAGES if stage.name.partition("masks, ")[2] in ("", "value path", "naclip")]
