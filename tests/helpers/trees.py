"""Small datasets in the exact form they are published in: names, modes, and the files that lie beside the masks.

Every `write_*` returns the truth as {split: {name: mask of train ids, (H, W) uint8, 255 void}}.
"""

from __future__ import annotations

import json
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from small import small_params

from carblib.params import Params

SIZE = (18, 32)
Truth = dict[str, dict[str, np.ndarray]]


def params(root: Path, dataset: str, classes: str | list = "camvid", **others) -> Params:
    return small_params(dataset=dataset, root=str(root), classes=classes, **others)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def save_grey(path: Path, array: np.ndarray, bits: int) -> Path:
    """Write a grey PNG of 1, 2 or 4 bits, which Pillow cannot: the values as they are."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = array.shape
    digits = (np.asarray(array, np.uint8)[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(digits.reshape(height, width * bits), axis=1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def photo(path: Path, seed: int, size: tuple[int, int] = SIZE) -> Path:
    return save(path, np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def draw(seed: int, values: list[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """A mask of random values that holds every one of `values`, in no particular place."""
    generator = np.random.default_rng(seed)
    mask = generator.choice(values, size)
    mask.ravel()[generator.permutation(mask.size)[: len(values)]] = values
    return mask


# --- CamVid --------------------------------------------------------------------------------------------------------

# The lines of label_colors.txt.
LABEL_COLORS = """\
64 128 64\tAnimal
192 0 128\tArchway
0 128 192\tBicyclist
0 128 64\tBridge
128 0 0\t\tBuilding
64 0 128\tCar
64 0 192\tCartLuggagePram
192 128 64\tChild
192 192 128\tColumn_Pole
64 64 128\tFence
128 0 192\tLaneMkgsDriv
192 0 64\tLaneMkgsNonDriv
128 128 64\tMisc_Text
192 0 192\tMotorcycleScooter
128 64 64\tOtherMoving
64 192 128\tParkingBlock
64 64 0\t\tPedestrian
128 64 128\tRoad
128 128 192\tRoadShoulder
0 0 192\t\tSidewalk
192 128 128\tSignSymbol
128 128 128\tSky
64 128 192\tSUVPickupTruck
0 0 64\t\tTrafficCone
0 64 64\t\tTrafficLight
192 64 128\tTrain
128 128 0\tTree
192 128 192\tTruck_Bus
64 0 64\t\tTunnel
192 192 0\tVegetationMisc
0 0 0\t\tVoid
64 192 0\tWall
"""
# Position of each of the 32 among sky building pole road sidewalk tree signsymbol fence car pedestrian bicyclist.
CAMVID_11_OF_32 = (
    [9, 1, 10, 1, 1, 8, 9, 9, 2, 7, 3, 3, 6, 10, 8, 4]  # Animal … ParkingBlock
    + [9, 3, 4, 4, 6, 0, 8, 2, 6, 8, 5, 8, 1, 5, 255, 1]  # Pedestrian … Wall
)
CAMVID_NAMES = {
    "train": ["0001TP_006690", "0001TP_008520", "0006R0_f00930", "0016E5_00390", "0016E5_08190"],
    "val": ["0016E5_07959", "0016E5_08159"],
    "test": ["0001TP_008550", "Seq05VD_f00000", "Seq05VD_f05100"],
}


def _index_masks(names: dict[str, list[str]], classes: int, void: int) -> tuple[dict, Truth]:
    stored = {
        name: draw(seed, [*range(classes), void]).astype(np.uint8)
        for seed, name in enumerate(name for group in names.values() for name in group)
    }
    truth = {
        split: {name: np.where(stored[name] == void, 255, stored[name]).astype(np.uint8) for name in group}
        for split, group in names.items()
    }
    return stored, truth


def write_segnet(root: Path, names: dict[str, list[str]] = CAMVID_NAMES) -> Truth:
    """SegNet's form: <split>/X.png, <split>annot/X.png of mode L, 11 = void, lists with absolute paths."""
    stored, truth = _index_masks(names, 11, 11)
    for split, group in names.items():
        for seed, name in enumerate(group):
            photo(root / split / f"{name}.png", seed)
            save(root / f"{split}annot" / f"{name}.png", stored[name])
        lines = [f"/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png" for n in group]
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return truth


