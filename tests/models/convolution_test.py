import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.models import convolution
from nrdm_jax.training import flops


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sizes", [(6, 7), (4, 5, 6)])
def test_it_is_flax_s_convolution_and_so_are_both_forms(sizes, stride):
    u = jax.random.normal(jax.random.key(0), (2, *sizes, 3))
    ours = convolution.Convolution(5, stride)
    peer = nn.Conv(5, (3,) * len(sizes), (stride,) * len(sizes))
    variables = jax.jit(peer.init)(jax.random.key(1), u)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, jax.jit(ours.init)(jax.random.key(1), u)
    )

    def value_and_gradients(f):
        return jax.jit(jax.value_and_grad(lambda v, u: jnp.sum(jnp.sin(f(v, u))), (0, 1)))(
            variables, u
        )

    want = value_and_gradients(peer.apply)
    for got in (
        value_and_gradients(ours.apply),
        value_and_gradients(lambda v, u: jax.lax.scan(
            lambda _, u: (None, ours.apply(v, u)), None, u[None])[1]),
    ):  # fmt: skip
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)

    padded = jnp.pad(u, ((0, 0), *[(1, 1)] * len(sizes), (0, 0)))
    kernel = variables["params"]["kernel"]
    np.testing.assert_allclose(
        convolution.native(padded, kernel, stride),
        convolution.sum_of_products(padded, kernel, stride),
        rtol=1e-5,
        atol=1e-5,
    )


def test_its_flops_are_counted_once():
    u = jnp.zeros((2, 8, 8, 3))
    net = convolution.Convolution(5)
    variables = jax.jit(net.init)(jax.random.key(0), u)
    assert flops.count(net.apply, variables, u) == 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)
