import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.models import norms
from nrdm_jax.models.conditioning import Condition
from nrdm_jax.models.unit import VARIANTS, Gates, ResidualUnit

Z = jax.random.normal(jax.random.key(0), (2, 5, 8))
E = jax.random.normal(jax.random.key(1), (2, 6))
SHARED = {
    name: jax.random.normal(jax.random.key(i), (2, 8)) for i, name in enumerate(("alpha", "beta"))
}
CONDITION = Condition(E, SHARED)


class Double(nn.Module):
    """F(z) = 2 z, so that every unit has a closed form."""

    @nn.compact
    def __call__(self, z, condition):
        return 2 * z


def built(variant="gated", **gates):
    unit = ResidualUnit(Double(parent=None), Gates(units=16, **gates), variant)
    return unit, jax.jit(unit.init)(jax.random.key(2), Z, Z, CONDITION)


@pytest.mark.parametrize("shape", ["channel", "scalar"])
@pytest.mark.parametrize("condition", ["static", "cond", "cond_shared"])
def test_start_values(condition, shape):
    size = 8 if shape == "channel" else 1
    projected = {name: x[:, :size] for name, x in SHARED.items()}
    told = dataclasses.replace(CONDITION, shared=projected)
    unit = ResidualUnit(Double(parent=None), Gates(units=16, condition=condition, shape=shape))
    out, _ = unit.init_with_output(jax.random.key(2), Z, Z, told)
    shared = condition == "cond_shared"
    alpha = projected["alpha"][:, None] / 4 if shared else 0.25 * (condition == "static")
    beta = projected["beta"][:, None] / 16 if shared else 0.0
    np.testing.assert_allclose(out, Z + alpha * 2 * Z + beta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("start", "alpha"), [("zero", 0), ("one", 1), ("inv_sqrt_units", 0.25), ("0.3", 0.3)]
)
def test_named_start_values(start, alpha):
    unit, variables = built(alpha_start=start)
    np.testing.assert_allclose(unit.apply(variables, Z, Z, CONDITION), Z + alpha * 2 * Z, rtol=1e-6)


def test_wrong_start_value_is_refused():
    with pytest.raises(ValueError, match="alpha_start is 'half'; choose one of zero, one"):
        built(alpha_start="half")


def test_conditional_gates_are_affine_in_the_condition(fill_zeros):
    unit, variables = built()
    variables = fill_zeros(variables, jax.random.key(3), std=1.0)
    p = variables["params"]
    alpha = (p["alpha"]["bias"][None] + E @ p["alpha"]["kernel"]) / 4
    beta = (p["beta"]["bias"][None] + E @ p["beta"]["kernel"]) / 16
    expected = Z + alpha[:, None] * 2 * Z + beta[:, None]
    np.testing.assert_allclose(
        unit.apply(variables, Z, Z, CONDITION), expected, rtol=2e-5, atol=1e-5
    )


@pytest.mark.parametrize(("bound", "scale"), [(True, 1 / 16), (False, 1.0)])
def test_bound_of_beta(bound, scale):
    unit, variables = built(condition="static", alpha_start="zero", beta_bound=bound)
    variables["params"]["beta"]["bias"] = jnp.full(8, 3.0)
    out = unit.apply(variables, Z, Z, CONDITION)
    np.testing.assert_allclose(out - Z, jnp.full_like(Z, 3.0 * scale), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("bound", "scale"), [(True, 1 / 4), (False, 1.0)])
def test_bound_of_alpha(bound, scale):
    unit, variables = built(condition="static", alpha_bound=bound)
    variables["params"]["alpha"]["bias"] = jnp.full(8, 3.0)
    out = unit.apply(variables, Z, Z, CONDITION)
    np.testing.assert_allclose(out - Z, 3.0 * scale * 2 * Z, rtol=1e-5, atol=1e-6)


def test_resnet_has_no_gates():
    unit, variables = built("resnet")
    assert "params" not in variables
    np.testing.assert_allclose(unit.apply(variables, Z, Z, CONDITION), 3 * Z)


