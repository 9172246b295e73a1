"""The sample's scenes: the content of an image, its frequency, and its labels.

Owns SCENES and compose(). Writes no file.

    >>> picture, labels = compose(seed=0, index=7)
    >>> picture.size
    (128, 128)
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from nuswide.data.sample.canvas import GROUNDS, Canvas, read_pairs

# The article's labels in its order, except `valley`, which is not drawn.
LABELS = tuple(
    "house birds sun nighttime boats mountain tree snow beach vehicle rocks reflection sunset road"
    " flowers ocean lake window plants buildings grass water animal person clouds sky".split()
)


# Sun and clouds stay above y = clear: later drawing would hide them, but keep their labels.
def _sky(c: Canvas, clear: float, sun: float) -> None:
    c.labels.add("sky")
    stops = np.array(c.sky) + c.rng.uniform(-14, 14, (3, 3))
    heights = np.array([0, 0.55, 1]) * min(1, clear + 0.15)
    bands = np.stack([np.interp(c.y, heights, stops[:, i]) for i in range(3)], axis=-1)
    c.paste(bands, np.ones((c.side, c.side)))
    if c.rng.random() < c.cloudy:
        _clouds(c, clear)
    elif c.hour == "nighttime":
        c.paste((235, 235, 220), (c.noise(90, 90, 1) - 0.47) * 12)
    if c.rng.random() < sun:
        _sun(c, clear)


def _clouds(c: Canvas, clear: float) -> None:
    c.labels.add("clouds")
    mass = c.noise(int(c.rng.integers(3, 6)), int(c.rng.integers(2, 4)), 4)
    mass -= 0.5 * (c.y - clear).clip(0)
    level = np.quantile(mass[: int(clear * c.side)], c.rng.uniform(0.4, 0.7))
    c.paste(c.cloud, (mass - level) * 6)
    below = mass[np.minimum(np.arange(c.side) + c.side // 20, c.side - 1)]
    c.paste(c.cloud * 0.82, (mass - below) * 3 * (mass > level))


def _sun(c: Canvas, clear: float) -> None:
    c.labels.add("sun")
    x, r, low = c.rng.uniform(0.15, 0.85), c.rng.uniform(0.05, 0.08), c.hour == "sunset"
    y = clear - r - 0.02 if low else c.rng.uniform(r + 0.02, max(0.14, clear - 0.2))
    away = np.hypot(c.x - x, c.y - y)
    c.paste((255, 190, 100) if low else (255, 250, 220), 0.75 * np.exp(-((away / r / 2.2) ** 2)))
    c.paste((255, 240, 170) if low else (255, 255, 235), (r - away) * c.side)


def _mountains(c: Canvas, base: float, top: float) -> None:
    c.labels.add("mountain")
    peaks = c.rng.uniform((-0.05, top), (1.05, (top + base) / 2), (int(c.rng.integers(3, 6)), 2))
    peaks[0] = c.rng.uniform(0.25, 0.75), top
    ragged = c.noise(8, 8)
    slopes = np.stack([y + c.rng.uniform(0.5, 0.9) * np.abs(c.x - x) for x, y in peaks])
    edge = slopes.min(axis=0) + 0.08 * ragged[0]
    summit = peaks[slopes.argmin(axis=0), 0]
    face = 30 * ragged - 45 * (c.x + 0.15 * ragged > summit)
    inside = np.minimum(c.y - edge, base - c.y) * c.side
    c.paste((c.sample_color("peak") + face[..., None]) * c.tint, inside)
    if c.rng.random() < 0.4:
        c.labels.add("snow")
        line = top + (base - top) * c.rng.uniform(0.35, 0.6) + 0.12 * ragged
        c.paste((245 + face[..., None]) * c.tint, np.minimum(inside, (line - c.y) * c.side))


def _mirror(c: Canvas, shore: float) -> None:
    c.labels.add("reflection")
    ripple = 0.05 * c.noise(50, 7, 2)
    rows = shore - (c.y - shore) * min(1, shore / (1 - shore)) + ripple
    rows = (rows.clip(0, shore - 0.01) * c.side).astype(int)
    c.paste(np.asarray(c.image)[rows, np.arange(c.side)], 0.72 * (c.y > shore) + 0 * ripple)


def _buildings(c: Canvas, base: float, top: float) -> None:
    c.labels.update(("buildings", "window"))
    x, dim = -0.05, np.sqrt(c.tint)
    while x < 1:
        w, h = c.rng.uniform(0.13, 0.24), (base - top) * c.rng.uniform(0.5, 1)
        wall = c.sample_color("wall") * dim
        c.fill("rectangle", [x, base - h, x + w, base], wall)
        c.fill("rectangle", [x + w - 0.02, base - h, x + w, base], wall * 0.75)
        pitch, glass = c.rng.uniform(0.045, 0.065), c.sample_color("glass") * dim
        for left in np.arange(x + pitch / 2, x + w - pitch, pitch):
            for y in np.arange(base - h + pitch / 2, base - pitch, pitch * 1.25):
                lit = c.hour == "nighttime" and c.rng.random() < 0.6
                pane = [left, y, left + pitch * 0.5, y + pitch * 0.65]
                c.fill("rectangle", pane, np.array([255, 210, 115]) if lit else glass)
        x += w + max(0, c.rng.uniform(-0.05, 0.05))


class Scene(NamedTuple):
    """A kind of image, from back to front."""

    share: float
    lights: dict[str, float]
    horizon: tuple[float, float]  # no sky where it is 0
    grounds: tuple[tuple[str, float, float], ...]  # name, drop below the horizon, swell
    extras: str  # objects: probability, maximum number, x, y (-1 top, 0 horizon, 1 bottom), height
    relief: float = 0.0  # maximum height of the background above the horizon
    behind: Callable[[Canvas, float, float], None] | None = None
    sun: float = 0.0
    mirror: float = 0.0  # probability that the water mirrors; it always mirrors a setting sun


def _backdrop(c: Canvas, scene: Scene) -> float:
    horizon = c.rng.uniform(*scene.horizon)
    if horizon > 0:
        _sky(c, horizon - scene.relief, scene.sun)
    if scene.behind:
        scene.behind(c, horizon, horizon - scene.relief)
    swell = np.sin(c.rng.uniform(3, 9) * c.x + c.rng.uniform(0, 6))
    for name, drop, height in scene.grounds:
        c.ground(name, horizon + drop + height * swell)
        low_sun = {"sun", "sunset"} <= c.labels
        if GROUNDS[name][1] == "water" and (low_sun or c.rng.random() < scene.mirror):
            _mirror(c, horizon)
    return horizon


def _extras(c: Canvas, scene: Scene, horizon: float) -> None:
    for extra in scene.extras.split("/"):
        thing, chance, most, *ranges = extra.split()
        x, depth, h = read_pairs(ranges)
        count = c.rng.integers(1, int(most) + 1) if c.rng.random() < float(chance) else 0
        for d in np.sort(c.rng.uniform(depth[0], depth[1], count)):
            y = horizon + d * (horizon if d < 0 else 1 - horizon)
            c.draw_object(thing, c.rng.uniform(*x), y, c.rng.uniform(*h))


DAY = {"day": 1.0}
OUTDOORS = {"day": 0.7, "grey": 0.15, "sunset": 0.15}
DAYTIME = {"day": 0.8, "grey": 0.2}
SEASIDE = {"day": 0.5, "grey": 0.15, "sunset": 0.35}
NIGHT = {"night": 1.0}
SCENES = {
    "portrait": Scene(0.14, DAY, (0, 0), (("blur", 0, 0),), "face 1 1 .36,.64 1,1.1 .75,.95"),
    "cat": Scene(0.03, DAY, (0, 0), (("blur", 0, 0),), "cat 1 1 .36,.64 1,1.1 .75,.95"),
    "dog": Scene(0.03, DAY, (0, 0), (("shade", 0, 0),), "dog 1 1 .36,.64 1,1.1 .75,.95"),
    "blossom": Scene(0.02, DAY, (0, 0), (("shade", 0, 0),), "flower 1 1 .4,.6 1.3,1.4 1,1.2"),
    "foliage": Scene(0.035, DAY, (0, 0), (("shade", 0, 0),), "bush 1 6 .1,.9 .8,1.1 .6,.8"),
    "rapids": Scene(0.025, DAY, (0, 0), (("river", 0, 0),), "rock 1 5 .1,.9 .3,.95 .12,.22"),
    "garden": Scene(0.045, DAY, (0, 0), (("shade", 0, 0),), """
        bush .5 3 0,1 1,1.05 .3,.5 / flower 1 7 .1,.9 1,1.1 .5,.9"""),
    "facade": Scene(0.05, DAY, (0, 0), (("plaster", 0, 0),), """
        window 1 1 .36,.64 .78,.84 .5,.65 / bush .3 2 .1,.9 1,1.05 .2,.35"""),
    "lawn": Scene(0.06, DAY, (0, 0), (("grass", 0, 0),), """
        cow .75 1 .3,.5 .65,.8 .3,.42 / person .35 1 .78,.88 .85,.95 .5,.7"""),
    "skyscape": Scene(0.09, {"day": 0.55, "grey": 0.15, "sunset": 0.3}, (1, 1), (), """
        bird .55 7 .1,.9 -.9,-.2 .04,.08""", sun=0.25),
    "sea": Scene(0.09, SEASIDE, (0.38, 0.58), (("sea", 0, 0),), """
        boat .35 2 .1,.9 .05,.4 .12,.26 / rock .15 3 .1,.9 .8,1 .1,.18 /
        bird .15 6 .1,.9 -.9,-.4 .035,.06""", sun=0.35),
    "beach": Scene(0.035, OUTDOORS, (0.38, 0.52), (
        ("sea", 0, 0), ("foam", 0.26, 0.03), ("sand", 0.28, 0.03)), """
        boat .2 1 .1,.9 .05,.15 .12,.2 / rock .2 3 .1,.9 .85,1 .08,.14 /
        person .5 2 .1,.9 .85,1 .2,.35 / bird .1 6 .1,.9 -.9,-.4 .035,.06""", sun=0.2),
    "lake": Scene(0.06, OUTDOORS, (0.45, 0.58), (("lake", 0, 0),), """
        boat .3 1 .1,.9 .15,.4 .14,.26 / rock .25 3 .1,.9 .85,1 .08,.14""",
        relief=0.24, behind=_mountains, mirror=0.6),
    "range": Scene(0.035, OUTDOORS, (0.6, 0.7), (("grass", -0.03, 0.02),), """
        pine .4 9 0,1 .1,.45 .14,.22 / rock .15 3 .1,.9 .8,1 .08,.14""",
        relief=0.38, behind=_mountains),
    "alps": Scene(0.025, DAYTIME, (0.6, 0.7), (("snow", -0.03, 0.02),), """
        pine .4 9 0,1 .1,.45 .14,.22""", relief=0.38, behind=_mountains),
    "snow_field": Scene(0.035, DAYTIME, (0.5, 0.6), (("snow", 0, 0.04),), """
        pine .6 6 0,1 .1,.3 .2,.35 / house .25 1 .25,.75 .2,.35 .2,.28 /
        person .2 2 .1,.9 .7,.95 .25,.4""", relief=0.15, sun=0.1),
    "meadow": Scene(0.08, OUTDOORS, (0.5, 0.6), (("grass", 0, 0.04),), """
        tree .4 4 0,1 .1,.3 .28,.42 / house .3 1 .25,.75 .2,.35 .2,.3 /
        cow .3 2 .2,.8 .6,.9 .18,.28 / person .15 2 .1,.9 .7,.95 .25,.45 /
        bird .1 5 .1,.9 -.9,-.5 .035,.06""", relief=0.15, sun=0.12),
    "lane": Scene(0.03, OUTDOORS, (0.5, 0.5), (("grass", 0, 0),), """
        lane 1 1 .4,.6 1,1 .48,.5 / tree .5 1 .05,.2 .1,.3 .25,.4 /
        pine .3 1 .8,.95 .1,.3 .25,.4""", relief=0.2),
    "street": Scene(0.07, OUTDOORS, (0.58, 0.68), (("pavement", 0, 0), ("road", 0.08, 0)), """
        dashes 1 1 .4,.6 .62,.66 1,1 / tree .25 2 .1,.9 .1,.15 .3,.42 /
        person .4 3 .1,.9 .15,.2 .2,.28 / car .4 1 .2,.8 .5,.75 .1,.15 /
        bus .12 1 .3,.7 .5,.75 .2,.26""", relief=0.44, behind=_buildings),
    "night_street": Scene(0.02, NIGHT, (0.58, 0.68), (("pavement", 0, 0), ("road", 0.08, 0)), """
        dashes 1 1 .4,.6 .62,.66 1,1 / car .7 1 .2,.8 .5,.75 .1,.15""",
        relief=0.45, behind=_buildings),
    "harbour": Scene(0.03, {"night": 0.7, "sunset": 0.3}, (0.5, 0.6), (("river", 0, 0),), """
        boat .25 1 .2,.8 .2,.5 .14,.24""", relief=0.35, behind=_buildings, mirror=1.0),
}  # fmt: skip


def compose(seed: int, index: int, size_px: int = 128) -> tuple[Image.Image, list[str]]:
    """Draw image `index` of a seed; return it with its labels, which do not depend on the size."""
    rng = np.random.default_rng([seed, index])
    shares = np.array([scene.share for scene in SCENES.values()])
    scene = list(SCENES.values())[rng.choice(len(SCENES), p=shares / shares.sum())]
    light = rng.choice(list(scene.lights), p=list(scene.lights.values()))
    canvas = Canvas(rng, size_px, light)
    _extras(canvas, scene, _backdrop(canvas, scene))
    # Effects of a camera: exposure, colour cast and noise.
    pixels = np.asarray(canvas.image.reduce(2)) * rng.uniform(0.93, 1.02, 3)
    pixels += rng.uniform(2, 6) * rng.standard_normal(pixels.shape, np.float32)
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return picture, [label for label in LABELS if label in canvas.labels]
