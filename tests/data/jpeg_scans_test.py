import io

import numpy as np
import pytest
from PIL import Image

from nrdm_jax.data import jpeg_scans
from nrdm_jax.data.errors import DataError

SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00"
MOST = jpeg_scans.MOST_SCANS


def jpeg(**options):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def scans_of(content, monkeypatch):
    """By the largest number that is refused."""
    for most in range(100):
        monkeypatch.setattr(jpeg_scans, "MOST_SCANS", most)
        try:
            jpeg_scans.check(content)
        except DataError:
            continue
        return most


@pytest.mark.parametrize(
    ("options", "scans"),
    [
        ({"quality": 95}, 1),
        ({"quality": 95, "restart_marker_blocks": 1}, 1),
        ({"progressive": True}, 10),
        ({"progressive": True, "icc_profile": SCAN * 200, "exif": b"Exif\0\0" + SCAN * 200}, 10),
    ],
)
def test_scans_of_real_pictures_are_counted(options, scans, monkeypatch):
    assert scans_of(jpeg(**options), monkeypatch) == scans
    assert scans_of(jpeg(**options) + SCAN * 200, monkeypatch) == scans  # behind the end


def test_more_are_refused_whatever_is_between_them():
    content = jpeg(progressive=True)[:-2]
    jpeg_scans.check(content + SCAN * (MOST - 10))
    for between in (
        b"",
        b"\xff",
        b"\x00\x01",
        b"\xff\xd3",
        b"\xff\x01",
        b"\xff\xfe\x00\x04\xff\xd9",
    ):
        with pytest.raises(DataError, match="is a JPEG of more than 100 scans"):
            jpeg_scans.check(content + (between + SCAN) * (MOST - 9))


def test_what_is_cut_or_too_long_ends(monkeypatch):
    content = jpeg()
    for end in range(2, len(content), 97):
        jpeg_scans.check(content[:end])
    monkeypatch.setattr(jpeg_scans, "MOST_BYTES", 99)
    with pytest.raises(DataError, match="is a JPEG of more than 99 bytes"):
        jpeg_scans.check(content)
