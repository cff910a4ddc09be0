"""The uncertainty of the loss is a function of the noise level that no sample depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax import networks, trees
from nrdm_jax.models.uncertainty import Uncertainty
from nrdm_jax.sharding import partition
from nrdm_jax.sharding.mesh import make_mesh
from nrdm_jax.training import optimizer

HEAD = {"uncertainty/linear/kernel", "uncertainty/linear/bias"}


def test_it_starts_at_nothing_and_is_finite_at_the_ends_of_a_flow():
    levels = jnp.array([-jnp.inf, -4.0, 0.0, jnp.inf])
    params = jax.jit(Uncertainty().init)(jax.random.key(0), levels)
    np.testing.assert_array_equal(Uncertainty().apply(params, levels), 0.0)
    drawn = trees.drawn_zeros(params, jax.random.key(1))
    found = Uncertainty().apply(drawn, levels)
    assert bool(jnp.all(jnp.isfinite(found))) and len(set(np.asarray(found))) == 4
    # In the first steps clipping by the norm is the network's: the head adds 1 in bias and weights.
    gradient = jax.grad(lambda p: Uncertainty().apply(p, levels)[1])(params)["params"]["linear"]
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(jnp.linalg.norm(leaf), 1.0, rtol=1e-5)


def test_it_can_be_the_logarithm_of_a_loss_that_falls_with_the_noise():
    levels = jnp.linspace(-8.0, 8.0, 200)
    params = jax.jit(Uncertainty().init)(jax.random.key(0), levels)
    rows = jax.jacobian(lambda p: Uncertainty().apply(p, levels))(params)["params"]["linear"]
    features = np.concatenate([rows["kernel"][:, :, 0], rows["bias"]], axis=1)
    wanted = np.log(0.02 + 1 / (1 + np.exp(-np.asarray(levels))))
    weights = np.linalg.lstsq(features, wanted, rcond=1e-4)[0]
    assert np.abs(features @ weights - wanted).max() < 0.02


@pytest.fixture
def with_and_without(tiny_config):
    found = []
    for on in (True, False):
        tiny_config.diffusion.uncertainty = on
        init, apply = networks.model(tiny_config)
        found.append((init, jax.jit(apply)))
    tiny_config.diffusion.uncertainty = True
    return tiny_config, *found


def test_the_network_and_its_outputs_are_as_without_it(with_and_without):
    config, (init, apply), (init_plain, apply_plain) = with_and_without
    params, plain = (jax.jit(f)(jax.random.key(0)) for f in (init, init_plain))
    paths, plain_paths = (dict(trees.leaves_with_path(p)) for p in (params, plain))
    assert set(paths) - set(plain_paths) == HEAD and set(plain_paths) < set(paths)
    for path, leaf in plain_paths.items():
        np.testing.assert_array_equal(paths[path], leaf)
    x, t, given = jax.tree.map(
        lambda part: jnp.full(part.shape, 0.5).astype(part.dtype), networks.example(config, 2)
    )
    drawn = jax.jit(trees.drawn_zeros)(params, jax.random.key(1))
    other = drawn | {"uncertainty": jax.tree.map(lambda w: 5 * w + 1, drawn["uncertainty"])}
    own = {name: drawn[name] for name in plain}
    out = apply(drawn, x, t, given)
    for found in (apply(other, x, t, given), apply_plain(own, x, t, given)):
        np.testing.assert_array_equal(out, found)
    assert np.abs(out).max() > 0


def test_it_is_not_decayed_and_lies_whole_on_every_device(with_and_without):
    _, (init, _), _ = with_and_without
    params = jax.eval_shape(init, jax.random.key(0))
    mask = dict(trees.leaves_with_path(optimizer.decay_mask(params)))
    assert not any(mask[path] for path in HEAD)
    shardings = partition.shardings(params, make_mesh({"data": 1, "fsdp": 8}))
    assert all(s.is_fully_replicated for s in jax.tree.leaves(shardings["uncertainty"]))
