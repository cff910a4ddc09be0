"""What is given to `nrdm sample` as captions."""

import pytest

from nrdm_jax import sample


def test_captions_are_parts_or_lines(tmp_path):
    assert sample.captions("a red car; a blue fish;") == ["a red car", "a blue fish", ""]
    file = tmp_path / "texts.txt"
    file.write_text("one;two\n\nné\n", encoding="utf-8")
    assert sample.captions(str(file)) == ["one;two", "", "né"]
    assert sample.captions("x" * 5000) == ["x" * 5000]  # too long for a name


def test_files_that_are_none_are_no_captions(tmp_path):
    file = tmp_path / "texts.txt"
    with pytest.raises(ValueError, match=r"--captions: there is no file .*texts.txt"):
        sample.captions(str(file))
    file.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        sample.captions(str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot be read"):
        sample.captions(str(file))
