"""The small things of the rendered scenes: poles, lamps, signs, traffic lights, pedestrians and bicyclists."""

from __future__ import annotations

import math

import numpy as np

from carblib.scenes.paint import (
    BICYCLIST,
    COLOURS,
    PEDESTRIAN,
    POLE,
    SIGN,
    Canvas,
    Colour,
    corners,
    jitter,
    pick,
    times,
)

_SKIN: tuple[Colour, ...] = ((224, 180, 150), (198, 150, 118), (150, 104, 76), (94, 64, 48))
_HAIR: tuple[Colour, ...] = ((40, 30, 24), (82, 58, 38), (150, 120, 80), (70, 70, 72))
_CLOTHES = ("black", "black", "grey", "blue", "blue", "red", "green", "white", "beige", "brown", "orange", "yellow")
_TROUSERS = ("black", "blue", "grey", "black", "brown", "beige", "blue")
_POLES = ("grey", "grey", "silver", "green", "black", "brown", "white")


class Figure:
    """A flat cut-out standing at (x, z): drawn in metres right of and above its foot."""

    def __init__(self, canvas: Canvas, ident: int, x: float, z: float, squeeze: float = 1.0):
        self.canvas, self.ident, self.z, self.squeeze = canvas, ident, z, squeeze
        self.scale = canvas.camera.scale(z)
        self.u, self.foot = canvas.camera.u(x, z), canvas.camera.v(0, z)

    def at(self, a: float, h: float) -> tuple[float, float]:
        """Canvas position of a point."""
        return self.u + a * self.squeeze * self.scale, self.foot - h * self.scale

    def polygon(self, points: list, colour: Colour, factor: float = 1.0, glow: float = 0.0, solid: bool = True) -> None:
        """Fill a polygon; one that isn't solid is paint on what lies under it."""
        shade = self.canvas.light.shade(colour, self.z, factor, glow)
        self.canvas.polygon([self.at(*p) for p in points], shade, self.ident if solid else None)

    def limb(self, points: list, width: float, colour: Colour, factor: float = 1.0, solid: bool = True) -> None:
        """Draw a line `width` metres wide."""
        shade = self.canvas.light.shade(colour, self.z, factor)
        self.canvas.line([self.at(*p) for p in points], width * self.scale, shade, self.ident if solid else None)

    def disc(
        self, a: float, h: float, ra: float, rh: float, colour: Colour, glow: float = 0, solid: bool = True
    ) -> None:
        """Fill an ellipse."""
        (u, v), shade = self.at(a, h), self.canvas.light.shade(colour, self.z, 1.0, glow)
        rx = max(ra * self.squeeze * self.scale, 0.8)
        self.canvas.ellipse(u, v, rx, rh * self.scale, shade, self.ident if solid else None)

    def shadow(self, half: float) -> None:
        """Contact shadow on the ground."""
        strength = 0.42 if self.canvas.light.sun > 0.3 else 0.28
        self.canvas.shadow(self.u, self.foot, half * self.scale, 0.3 * half * self.scale, strength)


def _post(
    canvas: Canvas, x: float, z: float, height: float, width: float, kind: str, rng: np.random.Generator
) -> Figure:
    word = pick(rng, _POLES)
    figure = Figure(canvas, canvas.add(POLE, word, kind, 0.02), x, z)
    colour = jitter(rng, COLOURS[word], 14)
    figure.shadow(width * 1.2)
    figure.limb([(0, 0), (0, height)], width, colour)
    if width * figure.scale > 5:
        figure.limb([(0.28 * width, 0), (0.28 * width, height)], width * 0.25, times(colour, 0.72), solid=False)
    figure.colour = colour
    return figure


