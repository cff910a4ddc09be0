"""Products in 8 bits: which they are, and how far they are from the exact ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax import config as configuration
from nrdm_jax import networks, trees
from nrdm_jax.models import quantized

# Of a product of 64 normal numbers: 8 bits of mantissa, or 4, on both operands.
ERRORS = {"int8": 0.02, "fp8": 0.06}


@pytest.mark.parametrize("kind", quantized.TYPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_and_its_derivatives_are_near_the_exact_ones(kind, dtype):
    a, b, w = (jax.random.normal(jax.random.key(i), (64, 64)).astype(dtype) for i in range(3))

    def outcome(kind):
        product = quantized.dot_general(kind)

        def f(a, b):
            out = product(a, b, (((1,), (0,)), ((), ())))
            return jnp.sum(out.astype(jnp.float32) * w), out

        (_, out), gradients = jax.value_and_grad(f, (0, 1), has_aux=True)(a, b)
        assert all(x.dtype == dtype for x in (out, *gradients))
        return [np.asarray(x, np.float64) for x in (out, *gradients)]

    for found, exact in zip(outcome(kind), outcome("none"), strict=True):
        error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        assert 1e-3 < error < ERRORS[kind]


@pytest.mark.parametrize("kind", quantized.TYPES)
def test_products_with_weights_of_branches_are_quantized_and_no_others(kind):
    """The six of a block, and not attention's own two, the gates, the norms, the head."""
    c = configuration.default()
    c.data.name, c.data.shape, c.data.num_classes = "synthetic", (8, 8, 3), 4
    c.model.depth, c.model.width, c.model.heads = 2, 32, 2
    c.model.quantize = kind
    configuration.validate(c)
    init, apply = networks.model(c)
    params = jax.eval_shape(init, jax.random.key(0))
    program = jax.make_jaxpr(apply)(params, *networks.example(c, 2)).jaxpr
    products = list(operands_of_products(program))
    wanted = jnp.dtype(quantized.TYPES[kind][0])
    assert products.count({wanted}) == 6
    assert not any(wanted in operands for operands in products if operands != {wanted})
    assert products.count({jnp.dtype("float32")}) == len(products) - 6 > 0


def operands_of_products(jaxpr):
    """The types of operands of every dot_general, of inner programs as well."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield {operand.aval.dtype for operand in equation.invars}
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
            if hasattr(value, "jaxpr"):
                yield from operands_of_products(value.jaxpr)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_network_is_trained_by_nearly_the_same_gradient(kind):
    c = configuration.default()
    c.data.name, c.data.shape, c.data.num_classes = "synthetic", (8, 8, 3), 4
    c.model.depth, c.model.width, c.model.heads, c.model.memory = 3, 32, 2, "remat"
    x, t, given = (
        jax.random.normal(jax.random.key(2), (4, 8, 8, 3)),
        jnp.linspace(0.1, 0.9, 4),
        {"label": jnp.arange(4)},
    )

    def gradient(kind):
        c.model.quantize = kind
        init, apply = networks.model(c)
        params = trees.drawn_zeros(init(jax.random.key(0)), jax.random.key(1), 0.1)
        found = jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(apply(p, x, t, given) - 1))))(params)
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)])

    exact, found = gradient("none"), gradient(kind)
    cosine = exact @ found / np.linalg.norm(exact) / np.linalg.norm(found)
    assert 0.999 < cosine < 1 - 1e-9


def test_what_is_missing_is_said_with_its_extra(monkeypatch):
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="model.quantize is int8.*--extras=quantize"):
        quantized.check("int8")
    quantized.check("none")
