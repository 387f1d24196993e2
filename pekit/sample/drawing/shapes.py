"""The drawn objects: categories, colours, patterns, and how each category looks in a unit square.

An object has three layers: the body (patterned), parts in the accent colour, and dark details. All coordinates are
in [-1, 1], x to the right, y down; proportions a, b, c in [0, 1] bend the shape within what a person still names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (212, 36, 38),
    "orange": (247, 136, 20),
    "yellow": (247, 214, 36),
    "green": (48, 152, 56),
    "cyan": (64, 202, 214),
    "blue": (38, 74, 206),
    "purple": (128, 48, 168),
    "pink": (250, 140, 188),
    "brown": (124, 76, 40),
    "black": (34, 34, 38),
    "white": (246, 246, 242),
    "gray": (140, 142, 146),
}
PATTERNS = ("plain", "striped", "dotted", "checked", "zigzag", "ringed")
DARK = (44, 38, 40)

Point = tuple[float, float]


class Layers:
    """Three masks of one object being drawn, ``side`` px square."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.images = {name: Image.new("L", (side, side), 0) for name in ("body", "accent", "detail")}
        self.pens = {name: ImageDraw.Draw(image) for name, image in self.images.items()}

    def _px(self, value: float) -> float:
        return (value * 0.94 + 1) * (self.side - 1) / 2

    def _width(self, width: float) -> int:
        return max(1, round(width * 0.94 * self.side / 2))

    def polygon(self, layer: str, points: Sequence[Point]) -> None:
        self.pens[layer].polygon([(self._px(x), self._px(y)) for x, y in points], fill=255)

    def ellipse(self, layer: str, x: float, y: float, rx: float, ry: float) -> None:
        box = (self._px(x - rx), self._px(y - ry), self._px(x + rx), self._px(y + ry))
        self.pens[layer].ellipse(box, fill=255)

    def box(self, layer: str, x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> None:
        corners = (self._px(x0), self._px(y0), self._px(x1), self._px(y1))
        self.pens[layer].rounded_rectangle(corners, radius=radius * self.side / 2, fill=255)

    def arc(self, layer: str, x: float, y: float, rx: float, ry: float, start: float, end: float, width: float) -> None:
        box = (self._px(x - rx), self._px(y - ry), self._px(x + rx), self._px(y + ry))
        self.pens[layer].arc(box, start, end, fill=255, width=self._width(width))

    def line(self, layer: str, points: Sequence[Point], width: float) -> None:
        path = [(self._px(x), self._px(y)) for x, y in points]
        self.pens[layer].line(path, fill=255, width=self._width(width), joint="curve")


def _mug(s: Layers, a: float, b: float, c: float) -> None:
    w, h = 0.48 + 0.16 * a, 0.6 + 0.25 * b
    s.arc("accent", w - 0.12, 0.05, 0.32 + 0.1 * c, 0.36 + 0.1 * c, -80, 80, 0.15)
    s.polygon("body", [(-w - 0.12, -h), (w - 0.12, -h), (w - 0.18, h), (-w - 0.06, h)])
    s.ellipse("accent", -0.12, -h, w, 0.13)
    s.ellipse("detail", -0.12, -h, w - 0.09, 0.08)


def _lamp(s: Layers, a: float, b: float, c: float) -> None:
    top, bottom = 0.22 + 0.2 * a, 0.62 + 0.2 * b
    edge = -0.05 + 0.2 * c
    s.line("accent", [(0, edge), (0, 0.85)], 0.13)
    s.ellipse("accent", 0, 0.86, 0.46, 0.12)
    s.polygon("body", [(-top, -0.95), (top, -0.95), (bottom, edge), (-bottom, edge)])
    s.line("detail", [(bottom * 0.55, edge), (bottom * 0.55, edge + 0.3)], 0.04)
    s.ellipse("detail", bottom * 0.55, edge + 0.33, 0.05, 0.05)


def _teddy_bear(s: Layers, a: float, b: float, c: float) -> None:
    head, belly = 0.36 + 0.08 * a, 0.42 + 0.12 * b
    ear = 0.15 + 0.06 * c
    for side in (-1, 1):
        s.ellipse("body", side * head * 0.85, -0.8, ear, ear)
        s.ellipse("accent", side * head * 0.85, -0.8, ear * 0.55, ear * 0.55)
        s.ellipse("body", side * (belly + 0.12), 0.08, 0.22, 0.16)
        s.ellipse("body", side * 0.36, 0.78, 0.24, 0.2)
        s.ellipse("accent", side * 0.38, 0.8, 0.12, 0.11)
    s.ellipse("body", 0, 0.32, belly, 0.5)
    s.ellipse("body", 0, -0.46, head, 0.36)
    s.ellipse("accent", 0, -0.34, 0.17, 0.13)
    for x, y, r in ((-0.15, -0.54, 0.055), (0.15, -0.54, 0.055), (0, -0.39, 0.06)):
        s.ellipse("detail", x, y, r, r)


def _kite(s: Layers, a: float, b: float, c: float) -> None:
    w, waist = 0.5 + 0.22 * a, -0.35 + 0.2 * b
    tail = [(0.16 * math.sin(4 * t), 0.35 + 0.6 * t) for t in np.linspace(0, 1, 12)]
    s.line("detail", tail, 0.05)
    for t in (0.4, 0.75):
        x, y = 0.16 * math.sin(4 * t), 0.35 + 0.6 * t
        r = 0.1 + 0.04 * c
        s.polygon("accent", [(x - 1.6 * r, y - r), (x, y), (x - 1.6 * r, y + r)])
        s.polygon("accent", [(x + 1.6 * r, y - r), (x, y), (x + 1.6 * r, y + r)])
    s.polygon("body", [(0, -0.98), (w, waist), (0, 0.42), (-w, waist)])
    s.line("detail", [(0, -0.98), (0, 0.42)], 0.035)
    s.line("detail", [(-w, waist), (w, waist)], 0.035)


def _hat(s: Layers, a: float, b: float, c: float) -> None:
    w, h = 0.4 + 0.14 * a, 0.6 + 0.3 * b
    s.ellipse("body", 0, 0.45, 0.8 + 0.17 * c, 0.2)
    s.polygon("body", [(-w * 0.85, 0.4 - h), (w * 0.85, 0.4 - h), (w, 0.42), (-w, 0.42)])
    s.ellipse("body", 0, 0.4 - h, w * 0.85, 0.13)
    s.polygon("accent", [(-w * 0.97, 0.2), (w * 0.97, 0.2), (w, 0.42), (-w, 0.42)])


def _umbrella(s: Layers, a: float, b: float, c: float) -> None:
    w, y = 0.8 + 0.17 * a, 0.0 + 0.1 * b
    s.line("detail", [(0, -0.85), (0, 0.72)], 0.07)
    s.arc("detail", 0.15, 0.72, 0.17, 0.2, 0, 180, 0.07)
    dome = [(-w * math.cos(t), y - (0.75 + 0.12 * c) * math.sin(t)) for t in np.linspace(0, math.pi, 25)]
    scallops: list[Point] = []
    for i in range(4):
        x = w - (i + 0.5) * w / 2
        scallops += [(x + w / 4 * math.cos(t), y - 0.1 * math.sin(t)) for t in np.linspace(0, math.pi, 7)]
    s.polygon("body", dome + scallops)
    s.line("accent", [(0, y - 0.08), (0, y - 0.8)], 0.05)
    s.ellipse("accent", 0, y - 0.82 - 0.12 * c, 0.07, 0.09)


def _backpack(s: Layers, a: float, b: float, c: float) -> None:
    w, h = 0.52 + 0.14 * a, 0.68 + 0.16 * b
    s.arc("accent", 0, -h, 0.2, 0.18, 180, 360, 0.09)
    for side in (-1, 1):
        s.box("accent", side * w - 0.14, -0.05, side * w + 0.14, 0.62, 0.1)
    s.box("body", -w, -h, w, 0.9, 0.34)
    s.box("accent", -w * 0.68, 0.14 - 0.1 * c, w * 0.68, 0.72, 0.1)
    s.line("detail", [(-w * 0.68, 0.3 - 0.1 * c), (w * 0.68, 0.3 - 0.1 * c)], 0.04)
    s.line("detail", [(-w * 0.75, -h * 0.45), (w * 0.75, -h * 0.45)], 0.05)


def _teapot(s: Layers, a: float, b: float, c: float) -> None:
    w, h = 0.5 + 0.08 * a, 0.42 + 0.14 * b
    s.arc("accent", -w, 0.12, 0.32 + 0.06 * c, 0.32, 70, 290, 0.12)
    s.polygon("body", [(w * 0.7, 0.35), (0.82, -0.32), (0.98, -0.28), (w * 0.9, 0.5)])
    s.ellipse("body", 0, 0.2, w + 0.06, h + 0.05)
    s.box("accent", -0.3, h + 0.16, 0.3, h + 0.28, 0.04)
    s.ellipse("accent", 0, 0.16 - h, 0.32, 0.1)
    s.ellipse("accent", 0, 0.02 - h, 0.09, 0.1)


def _chair(s: Layers, a: float, b: float, c: float) -> None:
    w, top = 0.46 + 0.14 * a, -0.95 + 0.2 * b
    seat = 0.15 + 0.12 * c
    for x, end in ((-w + 0.06, 0.97), (w - 0.06, 0.97), (-w + 0.3, 0.82), (w - 0.3, 0.82)):
        s.line("accent", [(x, seat), (x, end)], 0.11)
    s.box("accent", -w, top, -w + 0.1, seat, 0.04)
    s.box("accent", w - 0.1, top, w, seat, 0.04)
    s.box("body", -w + 0.04, top + 0.06, w - 0.04, top + 0.56, 0.1)
    s.polygon(
        "body", [(-w + 0.06, seat - 0.16), (w - 0.06, seat - 0.16), (w + 0.12, seat + 0.1), (-w - 0.12, seat + 0.1)]
    )


def _guitar(s: Layers, a: float, b: float, c: float) -> None:
    low, high = 0.42 + 0.1 * a, 0.3 + 0.08 * b
    s.box("accent", -0.07, -0.85, 0.07, 0.2)
    s.box("accent", -0.13, -0.99, 0.13, -0.76, 0.04)
    s.ellipse("body", 0, 0.55, low, 0.4)
    s.ellipse("body", 0, 0.08, high, 0.3 + 0.05 * c)
    s.ellipse("detail", 0, 0.22, 0.14, 0.14)
    s.box("detail", -0.2, 0.62, 0.2, 0.7)
    s.line("detail", [(0, -0.8), (0, 0.65)], 0.03)


def _car(s: Layers, a: float, b: float, c: float) -> None:
    roof = -0.45 - 0.14 * a
    front, back = 0.38 + 0.14 * b, -0.5 - 0.14 * c
    s.polygon("body", [(back, -0.05), (back + 0.22, roof), (front - 0.22, roof), (front + 0.05, -0.05)])
    s.box("body", -0.97, -0.1, 0.97, 0.38, 0.14)
    s.polygon("accent", [(back + 0.12, -0.06), (back + 0.28, roof + 0.1), (-0.1, roof + 0.1), (-0.1, -0.06)])
    s.polygon("accent", [(0.0, -0.06), (0.0, roof + 0.1), (front - 0.27, roof + 0.1), (front - 0.08, -0.06)])
    for x in (-0.55, 0.55):
        s.ellipse("detail", x, 0.4, 0.25, 0.25)
        s.ellipse("accent", x, 0.4, 0.11, 0.11)


def _clock(s: Layers, a: float, b: float, c: float) -> None:
    r = 0.72 + 0.12 * a
    for side in (-1, 1):
        s.ellipse("accent", side * 0.5, -0.74, 0.22 + 0.05 * b, 0.17)
        s.line("accent", [(side * 0.35, 0.6), (side * 0.58, 0.95)], 0.13)
    s.ellipse("body", 0, 0.05, r, r)
    s.ellipse("accent", 0, 0.05, r * 0.58, r * 0.58)
    angle = 2 * math.pi * c
    s.line("detail", [(0, 0.05), (r * 0.45 * math.sin(angle), 0.05 - r * 0.45 * math.cos(angle))], 0.07)
    s.line("detail", [(0, 0.05), (r * 0.3, 0.05)], 0.08)


def _boat(s: Layers, a: float, b: float, c: float) -> None:
    top, reach = -0.95 + 0.2 * a, 0.6 + 0.25 * b
    s.line("detail", [(0, top), (0, 0.42)], 0.07)
    s.polygon("body", [(0.05, top), (0.05 + reach, 0.28), (0.05, 0.28)])
    s.polygon("accent", [(-0.05, top + 0.2), (-0.05, 0.28), (-reach * 0.75, 0.28)])
    s.polygon("body", [(-0.95, 0.38), (0.95, 0.38), (0.6 + 0.1 * c, 0.85), (-0.6 - 0.1 * c, 0.85)])
    s.polygon("accent", [(-0.95, 0.36), (0.95, 0.36), (0.87, 0.48), (-0.87, 0.48)])


def _shoe(s: Layers, a: float, b: float, c: float) -> None:
    ankle, toe = -0.55 - 0.2 * a, 0.0 + 0.12 * b
    s.polygon(
        "body",
        [(-0.92, ankle), (-0.2, ankle), (-0.05, -0.2), (0.55, toe), (0.9, 0.2), (0.95, 0.48), (-0.92, 0.48)],
    )
    s.ellipse("accent", 0.72, 0.36, 0.26, 0.24)
    s.box("accent", -0.97, 0.42, 0.98, 0.62 + 0.1 * c, 0.06)
    for i in range(3):
        x, y = -0.12 + 0.2 * i, -0.32 + 0.14 * i
        s.line("detail", [(x - 0.12, y + 0.12), (x + 0.1, y - 0.05)], 0.06)


SHAPES: dict[str, Callable[[Layers, float, float, float], None]] = {
    "mug": _mug,
    "lamp": _lamp,
    "teddy bear": _teddy_bear,
    "kite": _kite,
    "hat": _hat,
    "umbrella": _umbrella,
    "backpack": _backpack,
    "teapot": _teapot,
    "chair": _chair,
    "guitar": _guitar,
    "car": _car,
    "clock": _clock,
    "boat": _boat,
    "shoe": _shoe,
}
CATEGORIES = tuple(SHAPES)


def pattern_mask(pattern: str, side: int) -> np.ndarray:
    """Where a pattern shows the accent colour: bool (side, side)."""
    x = np.arange(side) / side
    y = x[:, None]
    cells = 7
    if pattern == "striped":
        shown = _odd(x * cells * 2)
    elif pattern == "checked":
        shown = _odd(x * cells) ^ _odd(y * cells)
    elif pattern == "dotted":  # every other row is shifted by half a cell
        fx, shifted, fy = ((share % 1 - 0.5) ** 2 for share in (x * cells, x * cells + 0.5, y * cells))
        shown = np.where(_odd(y * cells), shifted, fx) + fy < 0.1
    elif pattern == "zigzag":
        wave = np.abs((x * cells) % 1 - 0.5) * 1.6
        shown = _odd(y * cells * 1.7 + wave * 1.6)
    elif pattern == "ringed":
        shown = _odd(np.hypot(x - 0.5, y - 0.5) * cells * 2)
    else:
        shown = np.zeros(1, dtype=bool)
    return np.broadcast_to(shown, (side, side))


def _odd(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.int32) & 1).astype(bool)
