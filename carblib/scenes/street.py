"""What stands along the rendered streets: buildings, trees, hedges, fences and the far background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from carblib.scenes.paint import (
    BUILDING,
    COLOURS,
    FENCE,
    OVERSAMPLING,
    TREE,
    Canvas,
    Colour,
    corners,
    jitter,
    noise_window,
    pick,
    times,
)

WALLS: dict[str, Colour] = {
    "beige": (196, 182, 154),
    "white": (214, 212, 204),
    "grey": (138, 138, 136),
    "brown": (128, 98, 76),
    "red": (140, 76, 60),
    "yellow": (204, 182, 122),
    "black": (70, 70, 74),
    "blue": (126, 144, 164),
}
_WALL_WORDS = ("beige", "beige", "white", "grey", "grey", "brown", "red", "red", "yellow", "black", "blue")
_GLASS = (62, 72, 84)
_LIT = (248, 214, 140)
_LEAVES: dict[str, Colour] = {
    "green": (66, 96, 42),
    "yellow": (168, 140, 48),
    "orange": (160, 88, 38),
    "brown": (104, 82, 56),
}
_FENCES = ("grey", "green", "brown", "white", "black", "silver", "brown", "grey")


@dataclass(frozen=True)
class Building:
    """One house: its front runs along the road from `near` to `far` metres at `x` metres, on side -1 or 1."""

    x: float
    side: int
    near: float
    far: float
    height: float
    kind: str
    roof: float


def draw_building(canvas: Canvas, house: Building, rng: np.random.Generator) -> None:
    """Front with windows and ground floor, end wall facing the camera, and a pitched or flat roof."""
    camera, light = canvas.camera, canvas.light
    word = pick(rng, _WALL_WORDS)
    wall = jitter(rng, WALLS[word], 16)
    ident = canvas.add(BUILDING, word, house.kind, 0.05 if word in ("red", "brown", "grey") else 0.03)
    near, far, x, height = max(house.near, 1.2), house.far, house.x, house.height
    depth = x + house.side * 9.0
    front = 1.0 + light.sun * (0.22 if light.sun_side != house.side else -0.28)
    end = 1.0 + light.sun * (-0.1 if light.sun_side != house.side else 0.05)
    if house.roof > 0:
        tiles = jitter(rng, pick(rng, ((122, 66, 52), (84, 84, 88), (98, 78, 68), (70, 72, 80))), 12)
        ridge, top = x + house.side * 4.5, height + house.roof
        slope = [(x, height - 0.2, near), (x, height - 0.2, far), (ridge, top, far), (ridge, top, near)]
        gable = [(x, height, near), (ridge, top, near), (depth, height, near)]
        canvas.polygon(camera.points(gable), light.shade(wall, near, end * 0.92), ident)
        canvas.polygon(camera.points(slope), light.shade(tiles, near * 0.7 + far * 0.3, front), ident)
        _chimney(canvas, ridge, near + 0.3 * (far - near), top, wall, ident)
    gable = [(x, 0, near), (depth, 0, near), (depth, height, near), (x, height, near)]
    canvas.polygon(camera.points(gable), light.shade(wall, near, end * 0.9), ident)
    for k in range(3):  # three strips, so that haze deepens along a long front
        a, b = near + (far - near) * k / 3, near + (far - near) * (k + 1) / 3
        strip = [(x, 0, a), (x, 0, b), (x, height, b), (x, height, a)]
        canvas.polygon(camera.points(strip), light.shade(wall, (a + b) / 2, front), ident)
    _windows(canvas, house, wall, near, front, rng)
    if house.roof <= 0:
        _band(canvas, x, (near, far), (height - 0.45, height), times(wall, 0.8), front, ident)


def _chimney(canvas: Canvas, x: float, z: float, top: float, wall: Colour, ident: int) -> None:
    camera, light = canvas.camera, canvas.light
    box = corners(camera.u(x - 0.5, z), camera.v(top - 0.6, z), camera.u(x + 0.5, z), camera.v(top + 1.1, z))
    canvas.polygon(box, light.shade(times(wall, 0.75), z), ident)


def _band(canvas: Canvas, x: float, ends: tuple, levels: tuple, colour: Colour, factor: float, ident: int) -> None:
    """A rectangle of a front between two distances and two heights; numbered, because it may touch the front's edge."""
    (near, far), (low, high) = ends, levels
    points = canvas.camera.points([(x, low, near), (x, low, far), (x, high, far), (x, high, near)])
    canvas.polygon(points, canvas.light.shade(colour, (near + far) / 2, factor), ident)


