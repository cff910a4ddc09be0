"""Samples held against what they were learnt from."""

import json

import numpy as np
import pytest
from PIL import Image

from nrdm_jax import likeness
from nrdm_jax.data.captions import Unlabelled
from nrdm_jax.data.sources import ArraySource
from nrdm_jax.sampling import comparisons, generate


def source(shape, count, seed, captions=None):
    x = np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)
    return ArraySource(
        x,
        (np.arange(count) % 2).astype(np.int32),
        num_classes=2,
        class_names=("cat", "dog"),
        fingerprint="f",
        captions=captions,
    )


@pytest.mark.parametrize(
    ("shape", "write"),
    [((8, 8, 3), "auto"), ((5, 8, 8, 3), "auto"), ((6, 8, 7, 1), "auto"), ((8, 8, 8, 1), "shapes"),
     ((4, 4, 5), "auto")],
)  # fmt: skip
def test_a_copy_is_found_with_or_without_captions(tiny_config, tmp_path, shape, write):
    c = tiny_config
    c.data.shape, c.sample.write = shape, write
    train = source(shape, 20, 0)
    heldout = source(shape, 6, 1, captions=lambda numbers: [f"number {i}" for i in numbers])
    copied = train.x[[3, 11]] / np.float32(127.5) - 1
    drawn = np.concatenate([copied, copied[::-1] + 0.01])
    untold = Unlabelled(train)  # a run that is told no class: examples still have theirs
    found = likeness.compared(c, drawn, untold, heldout, generate.to_pixels, tmp_path / "evals")
    rows = json.loads((tmp_path / "evals" / "nearest.json").read_text())
    assert [row["example"] for row in rows] == [3, 11, 11, 3]
    assert [row["title"] for row in rows] == ["dog"] * 4
    np.testing.assert_allclose([row["distance"] for row in rows], [0, 0, 0.01, 0.01], atol=1e-5)
    np.testing.assert_allclose(found["nearest_samples"], 0.005, atol=1e-5)
    # Held-out noise is as far from everything as noise is.
    assert found["nearest_heldout"] > 0.4
    files = {p.name for p in (tmp_path / "evals").iterdir()}
    pictures = {"nearest.png", "beside.png"} if shape[-1] in (1, 3) else set()
    assert files == {"nearest.json", *pictures}
    for name in pictures:
        assert np.asarray(Image.open(tmp_path / "evals" / name)).std() > 10


def test_pairs_are_side_by_side():
    """Of three pairs each row has whole ones."""
    dark, light = (np.full((3, 96, 96, 3), value, np.uint8) for value in (10, 200))
    sheet = comparisons.comparison([(dark, ["a"] * 3), (light, ["b"] * 3)])
    line = sheet[40, :, 0]
    runs = line[np.concatenate([[True], np.diff(line.astype(int)) != 0])]
    shown = [int(v) for v in runs if v in (10, 200)]
    assert shown[:2] == [10, 200] and len(shown) % 2 == 0
