"""Pools, padding and folded batch norms against loops."""

import numpy as np
import pytest

from nrdm_jax.evaluation.networks import layers
from nrdm_jax.evaluation.networks.layers import Convolution, Fork, Pool


def windows(x, window, strides, padding):
    """Yields (place, what of x (H, W, C) is in its window): what is outside is not there."""
    starts = []
    for length, size, stride in zip(x.shape[:2], window, strides, strict=True):
        if padding == "VALID":
            starts.append(range(0, length - size + 1, stride))
        else:  # TensorFlow's rule: the odd one behind
            total = max((-(-length // stride) - 1) * stride + size - length, 0)
            starts.append(range(-(total // 2), length - total // 2, stride))
    for i, top in enumerate(starts[0]):
        for j, left in enumerate(starts[1]):
            yield (i, j), x[max(top, 0) : top + window[0], max(left, 0) : left + window[1]]


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize(
    "window, strides, padding",
    [((3, 3), (1, 1), "SAME"), ((3, 3), (2, 2), "VALID"), ((2, 3), (2, 2), "SAME")],
)
def test_padding_counts_in_no_pool(kind, window, strides, padding):
    x = np.random.default_rng(0).normal(-3.0, 1.0, (5, 6, 2)).astype(np.float32)
    found = np.asarray(layers.pool(x[None], Pool(kind, window, strides, padding)))[0]
    places = list(windows(x, window, strides, padding))
    assert found.shape[:2] == tuple(np.add(places[-1][0], 1))
    for place, inside in places:
        expected = inside.max((0, 1)) if kind == "max" else inside.mean((0, 1))
        np.testing.assert_allclose(found[place], expected, rtol=1e-6)


@pytest.mark.parametrize("length", [5, 6])
def test_a_folded_convolution_is_the_convolution_and_its_batch_norm(length):
    draw = np.random.default_rng(length)
    tensors = {
        "a.b.conv.weight": draw.normal(size=(4, 2, 3, 3)),
        "a.b.bn.weight": draw.uniform(0.5, 2, 4),
        "a.b.bn.bias": draw.normal(size=4),
        "a.b.bn.running_mean": draw.normal(size=4),
        "a.b.bn.running_var": draw.uniform(0.01, 2, 4),
        "a.b.bn.num_batches_tracked": np.array(1),
    }
    steps = (Fork(((Convolution("b", 4, (3, 3), 2),),), "a."),)
    kernels, channels = layers.convolutions(steps, 2)
    assert (kernels, channels) == ({"a.b": (3, 3, 2, 4)}, 4)
    params, others = layers.load_convolutions(
        tensors, kernels, weight="conv.weight", others={}, epsilon=0.1, of="it"
    )
    assert not others
    x = draw.normal(size=(length, length, 2))
    found = np.asarray(layers.run(params, steps, x[None].astype(np.float32)))[0]

    weight, scale, bias, mean, variance = (tensors[name] for name in list(tensors)[:5])
    before = 1 if length == 5 else 0  # of the one or two zeros along an axis
    padded = np.pad(x, ((before, 1), (before, 1), (0, 0)))
    for place, inside in windows(padded, (3, 3), (2, 2), "VALID"):
        y = np.einsum("hwi,oihw->o", inside, weight)
        y = scale * (y - mean) / np.sqrt(variance + 0.1) + bias
        np.testing.assert_allclose(found[place], np.maximum(y, 0), rtol=1e-4, atol=1e-5)
    assert found.shape == (3, 3, 4) and (found > 0).any() and (found == 0).any()


def test_branches_are_concatenated_in_order_and_named_after_their_forks():
    steps = (
        Fork(
            (
                (Convolution("x", 1, (1, 1)),),
                (
                    Convolution("y", 2, (1, 1)),
                    Fork(((Convolution("z", 3, (1, 1)),), (Pool("max", (1, 1), (1, 1)),))),
                ),
            ),
            "block.",
        ),
    )
    kernels, channels = layers.convolutions(steps, 5)
    assert kernels == {"block.x": (1, 1, 5, 1), "block.y": (1, 1, 5, 2), "block.z": (1, 1, 2, 3)}
    assert channels == 1 + 3 + 2
    params = {
        name: {"kernel": np.zeros(shape, np.float32), "bias": np.full(shape[-1], i + 1.0)}
        for i, (name, shape) in enumerate(kernels.items())
    }
    found = np.asarray(layers.run(params, steps, np.ones((1, 1, 1, 5), np.float32)))
    np.testing.assert_array_equal(found[0, 0, 0], [1, 3, 3, 3, 2, 2])