def draw_pole(canvas: Canvas, x: float, z: float, kind: str, toward: int, rng: np.random.Generator) -> None:
    """A street lamp, a utility pole or a bollard; a lamp's arm points to the side `toward`."""
    if kind == "bollard":
        post = _post(canvas, x, z, rng.uniform(0.8, 1.1), 0.16, kind, rng)
        post.limb([(0, 0.7), (0, 0.85)], 0.16, (220, 60, 50) if rng.random() < 0.5 else (230, 230, 226), solid=False)
        return
    height = rng.uniform(5.5, 9.0)
    post = _post(canvas, x, z, height, rng.uniform(0.11, 0.19), kind, rng)
    if kind == "utility pole":
        for level in (0.93, 0.84)[: 1 + int(rng.random() * 2)]:
            post.limb([(-0.8, height * level), (0.8, height * level)], 0.12, post.colour)
        return
    reach = toward * rng.uniform(0.7, 2.0)
    post.limb([(0, height), (reach * 0.4, height + 0.25), (reach, height + 0.3)], 0.1, post.colour)
    lamp = [(reach + a, height + h) for a, h in ((-0.35, 0.2), (0.35, 0.2), (0.28, 0.4), (-0.28, 0.4))]
    if not canvas.light.lamps:
        post.polygon(lamp, times(post.colour, 1.1))
    else:
        post.polygon(lamp, (236, 214, 160), glow=0.9)
        canvas.halo(*post.at(reach, height + 0.2), 1.1 * post.scale, (255, 226, 160))


def draw_sign(canvas: Canvas, x: float, z: float, kind: str, rng: np.random.Generator) -> None:
    """A traffic sign on its pole; kind round, triangle, square, stop or direction, each followed by ' sign'."""
    height = rng.uniform(2.0, 2.9)
    board = kind == "direction sign"
    _post(canvas, x, z, height + (0.4 if board else 0.0), rng.uniform(0.08, 0.13), "sign pole", rng)
    white, red, blue = (228, 228, 224), (186, 32, 34), (36, 78, 160)
    word = {"round sign": pick(rng, ("red", "red", "blue")), "triangle sign": "red", "stop sign": "red"}.get(kind)
    word = word or pick(rng, ("blue", "green", "white", "yellow") if board else ("blue", "blue", "yellow", "white"))
    sign = Figure(canvas, canvas.add(SIGN, word, kind, 0.015), x, z, rng.uniform(0.7, 1.0))
    r, ground = rng.uniform(0.38, 0.62), jitter(rng, {"red": red, "blue": blue}.get(word, COLOURS[word]), 10)
    if rng.random() < 0.12:  # seen from behind
        ground, white = (128, 130, 132), (120, 122, 124)
    mark = (30, 30, 34) if word in ("white", "yellow") or white[0] < 200 else white
    if kind == "round sign":
        sign.disc(0, height, r, r, ground, 0.12)
        if word == "red":
            sign.disc(0, height, r * 0.72, r * 0.72, white, 0.12, solid=False)
            sign.polygon(corners(-r * 0.35, height - 0.08, r * 0.35, height + 0.08), (40, 40, 44), solid=False)
        else:
            sign.limb([(0, height - r * 0.5), (0, height + r * 0.5)], 0.12, white, solid=False)
    elif kind == "triangle sign":
        r *= 1.15
        flip = -1 if rng.random() < 0.25 else 1
        shape = [(-r, -0.8 * r), (r, -0.8 * r), (0, 0.95 * r)]
        sign.polygon([(a, height + flip * h) for a, h in shape], ground, glow=0.12)
        inner = [(a * 0.62, height + flip * (h * 0.62 - 0.05 * r)) for a, h in shape]
        sign.polygon(inner, white, glow=0.1, solid=False)
    elif kind == "stop sign":
        turns = np.arange(math.pi / 8, 6.3, math.pi / 4).tolist()
        sign.polygon([(r * math.cos(t), height + r * math.sin(t)) for t in turns], ground, glow=0.12)
        sign.polygon(corners(-r * 0.6, height - 0.07, r * 0.6, height + 0.09), white, solid=False)
    else:
        half, tall = (rng.uniform(0.7, 1.3), rng.uniform(0.4, 0.7)) if board else (r * 0.9, r * rng.uniform(0.8, 1.2))
        sign.polygon(corners(-half, height - tall, half, height + tall), ground, glow=0.12)
        for k in range(3 if board else 1):
            level = height + tall * (0.5 - 0.5 * k if board else 0.1)
            sign.limb([(-half * 0.7, level), (half * rng.uniform(0.0, 0.7), level)], 0.12, mark, solid=False)


