"""FID's InceptionV3: its published table, what it refuses, and where it differs from others."""

import jax
import numpy as np
import pytest

from nrdm_jax.evaluation.networks import inception, layers


def published() -> dict[str, np.ndarray]:
    """All tensors of the file, zero and without memory of their own."""
    shapes = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, (*window, inputs, features) in inception.KERNELS.items():
        shapes[f"{name}.conv.weight"] = (features, inputs, *window)
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            shapes[f"{name}.bn.{part}"] = () if part == "num_batches_tracked" else (features,)
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def test_the_table_has_the_parameters_of_the_published_network():
    # Keras' InceptionV3 without its top has 21,768,352 that are trained: kernels and a bias each.
    assert len(inception.KERNELS) == 94
    count = sum(np.prod(shape) + shape[-1] for shape in inception.KERNELS.values())
    assert count == 21_768_352


def test_missing_and_other_tensors_are_refused_by_name():
    tensors = published()
    del tensors["Mixed_6c.branch7x7dbl_4.bn.running_var"]
    tensors["fc.weight"] = tensors["fc.weight"][:1000]  # torchvision's
    with pytest.raises(ValueError) as error:
        inception.load(tensors)
    for said in (
        "missing: Mixed_6c.branch7x7dbl_4.bn.running_var;",
        "fc.weight is (1000, 2048) and not (1008, 2048)",
        "pt_inception-2015-12-05-6726825d.pth",
    ):
        assert said in str(error.value)


def abstract_params():
    units = {
        name: {
            "kernel": jax.ShapeDtypeStruct(shape, np.float32),
            "bias": jax.ShapeDtypeStruct(shape[-1:], np.float32),
        }
        for name, shape in inception.KERNELS.items()
    }
    return {"units": units, "classes": jax.ShapeDtypeStruct((2048, 1008), np.float32)}


@pytest.mark.parametrize("size", [(32, 48), (299, 299), (512, 300)])
def test_shapes(size):
    pixels = jax.ShapeDtypeStruct((2, *size, 3), np.float32)
    found = jax.eval_shape(inception.apply, abstract_params(), pixels)
    assert [x.shape for x in found] == [(2, 2048), (2, 17 * 17 * 7), (2, 1008)]


@pytest.mark.parametrize("block, most", [(-2, False), (-1, True)])
def test_the_last_block_has_a_max_pool_and_the_one_before_a_mean_without_padding(block, most):
    branch = inception.FROM_MIXED_6E[block].branches[-1]
    x = np.random.default_rng(0).uniform(0, 1, (1, 4, 4, 192)).astype(np.float32)
    kernel = np.eye(192, dtype=np.float32)[None, None]
    params = {"branch_pool": {"kernel": kernel, "bias": np.zeros(192, np.float32)}}
    found = np.asarray(layers.run(params, branch, x))
    for i in range(4):
        for j in range(4):
            near = x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            expected = near.max((0, 1)) if most else near.mean((0, 1))
            np.testing.assert_allclose(found[0, i, j], expected, rtol=1e-6)


def test_what_the_outputs_are():
    """Without kernels every convolution says its bias, if that is positive: so the outputs are the
    biases of the units that they are published to come from, and the logits have none."""
    draw, tensors = np.random.default_rng(0), published()
    for name in tensors:
        if name.endswith("bn.bias"):
            tensors[name] = draw.normal(size=tensors[name].shape)
    classes = draw.normal(size=(1008, 2048)) / 45
    tensors |= {"fc.weight": classes, "fc.bias": np.full(1008, 9.0)}
    pixels = draw.uniform(0, 255, (1, 8, 8, 3)).astype(np.float32)
    found = jax.jit(inception.apply)(inception.load(tensors), pixels)
    names = ("1x1", "3x3_2a", "3x3_2b", "3x3dbl_3a", "3x3dbl_3b", "_pool")
    last = [tensors[f"Mixed_7c.branch{name}.bn.bias"] for name in names]
    pooled = np.maximum(np.concatenate(last), 0)
    np.testing.assert_allclose(found.pooled[0], pooled, rtol=1e-4)
    spatial = np.maximum(tensors["Mixed_6d.branch1x1.bn.bias"][:7], 0)
    np.testing.assert_allclose(found.spatial[0], np.tile(spatial, 17 * 17), rtol=1e-6)
    np.testing.assert_allclose(found.logits[0], classes @ pooled, rtol=1e-3, atol=1e-4)
