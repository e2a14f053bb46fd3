"""Drawing ground work of the rendered scenes: camera, light, colours, canvas, sky, ground and the final exposure.

Everything is drawn twice: in colour on an image that is `OVERSAMPLING` times larger than asked for, and as object
numbers on a map of the same size. The image is averaged down, which softens edges; the map is sampled, which keeps the
mask crisp.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

OVERSAMPLING = 2
SKY, BUILDING, POLE, ROAD, SIDEWALK, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
SKY_ID, ROAD_ID, SIDEWALK_ID, VERGE_ID = range(4)

Colour = tuple[float, float, float]
COLOURS: dict[str, Colour] = {
    "black": (32, 32, 36),
    "white": (226, 226, 222),
    "grey": (126, 128, 130),
    "silver": (172, 176, 180),
    "red": (168, 36, 34),
    "blue": (40, 72, 146),
    "green": (48, 98, 58),
    "yellow": (212, 178, 46),
    "orange": (206, 112, 42),
    "brown": (108, 74, 50),
    "beige": (198, 180, 148),
}


@dataclass(frozen=True)
class Camera:
    """A pinhole over a bent road: x metres right of the road's centre line, y metres up, z metres ahead."""

    height: int
    width: int
    focal: float
    horizon: float
    centre: float
    eye: float
    offset: float
    bend: float

    def scale(self, z: float) -> float:
        """Canvas pixels per metre at distance z."""
        return self.focal / max(z, 0.7)

    def u(self, x: float, z: float) -> float:
        """Column of a point."""
        z = max(z, 0.7)
        return self.centre + self.focal * (x - self.offset + 0.5 * self.bend * z * z) / z

    def v(self, y: float, z: float) -> float:
        """Row of a point."""
        return self.horizon + self.focal * (self.eye - y) / max(z, 0.7)

    def points(self, xyz: Sequence[tuple[float, float, float]]) -> list[tuple[float, float]]:
        """Canvas positions (column, row) of points (x, y, z)."""
        return [(self.u(x, z), self.v(y, z)) for x, y, z in xyz]


@dataclass(frozen=True)
class Light:
    """What the weather and the hour do to colours; colours are RGB 0–255, factors are relative to full daylight."""

    name: str
    sky: str
    ambient: Colour
    sun: float
    sun_side: int
    haze: Colour
    haze_range: float
    zenith: Colour
    skyline: Colour
    cloud: Colour
    cloudiness: float
    lamps: bool
    noise: float

    def shade(self, colour: Colour, z: float, factor: float = 1.0, glow: float = 0.0) -> tuple[int, int, int]:
        """Colour of a surface seen from z metres; `glow` is the share that shines by itself."""
        keep = math.exp(-z / self.haze_range)
        out = []
        for c, a, h in zip(colour, self.ambient, self.haze, strict=True):
            value = (c * (1 - glow) * a * factor + c * glow) * keep + h * (1 - keep)
            out.append(0 if value < 0 else 255 if value > 255 else int(value))
        return tuple(out)


@dataclass
class Thing:
    """What one object number of the canvas stands for."""

    class_id: int
    colour: str
    kind: str
    texture: float


