"""The plan of a rendered scene: light, camera, street, and everything that stands on it, sorted from far to near."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from carblib.scenes.paint import OVERSAMPLING, Camera, Canvas, Light, Street, jitter, pick
from carblib.scenes.small_things import draw_bicyclist, draw_pedestrian, draw_pole, draw_sign, draw_traffic_light
from carblib.scenes.street import Building, draw_background, draw_building, draw_end_wall, draw_fence, draw_tree
from carblib.scenes.vehicles import Pose, draw_vehicle

LIGHTS = ("sunny", "sunny", "sunny", "overcast", "overcast", "overcast", "dusk", "dusk", "night")
MAX_ITEMS = 115  # two object numbers each, and the wall at the end of the street
_SIGNS = ("round sign", "round sign", "triangle sign", "square sign", "stop sign", "direction sign")
_VEHICLES = ("car", "car", "car", "saloon", "saloon", "suv", "suv", "van")


def draw_light(rng: np.random.Generator) -> Light:
    """Weather and hour of a scene."""
    name, side = pick(rng, LIGHTS), pick(rng, (-1, 1))
    cloudiness = {"sunny": rng.uniform(0.1, 0.55), "overcast": rng.uniform(0.8, 1.0)}.get(name, rng.uniform(0.1, 0.8))
    sky = "clear" if cloudiness < 0.3 else "cloudy" if cloudiness < 0.75 else "covered"
    ambient, sun, noise, lamps = (1.0, 1.0, 1.0), 0.0, 3.5, False
    if name == "sunny":
        zenith, skyline, cloud = (84, 132, 196), (186, 208, 226), (240, 240, 240)
        sun, ambient, haze = rng.uniform(0.6, 1.0), (1.04, 1.01, 0.94), (196, 208, 220)
    elif name == "overcast":
        grey = rng.uniform(150, 225)
        zenith, skyline, cloud = (grey * 0.85, grey * 0.88, grey * 0.93), (grey, grey, grey), (grey * 1.05,) * 3
        ambient, haze = (rng.uniform(0.75, 1.0),) * 3, (grey * 0.97,) * 3
    elif name == "dusk":
        zenith, skyline, cloud = (84, 98, 140), (228, 168, 120), (196, 140, 124)
        sun, ambient, haze, noise, lamps = 0.35, (0.68, 0.57, 0.54), (196, 156, 132), 4.5, rng.random() < 0.5
    else:
        zenith, skyline, cloud = (18, 22, 40), (62, 62, 78), (60, 56, 62)
        ambient, haze, noise, lamps = (0.38, 0.37, 0.42), (58, 58, 70), 6.0, True
    ambient = tuple(a * rng.uniform(0.9, 1.08) for a in ambient)
    haze_range = float(np.exp(rng.uniform(5.0, 6.3)))
    haze, zenith, skyline = jitter(rng, haze, 8), jitter(rng, zenith, 10), jitter(rng, skyline, 10)
    noise *= rng.uniform(0.5, 1.5)
    return Light(name, sky, ambient, sun, side, haze, haze_range, zenith, skyline, cloud, cloudiness, lamps, noise)


def draw_camera(size: tuple[int, int], half: float, rng: np.random.Generator) -> Camera:
    """A camera in one of the lanes, with its own height, lens, pitch, yaw and bend of the road."""
    height, width = size[0] * OVERSAMPLING, size[1] * OVERSAMPLING
    focal = width * rng.uniform(0.66, 0.92)
    bend = rng.normal(0, 0.0035) if rng.random() < 0.45 else 0.0
    return Camera(height, width, focal, height * rng.uniform(0.42, 0.55), width * (0.5 + rng.normal(0, 0.05)),
                  rng.uniform(1.25, 1.9), rng.uniform(-0.55, 0.55) * half, bend)  # fmt: skip


def draw_street(light: Light, rng: np.random.Generator) -> Street:
    """Width, lanes, kerbs, crossing and surface of the street."""
    lanes = pick(rng, (2, 2, 2, 3, 4))
    half = lanes * rng.uniform(2.7, 3.5) / 2 + (1.2 if rng.random() < 0.4 else 0)
    near = rng.uniform(12, 45)
    junction = (near, near + rng.uniform(6, 10)) if rng.random() < 0.4 else None
    crossing = (junction[0] - 3.4 if junction else rng.uniform(8, 30)) if rng.random() < 0.35 else None
    grey = rng.uniform(70, 128)
    road = jitter(rng, (grey, grey, grey * 1.02), 5)
    walk = jitter(rng, pick(rng, ((150, 148, 144), (168, 160, 148), (132, 130, 128), (150, 128, 116))), 12)
    shadow = None
    if light.sun > 0.5 and rng.random() < 0.6:
        edge = light.sun_side * rng.uniform(-0.6, 1.1) * half
        shadow = (edge, 60.0) if light.sun_side > 0 else (-60.0, edge)
    marking = pick(rng, ("dashes", "dashes", "edged", "solid", "none"))
    return Street(half, (rng.uniform(1.4, 3.2), rng.uniform(1.4, 3.2)), lanes, pick(rng, ("paved", "grass")), junction,
                  crossing, rng.uniform(55, 100) if rng.random() < 0.4 else 170.0, shadow, road, walk,
                  jitter(rng, (88, 112, 58), 14), pick(rng, (0.6, 1.0, 1.5)), marking)  # fmt: skip


@dataclass
class Plan:
    """Things to draw, each with the distance that orders it."""

    canvas: Canvas
    street: Street
    rng: np.random.Generator
    items: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def add(self, z: float, draw: Callable, *arguments: object) -> None:
        """Note a drawing; those beyond the end of the street or at the camera's feet are dropped."""
        if 1.0 < z < self.street.end:
            self.items.append((z, lambda: draw(self.canvas, *arguments, self.rng)))

    def chance(self, share: float) -> bool:
        """True in that share of cases."""
        return self.rng.random() < share

    def far(self, near: float, far: float) -> float:
        """A distance, log-uniform: near things are as likely per octave as far ones."""
        return float(np.exp(self.rng.uniform(np.log(near), np.log(far))))

    def edge(self, side: int, beyond: float = 0.0) -> float:
        """Metres from the road's centre to a place `beyond` the kerb."""
        return side * (self.street.half + beyond)

    def walk(self, side: int) -> float:
        """Width of the sidewalk on a side."""
        return self.street.walks[side > 0]

    def in_junction(self, z: float, margin: float = 0.5) -> bool:
        """Whether a distance lies in the side street."""
        junction = self.street.junction
        return junction is not None and junction[0] - margin < z < junction[1] + margin

    def draw(self) -> None:
        """Draw everything from far to near."""
        nearest = sorted(self.items, key=lambda item: item[0])[:MAX_ITEMS]
        for _, draw in reversed(nearest):
            draw()


