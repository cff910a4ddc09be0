"""The gates of a trained network as numbers: alpha_i(t), beta_i(t) of every unit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nrdm_jax.models.conditioning import Condition
from nrdm_jax.models.denoiser import Denoiser
from nrdm_jax.models.unit import gate_makers
from nrdm_jax.signatures import Array, Given, Params


class GateValues(NamedTuple):
    """Of one gate, over its channels, (units, B) each.

    Attributes:
      mean: its mean.
      rms: its root mean square: the gates of channels may have either sign.
    """

    mean: Array
    rms: Array


def gate_values(
    net: Denoiser, params: Params, t_B: Array, given: Given
) -> dict[str, GateValues]:  # fmt: skip
    """{`alpha`, `beta`: its values} for the gates that the variant has, units in order of depth."""
    condition = net.apply({"params": params}, t_B, given, method="embed")[0]
    values = {}
    for name, make in gate_makers(net.variant, net.gates).items():
        gate = make(name=name)
        stacks = []
        for stack, _, units in net.layout:
            blocks = params[stack]["blocks"]
            each = [_over_channels(gate, blocks[unit][name], condition) for unit in units]
            if net.backwards(stack):
                each = jax.tree.map(lambda x: x[::-1], each)
            # (L, units of a block, B) -> (L * units of a block, B)
            stacks.append(
                jax.tree.map(lambda *x: jnp.stack(x, 1).reshape(-1, x[0].shape[-1]), *each)
            )
        values[name] = jax.tree.map(lambda *x: jnp.concatenate(x), *stacks)
    return values


def _over_channels(gate, params: Params, condition: Condition) -> GateValues:
    """Of the gates of L blocks, from their stacked parameters: (L, B) each."""
    batch, features = condition.e_BD.shape[0], params["bias"].shape[-1]
    z = jnp.zeros((batch, 1, features))  # of which a gate looks at the shape only

    def of(params):
        value = gate.apply({"params": params}, z, condition)[:, 0]
        return jnp.broadcast_to(value, (batch, features))

    value_LBF = jax.vmap(of)(params)
    return GateValues(value_LBF.mean(-1), jnp.sqrt((value_LBF**2).mean(-1)))