def draw_traffic_light(canvas: Canvas, x: float, z: float, toward: int, rng: np.random.Generator) -> None:
    """A signal head on a pole, or on an arm over the road; one of its three lamps shines."""
    over = rng.random() < 0.25
    height = 5.2 if over else rng.uniform(2.7, 3.2)
    post = _post(canvas, x, z, height, 0.16 if over else 0.12, "traffic light pole", rng)
    reach = toward * rng.uniform(1.5, 3.0) if over else 0.0
    if over:
        post.limb([(0, height), (reach, height)], 0.12, post.colour)
    light = Figure(canvas, canvas.add(SIGN, "black", "traffic light", 0.015), x, z)
    half, tall = rng.uniform(0.18, 0.28), rng.uniform(0.5, 0.68)
    light.polygon(corners(reach - half, height - tall, reach + half, height + tall), (34, 34, 36))
    lit = int(rng.random() * 3)
    colours = ((235, 40, 30), (250, 180, 40), (40, 220, 110))
    for k, colour in enumerate(colours):
        h = height + tall * (0.62 - 0.62 * k)
        shown = colour if k == lit else times(colour, 0.22)
        light.disc(reach, h, half * 0.68, half * 0.68, shown, 0.85 * (k == lit), solid=False)
    if canvas.light.lamps:
        canvas.halo(*light.at(reach, height + tall * (0.62 - 0.62 * lit)), 0.35 * light.scale, colours[lit])


def draw_pedestrian(canvas: Canvas, x: float, z: float, kind: str, rng: np.random.Generator) -> None:
    """A person on foot, walking or standing; kind 'man', 'woman' or 'child'."""
    word = pick(rng, _CLOTHES)
    figure = Figure(canvas, canvas.add(PEDESTRIAN, word, kind, 0.02), x, z, rng.uniform(0.8, 1.15))
    t = {"man": rng.uniform(1.68, 1.9), "woman": rng.uniform(1.58, 1.76), "child": rng.uniform(1.05, 1.4)}[kind]
    top, legs = jitter(rng, COLOURS[word], 16), jitter(rng, COLOURS[pick(rng, _TROUSERS)], 14)
    skin, hair = jitter(rng, pick(rng, _SKIN), 8), pick(rng, _HAIR)
    stride, swing = rng.uniform(0.02, 0.17) * t, rng.uniform(-0.1, 0.1) * t
    figure.shadow(0.4)
    figure.limb([(-0.03 * t, 0.48 * t), (-stride * 0.7, 0.25 * t), (-stride, 0.02)], 0.085 * t, legs, 0.85)
    figure.limb([(0.03 * t, 0.48 * t), (stride * 0.9, 0.25 * t), (stride, 0.02)], 0.085 * t, legs)
    for a, lean in ((-stride, 0.05), (stride, 0.05)):
        figure.limb([(a - 0.02, 0.02), (a + lean, 0.02)], 0.05 * t, (34, 30, 30))
    arm = [(0.11 * t, 0.79 * t), (0.14 * t + swing, 0.6 * t), (0.12 * t + 1.3 * swing, 0.46 * t)]
    figure.limb([(-a, h) for a, h in arm], 0.06 * t, top, 0.85)
    hem = pick(rng, (0.44, 0.44, 0.3)) if kind != "woman" else pick(rng, (0.44, 0.3, 0.28))
    flare = 0.1 + (0.44 - hem) * 0.35
    half = [(0.06, 0.845), (0.125, 0.81), (0.095, 0.55), (flare, hem)]
    coat = half + [(-a, h) for a, h in reversed(half)]
    figure.polygon([(a * t, h * t) for a, h in coat], top)
    figure.limb(arm, 0.06 * t, top, 0.92)
    figure.limb([(0, 0.82 * t), (0, 0.88 * t)], 0.06 * t, skin, 0.9)
    figure.disc(0, 0.925 * t, 0.06 * t, 0.075 * t, skin)
    figure.disc(0, 0.955 * t, 0.062 * t, 0.05 * t, hair)
    if rng.random() < 0.3:
        bag, side = jitter(rng, COLOURS[pick(rng, ("brown", "black", "red", "blue"))]), pick(rng, (-1, 1))
        figure.polygon(corners(side * 0.1 * t, 0.58 * t, side * 0.22 * t, 0.4 * t), bag)