def _windows(
    canvas: Canvas, house: Building, wall: Colour, near: float, factor: float, rng: np.random.Generator
) -> None:
    """A grid of windows over the front; the ground floor is a row of shops in some houses."""
    x, far = house.x, house.far
    storey = rng.uniform(2.7, 3.5)
    base = 3.6 if house.kind == "shop" else storey if house.kind == "house" else rng.uniform(0.4, 3.2)
    floors = max(1, int((house.height - base - 0.3) / storey))
    spacing, share, tall = rng.uniform(1.8, 3.6), rng.uniform(0.35, 0.62), rng.uniform(0.42, 0.68)
    if house.kind == "office":
        share, tall = rng.uniform(0.7, 0.9), rng.uniform(0.55, 0.8)
    frame = times(wall, 1.25) if rng.random() < 0.6 else times(wall, 0.6)
    columns = np.arange(house.near + 0.6, far - spacing * share - 0.3, spacing)
    columns = columns[columns > near]
    lit_share = rng.uniform(0.15, 0.5) if canvas.light.lamps else 0.0
    levels = [base + storey * (k + 0.5) for k in range(floors)]
    if house.kind == "house":
        levels = [storey * (k + 0.5) for k in range(max(1, int(house.height / storey)))]
    levels = [level for level in levels if level + storey * tall / 2 < house.height - 0.3]
    for z in columns.tolist():
        if canvas.camera.scale(z) ** 2 * spacing * abs(house.x) / z < 2 * OVERSAMPLING:
            break
        draws = rng.random(len(levels)).tolist()
        for level, draw in zip(levels, draws, strict=True):
            _window(canvas, x, z, z + spacing * share, level, storey * tall / 2, frame, factor, draw, lit_share)
    if house.kind == "shop":
        _shops(canvas, house, near, factor, rng)
    else:
        _door(canvas, house, near, factor, rng)


def _window(canvas, x, near, far, level, half, frame, factor, draw, lit_share) -> None:
    camera, light = canvas.camera, canvas.light
    ua, ub = camera.u(x, near), camera.u(x, far)
    ta, tb = camera.v(level + half, near), camera.v(level + half, far)
    ba, bb = camera.v(level - half, near), camera.v(level - half, far)
    if max(ua, ub) < 0 or min(ua, ub) > camera.width or ba < 0:
        return
    glass = light.shade(_LIT, near, 1.0, 0.85) if draw < lit_share else light.shade(_GLASS, near, 0.7 + 0.9 * draw)
    outline = [(ua, ta), (ub, tb), (ub, bb), (ua, ba)]
    if ba - ta > 14 and abs(ub - ua) > 7:
        canvas.polygon(outline, light.shade(frame, near, factor))
        for low, high in ((0.1, 0.47), (0.53, 0.9)):
            pane = []
            for across, down in ((low, 0.07), (high, 0.07), (high, 0.93), (low, 0.93)):
                rows = ta + (tb - ta) * across, ba + (bb - ba) * across
                pane.append((ua + (ub - ua) * across, rows[0] + (rows[1] - rows[0]) * down))
            canvas.polygon(pane, glass)
    else:
        canvas.polygon(outline, glass)


def _shops(canvas: Canvas, house: Building, near: float, factor: float, rng: np.random.Generator) -> None:
    x, z, ident = house.x, house.near, len(canvas.things) - 1
    while z < house.far - 2.5:
        width = min(rng.uniform(4.0, 8.0), house.far - z)
        a, b = max(z + 0.2, near), z + width - 0.2
        if b > a + 0.5:
            board = jitter(rng, COLOURS[pick(rng, ("red", "blue", "green", "black", "white", "brown", "yellow"))], 18)
            _band(canvas, x, (a, b), (0.0, 3.3), times(board, 0.7), factor, ident)
            glow = 0.7 if canvas.light.lamps else 0.15
            points = [(x, 0.5, a + 0.3), (x, 0.5, b - 1.4), (x, 2.5, b - 1.4), (x, 2.5, a + 0.3)]
            glass = canvas.light.shade(_LIT if canvas.light.lamps else _GLASS, a, 0.9, glow)
            canvas.polygon(canvas.camera.points(points), glass)
            _band(canvas, x, (b - 1.2, b - 0.3), (0.0, 2.4), times(_GLASS, 0.6), factor, ident)
            _band(canvas, x, (a, b), (2.7, 3.35), board, factor, ident)
            if rng.random() < 0.35:
                out = x - house.side * 1.0
                awning = [(x, 2.9, a), (x, 2.9, b), (out, 2.35, b), (out, 2.35, a)]
                colour = canvas.light.shade(jitter(rng, board, 20), a, 1.05)
                canvas.polygon(canvas.camera.points(awning), colour, ident)
        z += width


