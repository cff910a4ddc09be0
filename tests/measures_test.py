"""What a config measures a run by, against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax import measures, networks
from nrdm_jax.diffusion import noise, predictions, schedules
from nrdm_jax.evaluation import heldout
from nrdm_jax.sharding.mesh import make_mesh

MEAN, STD = 0.2, 0.6


def gaussian(path, prediction):
    """The network's output for data N(MEAN, STD^2), in the network's range."""

    def apply(params, x_t, t, label):
        alpha, sigma = (schedules.broadcast(f(t), x_t) for f in (path.alpha, path.sigma))
        gain = (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        return predictions.target(path, prediction, MEAN + alpha * STD**2 * gain, sigma * gain, t)

    return apply


@pytest.mark.parametrize(
    ("shape", "dtype", "scale", "shift"),
    [((4, 4, 1), np.uint8, 1.0, 0.0), ((2, 4, 4, 3), np.uint8, 1.0, 0.0),
     ((2, 2, 4), np.float32, 0.25, 3.0)],
)  # fmt: skip
def test_bits_are_of_the_records_as_they_are_stored(
    tiny_config, monkeypatch, shape, dtype, scale, shift
):
    """Pixels have the bits of integers, latents those of their own density: scaling them is the
    network's affair. Padding is left out."""
    c = tiny_config
    c.data.shape, c.data.scale, c.data.shift = shape, scale, shift
    path = schedules.rectified_flow()
    monkeypatch.setattr(
        networks, "model", lambda *_: (None, gaussian(path, c.diffusion.prediction))
    )
    draw = np.random.default_rng(0)
    z = MEAN + STD * draw.standard_normal((8, *shape)).astype(np.float32)
    if dtype == np.uint8:
        x = np.rint(np.clip(z * 127.5 + 127.5, 0, 255)).astype(np.uint8)
        uniform = np.asarray(noise.uniform_of_seeds(jnp.arange(8), shape))
        z, width = (x + uniform - 0.5) / np.float32(127.5) - 1, 1 / 127.5
    else:
        x, width = z / scale + shift, scale
    batch = {"x": x, "label": np.zeros(8, np.int32), "mask": jnp.arange(8) < 6}
    sums = measures.bits_sums(c, path, make_mesh(c.mesh, None, c.mesh.slices), probes=1, steps=60)
    found = heldout.bits_per_dim(sums, None, lambda: [batch])
    nats = 0.5 * (z - MEAN) ** 2 / STD**2 + 0.5 * np.log(2 * np.pi * STD**2)
    bits = nats.reshape(8, -1).mean(axis=1)[:6] / np.log(2) - np.log2(width)
    assert found["bits_per_dim_examples"] == 6
    np.testing.assert_allclose(found["bits_per_dim"], bits.mean(), atol=2e-3)
    np.testing.assert_allclose(found["bits_per_dim_error"], bits.std() / 6**0.5, rtol=1e-2)


def test_what_is_drawn_beside_the_first_noise_is_even_and_independent_of_it():
    seeds, shape = jnp.arange(64), (8, 8, 2)
    first = np.asarray(noise.noise_of_seeds(seeds, shape)).ravel()
    uniform = np.asarray(noise.uniform_of_seeds(seeds, shape))
    signs = np.asarray(noise.signs_of_seeds(seeds, shape, 2))
    assert signs.shape == (2, 64, *shape) and set(np.unique(signs)) == {-1.0, 1.0}
    counts = np.histogram(uniform, bins=8, range=(0, 1))[0]
    assert np.abs(counts / counts.mean() - 1).max() < 0.12  # four standard deviations
    for other in (uniform.ravel() - 0.5, signs[0].ravel(), signs[1].ravel()):
        assert abs(np.corrcoef(first, other)[0, 1]) < 4 / first.size**0.5
    assert abs(np.corrcoef(signs[0].ravel(), signs[1].ravel())[0, 1]) < 4 / first.size**0.5
    # Of one seed alone, whatever the batch.
    np.testing.assert_array_equal(noise.uniform_of_seeds(seeds[3:5], shape), uniform[3:5])
    np.testing.assert_array_equal(noise.signs_of_seeds(seeds[3:5], shape, 2), signs[:, 3:5])