def write_camvid_carb(root: Path, void: int = 255) -> Truth:
    """CARB's form of CamVid: img/<split>/X.png, mask/<split>/X.png."""
    stored, truth = _index_masks(CAMVID_NAMES, 11, void)
    for split, group in CAMVID_NAMES.items():
        for seed, name in enumerate(group):
            photo(root / "img" / split / f"{name}.png", seed)
            save(root / "mask" / split / f"{name}.png", stored[name])
    return truth


def _colour_masks() -> tuple[dict[str, np.ndarray], Truth]:
    colours = np.array([line.split()[:3] for line in LABEL_COLORS.splitlines()], np.uint8)
    stored, truth = {}, {}
    for split, names in CAMVID_NAMES.items():
        for seed, name in enumerate(names):
            classes = draw(100 + seed, list(range(32)))
            stored[name] = colours[classes]
            truth.setdefault(split, {})[name] = np.array(CAMVID_11_OF_32, np.uint8)[classes]
    return stored, truth


def write_camvid_original(root: Path) -> Truth:
    """The original download: 701_StillsRaw_full/X.png, LabeledApproved_full/X_L.png in RGB, label_colors.txt."""
    stored, truth = _colour_masks()
    for seed, (name, mask) in enumerate(stored.items()):
        photo(root / "701_StillsRaw_full" / f"{name}.png", seed)
        save(root / "LabeledApproved_full" / f"{name}_L.png", mask)
    (root / "label_colors.txt").write_text(LABEL_COLORS)
    return truth


def write_camvid_colour_folders(root: Path) -> Truth:
    """The copy in circulation with split folders: train/X.png, train_labels/X_L.png, class_dict.csv."""
    stored, truth = _colour_masks()
    for split, names in CAMVID_NAMES.items():
        for seed, name in enumerate(names):
            photo(root / split / f"{name}.png", seed)
            save(root / f"{split}_labels" / f"{name}_L.png", stored[name])
    (root / "class_dict.csv").write_text("name,r,g,b\nAnimal,64,128,64\n")
    return truth


# --- Cityscapes ----------------------------------------------------------------------------------------------------

CITYSCAPES_FRAMES = {
    "train": {"aachen": ["000000_000019", "000001_000019"], "zurich": ["000000_000019"]},
    "val": {"frankfurt": ["000000_000294", "000001_002512"], "munster": ["000173_000019"]},
    "test": {"berlin": ["000000_000019"], "bonn": ["000000_000019"]},
}
CITYSCAPES_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
CITYSCAPES_IDS |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}


