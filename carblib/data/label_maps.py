"""How each dataset writes its masks, and what becomes of them: tables of train ids and the vectorised look-ups.

Tables are data: value or colour or category on disk → train id, 255 for void. A value that is in no table is an error
of the file or of the chosen class set, never silently void.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from carblib.base.errors import CarbError, nearest
from carblib.base.files import read_json
from carblib.base.images import open_mask_png
from carblib.classes import CAMVID, IGNORE, WILDDASH2, ClassSet, Colour
from carblib.data.optimised_masks import packed, read_indices

# --- CamVid --------------------------------------------------------------------------------------------------------

# The 32 classes of the original colour masks (label_colors.txt), and the class of the 11 each is folded into.
_CAMVID_32 = """
    64 128 64   Animal             pedestrian   | 192 0 128   Archway            building
    0 128 192   Bicyclist          bicyclist    | 0 128 64    Bridge             building
    128 0 0     Building           building     | 64 0 128    Car                car
    64 0 192    CartLuggagePram    pedestrian   | 192 128 64  Child              pedestrian
    192 192 128 Column_Pole        pole         | 64 64 128   Fence              fence
    128 0 192   LaneMkgsDriv       road         | 192 0 64    LaneMkgsNonDriv    road
    128 128 64  Misc_Text          signsymbol   | 192 0 192   MotorcycleScooter  bicyclist
    128 64 64   OtherMoving        car          | 64 192 128  ParkingBlock       sidewalk
    64 64 0     Pedestrian         pedestrian   | 128 64 128  Road               road
    128 128 192 RoadShoulder       sidewalk     | 0 0 192     Sidewalk           sidewalk
    192 128 128 SignSymbol         signsymbol   | 128 128 128 Sky                sky
    64 128 192  SUVPickupTruck     car          | 0 0 64      TrafficCone        pole
    0 64 64     TrafficLight       signsymbol   | 192 64 128  Train              car
    128 128 0   Tree               tree         | 192 128 192 Truck_Bus          car
    64 0 64     Tunnel             building     | 192 192 0   VegetationMisc     tree
    0 0 0       Void               void         | 64 192 0    Wall               building
"""


def camvid_colours() -> dict[int, int]:
    """Return CamVid's 32 colours, packed as `decode_packed` wants them → train ids of the 11 classes, Void 255."""
    rows = [row.split() for row in _CAMVID_32.replace("|", "\n").strip().splitlines()]
    return {
        int(red) + (int(green) << 8) + (int(blue) << 16): IGNORE if folded == "void" else CAMVID.index(folded)
        for red, green, blue, _, folded in rows
    }


def camvid_indices() -> dict[int, int]:
    """Return the values of CamVid's 11-class index masks (SegNet and CARB form): 0–10 as they are, 11 and 255 void."""
    return {**own_indices(len(CAMVID)), len(CAMVID): IGNORE}


def camvid_split(name: str) -> str | None:
    """Return the standard split of a frame of the original 701: train (367), val (101), test (233); None for others.

    The published lists follow the sequences: 0006R0 and 0016E5 train, but for the 15 Hz stretch of 0016E5, which is
    val; the first half of 0001TP trains, the second half and Seq05VD test.
    """
    match = re.fullmatch(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)", name)
    if match is None:
        return None
    sequence, frame = match[1], int(match[2])
    if sequence == "0016E5":
        return "val" if 7959 <= frame <= 8159 else "train"
    if sequence == "0001TP":
        return "train" if frame <= 8520 else "test"
    return "train" if sequence == "0006R0" else "test"


# --- Cityscapes ----------------------------------------------------------------------------------------------------

_CITYSCAPES_LABEL_IDS = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)


def cityscapes_label_ids() -> dict[int, int]:
    """Return Cityscapes' labelIds 0–33 → train ids 0–18; the rest is void, as is 255 (−1, licence plate, as uint8)."""
    table = {value: IGNORE for value in (*range(34), 255)}
    return table | {value: train_id for train_id, value in enumerate(_CITYSCAPES_LABEL_IDS)}


# --- WildDash2 -----------------------------------------------------------------------------------------------------

