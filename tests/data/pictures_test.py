import errno
import io

import numpy as np
import pytest
from PIL import Image

from nrdm_jax.data import pictures
from nrdm_jax.data.errors import DataError


def saved(picture, format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format=format, **options)
    file.seek(0)
    return file


def read(picture, shape=(8, 8, 3), format="PNG", **options):
    found = pictures.read_picture(saved(picture, format, **options), "a.png", shape)
    return np.asarray(found).reshape(shape)


def plain(mode, colour, size=(16, 16)):
    return Image.new(mode, size, colour)


def palette():
    picture = plain("P", 0)
    picture.putpalette([200, 100, 50] + [0, 0, 0] * 255)
    return picture


def clear_palette():
    picture = palette()
    picture.info["transparency"] = 0
    return picture


def wide_grey():
    return Image.fromarray(np.full((16, 16), 0x8080, np.uint16))


@pytest.mark.parametrize(
    ("picture", "format", "colour"),
    [
        (plain("RGB", (200, 100, 50)), "PNG", (200, 100, 50)),
        (plain("L", 120), "PNG", (120, 120, 120)),
        (plain("1", 1), "PNG", (255, 255, 255)),
        (palette(), "PNG", (200, 100, 50)),
        (clear_palette(), "PNG", (255, 255, 255)),
        (palette(), "GIF", (200, 100, 50)),
        (plain("LA", (0, 128)), "PNG", (127, 127, 127)),
        (plain("RGBA", (200, 100, 50, 0)), "PNG", (255, 255, 255)),
        (plain("RGBA", (255, 0, 0, 51)), "PNG", (255, 204, 204)),
        (plain("CMYK", (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (plain("CMYK", (0, 0, 0, 128)), "TIFF", (127, 127, 127)),
        (wide_grey(), "PNG", (128, 128, 128)),
    ],
    ids=lambda value: getattr(value, "mode", value),
)
def test_every_kind_of_picture_has_its_colour(picture, format, colour):
    found = read(picture, format=format).astype(int)
    assert np.abs(found - np.asarray(colour)).max() <= 2  # JPEG's rounding
    grey = read(picture, (8, 8, 1), format=format)
    assert abs(int(grey[0, 0, 0]) - np.dot(colour, (0.299, 0.587, 0.114))) <= 2


def halves(left, right, size=(32, 16)):
    picture = Image.new("RGB", size, left)
    picture.paste(right, (size[0] // 2, 0, *size))
    return picture


def test_a_picture_is_shown_as_its_camera_was_held():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera stood on its right side: to be turned clockwise
    found = read(halves("red", "blue"), (16, 8, 3), "JPEG", exif=exif, quality=95)
    top, bottom = found[0, 4].astype(int), found[-1, 4].astype(int)
    assert top[0] > 200 > 60 > top[2] and bottom[2] > 200 > 60 > bottom[0]


@pytest.mark.parametrize("size", [(64, 16), (33, 8)])
def test_crop_keeps_the_middle_and_the_aspect(size):
    # What is off the middle square is green, and a square of it would be squeezed to show.
    picture = Image.new("RGB", size, (0, 255, 0))
    left = (size[0] - size[1]) // 2
    picture.paste((255, 0, 0), (left, 0, left + size[1] + 1, size[1]))
    found = read(picture, (8, 8, 3))
    assert found[:, 1:-1, 0].min() > 200 and found[:, 1:-1, 1].max() < 60
    tall = pictures.fitted(picture.transpose(Image.Transpose.ROTATE_90), (8, 8, 3))
    assert np.asarray(tall)[1:-1, :, 1].max() < 60


def test_reducing_keeps_the_mean_and_leaves_no_stripes():
    stripes = np.zeros((96, 96), np.uint8)
    stripes[:, ::2] = 255
    found = np.asarray(pictures.fitted(Image.fromarray(stripes), (8, 8, 1)))
    assert np.abs(found.astype(int) - 127).max() <= 2
    assert np.asarray(pictures.fitted(Image.fromarray(stripes[:4, :4]), (16, 16, 1))).std() > 20


def test_large_jpegs_are_as_those_decoded_in_full():
    y, x = np.mgrid[:600, :800] / 600
    smooth = np.stack([x, y, 1 - y], axis=-1).clip(0, 1) * 255
    picture = Image.fromarray(smooth.astype(np.uint8))
    found = read(picture, (24, 24, 3), "JPEG", quality=95).astype(int)
    whole = np.asarray(pictures.fitted(picture, (24, 24, 3))).astype(int)
    assert np.abs(found - whole).max() <= 3


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, None])
def test_failures_of_the_machine_are_not_the_pictures(number):
    error = MemoryError() if number is None else OSError(number, "no")

    class Failing(io.BytesIO):
        def read(self, size=-1):
            raise error

    with pytest.raises(type(error)) as caught:
        pictures.read_picture(Failing(b"x"), "cat.png", (8, 8, 3))
    assert caught.value is error
    with pytest.raises(type(error)):
        pictures.size_of(Failing(b"x"))


def test_a_place_that_no_file_has_is_the_pictures_fault(tmp_path):
    # A TIFF whose only directory lies beyond what can be sought.
    path = tmp_path / "a.tif"
    path.write_bytes(b"II+\0\x08\0\0\0" + b"\xff" * 8)
    for missing in (path, tmp_path / "none.png"):
        with pytest.raises(DataError, match="cannot be decoded"):
            pictures.read_picture(missing, str(missing), (8, 8, 3))
        assert pictures.size_of(missing) is None


def test_what_cannot_be_read_is_named():
    whole = saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))
    cut = io.BytesIO(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(DataError, match=r"cat.png: cannot be decoded"):
        pictures.read_picture(cut, "cat.png", (8, 8, 3))
    with pytest.raises(DataError, match=r"cat.png: cannot be decoded"):
        pictures.read_picture(io.BytesIO(b"a text"), "cat.png", (8, 8, 3))
    floats = Image.fromarray(np.full((4, 4), 0.5, np.float32))
    with pytest.raises(DataError, match=r"cat.tif: is of numbers of 32 bits"):
        pictures.read_picture(saved(floats, "TIFF"), "cat.tif", (4, 4, 1))


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 50},
        {"lossless": True},
        {"save_all": True, "append_images": [plain("RGB", "blue", (300, 7))]},
    ],
    ids=["VP8", "VP8L", "VP8X"],
)
def test_the_size_of_webp_is_known_before_it_is_decoded(options, monkeypatch):
    file = saved(plain("RGB", "red", (300, 7)), "WEBP", **options)
    assert pictures._webp_size(file.getvalue()[:30]) == (300, 7)
    assert pictures.read_picture(file, "a.webp", (7, 7, 3)).size == (7, 7)
    monkeypatch.setattr(pictures, "MOST_WEBP", 2099)
    with pytest.raises(DataError, match="a.webp: is of 300 x 7 pixels, more than 2,099"):
        pictures.read_picture(saved(plain("RGB", "red", (300, 7)), "WEBP", **options), "a.webp",
                              (7, 7, 3))  # fmt: skip
