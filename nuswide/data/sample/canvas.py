"""The sample's canvas: lights, colours, grounds and objects, and the Canvas they are drawn on.

Owns the appearance of single objects. Knows neither scenes nor files.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.floating]

# Label of each time of day, fraction of cloudy skies, and colours: the sky at the top, half height
# and the horizon, the clouds, and the tint that everything else is multiplied by.
LIGHTS = {
    "day": ("", 0.55, "48,108,190 105,165,222 195,222,240 250,250,252 1,1,1"),
    "grey": ("", 1.0, "150,160,172 178,186,194 206,210,214 108,116,128 .8,.82,.86"),
    "sunset": ("sunset", 0.5, "60,52,112 205,95,105 255,172,84 120,62,92 .6,.44,.42"),
    "night": ("nighttime", 0.15, "6,8,26 14,18,46 36,40,80 76,80,104 .26,.29,.42"),
}
PALETTES = {
    "leaf": "60,120,45 85,140,50 45,100,60 110,145,60",
    "cloth": "190,40,45 40,70,150 235,235,230 240,190,50 60,130,90 230,120,50",
    "trousers": "40,50,90 50,50,55 110,90,70 90,40,45",
    "skin": "240,200,170 215,165,130 165,110,75 105,70,50",
    "hair": "40,28,22 95,60,35 200,160,90 150,145,140",
    "petal": "225,50,70 245,200,60 235,130,190 150,90,200 250,245,240",
    "wall": "170,95,75 200,185,160 150,150,155 215,205,195 120,105,100",
    "stone": "125,120,115 145,130,115 95,95,100",
    "peak": "105,110,125 120,105,95 85,105,110",
    "coat": "235,230,220 130,80,48 75,65,62 190,140,85",
    "water": "35,95,140 40,120,140 60,100,120",
    "dusk": "40,70,40 55,70,60 95,100,90 35,50,60",
    "glass": "70,95,120 95,125,145",
    "roof": "150,60,45 90,75,70 70,80,100",
    "sand": "215,188,140",
    "white": "240,242,246",
    "asphalt": "85,85,89",
    "wood": "90,62,42",
    "yellow": "240,185,50",
    "black": "22,20,24",
}
# Labels of each ground, palette, texture amplitude in grey levels, rows and columns of its grain.
GROUNDS = {
    "grass": ("grass", "leaf", 50, 40, 70),
    "snow": ("snow", "white", 22, 8, 3),
    "sand": ("beach", "sand", 25, 40, 40),
    "foam": ("", "white", 0, 1, 1),
    "sea": ("water ocean", "water", 75, 50, 7),
    "lake": ("water lake", "water", 65, 50, 7),
    "river": ("water", "water", 65, 50, 7),
    "pavement": ("", "stone", 15, 30, 30),
    "road": ("road", "asphalt", 18, 40, 40),
    "plaster": ("", "wall", 30, 30, 20),
    "blur": ("", "cloth", 60, 2, 2),
    "shade": ("", "dusk", 60, 2, 2),
}
# Labels, jitter and shapes of each object, from back to front: a colour of PALETTES times a factor,
# with ~ to draw the mirror image too, then the corners x,y of a polygon, or `o` with the radii and
# the centre of an ellipse. An object is 1 high and stands on 0,0.
OBJECTS = {
    "bird": ("birds", 0.1, "black -1,.6 -.5,1 0,.4 .5,1 1,.6 .5,.65 0,0 -.5,.65"),
    "boat": ("boats", 0.01, """
        cloth -.45,.2 .54,.2 .38,0 -.36,0 / wood -.02,.2 .02,.2 .02,1 -.02,1 /
        white .05,.98 .5,.27 .05,.27 / cloth -.05,.9 -.38,.27 -.05,.27"""),
    "rock": ("rocks", 0.06, """
        stone -1.2,0 -1,.5 -.4,.9 .2,1 .8,.6 1.1,0 / stone*.68 .2,1 .8,.6 1.1,0 .1,0 /
        stone*.85 .5,0 .8,.45 1.3,.5 1.7,0"""),
    "pine": ("tree", 0.015, """
        wood -.04,0 .04,0 .04,.3 -.04,.3 / leaf*.6 -.31,.1 .31,.1 0,.5 /
        leaf*.7 -.25,.3 .25,.3 0,.7 / leaf*.8 -.18,.52 .18,.52 0,1"""),
    "tree": ("tree", 0.03, """
        wood -.05,0 .05,0 .03,.5 -.03,.5 / leaf*.65~ o .16,.16 .19,.5 / leaf*.7 o .17,.16 0,.48 /
        leaf*.8~ o .17,.17 .21,.66 / leaf*.85 o .18,.18 0,.62 / leaf~ o .15,.14 .1,.82"""),
    "house": ("house window", 0, """
        roof*.8 .3,.7 .45,.7 .45,1.05 .3,1.05 / wall -.65,0 .65,0 .65,.6 -.65,.6 /
        roof -.78,.56 .78,.56 .42,1 -.42,1 / wood -.12,0 .12,0 .12,.38 -.12,.38 /
        white~ .57,.15 .25,.15 .25,.47 .57,.47 / glass~ .53,.19 .43,.19 .43,.43 .53,.43 /
        glass~ .39,.19 .29,.19 .29,.43 .39,.43"""),
    "car": ("vehicle", 0.01, """
        cloth -1.15,.18 1.15,.18 1.15,.52 .85,.58 .45,1 -.5,1 -.95,.58 -1.15,.55 /
        glass*1.4~ .05,.6 .05,.92 .4,.92 .68,.6 / yellow o .06,.07 1.08,.42 /
        black~ o .21,.21 .66,.2 / stone~ o .09,.09 .66,.2"""),
    "bus": ("vehicle", 0.01, """
        cloth -1.3,.12 1.3,.12 1.3,1 -1.25,1 / glass*1.4~ .45,.5 1.15,.5 1.15,.88 .45,.88 /
        glass*1.4 -.35,.5 .35,.5 .35,.88 -.35,.88 / black~ o .17,.17 .8,.15"""),
    "dashes": ("", 0, """
        white~ .06,0 .26,0 .26,.018 .06,.018 / white~ .46,0 .66,0 .66,.018 .46,.018"""),
    "lane": ("road", 0, """
        asphalt -.03,1 .03,1 .9,0 -.8,0 / white -.005,.9 .01,.9 .016,.7 -.012,.7 /
        white -.01,.58 .022,.58 .032,.36 -.015,.36 / white -.02,.22 .04,.22 .05,0 -.025,0"""),
    "person": ("person", 0.012, """
        trousers~ 0,.5 .1,.5 .14,0 .05,0 / skin~ .13,.8 .09,.7 .18,.42 .24,.44 /
        cloth -.15,.82 .15,.82 .11,.45 -.11,.45 / hair o .085,.1 0,.91 /
        skin o .065,.075 .01,.89"""),
    "face": ("person", 0.006, """
        hair o .31,.42 0,.62 / cloth o .55,.42 0,-.08 / skin*.88 -.1,.2 .1,.2 .1,.4 -.1,.4 /
        skin o .24,.31 0,.62 / hair o .21,.1 .03,.87 / white~ o .036,.024 .1,.66 /
        black~ o .02,.024 .1,.66 / hair~ .15,.71 .06,.72 .06,.735 .15,.73 /
        skin*.8 0,.64 .035,.55 -.02,.55 / skin*.6 -.1,.49 0,.47 .1,.49 0,.44"""),
    "cat": ("animal", 0.008, """
        coat*.75 o .33,.4 0,.05 / coat o .3,.27 0,.6 / coat~ .27,.72 .24,1 .08,.84 /
        yellow~ o .06,.05 .12,.65 / black~ o .02,.045 .12,.65 / coat*1.3~ o .1,.07 .05,.5 /
        black -.04,.56 .04,.56 0,.51 / white~ .1,.5 .38,.54 .38,.53"""),
    "dog": ("animal", 0.008, """
        coat*.75 o .34,.4 0,.05 / coat o .29,.29 0,.62 / coat*.6~ o .08,.2 .28,.6 /
        white~ o .05,.05 .11,.68 / black~ o .035,.035 .11,.68 / coat*1.3 o .13,.12 0,.5 /
        black o .05,.04 0,.55"""),
    "cow": ("animal", 0.02, """
        coat*.7 -.5,.5 -.36,.5 -.4,0 -.48,0 / coat*.7 .28,.5 .42,.5 .38,0 .3,0 /
        coat -.4,.5 -.24,.5 -.28,0 -.36,0 / coat .38,.5 .54,.5 .5,0 .42,0 /
        coat*.7 -.55,.75 -.5,.7 -.68,.3 -.72,.32 / coat .3,.5 .3,.75 .7,1 .85,.85 /
        coat o .58,.25 0,.57 / hair o .13,.1 -.25,.6 / hair o .12,.08 .15,.65 /
        coat*.7 .66,.95 .7,1.12 .78,.95 / coat o .2,.12 .84,.88 / black o .03,.03 .86,.92"""),
    "flower": ("flowers", 0.02, """
        leaf -.02,0 .02,0 .02,.7 -.02,.7 / petal*.8~ o .12,.12 .16,.63 / petal*.8 o .13,.13 0,.9 /
        petal~ o .13,.13 .17,.81 / petal o .12,.12 0,.55 / yellow o .09,.09 0,.72"""),
    "bush": ("plants", 0.025, """
        leaf*.6~ 0,0 .45,.12 .9,.3 .38,.26 / leaf*.8~ 0,0 .36,.3 .6,.72 .22,.42 /
        leaf*1.1 0,0 -.2,.45 -.2,.95 -.02,.5 / leaf 0,0 .02,.5 .2,1 .2,.45"""),
    "window": ("window", 0, """
        cloth*.7 -.55,0 .55,0 .55,1 -.55,1 / white -.32,-.04 .32,-.04 .32,1.04 -.32,1.04 /
        glass~ .28,.02 .02,.02 .02,.46 .28,.46 / glass~ .28,.52 .02,.52 .02,.98 .28,.98"""),
}  # fmt: skip


def read_pairs(pairs: Sequence[str]) -> Array:
    """Read texts like "0.5,1" into an array, one row per text."""
    return np.array([pair.split(",") for pair in pairs], float)


class Canvas:
    """An image being drawn, and the labels of its content; x and y are from 0 to 1, y down."""

    def __init__(self, rng: np.random.Generator, size_px: int, light: str) -> None:
        self.rng = rng
        self.hour, self.cloudy, colors = LIGHTS[light]
        *self.sky, self.cloud, self.tint = read_pairs(colors.split())
        self.labels = {self.hour} - {""}
        self.side = 2 * size_px  # halved at the end, which smooths the edges
        self.image = Image.new("RGB", (self.side, self.side))
        self.pen = ImageDraw.Draw(self.image)
        self.x: Array = (np.arange(self.side) + 0.5) / self.side
        self.y: Array = self.x[:, None]

    def sample_color(self, palette: str) -> Array:
        """Draw a random colour near one of the palette's."""
        colors = read_pairs(PALETTES[palette].split())
        return colors[self.rng.integers(len(colors))] * self.rng.uniform(0.93, 1.07, 3)

    def noise(self, rows: int, columns: int, octaves: int = 3) -> Array:
        """Return smooth noise, about -0.5 to 0.5; (side, side)."""
        total = np.zeros((self.side, self.side), np.float32)
        for octave in range(octaves):
            grid = self.rng.random((rows << octave, columns << octave), np.float32) - 0.5
            layer = Image.fromarray(grid).resize(self.image.size, Image.Resampling.BICUBIC)
            total += np.asarray(layer) / 2**octave
        return total

    def paste(self, colors: ArrayLike, alpha: Array) -> None:
        """Composite one colour, or (side, side, 3), onto the image; alpha (side, side), 0 to 1."""
        mask = Image.fromarray((alpha.clip(0, 1) * 255).astype(np.uint8))
        layer = np.empty((self.side, self.side, 3), np.uint8)
        layer[:] = np.clip(colors, 0, 255)
        self.image.paste(Image.fromarray(layer), (0, 0), mask)

    def fill(self, kind: str, points: ArrayLike, color: Array) -> None:
        """Fill a polygon, or the rectangle or ellipse between two corners."""
        red, green, blue = color.clip(0, 255).astype(int).tolist()
        getattr(self.pen, kind)((np.ravel(points) * self.side).tolist(), (red, green, blue))

    def draw_object(self, name: str, x: float, y: float, h: float) -> None:
        """Draw an object h high that stands on (x, y), and add its labels."""
        labels, jitter, shapes = OBJECTS[name]
        self.labels.update(labels.split())
        colors = {key: self.sample_color(key) for key in PALETTES}
        scale = np.array([h * self.rng.uniform(0.9, 1.1) * self.rng.choice((-1, 1)), -h])
        for shape in shapes.split("/"):
            paint, *corners = shape.split()
            kind = "ellipse" if corners[0] == "o" else "polygon"
            points = read_pairs(corners[kind == "ellipse" :])
            points += jitter * self.rng.uniform(-1, 1, points.shape)
            if kind == "ellipse":
                points = points[1] + points[0] * [[-1], [1]]
            key, _, factor = paint.strip("~").partition("*")
            # The square root of the tint: an object must stay visible on a darker background.
            color = colors[key] * float(factor or 1) * np.sqrt(self.tint)
            for side in (1, -1)[: 1 + ("~" in paint)]:
                corner = (x, y) + points * scale * (side, 1)
                self.fill(kind, np.sort(corner, axis=0) if kind == "ellipse" else corner, color)

    def ground(self, name: str, edge: Array | float) -> None:
        """Cover all below the edge, one y or one per column, and add the labels."""
        labels, palette, strength, *grain = GROUNDS[name]
        self.labels.update(labels.split())
        far, near = self.sample_color(palette), self.sample_color(palette)
        depth = (self.y - np.min(edge)).clip(0, 1)[..., None]
        colors = ((far + (near - far) * depth) * self.tint).astype(np.float32)
        texture = self.noise(*grain)[..., None] * (strength * self.tint).astype(np.float32)
        self.paste(colors + texture, (self.y - edge) * self.side + 0.5 + 0 * self.x)
