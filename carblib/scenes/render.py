"""One rendered scene from one seed. No file and no torch is touched here, so a worker process starts quickly."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from carblib.base.errors import CarbError
from carblib.scenes.layout import draw_camera, draw_light, draw_street, plan_scene
from carblib.scenes.paint import ROAD, SIDEWALK, SKY, TREE, Canvas, expose, paint_ground, paint_sky

USES = ("train", "val", "test", "clip", "backbone")


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene: class id 0–10, box (top, left, bottom, right) of its visible pixels (end exclusive)."""

    class_id: int
    box: tuple[int, int, int, int]
    visible_pixels: int
    colour: str
    kind: str


@dataclass
class Scene:
    """A rendered picture: image (H, W, 3) uint8, exact mask (H, W) uint8 of ids 0–10, visible objects, conditions."""

    image: np.ndarray
    mask: np.ndarray
    objects: list[SceneObject]
    conditions: dict[str, str]


def scene_seed(use: str, index: int, seed: int = 0) -> tuple[int, int, int]:
    """Seed of picture `index` (from 0) of a use; two uses never share one. CarbError for an unknown use."""
    if use not in USES:
        raise CarbError(f"scenes: unknown use '{use}'; choose one of {', '.join(USES)}")
    if not (0 <= index < 2**32 and 0 <= seed < 2**32):
        raise CarbError(f"scenes: index and seed must be 0 to 2^32 - 1, not {index} and {seed}")
    return USES.index(use), seed, index


def render_scene(seed: int | tuple[int, ...], size: tuple[int, int] = (256, 512)) -> Scene:
    """Render one street. size is (H, W) in pixels, 32 at least; the same seed and size give the same bytes."""
    if min(size) < 32:
        raise CarbError(f"scenes: size {tuple(size)} is too small; use 32 pixels or more on each side")
    # SeedSequence pads with zeros, so 5 and (5, 0) would agree: the leading count keeps them apart.
    entropy = [len(seed), *seed] if isinstance(seed, tuple) else [0, seed]
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
    light = draw_light(rng)
    street = draw_street(light, rng)
    canvas = Canvas(draw_camera(size, street.half, rng), light)
    canvas.add(SKY, _sky_word(light.name, light.sky), "sky", 0.0)
    canvas.add(ROAD, "grey", "road", 0.02)
    canvas.add(SIDEWALK, "grey", "sidewalk", 0.02)
    canvas.add(TREE, "green", "grass", 0.06)
    paint_sky(canvas, rng)
    paint_ground(canvas, street, rng)
    plan_scene(canvas, street, rng).draw()
    image, numbers = expose(canvas, size, rng)
    classes = np.array([thing.class_id for thing in canvas.things], np.uint8)
    conditions = {"light": light.name, "sky": light.sky, "road": "curve" if canvas.camera.bend else "straight"}
    return Scene(image, classes[numbers], _objects(canvas, numbers), conditions)


def _sky_word(light: str, sky: str) -> str:
    return {"overcast": "grey", "dusk": "orange", "night": "black"}.get(light, "white" if sky == "covered" else "blue")


def _objects(canvas: Canvas, numbers: np.ndarray) -> list[SceneObject]:
    """The things of which something is visible; `numbers` (H, W) names the thing at each pixel."""
    areas = ndimage.find_objects(numbers.astype(np.int32) + 1, len(canvas.things))
    pixels = np.bincount(numbers.ravel(), minlength=len(canvas.things)).tolist()
    objects = []
    for thing, area, count in zip(canvas.things, areas, pixels, strict=True):
        if area is not None:
            box = (area[0].start, area[1].start, area[0].stop, area[1].stop)
            objects.append(SceneObject(thing.class_id, box, count, thing.colour, thing.kind))
    return objects


def render_pngs(job: tuple[str, tuple[int, ...], tuple[int, int]]) -> tuple[str, bytes, bytes]:
    """Render (name, seed, size) and return the name with the image and the mask as PNG files."""
    name, seed, size = job
    scene = render_scene(seed, size)
    return name, _png(scene.image), _png(scene.mask)


def _png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG", compress_level=3)
    return out.getvalue()