def _door(canvas: Canvas, house: Building, near: float, factor: float, rng: np.random.Generator) -> None:
    z = house.near + rng.uniform(0.15, 0.75) * (house.far - house.near)
    if z > near and z < 60:
        colour = jitter(rng, pick(rng, ((70, 48, 36), (52, 60, 74), (44, 70, 54), (120, 40, 36))), 14)
        _band(canvas, house.x, (z, z + 1.1), (0.0, 2.1), colour, factor, len(canvas.things) - 1)


def draw_end_wall(canvas: Canvas, z: float, height: float, rng: np.random.Generator) -> None:
    """Houses across the end of the street, seen from the front."""
    camera, light = canvas.camera, canvas.light
    x = -40.0
    while x < 40.0:
        width, top = rng.uniform(9, 18), height * rng.uniform(0.75, 1.25)
        word = pick(rng, _WALL_WORDS)
        wall = jitter(rng, WALLS[word], 14)
        ident = canvas.add(BUILDING, word, "house", 0.04)
        left, right, ground = camera.u(x, z), camera.u(x + width, z), camera.v(0, z)
        canvas.polygon(corners(left, ground, right, camera.v(top, z)), light.shade(wall, z, 1.02), ident)
        if rng.random() < 0.5:
            peak = camera.v(top + rng.uniform(1.5, 3.5), z)
            inset = (right - left) * rng.uniform(0.0, 0.5)
            roof = [(left, camera.v(top, z)), (right, camera.v(top, z)), (right - inset, peak), (left + inset, peak)]
            canvas.polygon(roof, light.shade(jitter(rng, (100, 76, 70)), z), ident)
        storey, step = 3.1, rng.uniform(2.0, 3.2)
        for level in np.arange(1.0, top - 2.2, storey).tolist():
            for a in np.arange(x + 0.7, x + width - 1.4, step).tolist():
                lit = light.lamps and rng.random() < 0.3
                glass = light.shade(_LIT, z, 1, 0.85) if lit else light.shade(_GLASS, z, 0.8 + 0.5 * rng.random())
                window = camera.u(a, z), camera.v(level + 1.6, z), camera.u(a + 1.1, z), camera.v(level, z)
                canvas.polygon(corners(*window), glass)
        x += width


def draw_background(canvas: Canvas, z: float, height: float, wooded: float, rng: np.random.Generator) -> None:
    """A far line of trees and roofs along the horizon."""
    camera, light = canvas.camera, canvas.light
    reach = z * camera.width / camera.focal
    for class_id in (BUILDING, TREE):
        if class_id == TREE and rng.random() > wooded:
            continue
        colour = "grey" if class_id == BUILDING else "green"
        ident = canvas.add(class_id, colour, "skyline" if class_id == BUILDING else "forest", 0.05)
        base = (128, 122, 118) if class_id == BUILDING else (62, 84, 48)
        x, line = -reach, []
        while x < reach:
            width = rng.uniform(6, 22) if class_id == BUILDING else rng.uniform(2, 6)
            top = height * (rng.uniform(0.4, 1.3) if class_id == BUILDING else rng.uniform(0.45, 0.75))
            line += [(x, top, z), (x + (width if class_id == BUILDING else 0), top, z)]
            x += width
        points = camera.points([(-reach, -0.3, z), *line, (reach, -0.3, z)])
        canvas.polygon(points, light.shade(jitter(rng, base, 16), z * 0.8), ident)