def plan_scene(canvas: Canvas, street: Street, rng: np.random.Generator) -> Plan:
    """Place buildings, greenery, fences, street furniture, traffic and people."""
    plan = Plan(canvas, street, rng)
    tallness, density = rng.uniform(4.5, 9.5), rng.uniform(0.35, 0.95)
    greenery = rng.uniform(0.0, 1.0) ** 1.3
    plan.items.append((200.0, lambda: draw_background(canvas, 180.0, tallness * 1.3, 0.75, rng)))
    if street.end < 150:
        plan.items.append((street.end + 1, lambda: draw_end_wall(canvas, street.end, tallness, rng)))
    autumn = plan.chance(0.18)
    for side in (-1, 1):
        _houses(plan, side, tallness, density, autumn)
        _trees(plan, side, greenery, autumn)
        _fences(plan, side)
        _furniture(plan, side)
        _parked(plan, side)
    _traffic(plan)
    _people(plan)
    return plan


def _houses(plan: Plan, side: int, tallness: float, density: float, autumn: bool) -> None:
    rng, z = plan.rng, plan.rng.uniform(-6, 3)
    kind = pick(rng, ("house", "shop", "shop", "office", "flats"))
    while z < min(plan.street.end, 130):
        length = rng.uniform(7, 22)
        x = plan.edge(side, plan.walk(side) + (rng.uniform(2, 6) if kind == "house" else rng.uniform(0, 0.8)))
        far = min(z + length, plan.street.end)
        if plan.street.junction and z < plan.street.junction[1] and far > plan.street.junction[0]:
            if plan.street.junction[0] - z > 5:
                far = plan.street.junction[0] - 0.5
            else:
                z = plan.street.junction[1] + 0.5
                continue
        if plan.chance(density) and far > 2.5:
            height = max(3.5, tallness * rng.uniform(0.65, 1.35) * (0.75 if kind == "house" else 1.0))
            roof = rng.uniform(1.5, 3.5) if plan.chance(0.75 if kind == "house" else 0.3) else 0.0
            used = kind if plan.chance(0.7) else pick(rng, ("house", "shop", "office", "flats"))
            plan.add(far, draw_building, Building(x, side, z, far, height, used, roof))
        else:
            _gap(plan, side, z, far, autumn)
        z = far + (0.0 if kind != "house" else rng.uniform(0.5, 4))


