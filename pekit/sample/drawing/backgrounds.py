"""Where drawn things stand: backgrounds, clutter that is none of the categories, and light."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def _tone(rng: np.random.Generator, low: int = 60, high: int = 235, colourful: float = 26) -> tuple[int, int, int]:
    """A muted colour: grey of some brightness, tinted a little."""
    values = np.clip(rng.uniform(low, high) + rng.normal(0, colourful, 3), 20, 250)
    return int(values[0]), int(values[1]), int(values[2])


def background(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """One of eight backgrounds: RGB, (W, H)."""
    width, height = size
    image = Image.new("RGB", size, _tone(rng))
    pen = ImageDraw.Draw(image)
    kind = int(rng.integers(8))
    horizon = int(height * rng.uniform(0.4, 0.75))
    if kind == 0:  # wall and floor
        pen.rectangle((0, horizon, width, height), fill=_tone(rng))
    elif kind == 1:  # sky and grass
        pen.rectangle((0, 0, width, horizon), fill=_tone(rng, 170, 235, 15))
        pen.rectangle((0, horizon, width, height), fill=(int(rng.uniform(70, 130)), int(rng.uniform(120, 175)), 70))
    elif kind == 2:  # wallpaper
        band = width * rng.uniform(0.1, 0.22)
        stripe = _tone(rng)
        for i in range(int(width / band) + 1):
            pen.rectangle((i * band, 0, i * band + band / 2, height), fill=stripe)
    elif kind == 3:  # tiles
        step, joint = max(8, int(width * rng.uniform(0.12, 0.25))), _tone(rng)
        for x in range(0, width, step):
            pen.line((x, 0, x, height), fill=joint, width=max(1, width // 100))
        for y in range(0, height, step):
            pen.line((0, y, width, y), fill=joint, width=max(1, width // 100))
    elif kind == 4:  # table top in front of a wall
        pen.rectangle((0, horizon, width, height), fill=(150, 104, 62))
        for _ in range(10):
            vein = rng.uniform(horizon, height)
            pen.line((0, vein, width, vein + rng.normal(0, 3)), fill=(128, 86, 50), width=max(1, height // 120))
    elif kind in (5, 6):  # a gradient, or blurred shapes far away
        ends = np.array([_tone(rng), _tone(rng)], dtype=np.float64)
        share = np.linspace(0, 1, height)[:, None, None]
        blend = np.broadcast_to(ends[0] * (1 - share) + ends[1] * share, (height, width, 3))
        image = Image.fromarray(blend.astype(np.uint8))
        if kind == 6:
            pen = ImageDraw.Draw(image)
            for _ in range(8):
                left, upper, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.08, 0.25) * width
                pen.ellipse((left - r, upper - r, left + r, upper + r), fill=_tone(rng))
            image = image.filter(ImageFilter.GaussianBlur(width / 30))
    else:  # carpet
        grain = rng.normal(0, 14, (max(2, height // 3), max(2, width // 3), 1))
        values = np.clip(np.array(_tone(rng)) + grain, 0, 255).astype(np.uint8)
        image = Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)
    return image


def clutter(rng: np.random.Generator, image: Image.Image) -> None:
    """Draw a few things without a name onto a picture: sticks, leaves, slabs, pebbles."""
    width, height = image.size
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 6))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        r = rng.uniform(0.03, 0.12) * min(width, height)
        fill = _tone(rng, 50, 220, 50)
        kind = int(rng.integers(4))
        if kind == 0:
            angle = rng.uniform(0, np.pi)
            dx, dy = 2 * r * np.cos(angle), 2 * r * np.sin(angle)
            pen.line((x - dx, y - dy, x + dx, y + dy), fill=fill, width=max(2, int(r / 4)))
        elif kind == 1:
            pen.ellipse((x - r, y - r / 2.5, x + r, y + r / 2.5), fill=fill)
        elif kind == 2:
            pen.rectangle((x - r, y - r * 0.6, x + r, y + r * 0.6), fill=fill)
        else:
            angles = np.sort(rng.uniform(0, 2 * np.pi, 6))
            pen.polygon([(x + r * np.cos(t), y + r * np.sin(t)) for t in angles], fill=fill)


def light(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Brightness, warmth, a fall-off to one side and sensor noise: uint8 (H, W, 3) -> the same, lit."""
    height, width = pixels.shape[:2]
    warmth = rng.normal(0, 0.03)
    gain = rng.uniform(0.85, 1.12) * np.array([1 + warmth, 1.0, 1 - warmth], dtype=np.float32)
    slope = rng.uniform(-0.1, 0.1, 2)
    falloff = 1 + slope[0] * np.linspace(-1, 1, width)[None, :] + slope[1] * np.linspace(-1, 1, height)[:, None]
    noise = rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(0, 5)
    lit = falloff.astype(np.float32)[..., None] * gain
    lit *= pixels
    lit += noise
    return np.clip(lit, 0, 255, out=lit).astype(np.uint8)