def write_cityscapes(root: Path, size: tuple[int, int] = (16, 32)) -> Truth:
    """leftImg8bit and gtFine as unzipped; test masks blank; no labelTrainIds, as they are not shipped."""
    truth: Truth = {}
    for split, cities in CITYSCAPES_FRAMES.items():
        for city, frames in cities.items():
            for seed, frame in enumerate(frames):
                name = f"{city}_{frame}"
                photo(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", seed, size)
                label_ids = draw(seed, list(range(34)), size).astype(np.uint8)
                label_ids = np.zeros_like(label_ids) if split == "test" else label_ids
                base = root / "gtFine" / split / city / f"{name}_gtFine"
                save(Path(f"{base}_labelIds.png"), label_ids)
                save(Path(f"{base}_instanceIds.png"), label_ids.astype(np.uint16) * 1000 + 3)
                save(Path(f"{base}_color.png"), np.full((*size, 4), 255, np.uint8))
                polygons = {"imgHeight": size[0], "imgWidth": size[1], "objects": []}
                Path(f"{base}_polygons.json").write_text(json.dumps(polygons))
                mask = np.full(size, 255, np.uint8)
                for value, train_id in CITYSCAPES_IDS.items():
                    mask[label_ids == value] = train_id
                truth.setdefault(split, {})[name] = mask
    return truth


# --- WildDash2 -----------------------------------------------------------------------------------------------------

WILDDASH_CATEGORIES = (
    "unlabeled egovehicle overlay outofroi static dynamic ground road sidewalk parking railtrack building wall fence "
    "guardrail bridge tunnel pole polegroup trafficlight trafficsign vegetation terrain sky person rider car truck bus "
    "caravan trailer onrails motorcycle bicycle pickup van billboard streetlight roadmarking junctionbox mailbox "
    "manhole phonebooth pothole bikerack trafficsignframe utilitypole motorcyclist bicyclist otherrider bird "
    "groundanimal curb trafficsignany trafficsignback trashcan otherbarrier othervehicle autorickshaw bench mountain "
    "tramtrack wheeledslow boat bikelane bikelanesidewalk banner dashcammount water sand pedestrianarea firehydrant "
    "cctvcamera snow catchbasin crosswalkplain crosswalkzebra manholesidewalk curbterrain servicelane curbcut"
).split()
# Train ids of those categories in the 25 classes and in Cityscapes' 19, in the same order (255 = void).
WILDDASH_25 = (
    [255, 0, 255, 255, 255, 255, 255, 1, 2, 255, 255, 3, 4, 5, 6, 255, 255, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]
    + [255, 255, 255, 18, 19, 20, 21, 22, 23, 24, 255, 255, 1, 255, 1, 255, 7, 7, 14, 14, 14, 255, 255, 2, 255, 255]
    + [255, 4, 255, 18, 255, 255, 1, 255, 255, 1, 2, 255, 0, 255, 255, 1, 255, 255, 255, 1, 1, 1, 2, 11, 1, 2]
)
WILDDASH_19 = (
    [255, 255, 255, 255, 255, 255, 255, 0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    + [15, 255, 255, 16, 17, 18, 14, 13, 255, 255, 0, 255, 255, 0, 255, 0, 255, 5, 5, 12, 12, 12, 255, 255, 1, 255]
    + [255, 255, 3, 255, 17, 255, 255, 0, 255, 255, 0, 1, 255, 255, 255, 255, 0, 255, 255, 255, 0, 0, 0, 1, 9, 0, 1]
)


def write_wilddash2(root: Path, names: list[str], view: list[int] = WILDDASH_25) -> dict[str, np.ndarray]:
    """The official package: images/X.jpg, panoptic/X.png, panoptic.json. Returns {name: mask} over both splits."""
    ids = [*range(len(WILDDASH_CATEGORIES))]
    truth, annotations, images = {}, [], []
    for seed, name in enumerate(names):
        photo(root / "images" / f"{name}.jpg", seed)
        # Two segments per category, numbered over all three bytes; segment 0 is "no segment".
        segments = random.Random(seed).sample(range(1, 1 << 24), 2 * len(ids))
        places = draw(seed, [*range(2 * len(ids) + 1)], (20, 32))[: SIZE[0]]
        segment_ids = np.append(segments, 0)[places]
        colours = np.stack([segment_ids & 255, segment_ids >> 8 & 255, segment_ids >> 16], -1).astype(np.uint8)
        save(root / "panoptic" / f"{name}.png", colours)
        # Category ids are shifted: packages number them differently, and only the names count.
        info = [
            {"id": s, "category_id": ids[k % len(ids)] + 3, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]}
            for k, s in enumerate(segments)
        ]
        images.append({"id": seed, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]})
        annotations.append({"image_id": seed, "file_name": f"{name}.png", "segments_info": info})
        truth[name] = np.array([*view, *view, 255], np.uint8)[places]
    categories = [
        {"id": value + 3, "name": name, "isthing": 0, "supercategory": "x", "color": [0, 0, 0]}
        for value, name in enumerate(WILDDASH_CATEGORIES)
    ]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    (root / "panoptic.json").write_text(json.dumps(content))
    return truth


def write_wilddash2_carb(root: Path) -> Truth:
    """CARB's form of WildDash2: img/<split>/X.jpg, mask/<split>/X_labelTrainIds.png of 25 train ids."""
    names = {"train": ["ar0000_100000", "us0012_100000"], "val": ["ro0003_100000"]}
    stored, truth = _index_masks(names, 25, 255)
    for split, group in names.items():
        for seed, name in enumerate(group):
            photo(root / "img" / split / f"{name}.jpg", seed)
            save(root / "mask" / split / f"{name}_labelTrainIds.png", stored[name])
    return truth


# --- a folder of one's own -----------------------------------------------------------------------------------------


def write_folder(images: Path, names: list[str], masks: Path | None = None, classes: int = 3) -> dict[str, np.ndarray]:
    """Images (each name with its suffix) in a folder, and index masks in another."""
    truth = {}
    for seed, file in enumerate(names):
        photo(images / file, seed)
        if masks is not None:
            name = Path(file).stem
            truth[name] = draw(seed, [*range(classes), 255]).astype(np.uint8)
            save(masks / f"{name}.png", truth[name])
    return truth