class Canvas:
    """An image and its map of object numbers, drawn together from far to near."""

    def __init__(self, camera: Camera, light: Light):
        self.camera, self.light = camera, light
        self.image = Image.new("RGB", (camera.width, camera.height))
        self.ids = Image.new("L", (camera.width, camera.height))
        self._colour = ImageDraw.Draw(self.image)
        self._blend = ImageDraw.Draw(self.image, "RGBA")
        self._id = ImageDraw.Draw(self.ids)
        self.things: list[Thing] = []

    def add(self, class_id: int, colour: str, kind: str, texture: float) -> int:
        """Register an object and return its number, 0–255 (`layout.MAX_ITEMS` keeps below)."""
        self.things.append(Thing(class_id, colour, kind, texture))
        return len(self.things) - 1

    def polygon(self, points: list, colour: tuple, ident: int | None = None) -> None:
        """Fill a polygon; without an object number the map below stays (paint on a surface)."""
        self._colour.polygon(points, fill=colour)
        if ident is not None:
            self._id.polygon(points, fill=ident)

    def mark(self, points: list, ident: int) -> None:
        """Give a polygon of the map to an object that lets the picture behind it show through."""
        self._id.polygon(points, fill=ident)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, colour: tuple, ident: int | None = None) -> None:
        """Fill an ellipse with centre (cx, cy) and radii rx, ry."""
        box = (cx - rx, cy - ry, cx + rx, cy + ry)
        self._colour.ellipse(box, fill=colour)
        if ident is not None:
            self._id.ellipse(box, fill=ident)

    def ring(self, cx: float, cy: float, rx: float, ry: float, width: float, colour: tuple) -> None:
        """Draw the outline of an ellipse on the image."""
        self._colour.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), outline=colour, width=max(1, round(width)))

    def line(self, points: list, width: float, colour: tuple, ident: int | None = None) -> None:
        """Draw a line; one with an object number is never thinner than a pixel of the final mask."""
        wide = max(OVERSAMPLING if ident is not None else 1, round(width))
        self._colour.line(points, fill=colour, width=wide)
        if ident is not None:
            self._id.line(points, fill=ident, width=wide)

    def shadow(self, cx: float, cy: float, rx: float, ry: float, strength: float) -> None:
        """Darken an ellipse of the ground (0–1)."""
        self._blend.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=(8, 8, 14, int(255 * strength)))

    def veil(self, points: list, colour: tuple, strength: float) -> None:
        """Blend a polygon of colour over the image (0–1)."""
        self._blend.polygon(points, fill=(*colour, int(255 * strength)))

    def halo(self, cx: float, cy: float, radius: float, colour: tuple) -> None:
        """Soft light round a lamp."""
        for share, strength in ((1.0, 0.10), (0.6, 0.16), (0.3, 0.30)):
            r = radius * share
            self._blend.ellipse((cx - r, cy - r, cx + r, cy + r), fill=(*colour, int(255 * strength)))

    def patch(self, left: int, top: int, pixels: np.ndarray, shape: np.ndarray, size: tuple, ident: int) -> None:
        """Paste a small texture (h, w, 3) through `shape` (h, w bool), stretched to `size` (H, W), at (left, top)."""
        height, width = size
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + width, self.camera.width), min(top + height, self.camera.height)
        if x1 <= x0 or y1 <= y0:
            return
        kx, ky = shape.shape[1] / width, shape.shape[0] / height
        part = ((x0 - left) * kx, (y0 - top) * ky, (x1 - left) * kx, (y1 - top) * ky)
        wanted, bilinear = (x1 - x0, y1 - y0), Image.Resampling.BILINEAR
        stencil = Image.fromarray(shape.view(np.uint8) * np.uint8(255)).resize(wanted, bilinear, box=part)
        stencil = stencil.point([0] * 128 + [255] * 128)
        self.image.paste(Image.fromarray(pixels).resize(wanted, bilinear, box=part), (x0, y0), stencil)
        self.ids.paste(ident, (x0, y0, x1, y1), stencil)


def corners(left: float, low: float, right: float, high: float) -> list[tuple[float, float]]:
    """The corners of a rectangle, one after the other."""
    return [(left, low), (right, low), (right, high), (left, high)]


def pick(rng: np.random.Generator, options: Sequence):
    """One of the options, all equally likely (repeat an option to make it likelier)."""
    return options[int(rng.random() * len(options))]


def jitter(rng: np.random.Generator, colour: Colour, amount: float = 14.0) -> Colour:
    """A colour near the one given: brightness moves most, hue a little."""
    a, b, c, d = rng.uniform(-1, 1, 4)
    shift = a * amount * 1.4
    return tuple(value + shift + hue * amount * 0.5 for value, hue in zip(colour, (b, c, d), strict=True))


