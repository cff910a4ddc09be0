"""Captions as tokens: a text's numbers plus one, 0 behind it, cut in whole characters."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from nrdm_jax.text import tokens


def test_bytes_are_numbers_plus_one():
    found, cut = tokens.of_bytes(["aé", "  \n", "abc"], 3)
    # é is C3 A9 in UTF-8
    np.testing.assert_array_equal(found, [[0x62, 0xC4, 0xAA], [0, 0, 0], [0x62, 0x63, 0x64]])
    assert found.dtype == np.int32 and found.max() < tokens.BYTES
    np.testing.assert_array_equal(cut, [False, False, False])


@hypothesis.given(st.text(st.characters(exclude_categories=("Cs",))), st.integers(1, 12))
@hypothesis.settings(max_examples=200, deadline=None)
def test_a_cut_text_is_the_beginning_of_it(text, length):
    (row,), (cut,) = tokens.of_bytes([text], length)
    kept, whole = tokens.text_of_bytes(row), text.strip()
    assert whole.startswith(kept) and cut == (kept != whole)
    # Nothing is lost but a character that does not fit.
    missing = whole[len(kept) : len(kept) + 1].encode()
    assert not missing or len(kept.encode()) + len(missing) > length


def test_a_character_is_not_cut_in_two():
    for length, kept in ((4, "né"), (5, "né"), (6, "né"), (7, "né🚗")):
        (row,), (cut,) = tokens.of_bytes(["né🚗"], length)
        assert tokens.text_of_bytes(row) == kept and cut == (length < 7)
        assert np.count_nonzero(row) == len(kept.encode())


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """Words as numbers, `[` and `]` around a text; padding and cutting as files may ask for."""
    library = pytest.importorskip("tokenizers", reason="the extra text is not installed")
    from tokenizers import models, pre_tokenizers, processors

    words = {"!": 0, "[": 1, "]": 2, "?": 3, "a": 4, "red": 5, "car": 6}
    found = library.Tokenizer(models.WordLevel(words, unk_token="?"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.post_processor = processors.TemplateProcessing(
        single="[ $A ]", special_tokens=[("[", 1), ("]", 2)]
    )
    found.enable_padding(length=9, pad_id=0)
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    found.save(str(path))
    return tokens.open_vocabulary(path)


def test_marks_stay_around_a_cut_text_and_nothing_around_none(vocabulary):
    found, cut = vocabulary(["a red car", "! car", " "], 4)
    # Number 0 of the vocabulary is a word and no padding.
    np.testing.assert_array_equal(found, [[2, 5, 6, 3], [2, 1, 7, 3], [0, 0, 0, 0]])
    np.testing.assert_array_equal(cut, [True, False, False])
    longer, cut = vocabulary(["a red car"], 6)
    np.testing.assert_array_equal(longer, [[2, 5, 6, 7, 3, 0]])
    assert not cut.any()


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    pytest.importorskip("tokenizers", reason="the extra text is not installed")
    with pytest.raises(ValueError, match=r"no tokenizer.json beside the weights"):
        tokens.open_vocabulary(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer"):
        tokens.open_vocabulary(tmp_path / "tokenizer.json")


def test_the_package_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ValueError, match="--extras=text"):
        tokens.open_vocabulary(tmp_path / "tokenizer.json")
