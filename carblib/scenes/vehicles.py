"""The cars, vans, buses and lorries of the rendered scenes: a side profile swept over the width, seen from any side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from carblib.scenes.paint import CAR, COLOURS, OVERSAMPLING, Canvas, jitter, pick, times

CAR_WORDS = ("white", "white", "black", "black", "grey", "silver", "silver", "red", "red", "blue", "blue", "green",
             "yellow", "beige", "brown", "orange")  # fmt: skip


@dataclass(frozen=True)
class Body:
    """Length, width, height in metres; roofline from rear to front, as shares; which strips and parts are glass."""

    length: float
    width: float
    height: float
    profile: tuple[tuple[float, float], ...]
    glass: tuple[int, ...]
    windows: tuple[tuple[tuple[float, float], ...], ...]
    taper: float


BODIES: dict[str, Body] = {
    "car": Body(4.1, 1.75, 1.48,
        ((0, 0.17), (0, 0.58), (0.08, 0.97), (0.15, 1), (0.5, 1), (0.69, 0.63), (0.96, 0.53), (1, 0.42), (1, 0.17)),
        (1, 4), (((0.13, 0.63), (0.17, 0.92), (0.33, 0.93), (0.33, 0.63)), ((0.36, 0.63), (0.36, 0.93), (0.49, 0.92),
        (0.64, 0.63))), 0.2),
    "saloon": Body(4.6, 1.8, 1.45,
        ((0, 0.17), (0, 0.58), (0.03, 0.64), (0.16, 0.66), (0.27, 0.98), (0.33, 1), (0.53, 1), (0.69, 0.64),
         (0.97, 0.54), (1, 0.42), (1, 0.17)),
        (3, 6), (((0.22, 0.66), (0.3, 0.92), (0.42, 0.93), (0.42, 0.65)), ((0.45, 0.65), (0.45, 0.93), (0.53, 0.92),
        (0.65, 0.65))), 0.2),
    "suv": Body(4.5, 1.9, 1.75,
        ((0, 0.22), (0, 0.62), (0.05, 0.97), (0.09, 1), (0.56, 1), (0.7, 0.66), (0.97, 0.59), (1, 0.5), (1, 0.22)),
        (1, 4), (((0.09, 0.66), (0.11, 0.93), (0.3, 0.93), (0.3, 0.66)), ((0.33, 0.66), (0.33, 0.93), (0.54, 0.93),
        (0.66, 0.66))), 0.15),
    "van": Body(5.2, 2.0, 2.2,
        ((0, 0.14), (0, 0.97), (0.03, 1), (0.7, 1), (0.87, 0.62), (0.98, 0.5), (1, 0.38), (1, 0.14)),
        (3,), (((0.68, 0.62), (0.68, 0.9), (0.74, 0.89), (0.84, 0.62)),), 0.08),
    "bus": Body(11.0, 2.5, 3.1,
        ((0, 0.1), (0, 0.45), (0, 0.88), (0, 0.98), (0.01, 1), (0.98, 1), (1, 0.93), (1, 0.42), (1, 0.1)),
        (1, 6), tuple(((a, 0.45), (a, 0.82), (a + 0.14, 0.82), (a + 0.14, 0.45)) for a in (0.03, 0.19, 0.35, 0.51, 0.67,
        0.83)), 0.0),
    "lorry": Body(7.5, 2.4, 3.0,
        ((0, 0.25), (0, 1), (0.72, 1), (0.74, 0.84), (0.9, 0.84), (0.98, 0.5), (1, 0.42), (1, 0.17)),
        (4,), (((0.8, 0.5), (0.8, 0.78), (0.89, 0.78), (0.95, 0.5)),), 0.0),
}  # fmt: skip


@dataclass(frozen=True)
class Pose:
    """Where a vehicle stands: the middle of its footprint, and its heading (0 away from the camera, pi towards it)."""

    x: float
    z: float
    heading: float


class _Placed:
    """A body in its pose: local (l along, w across, y up) to canvas."""

    def __init__(self, canvas: Canvas, body: Body, pose: Pose):
        self.camera, self.body, self.pose = canvas.camera, body, pose
        self.cos, self.sin = math.cos(pose.heading), math.sin(pose.heading)

    def points(self, places: list) -> list[tuple[float, float]]:
        """Canvas positions of (share of length, share of half width, share of height)."""
        out = []
        for l, w, h in places:
            a = (l - 0.5) * self.body.length
            b = w * self.body.width / 2 * (1 - self.body.taper * max(0.0, (h - 0.6) / 0.4))
            x = self.pose.x + a * self.sin + b * self.cos
            z = self.pose.z + a * self.cos - b * self.sin
            out.append((self.camera.u(x, z), self.camera.v(h * self.body.height, z)))
        return out

    def eye(self) -> tuple[float, float]:
        """The camera in local metres: along and across."""
        bend = 0.5 * self.camera.bend * self.pose.z**2
        dx, dz = self.camera.offset - bend - self.pose.x, -self.pose.z
        return dx * self.sin + dz * self.cos, dx * self.cos - dz * self.sin


def _faces_camera(points: list) -> bool:
    area = 0.0
    for (xa, ya), (xb, yb) in zip(points, points[1:] + points[:1], strict=True):
        area += xa * yb - xb * ya
    return area < 0


def draw_vehicle(canvas: Canvas, kind: str, pose: Pose, rng: np.random.Generator) -> None:
    """Draw one vehicle; kind is a key of `BODIES` or 'taxi'."""
    word = "yellow" if kind == "taxi" else pick(rng, CAR_WORDS)
    if kind == "bus":
        word = pick(rng, ("red", "blue", "green", "white", "yellow"))
    body = BODIES["saloon" if kind == "taxi" else kind]
    ident = canvas.add(CAR, word, kind, 0.015)
    light, camera = canvas.light, canvas.camera
    place, z = _Placed(canvas, body, pose), pose.z
    paint = jitter(rng, COLOURS[word], 10)
    along, across = place.eye()
    side = 1 if across > body.width / 2 else -1 if across < -body.width / 2 else 0
    _underside(canvas, place, ident, z)
    profile = body.profile
    top = 1.12 + 0.15 * light.sun
    strips = []
    for k in range(len(profile) - 1):
        (la, ha), (lb, hb) = profile[k], profile[k + 1]
        points = place.points([(la, -1, ha), (la, 1, ha), (lb, 1, hb), (lb, -1, hb)])
        if _faces_camera(points):
            flat = abs(hb - ha) * body.height < 0.5 * abs(lb - la) * body.length
            distance = abs((la + lb) / 2 * body.length - body.length / 2 - along)
            strips.append((-distance, k, points, top if flat else 0.9))
    for _, k, points, factor in sorted(strips, key=lambda strip: strip[:2]):
        canvas.polygon(points, light.shade(paint, z, factor), ident)
        if k in body.glass:
            _pane(canvas, place, profile[k], profile[k + 1], z, rng)
    if side:
        factor = 0.82 + 0.2 * light.sun * (1 if light.sun_side * (pose.x - camera.offset) < 0 else -1)
        canvas.polygon(place.points([(l, side, h) for l, h in profile]), light.shade(paint, z, factor), ident)
        _side(canvas, place, side, ident, paint, z, factor)
    _end(canvas, place, along, kind, z, rng)
    if kind == "taxi":
        sign = place.points([(0.45, -0.3, 1.0), (0.45, 0.3, 1.0), (0.45, 0.3, 1.1), (0.45, -0.3, 1.1)])
        canvas.polygon(sign, light.shade((240, 240, 230), z, 1, 0.5), ident)


def _underside(canvas: Canvas, place: _Placed, ident: int, z: float) -> None:
    """Shadow on the ground, dark gap under the body, tyres."""
    length = place.body.length
    grow = 0.35 / length
    ground = place.points([(-grow, -1.15, 0), (-grow, 1.15, 0), (1 + grow, 1.15, 0), (1 + grow, -1.15, 0)])
    canvas.veil(ground, (10, 10, 14), 0.5 if canvas.light.sun > 0.3 else 0.38)
    low = place.body.profile[0][1] + 0.03
    if canvas.camera.scale(z) * place.body.height < 10 * OVERSAMPLING:
        low = max(low, 0.1)
    tyre = canvas.light.shade((26, 26, 28), z)
    l = 0.93 if place.eye()[0] > 0 else 0.07
    for w in (-1, 0.72):
        quad = [(l, w, 0), (l, w + 0.28, 0), (l, w + 0.28, low), (l, w, low)]
        canvas.polygon(place.points(quad), tyre, ident)


def _pane(canvas: Canvas, place: _Placed, a: tuple, b: tuple, z: float, rng: np.random.Generator) -> None:
    (la, ha), (lb, hb) = a, b
    (l0, h0), (l1, h1) = ((la + (lb - la) * share, ha + (hb - ha) * share) for share in (0.08, 0.9))
    points = place.points([(l0, -0.84, h0), (l0, 0.84, h0), (l1, 0.84, h1), (l1, -0.84, h1)])
    canvas.polygon(points, canvas.light.shade((46, 54, 62), z, rng.uniform(0.7, 1.5)))
    if canvas.camera.scale(z) > 25:
        p, q = points[2], points[3]
        slant = [p, q, ((q[0] + points[0][0]) / 2, (q[1] + points[0][1]) / 2)]
        canvas.veil(slant, canvas.light.shade((190, 200, 210), z), 0.22)


def _side(canvas: Canvas, place: _Placed, side: int, ident: int, paint: tuple, z: float, factor: float) -> None:
    light, body = canvas.light, place.body
    near = canvas.camera.scale(z) * body.height
    for window in body.windows:
        canvas.polygon(place.points([(l, side, h) for l, h in window]), light.shade((44, 50, 58), z))
    if near > 16 * OVERSAMPLING:
        dark = light.shade(times(paint, 0.55), z, factor)
        for l in (0.345, 0.63):
            canvas.line(place.points([(l, side, 0.25), (l, side, 0.62)]), 1, dark)
    radius = min(0.22 * body.height, 0.45)
    for l in (0.17, 0.82):
        for share, colour in ((1.0, (26, 26, 28)), (0.58, (132, 134, 136))):
            r, corners = radius * share, []
            for k in range(12):
                c, s = math.cos(k * math.pi / 6), math.sin(k * math.pi / 6)
                corners.append((l + r * c / body.length, side, (radius + r * s) / body.height))
            canvas.polygon(place.points(corners), light.shade(colour, z), ident if share == 1.0 else None)


def _end(canvas: Canvas, place: _Placed, along: float, kind: str, z: float, rng: np.random.Generator) -> None:
    """Lamps, plate and grille of the end that faces the camera."""
    body, light = place.body, canvas.light
    front = along > body.length / 2
    if not front and along > -body.length / 2:
        return
    l, belt = (1.0, body.profile[-2][1]) if front else (0.0, body.profile[1][1])
    low = body.profile[0][1]
    belt = min(belt, 0.62)
    high = low + (belt - low) * 0.85

    def box(w0: float, w1: float, h0: float, h1: float, colour: tuple, glow: float) -> None:
        quad = [(l, w0, h0), (l, w1, h0), (l, w1, h1), (l, w0, h1)]
        canvas.polygon(place.points(quad), light.shade(colour, z, 1.0, glow))

    middle = low + (belt - low) * 0.55
    if front:
        box(-0.55, 0.55, middle - 0.06, high - 0.04, (36, 36, 40), 0)
        for w in (-0.93, 0.58):
            box(w, w + 0.35, middle, high, (232, 230, 214), 0.85 if light.lamps else 0.2)
    else:
        shine = 0.75 if light.lamps or rng.random() < 0.3 else 0.15
        for w in (-0.95, 0.7):
            box(w, w + 0.25, middle - 0.03, high + 0.03, (190, 30, 28), shine)
    box(-0.28, 0.28, low + 0.06, low + 0.13, (226, 222, 190) if front or rng.random() < 0.5 else (222, 186, 60), 0.1)
    box(-1.0, 1.0, low, low + 0.045, (40, 40, 42), 0)
    if light.lamps:
        for w in (-0.75, 0.75):
            (u, v), scale = place.points([(l, w, middle + 0.08)])[0], canvas.camera.scale(z)
            canvas.halo(u, v, (0.55 if front else 0.3) * scale, (255, 240, 200) if front else (255, 60, 40))
