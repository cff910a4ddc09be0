"""I3D: its published table, and what it refuses."""

import jax
import numpy as np
import pytest

from nrdm_jax.evaluation.networks import i3d


def published() -> dict[str, np.ndarray]:
    shapes = {"logits.conv3d.weight": (400, 1024, 1, 1, 1), "logits.conv3d.bias": (400,)}
    for name, (*window, inputs, features) in i3d.KERNELS.items():
        shapes[f"{name}.conv3d.weight"] = (features, inputs, *window)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (features,)
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def test_missing_and_other_tensors_are_refused_by_name():
    tensors = published()
    del tensors["Mixed_4e.b2b.conv3d.weight"]
    tensors["logits.conv3d.bias"] = np.zeros(600, np.float32)  # of Kinetics-600
    with pytest.raises(ValueError) as error:
        i3d.load(tensors)
    said = "missing: Mixed_4e.b2b.conv3d.weight; logits.conv3d.bias is (600,) and not (400,)"
    assert said in str(error.value)


def test_shapes_and_fewest_frames():
    units = {
        name: {
            "kernel": jax.ShapeDtypeStruct(shape, np.float32),
            "bias": jax.ShapeDtypeStruct(shape[-1:], np.float32),
        }
        for name, shape in i3d.KERNELS.items()
    }
    params = {
        "units": units,
        "classes": jax.ShapeDtypeStruct((1024, 400), np.float32),
        "bias": jax.ShapeDtypeStruct((400,), np.float32),
    }

    def shapes(*clips):
        return jax.eval_shape(i3d.apply, params, jax.ShapeDtypeStruct(clips, np.float32))

    for frames in (10, 16, 33):
        found = shapes(2, frames, 64, 48, 3)
        assert found.pooled.shape == (2, 400) and found.spatial is found.logits is None
    for clips in ((2, 9, 64, 64, 3), (2, 64, 64, 3)):
        with pytest.raises(ValueError, match="at least 10 frames, got .*; generate longer clips"):
            shapes(*clips)
