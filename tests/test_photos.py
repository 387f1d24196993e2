"""Photos: every mode becomes RGB, what cannot be read is named, squashing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import broken, picture
from PIL import Image

from pekit.photos import is_turned, open_image, squash
from pekit.records import PhotoError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"


class TestOpenImage:
    @pytest.mark.parametrize("mode", ["RGB", "L", "1", "LA", "P", "CMYK", "YCbCr"])
    def test_any_mode_becomes_rgb(self, tmp_path: Path, mode: str) -> None:
        source = picture(5).convert(mode)
        source.save(tmp_path / "x.tif" if mode in ("CMYK", "YCbCr") else tmp_path / "x.png")
        image = open_image(next(tmp_path.iterdir()))
        assert (image.mode, image.size) == ("RGB", (80, 60))
        expected = np.asarray(source.convert("RGB")).astype(int)
        assert np.abs(np.asarray(image).astype(int) - expected).max() <= 2

    def test_alpha_is_dropped_not_blended(self, tmp_path: Path) -> None:
        values = np.full((4, 4, 4), (10, 200, 30, 0), dtype=np.uint8)  # wholly transparent
        Image.fromarray(values).save(tmp_path / "x.png")
        assert (np.asarray(open_image(tmp_path / "x.png")) == (10, 200, 30)).all()

    def test_sixteen_bit_grey_is_scaled_not_clipped(self, tmp_path: Path) -> None:
        values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)  # 0, 1, 128 and 255 times 257
        Image.fromarray(values).save(tmp_path / "x.png")
        found = np.asarray(open_image(tmp_path / "x.png"))
        np.testing.assert_array_equal(found[0, :, 0], [0, 1, 128, 255])
        np.testing.assert_array_equal(found[0], found[0, :, :1].repeat(3, axis=1))
        Image.fromarray(np.array([[0, 1]], dtype=np.uint16)).save(tmp_path / "x.png")  # as dark as can be
        assert not np.asarray(open_image(tmp_path / "x.png")).any()

    @pytest.mark.parametrize("top", [1, 255, 65535])
    def test_floating_point_grey_in_each_of_its_ranges(self, tmp_path: Path, top: float) -> None:
        Image.fromarray(np.array([[0, 0.2, 0.6, 1]], dtype=np.float32) * top).save(tmp_path / "x.tif")
        found = np.asarray(open_image(tmp_path / "x.tif"))
        np.testing.assert_array_equal(found[0, :, 0], [0, 51, 153, 255])

    def test_a_photo_too_large_is_told_what_to_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
        Image.new("RGB", (2000, 1500)).save(tmp_path / "x.png")  # above the limit, below twice the limit
        assert open_image(tmp_path / "x.png").size == (2000, 1500)
        Image.new("RGB", (2500, 2000)).save(tmp_path / "x.png")
        with pytest.raises(PhotoError, match=r"x\.png has more than 4 megapixels: shrink it"):
            open_image(tmp_path / "x.png")

    def test_exif_orientation_only_where_asked_for(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90°
        picture(6).save(tmp_path / "x.jpg", exif=exif)
        assert open_image(tmp_path / "x.jpg").size == (80, 60)
        assert open_image(tmp_path / "x.jpg", exif=True).size == (60, 80)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (POINTER, r"^\S+x\.png is a Git LFS pointer, .*git lfs pull"),
            (b"", "cannot be read as an image: it is empty"),
            (b"this is no image", "cannot be read as an image: it is of no known kind"),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is a HEIC photo: convert it"),
            ("half", "cannot be read"),
            (None, "not there"),
        ],
    )
    def test_what_cannot_be_read_is_named(self, tmp_path: Path, content: bytes | str | None, words: str) -> None:
        file = tmp_path / "x.png"
        if content == "half":
            picture(7).save(file)
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        elif isinstance(content, bytes):
            file.write_bytes(content)
        with pytest.raises(PhotoError, match=words) as error:
            open_image(file)
        assert "x.png" in str(error.value) and "\n" not in str(error.value)

    @pytest.mark.parametrize("kind", ["DDS", "JPEG2000", "JPEG", "PPM", "PNG"])
    def test_damage_of_any_kind_is_named(self, tmp_path: Path, kind: str) -> None:
        (tmp_path / "x.png").write_bytes(broken(kind))
        with pytest.raises(PhotoError, match=r"x\.png cannot be read as an image: \w"):
            open_image(tmp_path / "x.png", exif=True)

    def test_squash_keeps_no_aspect_ratio_and_antialiases(self) -> None:
        stripes = np.zeros((100, 200, 3), dtype=np.uint8)
        stripes[:, ::2] = 200  # stripes one pixel wide: any antialiased reduction of four gives flat grey
        found = np.asarray(squash(Image.fromarray(stripes), 50))
        assert found.shape == (50, 50, 3)
        assert np.abs(found[:, 2:-2].astype(int) - 100).max() <= 1

    def test_squash_bilinearly(self) -> None:
        image = Image.fromarray(np.array([[[0] * 3, [200] * 3]], dtype=np.uint8))
        row = np.asarray(squash(image, 4))[0, :, 0]
        np.testing.assert_array_equal(row, [0, 50, 150, 200])


@pytest.mark.parametrize(("orientation", "turned"), [(None, False), (1, False), (6, True)])
def test_photos_that_exif_would_turn(tmp_path: Path, orientation: int | None, turned: bool) -> None:
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    picture(6).save(tmp_path / "x.jpg", exif=exif)
    assert is_turned(tmp_path / "x.jpg") is turned


def test_a_photo_that_cannot_be_read_is_not_said_to_be_turned(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"no image")
    assert not is_turned(tmp_path / "x.jpg") and not is_turned(tmp_path / "y.jpg")