# WildDash2's evaluation policy: class of the 25 ← categories folded into it, besides the one of its own name.
_WILDDASH_FOLDED = {
    "ego vehicle": "dashcam mount",
    "road": "manhole, pothole, bike lane, crosswalk plain, crosswalk zebra, tram track, service lane, catch basin, "
    "pedestrian area",
    "sidewalk": "curb, curb cut, bike lane sidewalk, manhole sidewalk",
    "terrain": "curb terrain",
    "wall": "other barrier",
    "pole": "pole group, traffic sign frame, utility pole",
    "traffic sign": "traffic sign front",
    "rider": "motorcyclist, bicyclist, other rider",
    "motorcycle": "auto rickshaw",
}
# Void in the 25-class view. The last line holds names that only older packages use.
_WILDDASH_VOID = (
    "unlabeled, overlay, out of roi, static, dynamic, ground, parking, rail track, bridge, tunnel, caravan, trailer, "
    "on rails, junction box, mailbox, phone booth, bike rack, bird, ground animal, traffic sign any, "
    "traffic sign back, trash can, other vehicle, bench, mountain, wheeled slow, boat, banner, water, sand, "
    "fire hydrant, cctv camera, snow, "
    "rectification border, train, license plate"
)
# The Cityscapes-19 view: these change against the 25 classes, all others keep their name; "" is void.
_WILDDASH_AS_CITYSCAPES = {
    "ego vehicle": "",
    "guard rail": "",
    "pickup": "truck",
    "van": "car",
    "billboard": "",
    "streetlight": "",
    "roadmarking": "road",
}


def _plain(name: str) -> str:
    # Packages write one category as "egovehicle", "ego vehicle" or "ego-vehicle".
    return re.sub(r"[^a-z0-9]", "", name.lower())


def wilddash_class(category: str, class_set: ClassSet) -> int | None:
    """Return the train id of a WildDash2 category in a view (25 classes or Cityscapes' 19); 255 void, None unknown.

    In the 19-class view "on rails" is a train and "pole group" is void, as in Cityscapes itself.
    """
    plain = _plain(category)
    cityscapes_view = class_set.names != WILDDASH2.names
    if cityscapes_view and plain in ("onrails", "train", "polegroup"):
        return IGNORE if plain == "polegroup" else class_set.index("train")
    for name in WILDDASH2.names:
        folded = _WILDDASH_FOLDED.get(name, "").split(",")
        if plain == _plain(name) or plain in map(_plain, folded):
            target = _WILDDASH_AS_CITYSCAPES.get(name, name) if cityscapes_view else name
            return class_set.index(target) if target else IGNORE
    return IGNORE if plain in map(_plain, _WILDDASH_VOID.split(",")) else None


def wilddash_indices(class_set: ClassSet) -> dict[int, int]:
    """Return the values of CARB's WildDash2 masks (25 train ids, 255 void) in a view (25 classes or Cityscapes' 19)."""
    return {value: wilddash_class(name, class_set) for value, name in enumerate(WILDDASH2.names)} | {IGNORE: IGNORE}


def panoptic_segments(content: Mapping[str, Any], class_set: ClassSet) -> dict[str, tuple[np.ndarray, bytes]]:
    """Return each PNG's segment ids (uint32) and their train ids from the content of WildDash2's `panoptic.json`.

    Categories are read from the file by name, as packages number them differently. Raises CarbError where a segment is
    of an unknown one; categories that no segment is of do no harm.
    """
    categories = {category["id"]: category["name"] for category in content["categories"]}
    train_ids = {number: wilddash_class(name, class_set) for number, name in categories.items()}
    segments = {}
    for annotation in content["annotations"]:
        file, infos = annotation["file_name"], annotation["segments_info"]
        ids = np.array([segment["id"] for segment in infos], np.uint32)
        if (ids >> 24).any():
            raise ValueError(f"segment id {ids.max()} does not fit in a colour")
        numbers = [segment["category_id"] for segment in infos]
        unknown = [categories[number] for number in numbers if train_ids[number] is None]
        if unknown:
            hint = nearest(unknown[0], WILDDASH2.names) or "it is not WildDash2's"
            raise CarbError(
                f"{file} has a segment of the unknown category '{unknown[0]}' ({hint}); under `categories` rename it "
                "to the WildDash2 class it belongs to, or to 'unlabeled', which is void"
            )
        segments[file] = (ids, bytes(train_ids[number] for number in numbers))
    return segments


def wilddash_split(name: str) -> str:
    """Return "val" for about one frame in eight, "train" for the others: the official package comes in one folder.

    Drawn by CRC-32 of the video's part of the name ("us0012_100000"), so that no video's frames fall into both.
    """
    match = re.fullmatch(r"([a-z]{2}\d{4,})_\d+", name)
    return "train" if zlib.crc32((match[1] if match else name).encode()) % 8 else "val"


# --- look-ups ------------------------------------------------------------------------------------------------------


