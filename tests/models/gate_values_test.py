import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.models.dit import DiT
from nrdm_jax.models.gate_values import gate_values
from nrdm_jax.models.unet import UNet
from nrdm_jax.models.unit import Gate
from nrdm_jax.models.uvit import UViT

T, GIVEN = jnp.asarray([0.1, 0.6, 0.9]), {"label": jnp.asarray([0, 5, 2])}
SETTINGS = dict(width=16, heads=2, num_classes=5)
NETS = {
    "dit": DiT((8, 8, 3), 2, 3, **SETTINGS),
    "factorised": DiT((2, 8, 8, 3), (1, 4, 4), 4, attention="factorised", **SETTINGS),
    "shared": DiT((8, 8, 3), 2, 3, gate_condition="cond_shared", **SETTINGS),
    "static": DiT((8, 8, 3), 2, 3, gate_condition="static", gate_shape="scalar", **SETTINGS),
    "uvit": UViT((8, 8, 3), 2, 5, **SETTINGS),
    "unet": UNet((8, 8, 3), 1, 1, channel_factors=(1, 2), attention_at=(4,), **SETTINGS),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ("unet", "uvit") else n for n in NETS]
)
def test_gates_are_those_that_the_network_uses_in_their_order(
    name, fill_zeros, monkeypatch, unrolled_scan
):
    net = NETS[name]
    x = jax.random.normal(jax.random.key(0), (3, *net.shape))
    params = fill_zeros(jax.jit(net.init)(jax.random.key(1), x, T, GIVEN), jax.random.key(2), 1.0)[
        "params"
    ]
    values = gate_values(net, params, T, GIVEN)
    assert set(values) == {"alpha", "beta"}
    assert values["alpha"].mean.shape == (net.units, 3)

    used = {"alpha": [], "beta": []}
    plain = Gate.__call__

    def spying(self, z, condition):
        value = plain(self, z, condition)
        if not isinstance(z, jax.core.Tracer):  # not where only shapes are looked for
            used[self.name].append(jnp.broadcast_to(value, (3, *value.shape[1:])).reshape(3, -1))
        return value

    monkeypatch.setattr(Gate, "__call__", spying)
    monkeypatch.setattr(jax.lax, "scan", unrolled_scan)
    net.apply({"params": params}, x, T, GIVEN)
    for gate, seen in used.items():
        mean = jnp.stack([v.mean(-1) for v in seen])
        rms = jnp.stack([jnp.sqrt((v**2).mean(-1)) for v in seen])
        np.testing.assert_allclose(values[gate].mean, mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(values[gate].rms, rms, rtol=1e-4, atol=1e-6)


def test_a_structure_without_gates_has_no_values():
    net = DiT((8, 8, 3), 2, 3, variant="resnet", **SETTINGS)
    params = jax.jit(net.init)(jax.random.key(1), jnp.zeros((3, 8, 8, 3)), T, GIVEN)["params"]
    assert gate_values(net, params, T, GIVEN) == {}


@pytest.mark.parametrize(
    "name",
    ["dit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("factorised", "uvit"))],
)
@pytest.mark.parametrize("streams", [1, 2])
def test_trunk_after_all_blocks_is_read_as_the_output(name, streams, fill_zeros):
    if streams == 2 and name == "uvit":
        pytest.skip("U-ViT has one stream")
    net = NETS[name].clone(streams=streams)
    x = jax.random.normal(jax.random.key(0), (3, *net.shape))
    variables = fill_zeros(
        jax.jit(net.init)(jax.random.key(1), x, T, GIVEN), jax.random.key(2), 0.2
    )
    blocks = sum(count for _, count, _ in net.layout)
    first, middle, last = jax.jit(
        lambda v: net.apply(v, x, T, GIVEN, after=(0, blocks - 1, blocks))
    )(variables)
    np.testing.assert_allclose(last, net.apply(variables, x, T, GIVEN), rtol=1e-4, atol=1e-5)
    assert np.abs(first - last).max() > 1e-3 and np.abs(middle - last).max() > 1e-3

    # After no block, what is read is the embedding: no parameter of the stack is in it.
    def without_stacks(params):
        stacks = {stack for stack, _, _ in net.layout}
        return {k: jax.tree.map(jnp.zeros_like, v) if k in stacks else v for k, v in params.items()}

    alone = net.apply({"params": without_stacks(variables["params"])}, x, T, GIVEN, after=(0,))
    np.testing.assert_allclose(first, alone[0], rtol=1e-5, atol=1e-6)
