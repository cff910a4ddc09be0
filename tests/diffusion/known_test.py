"""What a network sees of an example beside x_t."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.diffusion import known

X = jax.random.normal(jax.random.key(0), (64, 4, 8, 8, 3))
KEYS = jax.random.split(jax.random.key(1), 64)


def test_a_segmentation_is_a_channel_a_class():
    classes = jnp.asarray([[0, 1, 2], [2, 5, 0]], jnp.uint8)
    seen = known.segmentation(3)({"segmentation": classes}, X, KEYS)
    assert seen.shape == (2, 3, 3) and seen.dtype == jnp.float32
    np.testing.assert_array_equal(seen[1], [[0, 0, 1], [0, 0, 0], [1, 0, 0]])


@pytest.mark.parametrize("see", [known.first_frames(1), known.around_a_box()])
def test_what_is_known_is_the_example_itself_and_says_where(see):
    seen = see({}, X, KEYS)
    assert seen.shape == (*X.shape[:-1], 4)
    mask = np.broadcast_to(np.asarray(seen[..., -1:]) == 1, X.shape)
    assert 0 < mask.mean() < 1
    np.testing.assert_array_equal(np.asarray(seen[..., :3])[mask], np.asarray(X)[mask])
    assert np.all(np.asarray(seen[..., :3])[~mask] == 0)
    # A sample keeps what is known and is free elsewhere.
    sample = known.completed(jnp.full_like(X, 9.0), seen)
    np.testing.assert_array_equal(np.asarray(sample)[mask], np.asarray(X)[mask])
    assert np.all(np.asarray(sample)[~mask] == 9.0)


def test_first_frames_are_the_first():
    mask = np.asarray(known.first_frames(3)({}, X, KEYS))[..., -1]
    assert np.all(mask[:, :3] == 1) and np.all(mask[:, 3:] == 0)


def test_a_box_is_a_box_within_its_bounds_and_its_key_s_alone():
    see = known.around_a_box(0.25, 0.75)
    hidden = np.asarray(see({}, X, KEYS))[..., -1] == 0
    for axis, length in ((1, 4), (2, 8), (3, 8)):
        others = tuple(a for a in (1, 2, 3) if a != axis)
        along = hidden.any(axis=others)
        # One run of places: it begins at most once.
        assert np.all(np.sum(np.diff(along.astype(int), prepend=0, axis=1) == 1, axis=1) <= 1)
        share = along.sum(axis=1) / length
        assert share.min() >= 0.25 - 1 / length and share.max() <= 0.75 + 1 / length
        # A box is the product of its sides.
        np.testing.assert_array_equal(hidden.sum(axis=others).max(axis=1) > 0, along.any(axis=1))
    sides = [hidden.any(axis=tuple(a for a in (1, 2, 3) if a != axis)).sum(1) for axis in (1, 2, 3)]
    np.testing.assert_array_equal(hidden.sum(axis=(1, 2, 3)), np.prod(sides, axis=0))
    assert len(np.unique(hidden.reshape(64, -1), axis=0)) > 32
    few = np.asarray(see({}, X[5:7], KEYS[5:7]))[..., -1] == 0
    np.testing.assert_array_equal(few, hidden[5:7])