def draw_tree(
    canvas: Canvas, x: float, z: float, height: float, shape: str, word: str, rng: np.random.Generator
) -> None:
    """Trunk with branches and a crown of leaves with a ragged edge and gaps; shape round, tall, cone or bush."""
    camera, light = canvas.camera, canvas.light
    ident = canvas.add(TREE, word, "bush" if shape == "bush" else "tree", 0.06)
    scale, u, foot = camera.scale(z), camera.u(x, z), camera.v(0, z)
    canvas.shadow(u, foot, 0.3 * height * scale, 0.05 * height * scale, 0.15 + 0.2 * light.sun)
    stem = {"round": 0.38, "tall": 0.16, "cone": 0.12, "bush": 0.0}[shape] * height
    wide = {"round": 0.62, "tall": 0.28, "cone": 0.42, "bush": 1.3}[shape] * height * rng.uniform(0.8, 1.2)
    bark = light.shade(jitter(rng, (86, 70, 56), 14), z, 0.9)
    if stem:
        thick = max(0.035 * height * scale, OVERSAMPLING)
        lean = rng.normal(0, 0.03) * height * scale
        fork = foot - stem * 1.25 * scale
        canvas.polygon([(u - thick / 2, foot), (u + thick / 2, foot), (u + lean + thick * 0.35, fork),
                        (u + lean - thick * 0.35, fork)], bark, ident)  # fmt: skip
        for _ in range(3 if scale > 12 else 0):
            tip = u + rng.uniform(-0.3, 0.3) * wide * scale
            branch = [(u + lean, fork + 2), (tip, fork - rng.uniform(0.1, 0.3) * height * scale)]
            canvas.line(branch, thick * 0.4, bark, ident)
    tall = (height - stem) * scale
    rows, cols = int(np.clip(tall, 4, 80)), int(np.clip(wide * scale, 4, 80))
    yy, xx = np.linspace(-1, 1, rows, dtype=np.float32)[:, None], np.linspace(-1, 1, cols, dtype=np.float32)[None]
    lumps = noise_window(rng, rows, cols, max(0.25, 70.0 / max(rows, 8) * 0.8))
    leaves = noise_window(rng, rows, cols, max(0.8, 220.0 / max(rows, 8)))
    if shape == "cone":
        field = np.minimum((yy + 1.0) * 0.5, 1.6 - 1.6 * yy) - np.abs(xx) - 0.02
        crown = field + 0.10 * lumps + 0.05 * leaves > 0
    else:
        field = 1 - xx**2 - np.maximum(yy, yy * 0.9) ** 2
        crown = field + 0.20 * lumps + 0.12 * leaves > 0.22
    tone = 0.78 + 0.17 * leaves + 0.14 * lumps - 0.25 * yy + 0.2 * light.sun * xx * -light.sun_side
    colour = np.array(light.shade(jitter(rng, _LEAVES[word], 12), z), np.float32)
    pixels = np.clip(colour * np.clip(tone, 0.25, 1.7)[..., None], 0, 255).astype(np.uint8)
    size = (max(3, int(tall)), max(3, int(wide * scale)))
    canvas.patch(int(u - size[1] / 2), int(foot - height * scale), pixels, crown, size, ident)


def draw_fence(canvas: Canvas, x: float, near: float, far: float, kind: str, rng: np.random.Generator) -> None:
    """One run of fence along the road: boards, railing, mesh or guard rail, labelled whole as an annotator would."""
    ident = canvas.add(FENCE, word := pick(rng, _FENCES), kind, 0.05)
    colour = jitter(rng, COLOURS[word], 12)
    height = {"boards": 1.7, "railing": 1.1, "mesh": 2.0, "guard rail": 0.85}[kind] * rng.uniform(0.85, 1.2)
    z = far
    while z > near:
        step = min(max(1.6, 0.12 * z), z - near)
        draw_fence_panel(canvas, ident, kind, colour, [(x, z - step), (x, z)], height)
        z -= step


def draw_fence_panel(canvas: Canvas, ident: int, kind: str, colour: Colour, ends: list, height: float) -> None:
    """One panel between two places (x, z) on the ground."""
    camera, light = canvas.camera, canvas.light
    (xa, za), (xb, zb) = ends
    za = max(za, 1.2)
    tone = light.shade(colour, (za + zb) / 2, 0.95)
    low = 0.35 if kind == "guard rail" else 0.0
    outline = camera.points([(xa, low, za), (xb, low, zb), (xb, height, zb), (xa, height, za)])
    if kind in ("boards", "guard rail") or camera.scale(zb) < 14:
        canvas.polygon(outline, tone, ident)
        seam = light.shade(times(colour, 0.72), za)
        lines = 7 if kind == "boards" else 0
        if kind == "guard rail":
            canvas.line(camera.points([(xa, height * 0.7, za), (xb, height * 0.7, zb)]), 0.06 * camera.scale(za), seam)
            canvas.line(camera.points([(xa, 0, za), (xa, height, za)]), 0.1 * camera.scale(za), seam, ident)
    else:
        canvas.mark(outline, ident)
        canvas.veil(outline, tone, 0.45 if kind == "mesh" else 0.25)
        seam, lines = tone, 9 if kind == "mesh" else 8
        for level in (0.12, 0.98):
            y = height * level
            canvas.line(camera.points([(xa, y, za), (xb, y, zb)]), 0.06 * camera.scale((za + zb) / 2), tone)
    if camera.scale(zb) * (zb - za) * abs(xa) / max(zb, 1) < 10:
        return
    for k in range(lines):
        z = za + (zb - za) * k / lines
        x = xa + (xb - xa) * k / lines
        wide = (0.09 if k == 0 else 0.035) * camera.scale(z)
        canvas.line(camera.points([(x, 0, z), (x, height, z)]), wide, seam)
