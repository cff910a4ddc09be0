import struct

import pytest

from nrdm_jax.bounded_files import BoundedFile
from nrdm_jax.data import sample_tables
from nrdm_jax.data.errors import DataError


def box(kind, content=b"", size=None):
    return struct.pack(">I4s", 8 + len(content) if size is None else size, kind) + content


def sizes(count, kind=b"stsz"):
    return box(kind, struct.pack(">III", 0, 1, count))


def fragment(count):
    return box(b"moof", box(b"traf", box(b"trun", struct.pack(">II", 0, count))))


def check(path, *boxes):
    path.write_bytes(b"".join(boxes))
    with BoundedFile(path) as file:
        sample_tables.check(file)
        assert file.tell() == 0


MOST = sample_tables.LEAST_SAMPLES
LARGE = box(b"mdat", struct.pack(">Q", 16 + 2**22) + bytes(2**22), size=1)


@pytest.mark.parametrize(
    "boxes",
    [
        [box(b"moov", sizes(MOST + 1))],
        [box(b"mdat"), box(b"moov", box(b"trak", sizes(MOST + 1, b"stz2")))],
        [box(b"moov", sizes(MOST)), fragment(1)],
        [fragment(MOST), box(b"mdat", bytes(99)), fragment(1)],
        [box(b"free", b"stsz" + sizes(MOST + 1))],  # within what seems to be one
        [box(b"moov", sizes(MOST + 1), size=0)],  # to the end
        [LARGE, box(b"moov", sizes(2**21 + 100))],
    ],
)
def test_more_samples_than_bytes_are_refused(tmp_path, boxes):
    with pytest.raises(DataError, match="says that its"):
        check(tmp_path / "a.mp4", *boxes)


def test_as_many_as_there_can_be_are_not(tmp_path):
    check(tmp_path / "a.mp4", box(b"moov", sizes(MOST)))
    check(tmp_path / "a.mp4", LARGE, box(b"moov", sizes(2**21)))
    # What is said among the samples, or is a word, is no table.
    check(tmp_path / "a.mp4", box(b"mdat", sizes(MOST + 1)))
    check(tmp_path / "a.mp4", box(b"moov", box(b"udta", b"this was truncated by a camera")))
    check(tmp_path / "a.mp4", b"")


def test_packed_tables_and_boxes_without_end_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="has packed tables"):
        check(tmp_path / "a.mov", box(b"moov", box(b"cmov", box(b"cmvd", bytes(9)))))
    monkeypatch.setattr(sample_tables, "MOST_BOXES", 8)
    check(tmp_path / "a.mov", *[box(b"free")] * 8)
    with pytest.raises(DataError, match="has more than 8 boxes"):
        check(tmp_path / "a.mov", *[box(b"free")] * 9)
    monkeypatch.setattr(sample_tables, "MOST_BOX", 64)
    with pytest.raises(DataError, match="one of more than 64 bytes"):
        check(tmp_path / "a.mov", box(b"free", bytes(64)))
