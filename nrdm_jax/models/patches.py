"""Examples of any number of axes as sequences of patches, and back."""

import math

from nrdm_jax.signatures import Array


def grid_of(shape: tuple[int, ...], patch: tuple[int, ...]) -> tuple[int, ...]:
    """Patches along each spatial axis of an example of `shape` (*S, C).

    Raises:
      ValueError: the patch has another number of axes, or does not divide one.
    """
    spatial = shape[:-1]
    if len(patch) != len(spatial):
        raise ValueError(f"patch {patch} needs one side for each spatial axis of shape {shape}")
    for size, side in zip(spatial, patch, strict=True):
        if size % side:
            raise ValueError(f"patch {patch} does not divide the axis of {size} in shape {shape}")
    return tuple(size // side for size, side in zip(spatial, patch, strict=True))


def patchify(x: Array, patch: tuple[int, ...]) -> Array:
    """(B, *S, C) -> (B, N, P), N = prod(S / patch), P = prod(patch) * C, both in row-major
    order."""
    grid = grid_of(x.shape[1:], patch)
    axes = len(grid)
    split = [n for pair in zip(grid, patch, strict=True) for n in pair]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    order = (0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    return x.transpose(order).reshape(x.shape[0], math.prod(grid), -1)


def unpatchify(x_BNP: Array, grid: tuple[int, ...], patch: tuple[int, ...]) -> Array:
    """The inverse of `patchify`: (B, N, prod(patch) * C) -> (B, *(grid * patch), C)."""
    axes = len(grid)
    x = x_BNP.reshape(x_BNP.shape[0], *grid, *patch, -1)
    pairs = [axis for i in range(axes) for axis in (1 + i, 1 + axes + i)]
    x = x.transpose(0, *pairs, 2 * axes + 1)
    spatial = [n * p for n, p in zip(grid, patch, strict=True)]
    return x.reshape(x.shape[0], *spatial, x.shape[-1])