def times(colour: Colour, factor: float) -> Colour:
    """A colour made darker (< 1) or lighter (> 1)."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


@functools.cache
def noise_tile() -> np.ndarray:
    """Fixed periodic noise of several scales, (512, 512) float32, mean 0 and standard deviation 1."""
    rng = np.random.Generator(np.random.PCG64(7))
    spectrum = np.fft.rfft2(rng.standard_normal((512, 512)))
    fy, fx = np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512)[None]
    radius = np.sqrt(fy**2 + fx**2)
    tile = np.fft.irfft2(spectrum / np.maximum(radius, 1.0 / 512) ** 0.85, s=(512, 512))
    return ((tile - tile.mean()) / tile.std()).astype(np.float32)


def noise_window(rng: np.random.Generator, height: int, width: int, step: float = 1.0) -> np.ndarray:
    """A (height, width) window of `noise_tile` at a random place, `step` tile cells per pixel."""
    tile = noise_tile()
    y0, x0 = rng.integers(0, 512, 2)
    rows = (y0 + np.arange(height) * step).astype(np.int64) & 511
    cols = (x0 + np.arange(width) * step).astype(np.int64) & 511
    return tile.ravel().take((rows << 9)[:, None] | cols[None])


def paint_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """Gradient from zenith to skyline with clouds and, under a low sun, a glow."""
    camera, light = canvas.camera, canvas.light
    rows, cols = 64, 96
    t = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None] ** 0.8
    sky = np.array(light.zenith, np.float32) * (1 - t) + np.array(light.skyline, np.float32) * t
    clouds = noise_window(rng, rows, cols, 1.0) * 0.8 + noise_window(rng, rows, cols, 0.35)
    cover = np.clip((clouds + 3.2 * light.cloudiness - 1.9) * 0.8, 0, 1)[..., None] * (0.35 + 0.6 * light.cloudiness)
    bright = np.array(light.cloud, np.float32) * (1 + 0.05 * noise_window(rng, rows, cols, 0.6))[..., None]
    sky = sky * (1 - cover) + bright * cover
    height = int(min(max(camera.horizon + 8, 8), camera.height))
    picture = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
    canvas.image.paste(picture.resize((camera.width, height), Image.Resampling.BILINEAR), (0, 0))
    canvas.ids.paste(SKY_ID, (0, 0, camera.width, height))


@dataclass(frozen=True)
class Street:
    """The plan of the ground, in metres from the road's centre line."""

    half: float
    walks: tuple[float, float]
    lanes: int
    verge: str
    junction: tuple[float, float] | None
    crossing: float | None
    end: float
    shadow: tuple[float, float] | None
    road: Colour
    walk: Colour
    grass: Colour
    paving: float
    marking: str