def draw_bicyclist(canvas: Canvas, x: float, z: float, view: str, rng: np.random.Generator) -> None:
    """A rider on a bicycle, seen from the 'side' or from the 'end'; the outline of the wheels is labelled whole."""
    word = pick(rng, _CLOTHES)
    ident = canvas.add(BICYCLIST, word, "bicyclist", 0.02)
    facing = pick(rng, (-1, 1))
    figure = Figure(canvas, ident, x, z, facing * (rng.uniform(0.75, 1.0) if view == "side" else rng.uniform(0.3, 0.5)))
    top, legs = jitter(rng, COLOURS[word], 16), jitter(rng, COLOURS[pick(rng, _TROUSERS)], 14)
    frame = jitter(rng, COLOURS[pick(rng, ("red", "blue", "black", "green", "white", "yellow"))], 16)
    skin = pick(rng, _SKIN)
    if rng.random() < 0.6:
        helmet = jitter(rng, COLOURS[pick(rng, ("white", "red", "blue", "black", "yellow"))], 12)
    else:
        helmet = pick(rng, _HAIR)
    figure.shadow(0.6)
    tyre = canvas.light.shade((28, 28, 30), z)
    flat = abs(figure.squeeze)
    for a in (-0.52, 0.52):
        u, v = figure.at(a if view == "side" else 0.2 * a, 0.34)
        rx, ry = max(0.34 * flat, 0.06) * figure.scale, 0.34 * figure.scale
        if view == "end":
            canvas.ellipse(u, v, max(0.07 * figure.scale, 1.5), ry, tyre, ident)
            continue
        box = [(u + rx * math.cos(k * math.pi / 8), v + ry * math.sin(k * math.pi / 8)) for k in range(16)]
        canvas.mark(box, ident)
        canvas.ring(u, v, rx, ry, max(2, 0.06 * figure.scale), tyre)
    if view == "side":
        figure.limb([(-0.52, 0.34), (-0.15, 0.85), (0.4, 0.8), (0.0, 0.3), (-0.15, 0.85)], 0.05, frame)
        figure.limb([(-0.52, 0.34), (0.0, 0.3)], 0.05, frame)
        figure.limb([(0.52, 0.34), (0.38, 1.0), (0.5, 1.05)], 0.05, frame)
        phase = rng.uniform(0, 6.28)
        for k, dark in ((0.0, 0.8), (math.pi, 1.0)):
            pedal = (0.16 * math.cos(phase + k), 0.3 + 0.16 * math.sin(phase + k))
            knee = (0.2 + 0.3 * pedal[0], 0.68 + 0.25 * (pedal[1] - 0.3))
            figure.limb([(-0.15, 0.95), knee, pedal], 0.14, legs, dark)
        figure.polygon([(-0.28, 0.9), (-0.02, 0.88), (0.26, 1.42), (0.16, 1.52), (-0.05, 1.48)], top)
        figure.limb([(0.16, 1.42), (0.28, 1.15), (0.45, 1.04)], 0.09, top, 0.88)
        figure.disc(0.25, 1.65, 0.1, 0.13, skin)
        figure.disc(0.23, 1.71, 0.13, 0.08, helmet)
        return
    wide = 1 / flat
    figure.limb([(-0.27 * wide, 1.02), (0.27 * wide, 1.02)], 0.05, frame)
    for a in (-0.13, 0.13):
        figure.limb([(a * wide, 0.95), (a * wide * 1.3, 0.65), (a * wide, 0.32 + 0.12 * (a > 0))], 0.13, legs, 0.9)
        figure.limb([(a * 1.5 * wide, 1.42), (a * 2.3 * wide, 1.2), (a * 1.9 * wide, 1.04)], 0.09, top, 0.88)
    back = [(-0.15, 0.88), (0.15, 0.88), (0.22, 1.42), (0.1, 1.52), (-0.1, 1.52), (-0.22, 1.42)]
    figure.polygon([(a * wide, h) for a, h in back], top)
    figure.disc(0, 1.64, 0.1 * wide, 0.13, skin)
    figure.disc(0, 1.71, 0.115 * wide, 0.08, helmet)