def _leaf_word(plan: Plan, autumn: bool) -> str:
    return pick(plan.rng, ("green", "yellow", "orange", "brown")) if autumn else "green"


def _gap(plan: Plan, side: int, near: float, far: float, autumn: bool) -> None:
    """A plot without a house: a fence and trees, or bushes."""
    rng, x = plan.rng, plan.edge(side, plan.walk(side))
    if plan.chance(0.2):
        plan.add(max(far, 1.1), draw_fence, x, max(near, 2.0), far, pick(rng, ("boards", "railing", "mesh")))
    z = max(near, 5.0)
    while z < far:
        shape = pick(rng, ("round", "round", "tall", "cone", "bush"))
        height = rng.uniform(1.2, 2.2) if shape == "bush" else rng.uniform(4, 9)
        plan.add(z, draw_tree, x + side * rng.uniform(1.5, 5), z, height, shape, _leaf_word(plan, autumn))
        z += rng.uniform(1.5, 5) * max(1.0, z / 25)


def _trees(plan: Plan, side: int, greenery: float, autumn: bool) -> None:
    if not plan.chance(0.25 + 0.6 * greenery):
        return
    rng, z = plan.rng, plan.far(7, 30)
    shape, height = pick(rng, ("round", "round", "tall", "cone")), rng.uniform(4, 7.5)
    beyond = min(rng.uniform(0.6, 1.2), plan.walk(side) - 0.3)
    step = rng.uniform(8, 20)
    for _ in range(1 + int(rng.random() * 6)):
        if not plan.in_junction(z):
            size = height * rng.uniform(0.85, 1.15)
            plan.add(z, draw_tree, plan.edge(side, beyond), z, size, shape, _leaf_word(plan, autumn))
        z += step * rng.uniform(0.8, 1.2)


def _fences(plan: Plan, side: int) -> None:
    if not plan.chance(0.27):
        return
    rng, near = plan.rng, plan.far(5, 25)
    far, kerb = near + rng.uniform(5, 18), plan.chance(0.5)
    if plan.street.junction:
        far = min(far, plan.street.junction[0] - 1)
    x = plan.edge(side, 0.3 if kerb else plan.walk(side) - 0.1)
    kind = pick(rng, ("railing", "railing", "guard rail") if kerb else ("boards", "railing", "mesh"))
    if far > near + 1:
        plan.add((near + far) / 2 if kerb else far, draw_fence, x, near, far, kind)


def _furniture(plan: Plan, side: int) -> None:
    """Lamps, utility poles, bollards, signs and traffic lights of one side."""
    rng = plan.rng
    kind = pick(rng, ("street lamp", "street lamp", "utility pole"))
    z, step, beyond = plan.far(6, 30), rng.uniform(16, 32), rng.uniform(0.4, 0.9)
    while z < 110 and plan.chance(0.92):
        if not plan.in_junction(z):
            plan.add(z, draw_pole, plan.edge(side, beyond), z, kind, -side)
        z += step
    if plan.chance(0.25):
        start = plan.far(5, 25)
        for k in range(2 + int(rng.random() * 5)):
            plan.add(start + 1.6 * k, draw_pole, plan.edge(side, 0.35), start + 1.6 * k, "bollard", 0)
    for _ in range(int(rng.random() * 3.1)):
        z = plan.far(6.5, 40)
        if not plan.in_junction(z):
            kind = pick(rng, _SIGNS)
            z = max(z, 11.0) if kind == "direction sign" else z
            plan.add(z, draw_sign, plan.edge(side, rng.uniform(0.35, 0.8)), z, kind)
    if plan.street.junction is not None and plan.chance(0.6):
        z = plan.street.junction[0] - 0.8
        plan.add(z, draw_traffic_light, plan.edge(side, 0.5), z, -side)
        plan.add(z + 10, draw_traffic_light, plan.edge(side, 0.5), z + 10, -side)
    elif plan.chance(0.15):
        z = plan.far(8, 40)
        plan.add(z, draw_traffic_light, plan.edge(side, 0.5), z, -side)