def paint_ground(canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
    """Road with markings, kerbs, paved sidewalks and verges, textured in road coordinates."""
    camera, light = canvas.camera, canvas.light
    top = max(0, int(math.floor(camera.horizon)) + 1)
    if top >= camera.height:
        return
    rows = np.arange(top, camera.height, dtype=np.float32) + 0.5
    z = (camera.focal * camera.eye / np.maximum(rows - camera.horizon, 0.2)).astype(np.float32)[:, None]
    cols = (np.arange(camera.width, dtype=np.float32) + 0.5 - camera.centre)[None] / camera.focal
    x = cols * z + (camera.offset - 0.5 * camera.bend * z * z)
    band = _bands(street, x, z)
    band[(band == 0) & _markings(street, x, z)] = 4
    tone = _ground_tone(street, x, z, band, rng)
    # Colour through a palette of 5 surfaces x 48 brightness levels: far quicker than three float channels.
    surfaces = np.array([street.road, times(street.walk, 1.18), street.walk, street.grass, (190, 190, 185)], np.float32)
    levels = np.linspace(0.2, 1.6, 48, dtype=np.float32)[None, :, None]
    palette = np.clip(surfaces[:, None] * np.array(light.ambient, np.float32) * levels, 0, 255).astype(np.uint8)
    index = np.clip((tone - 0.2) * (47 / 1.4) + 0.5, 0, 47).astype(np.uint8)
    index = index.repeat(OVERSAMPLING, 0).repeat(OVERSAMPLING, 1)[: band.shape[0], : band.shape[1]]
    index = index + band * np.uint8(48)
    picture = Image.fromarray(index)
    picture.putpalette(palette.tobytes())
    canvas.image.paste(picture.convert("RGB"), (0, top))
    haze = np.broadcast_to(255 * (1 - np.exp(-z / light.haze_range)), index.shape).astype(np.uint8)
    canvas.image.paste(tuple(int(np.clip(c, 0, 255)) for c in light.haze), (0, top), Image.fromarray(haze))
    idents = bytes([ROAD_ID, SIDEWALK_ID, SIDEWALK_ID, VERGE_ID, ROAD_ID]) + bytes(251)
    canvas.ids.paste(Image.fromarray(band).point(list(idents)), (0, top))


def _bands(street: Street, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Which surface lies where: 0 road, 1 kerb, 2 sidewalk, 3 verge."""
    side = np.abs(x)
    band = (side > street.half).view(np.uint8) + (side > street.half + 0.17).view(np.uint8)
    if street.verge == "grass":
        band += ((x < -street.half - street.walks[0]) | (x > street.half + street.walks[1])).view(np.uint8)
    if street.junction is not None:
        band[(z[:, 0] > street.junction[0]) & (z[:, 0] < street.junction[1])] = 0
    return band


def _markings(street: Street, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """White paint: lane dashes, edge lines, a zebra crossing; none across a junction."""
    paint = np.zeros(x.shape, bool)
    if street.marking != "none":
        width = 2 * street.half / street.lanes
        for lane in range(1, street.lanes):
            line = np.abs(x + (street.half - lane * width)) < 0.08
            solid = street.marking == "solid" and 2 * lane == street.lanes
            paint |= line if solid else line & (np.remainder(z, 6.0) < 2.8)
    if street.marking in ("edged", "solid"):
        paint |= np.abs(np.abs(x) - (street.half - 0.35)) < 0.06
    if street.junction is not None:
        paint &= (z < street.junction[0] - 1) | (z > street.junction[1] + 1)
    if street.crossing is not None:
        rows = (z[:, 0] > street.crossing) & (z[:, 0] < street.crossing + 2.8)
        paint[rows] = np.remainder(x[rows], 1.0) < 0.5
    return paint


def _ground_tone(
    street: Street, x: np.ndarray, z: np.ndarray, band: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Brightness of the ground, one value per final pixel: grain, stains, joints and the shadow of houses."""
    x, z, band = (a[::OVERSAMPLING, ::OVERSAMPLING] for a in (x, z, band))
    ox, oz = rng.uniform(0, 512, 2)
    cells = ((z * 14 + oz).astype(np.int32) & 511) << 9
    cells = cells | (x * 14 + (ox + 8192)).astype(np.int32) & 511
    tone = 1 + np.array([0.06, 0.04, 0.07, 0.17, 0.05], np.float32).take(band) * noise_tile().ravel().take(cells)
    joints = (np.remainder(x, street.paving) < 0.05) | (np.remainder(z, street.paving * 1.4) < 0.05)
    tone[(band == 2) & joints & (z < 25)] *= 0.8
    if street.shadow is not None:
        low, high = street.shadow
        tone[(x > low) & (x < high)] *= 0.52
    return tone


def expose(canvas: Canvas, size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Average the canvas down to `size`, add texture, cast, blur and sensor noise: image (H, W, 3), numbers (H, W)."""
    height, width = size
    numbers = np.asarray(canvas.ids)[OVERSAMPLING // 2 :: OVERSAMPLING, OVERSAMPLING // 2 :: OVERSAMPLING].copy()
    small = canvas.image.reduce(OVERSAMPLING)
    if rng.random() < 0.4:
        small = small.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.7) * height / 256))
    amount = np.array([thing.texture for thing in canvas.things], np.float32)
    gain = 1 + amount.take(numbers) * noise_window(rng, height, width, 256 / height * 1.5)
    across, down = (np.linspace(-1, 1, length, dtype=np.float32) ** 2 for length in (width, height))
    gain *= rng.uniform(0.92, 1.15) * (1 - rng.uniform(0, 0.12) * (across + down[:, None]))
    cast = (1 + rng.normal(0, 0.035), 1.0, 1 + rng.normal(0, 0.035))
    image = np.empty((height, width, 3), np.uint8)
    for channel, plane in enumerate(small.split()):
        pixels = np.asarray(plane, np.float32) * (gain * np.float32(cast[channel]))
        pixels += _sensor_noise(rng, height, width) * np.float32(canvas.light.noise)
        image[..., channel] = np.clip(pixels, 0, 255, out=pixels)
    return image, numbers


@functools.cache
def _white_noise() -> np.ndarray:
    """A fixed table of standard normal numbers; pictures read it from random places, which is quicker than drawing."""
    return np.random.Generator(np.random.PCG64(11)).standard_normal(1 << 20, dtype=np.float32)


def _sensor_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    table = _white_noise()
    start = int(rng.integers(len(table) // 2))
    return np.resize(table[start : start + height * width], (height, width))  # repeats where the picture is larger
