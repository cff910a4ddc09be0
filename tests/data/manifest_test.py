import json
import os

import pytest

from nrdm_jax.data import manifest
from nrdm_jax.data.errors import DataError


def test_manifest_catches_a_flipped_byte_and_a_lost_file(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    manifest.write(tmp_path, "letters", {"d": "d: is no letter"})
    assert manifest.verify(tmp_path) == 3
    assert manifest.left_out(tmp_path) == {"d": "d: is no letter"}
    content = bytearray((tmp_path / "b").read_bytes())
    content[500] ^= 1
    (tmp_path / "b").write_bytes(content)
    (tmp_path / "c").unlink()
    with pytest.raises(DataError, match="b is not as it was written; c is not there"):
        manifest.verify(tmp_path)


@pytest.mark.parametrize(
    ("put", "says"),
    [
        (os.mkfifo, "a is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "a is a link out of"),
        (lambda path: path.mkdir(), "a is not there"),
    ],
)
def test_what_is_no_file_of_the_set_is_not_read(tmp_path, put, says):
    (tmp_path / "a").write_bytes(b"a")
    manifest.write(tmp_path, "letters", {})
    (tmp_path / "a").unlink()
    put(tmp_path / "a")
    with pytest.raises(DataError, match=says):
        manifest.verify(tmp_path)


@pytest.mark.parametrize("text", [None, "{", "[]", json.dumps({"files": {}})])
def test_an_absent_or_damaged_manifest_is_said_to_be(tmp_path, text):
    if text is not None:
        (tmp_path / manifest.MANIFEST).write_text(text)
    says = "has no manifest.json" if text is None else "manifest.json is damaged"
    with pytest.raises(DataError, match=says):
        manifest.verify(tmp_path)