def own_indices(classes: int) -> dict[int, int]:
    """Return the values of a mask that holds train ids already: 0 … C−1, and 255 for void."""
    return {value: value for value in range(classes)} | {IGNORE: IGNORE}


def decode_index(path: Path, table: Mapping[int, int], palette: Sequence[Colour] = ()) -> np.ndarray:
    """Read an index mask and return its train ids, (H, W) uint8, 255 void.

    `palette`: colours of the values 0, 1, … where masks may carry them (`read_indices`). Raises CarbError naming the
    file for a mask of other colours and for a value that is not in `table`.
    """
    values = read_indices(path, table, palette)
    if values.ndim != 2:
        raise CarbError(f"{path}: a colour image, not an index mask; convert it to one class index per pixel")
    if values.max() > 255:
        unknown = values[values > 255]
    else:
        # Translating bytes is several times faster than fancy indexing, and deleting what is known leaves the rest.
        data = bytearray(values.astype(np.uint8, copy=False).tobytes())
        unknown = data.translate(None, bytes(table))
    if len(unknown):
        raise CarbError(f"{path}: value {unknown[0]} is no class ({_ranges(table)} are); {_REMEDY}")
    lookup = bytes(table.get(value, IGNORE) for value in range(256))
    return np.frombuffer(data.translate(lookup), np.uint8).reshape(values.shape)


def decode_packed(path: Path, table: Mapping[int, int]) -> np.ndarray:
    """Read a mask of colours, look up R + 256 G + 65536 B in `table` and return train ids, (H, W) uint8, 255 void.

    A palette or grey values, which optimisers turn colours into, are colours as well. Raises CarbError naming the file
    for a colour that is not in `table`.
    """
    png = open_mask_png(path)
    index = f"{path}: an index mask, where colours are expected; check which form of the dataset this is"
    plain = png.values.ndim == 2 and png.palette is None and png.stretch == 1
    if plain and (png.values.dtype != np.uint8 or not png.values.any()):  # optimisers leave one bit of black
        raise CarbError(index)
    packed_colours = packed(png.colours())
    # One entry per colour there is, 0 = unknown. Zeroed memory costs nothing until a page of it is touched.
    lookup = np.zeros(1 << 24, np.uint16)
    lookup[np.fromiter(table.keys(), np.int64, len(table))] = np.fromiter(table.values(), np.uint16, len(table)) + 1
    found = lookup[packed_colours]
    if not found.all():
        if png.values.ndim == 2:
            raise CarbError(index)
        key = int(packed_colours[found == 0][0])
        raise CarbError(f"{path}: colour {key & 255} {key >> 8 & 255} {key >> 16} (id {key}) is unknown; {_REMEDY}")
    return (found - 1).astype(np.uint8)


_PARSING = threading.Lock()  # of threads that read masks at once the first parses, the others wait


class PanopticMasks:
    """Decoder of WildDash2's panoptic PNGs; `panoptic.json` is read at the first mask and then kept."""

    def __init__(self, json_path: Path, class_set: ClassSet):
        self.json_path, self.class_set = json_path, class_set

    def __call__(self, path: Path) -> np.ndarray:
        """Return a mask's train ids, (H, W) uint8, 255 void; pixels of no segment are void. Raises CarbError."""
        with _PARSING:
            segments = self.segments
        if path.name not in segments:
            raise CarbError(f"{self.json_path}: no annotation for {path.name}; PNG and JSON must be of one package")
        ids, train_ids = segments[path.name]
        return decode_packed(path, {0: IGNORE, **dict(zip(ids.tolist(), train_ids, strict=True))})

    @cached_property
    def segments(self) -> dict[str, tuple[np.ndarray, bytes]]:
        """Segment ids and their train ids, by PNG name. Raises CarbError for a segment of an unknown category."""
        content = read_json(self.json_path, "unzip it from the package again")
        try:
            return panoptic_segments(content, self.class_set)
        except CarbError as error:
            raise CarbError(f"{self.json_path}: {error}") from error
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            what = f"no COCO panoptic file ({error!r})"
            raise CarbError(f"{self.json_path}: {what}; unzip it from the package again") from error


_REMEDY = "check `classes` and `dataset` in the parameters, or mend the mask"


def _ranges(values: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)


# --- and back to colours -----------------------------------------------------------------------------------------


def colour_mask(mask: np.ndarray, class_set: ClassSet) -> np.ndarray:
    """Paint a mask (H, W) uint8 of train ids in the classes' colours -> (H, W, 3) uint8; 255 is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(class_set)] = class_set.palette
    return table[mask]