def _parked(plan: Plan, side: int) -> None:
    if plan.street.half < 3.0 or not plan.chance(0.5):
        return
    rng, z = plan.rng, plan.far(6, 25)
    toward = np.pi if plan.chance(0.5) else 0.0
    for _ in range(int(rng.random() * 9)):
        if not plan.in_junction(z, 3.0):
            pose = Pose(plan.edge(side, -1.05), z, toward + rng.normal(0, 0.03))
            plan.add(z, draw_vehicle, pick(rng, _VEHICLES), pose)
        z += rng.uniform(5.6, 8.5) if plan.chance(0.75) else rng.uniform(10, 20)


def _traffic(plan: Plan) -> None:
    """Cars ahead in the camera's lane, oncoming ones, and one that crosses at the junction."""
    rng, offset = plan.rng, plan.canvas.camera.offset
    own = 1 if offset >= 0 else -1
    room = max(plan.street.half - 2.2, 0.9)
    for lane, toward, share in ((own, 0.0, 0.8), (-own, np.pi, 0.8)):
        z = plan.far(9, 60)
        for _ in range(int(rng.random() * 3.5)):
            if plan.chance(share):
                kind = pick(rng, (*_VEHICLES, "bus", "lorry", "taxi"))
                pose = Pose(lane * rng.uniform(0.45, 0.75) * room, z, toward + rng.normal(0, 0.03))
                if z > (16 if kind in ("bus", "lorry") else 8):
                    plan.add(z, draw_vehicle, kind, pose)
            z += rng.uniform(9, 30)
    if plan.street.junction is not None and plan.chance(0.5):
        z = sum(plan.street.junction) / 2 + rng.uniform(-1.5, 1.5)
        pose = Pose(rng.uniform(-10, 10), z, pick(rng, (-1, 1)) * np.pi / 2)
        plan.add(z, draw_vehicle, pick(rng, _VEHICLES), pose)


def _people(plan: Plan) -> None:
    """Pedestrians on the sidewalks and the crossing, bicyclists on the road's edge."""
    rng, street = plan.rng, plan.street
    kinds = ("man", "man", "woman", "woman", "child")
    if plan.chance(0.78):
        for _ in range(1 + int(rng.random() * 8)):
            side, z = pick(rng, (-1, 1)), plan.far(7.5, 60)
            for k in range(1 + int(rng.random() * 1.4)):
                x = plan.edge(side, rng.uniform(0.5, max(0.7, plan.walk(side) - 0.3))) + 0.6 * k * side
                plan.add(z, draw_pedestrian, x, z, pick(rng, kinds))
    crossing = street.crossing if street.crossing is not None else plan.far(12, 45)
    if plan.chance(0.45 if street.crossing is not None else 0.15):
        for _ in range(1 + int(rng.random() * 3)):
            z = max(crossing + rng.uniform(0.3, 2.5), 7.0)
            plan.add(z, draw_pedestrian, rng.uniform(-1, 1) * street.half, z, pick(rng, kinds))
    if plan.chance(0.68):
        for _ in range(1 + int(rng.random() * 2.2)):
            z, side = plan.far(8, 36), pick(rng, (-1, 1))
            x = side * (street.half - rng.uniform(0.4, 1.5) - (1.8 if plan.chance(0.4) else 0.0))
            plan.add(z, draw_bicyclist, x, z, "side" if plan.chance(0.45) else "end")
