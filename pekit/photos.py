"""Photos: decoded as the published codes do, and squashed (method, step 1)."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pekit.records import PhotoError

LFS_POINTER = b"version https://git-lfs"
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def open_image(path: Path, exif: bool = False) -> Image.Image:
    """Decode a photo to RGB as the published codes do: alpha is dropped, EXIF orientation ignored unless asked for.

    Returns:
        An RGB image of the photo's own size.

    Raises:
        PhotoError: the file is missing, damaged, no image, or a Git LFS pointer.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise PhotoError(f"{path} is a Git LFS pointer, not the photo: run 'git lfs pull' in its repository")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size, or of what is dropped here anyway, such as transparency
            with Image.open(path) as image:
                image.load()
                if exif:
                    ImageOps.exif_transpose(image, in_place=True)
                return _to_rgb(image)
    except PhotoError:
        raise
    except FileNotFoundError:
        raise PhotoError(f"{path} is not there") from None
    except UnidentifiedImageError:
        raise PhotoError(f"{path} cannot be read as an image: {_unknown_kind(path)}") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise PhotoError(f"{path} has more than {most} megapixels: shrink it") from None
    except Exception as error:  # a damaged photo makes the decoders raise anything, MemoryError and TypeError among it
        raise PhotoError(f"{path} cannot be read as an image: {str(error) or type(error).__name__}") from None


def _unknown_kind(path: Path) -> str:
    """What a file is that Pillow does not know."""
    with path.open("rb") as file:
        head = file.read(12)
    if not head:
        return "it is empty"
    if head[4:8] == b"ftyp" and head[8:] in HEIC_BRANDS:
        return "it is a HEIC photo: convert it to JPEG or PNG"
    return "it is of no known kind"


def is_turned(path: Path) -> bool:
    """Whether a photo has an EXIF orientation that moves its pixels; not where it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # reading the photo says what is wrong with it
        return False


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey: Pillow's own conversion clips at 255
        values = np.asarray(image).astype(np.float64)
        most = values.max(initial=0)
        scale = 1.0 if most <= 255 and image.mode in ("F", "I") else 255.0 / 65535.0
        if image.mode == "F" and most <= 1:  # the other habit of floating-point pictures
            scale = 255.0
        image = Image.fromarray(np.rint(np.clip(values * scale, 0, 255)).astype(np.uint8))
    return image.convert("RGB")


def squash(image: Image.Image, size: int) -> Image.Image:
    """The whole photo at size x size, aspect ratio not kept, antialiased bilinear (method, step 1)."""
    return image.resize((size, size), Image.Resampling.BILINEAR)
