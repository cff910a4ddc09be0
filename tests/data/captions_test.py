"""Captions beside records: read and kept once, the same whoever asks, in the loader's order."""

import os

import numpy as np
import pytest

from nrdm_jax.data import captions, sources, stored
from nrdm_jax.data.errors import DataError
from nrdm_jax.data.loader import Loader

TEXTS = ["b", "", "a long one", "b", "a long one", "c"]
LENGTH, WIDTH = 12, 3


def tokens_of(texts):
    rows = np.zeros((len(texts), LENGTH), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = [ord(letter) for letter in text]
    return rows


def states_of(tokens):
    """Of a letter and its place; pooled, the letters' sum."""
    places = np.arange(tokens.shape[1])[None, :, None]
    states = (tokens[..., None] * np.arange(1, WIDTH + 1) + places).astype(np.float32)
    return states, tokens.sum(axis=1, keepdims=True).repeat(WIDTH, axis=1).astype(np.float32)


def records(texts=TEXTS):
    return sources.ArraySource(
        np.arange(len(texts), dtype=np.uint8).reshape(-1, 1, 1, 1),
        np.arange(len(texts)) % 2,
        num_classes=2,
        fingerprint="f",
        captions=lambda indices: [texts[i] for i in indices],
    )


def captioned(tmp_path=None, with_class=False, encode=states_of, source=None):
    source = source or records()
    different, rows = captions.different(source)
    table = captions.Tokens(tokens_of(different))
    if tmp_path is not None:
        table = captions.encoded(tokens_of(different), encode, tmp_path / "texts", ("k", different))
    return captions.CaptionedSource(
        source if with_class else captions.Unlabelled(source),
        rows,
        table,
        fingerprint=f"e {LENGTH}",
    )


def test_each_caption_is_there_once():
    found, rows = captions.different(records())
    assert found == ["b", "", "a long one", "c"]
    assert [found[i] for i in rows] == TEXTS


def test_states_are_those_of_each_records_caption(tmp_path):
    told, kept = captioned(), captioned(tmp_path)
    numbers = np.asarray([4, 1, 0, 3, 5])
    tokens, states = told.gather(numbers)["tokens"], kept.gather(numbers)
    np.testing.assert_array_equal(tokens, tokens_of([TEXTS[i] for i in numbers]))
    mask = tokens > 0
    np.testing.assert_array_equal(states["text_mask"], mask)
    wanted, pooled = states_of(tokens)
    np.testing.assert_array_equal(states["text"], np.where(mask[..., None], wanted, 0))
    np.testing.assert_array_equal(states["text_pooled"], pooled)
    assert mask.sum() == 10 + 0 + 1 + 1 + 1


def test_states_are_made_once_and_never_by_halves(tmp_path):
    calls = []

    def counted(tokens):
        calls.append(tokens.shape)
        return states_of(tokens)

    one = captioned(tmp_path, encode=counted)
    assert sum(n for n, _ in calls) == captions.ENCODED  # four captions fill a batch
    again = captioned(tmp_path, encode=counted)
    assert len(calls) == 1
    for name in ("text", "text_pooled"):
        np.testing.assert_array_equal(*(s.gather(np.arange(6))[name] for s in (one, again)))

    def broken(tokens):
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        captioned(tmp_path, encode=broken, source=records([*TEXTS, "new"]))
    (home,) = (tmp_path / "texts").iterdir()  # nothing of it is left
    names = {"states.npy", "ends.npy", "pooled.npy", stored.CHECKSUMS}
    assert {p.name for p in home.iterdir()} == names


def test_who_is_first_is_kept(tmp_path):
    home = tmp_path / "home"

    def slow(folder):
        home.mkdir()  # meanwhile, another process
        (home / "theirs").touch()
        (folder / "ours").touch()

    assert stored.once(home, slow) == home
    assert os.listdir(tmp_path) == ["home"] and os.listdir(home) == ["theirs"]


def test_what_has_changed_on_disk_is_not_read(tmp_path):
    home = tmp_path / "home"

    def write(folder):
        np.save(folder / "x.npy", np.arange(1000))
        (folder / "below").mkdir()
        (folder / "below" / "y").write_text("y")

    assert stored.once(home, write) == stored.once(home, write) == home
    whole = (home / "x.npy").read_bytes()
    for changed in (whole[:-1], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]):
        (home / "x.npy").write_bytes(changed)
        with pytest.raises(DataError, match="home.*x.npy has changed since it was written"):
            stored.once(home, write)
    (home / "x.npy").write_bytes(whole)
    (home / "below" / "y").write_text("z")
    with pytest.raises(DataError, match="below/y has changed since it was written"):
        stored.once(home, write)
    (home / stored.CHECKSUMS).write_text('{"../x.npy": 1}')
    with pytest.raises(DataError, match="points out of the folder"):
        stored.once(home, write)


def test_captions_of_nothing_but_space(tmp_path):
    empty = captioned(tmp_path, source=records(["", ""])).gather(np.arange(2))
    assert not empty["text_mask"].any() and not empty["text"].any()
    assert empty["text"].shape == (2, LENGTH, WIDTH)


def test_the_class_is_told_only_where_it_is_wanted():
    silent, telling = captioned(), captioned(with_class=True)
    np.testing.assert_array_equal(silent.gather(np.arange(3))["label"], [2, 2, 2])
    np.testing.assert_array_equal(telling.gather(np.arange(3))["label"], [0, 1, 0])
    np.testing.assert_array_equal(captions.plain(silent).gather(np.arange(3))["label"], [0, 1, 0])
    assert set(captions.plain(silent).gather(np.arange(3))) == {"x", "label"}
    assert len({silent.fingerprint, telling.fingerprint, "f"}) == 3


def test_processes_read_captions_of_their_own_rows(tmp_path):
    source = captioned(tmp_path)
    whole = Loader(source, batch_size=4, seed=1).batch_at(8)
    parts = [
        Loader(source, batch_size=4, seed=1, rows=rows).batch_at(8) for rows in ([0, 1], [2, 3])
    ]
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)
    texts = source.captions(whole["x"].reshape(-1))
    np.testing.assert_array_equal(whole["text_mask"].sum(1), [len(text) for text in texts])


def test_records_without_captions_say_so():
    plain = sources.ArraySource(
        np.zeros((2, 1), np.uint8), np.zeros(2), num_classes=1, fingerprint="f"
    )
    with pytest.raises(DataError, match="no captions; set text.encoder=none"):
        captions.different(plain)


def test_synthetic_captions_name_the_class():
    source = sources.synthetic((4, 4, 1), 3, "heldout")
    assert source.captions(np.asarray([0, 1, 5])) == [f"pattern number {i}" for i in (0, 1, 2)]


def test_prepared_sets_have_the_captions_of_their_records(data_dir):
    decoded, read = (
        sources.open_source(
            "openmoji",
            "heldout",
            shape=(32, 32, 3),
            num_classes=10,
            data_dir=data_dir,
            in_memory_bytes=size,
        )
        for size in (2**31, 0)
    )
    numbers = np.asarray([7, 0, 400])
    names = [record["caption"].decode() for record in read._records.read([7, 0, 400])]
    assert decoded.captions(numbers) == read.captions(numbers) == names
    assert len(set(names)) > 1