def test_rezero_is_one_scalar_that_starts_at_zero_and_learns():
    unit, variables = built("rezero", shape="channel", condition="cond")
    assert jax.tree.map(jnp.shape, variables) == {"params": {"alpha": {"bias": (1,)}}}
    np.testing.assert_array_equal(unit.apply(variables, Z, Z, CONDITION), Z)
    gradient = jax.grad(lambda v: jnp.sum(unit.apply(v, Z, Z, CONDITION) * Z))(variables)
    np.testing.assert_allclose(
        gradient["params"]["alpha"]["bias"][0], 2 * jnp.sum(Z * Z), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("gated", lambda z, a, b: z + a / 4 * 2 * z + b / 16),
        ("adaln", lambda z, a, b: z + 2 * (a * z + b / 16)),
        ("input_scale", lambda z, a, b: (1 + a / 16) * z + 2 * z + b / 16),
    ],
)
def test_where_the_gates_stand(variant, expected):
    unit, variables = built(variant, condition="static")
    alpha, beta = (jax.random.normal(jax.random.key(i), (8,)) for i in range(2))
    variables = {"params": {"alpha": {"bias": alpha}, "beta": {"bias": beta}}}
    out = unit.apply(variables, Z, Z, CONDITION)
    np.testing.assert_allclose(
        out, expected(Z, alpha[None, None], beta[None, None]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("condition", ["static", "cond"])
@pytest.mark.parametrize(
    ("variant", "factor"), [("adaln", 3), ("input_scale", 3), ("layerscale", 1 + 2e-4)]
)
def test_start_of_the_other_variants(variant, factor, condition):
    unit, variables = built(variant, condition=condition)
    np.testing.assert_allclose(unit.apply(variables, Z, Z, CONDITION), factor * Z, rtol=1e-6)


def test_layerscale_is_one_value_a_channel():
    _, variables = built("layerscale", shape="scalar", condition="cond")
    assert jax.tree.map(jnp.shape, variables) == {"params": {"alpha": {"bias": (8,)}}}


@pytest.mark.parametrize("variant", VARIANTS)
def test_trunk_of_any_number_of_axes_stays_float32(variant):
    class Half(nn.Module):
        @nn.compact
        def __call__(self, z, condition):
            return z.astype(jnp.bfloat16)

    unit = ResidualUnit(Half(parent=None), Gates(units=4), variant)
    z = jnp.ones((2, 3, 4, 8))
    variables = jax.jit(unit.init)(jax.random.key(0), z, z, CONDITION)
    out = unit.apply(variables, z, z, CONDITION)
    assert out.dtype == jnp.float32 and out.shape == z.shape


def test_deepnorm_normalises_the_sum_with_its_constant():
    unit, variables = built("deepnorm")
    assert not jax.tree.leaves(variables)
    total = 2.0 * Z + 2 * Z  # 16^(1/4) z + F(z)
    expected = (total - total.mean(-1, keepdims=True)) / total.std(-1, keepdims=True)
    np.testing.assert_allclose(unit.apply(variables, Z, Z, CONDITION), expected, rtol=1e-4)
    assert VARIANTS["deepnorm"].kernel_gain(4) == pytest.approx(0.5)
    assert {v.kernel_gain(4) for name, v in VARIANTS.items() if name != "deepnorm"} == {1.0}


@pytest.mark.parametrize("prefix", [0, 2])
def test_mv_split_gives_mean_and_deviation_gains_of_their_own(prefix):
    unit, variables = built("mv_split", prefix=prefix)
    assert jax.tree.map(jnp.shape, variables) == {
        "params": {"alpha": {"bias": (8,)}, "beta": {"bias": (8,)}}
    }
    alpha, beta = (jax.random.normal(jax.random.key(i), (8,)) for i in range(2))
    out = unit.apply({"params": {"alpha": {"bias": alpha}, "beta": {"bias": beta}}},
                     Z, Z, CONDITION)  # fmt: skip
    z = np.asarray(Z)
    mean = np.empty_like(z)
    for tokens in [slice(0, prefix), slice(prefix, None)] if prefix else [slice(None)]:
        mean[:, tokens] = z[:, tokens].mean(1, keepdims=True)
    # F = 2 z: P F = 2 (z - Jz), J(F - z) = Jz
    inner = z + np.asarray(beta) * 2 * (z - mean) + np.asarray(alpha) * mean
    expected = inner / np.sqrt((inner**2).mean(-1, keepdims=True))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("units", "beta"), [(8, 1.0), (800, 1.0), (2000, 0.03)])
def test_mv_split_starts_as_its_authors_do(units, beta):
    unit = ResidualUnit(Double(parent=None), Gates(units=units), "mv_split")
    gates = jax.jit(unit.init)(jax.random.key(2), Z, Z, CONDITION)["params"]
    np.testing.assert_allclose(gates["alpha"]["bias"], 0.0)
    np.testing.assert_allclose(gates["beta"]["bias"], beta, rtol=1e-5)


@pytest.mark.parametrize("variant", ["gated", "mv_split"])
def test_start_of_beta_can_be_given(variant):
    _, variables = built(variant, beta_start=0.25, beta_bound=True, condition="static")
    # what is stored is units * beta where beta is bounded
    stored = 0.25 * 16 if variant == "gated" else 0.25
    np.testing.assert_allclose(variables["params"]["beta"]["bias"], stored)


def test_trunk_norm_s_derivative_is_that_of_rms_norm():
    z, t = (jax.random.normal(jax.random.key(i), (3, 4, 8)) for i in range(2))

    def both(f):
        second = jax.grad(lambda z: jnp.sum(jnp.sin(jax.grad(lambda z: jnp.sum(f(z) * t))(z))))
        return f(z), jax.jvp(f, (z,), (t,))[1], jax.vjp(f, z)[1](t)[0], second(z)

    for ours, plain in zip(both(norms.trunk_norm), both(norms.rms_norm), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=2e-5, atol=2e-6)


def test_a_unit_writes_one_stream_and_reads_the_other():
    other = jax.random.normal(jax.random.key(5), Z.shape)
    unit, variables = built("gated", alpha_start="one")
    np.testing.assert_allclose(unit.apply(variables, Z, other, CONDITION), Z + 2 * other, rtol=1e-6)
