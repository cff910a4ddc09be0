"""DINOv2's transformer, tiny: what its parts mean."""

import jax
import numpy as np
import pytest

from nrdm_jax.evaluation.networks import dinov2

WIDTH, PATCH, GRID = 128, 56, 4  # 4 x 4 patches of 224 x 224


def weights(depth=2, grid=GRID):
    draw = np.random.default_rng(0)
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + grid**2, WIDTH),
        "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    for i in range(depth):
        for name, inputs, outputs in (
            ("attn.qkv", WIDTH, 3 * WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", WIDTH, 2 * WIDTH),
            ("mlp.fc2", 2 * WIDTH, WIDTH),
        ):
            shapes |= {f"blocks.{i}.{name}.weight": (outputs, inputs)}
            shapes |= {f"blocks.{i}.{name}.bias": (outputs,)}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma",
                     "ls2.gamma"):  # fmt: skip
            shapes[f"blocks.{i}.{name}"] = (WIDTH,)
    return {name: draw.normal(0, 0.3, shape) for name, shape in shapes.items()}


APPLY = jax.jit(dinov2.apply)


def pooled(tensors, pixels):
    found = APPLY(dinov2.load(tensors), pixels)
    assert found.spatial is found.logits is None
    return np.asarray(found.pooled)


def pictures():
    return np.random.default_rng(1).uniform(0, 255, (2, 224, 224, 3)).astype(np.float32)


def patches(pixels, order):
    parts = pixels.reshape(2, GRID, PATCH, GRID, PATCH, 3).swapaxes(2, 3).reshape(2, 16, -1)
    parts = parts[:, order].reshape(2, GRID, GRID, PATCH, PATCH, 3).swapaxes(2, 3)
    return parts.reshape(2, 224, 224, 3)


def test_places_are_known_by_the_positions_alone():
    pixels, order = pictures(), np.random.default_rng(2).permutation(16)
    tensors = weights()
    found, moved = (pooled(tensors, x) for x in (pixels, patches(pixels, order)))
    assert found.shape == (2, WIDTH)
    assert np.abs(found - moved).max() > 0.01
    tensors["pos_embed"][:, 1:] = 0.0
    found, moved = (pooled(tensors, x) for x in (pixels, patches(pixels, order)))
    np.testing.assert_allclose(found, moved, atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_blocks_scaled_by_zero_leave_the_class_token():
    tensors = weights()
    for name in tensors:
        if name.endswith("gamma"):
            tensors[name] = np.zeros(WIDTH)
    x = tensors["cls_token"][0, 0] + tensors["pos_embed"][0, 0]
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
    expected = x * tensors["norm.weight"] + tensors["norm.bias"]
    found = pooled(tensors, pictures())
    np.testing.assert_allclose(found, [expected] * 2, rtol=1e-4, atol=1e-5)


def test_positions_at_the_size_of_the_file_are_the_file_s():
    positions = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
    assert dinov2.interpolate(positions, 16) is positions


def test_positions_between_are_those_of_torch_s_kernel_at_dinov2_s_step():
    """From 21 to 2 places the step is 21 / 2.1 = 10: half-way, at 4.5 and 14.5, where the kernel of
    a = -0.75 is (-3, 19, 19, -3) / 32."""
    positions = np.random.default_rng(0).normal(size=(21, 21, 3)).astype(np.float32)
    found = dinov2.interpolate(positions.reshape(-1, 3), 2).reshape(2, 2, 3)
    kernel = np.array([-3, 19, 19, -3]) / 32
    for i in range(2):
        for j in range(2):
            near = positions[10 * i + 3 : 10 * i + 7, 10 * j + 3 : 10 * j + 7]
            expected = np.einsum("h,w,hwd->d", kernel, kernel, near)
            np.testing.assert_allclose(found[i, j], expected, rtol=1e-4, atol=1e-5)
    ones = dinov2.interpolate(np.ones((37**2, 1), np.float32), 16)
    np.testing.assert_allclose(ones, 1.0, rtol=1e-6)


def test_other_weights_are_refused_by_name():
    def refused(match, **changes):
        tensors = {**weights(depth=3), **changes}
        tensors = {name: x for name, x in tensors.items() if x is not None}
        with pytest.raises(ValueError, match=match):
            dinov2.load(tensors)

    refused(r"missing: blocks\.1\.ls1\.gamma$", **{"blocks.1.ls1.gamma": None})
    refused(r"missing: blocks\.0\.mlp\.fc1\.weight$", **{"blocks.0.mlp.fc1.weight": None})
    refused(r"norm\.bias is \(5,\) and not \(128,\)", **{"norm.bias": np.zeros(5)})
    refused("register_tokens; take .* without reg4", register_tokens=np.zeros((1, 4, WIDTH)))
    refused("18 tokens a square and one", pos_embed=np.zeros((1, 18, WIDTH)))
