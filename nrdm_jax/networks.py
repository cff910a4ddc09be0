"""The network that a config describes, as pure functions."""

import dataclasses
import functools
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from nrdm_jax import config as configuration
from nrdm_jax.diffusion.schedules import Path, scaled_input
from nrdm_jax.models.continuous import ContinuousDiT
from nrdm_jax.models.denoiser import Denoiser
from nrdm_jax.models.dit import DiT
from nrdm_jax.models.sizes import DIT
from nrdm_jax.models.stack import Schedule
from nrdm_jax.models.uncertainty import Uncertainty
from nrdm_jax.models.unet import UNet
from nrdm_jax.models.uvit import UViT
from nrdm_jax.sharding import axes, rules
from nrdm_jax.signatures import Array, Params
from nrdm_jax.training import objectives

UNCERTAINTY = "uncertainty"  # in the tree of weights: what is no network's


NETWORKS: dict[str, type[Denoiser]] = {
    "dit": DiT,
    "uvit": UViT,
    "unet": UNet,
    "continuous": ContinuousDiT,
}


def network(config) -> Denoiser:
    """The module that `config.model` describes: its attributes are fields of the same name."""
    m = config.model
    kind = NETWORKS[m.name]
    settings = {f.name: m[f.name] for f in dataclasses.fields(kind) if f.name in m}
    settings |= DIT[m.size] if m.size else {}
    settings |= {
        "name": None,  # Flax's, of a submodule
        "shape": tuple(config.data.shape),
        "patch": configuration.patch_of(config),
        "num_classes": config.data.num_classes,
    }
    if kind is DiT:
        settings["schedule"] = Schedule(config.pipeline.micro_batches, config.pipeline.repeats)
    return kind(**settings)


def model(
    config, mesh: Mesh | None = None, path: Path | None = None
) -> tuple[Callable[[Array], Params], objectives.ApplyFn]:
    """(init, apply) of the network, its input scaled as the path asks for. With
    `diffusion.uncertainty` the weights have those of that head beside, which `apply` does not see.
    """
    net, with_uncertainty = network(config), config.diffusion.uncertainty
    x, t, label = example(config, 1)

    def init(key: Array) -> Params:
        zeros = [jnp.zeros(part.shape, part.dtype) for part in (x, t, label)]
        params = net.init(key, *zeros)["params"]
        if with_uncertainty:
            params = {**params, UNCERTAINTY: Uncertainty().init(key, zeros[1])["params"]}
        return params

    def apply(params: Params, x_t: Array, t: Array, label: Array, taps: Array | None = None):
        x_t = x_t if path is None else scaled_input(path, x_t, t)
        return net.apply({"params": params}, x_t, t, label, taps)

    return init, on_mesh(mesh, apply) if mesh is not None else apply


def uncertainty(params: Params, log_snr: Array) -> Array:
    """u (B,) of those weights at a log SNR (B,)."""
    u = Uncertainty().apply({"params": params[UNCERTAINTY]}, log_snr)
    return cast(Array, u)


def readouts(config, mesh: Mesh, path: Path, after: tuple[int, ...]) -> objectives.ApplyFn:
    """(params, x_t, t, label) -> what the head makes of the trunk after so many blocks each,
    (len(after), B, *S, C)."""
    # A forward pass keeps nothing for a backward one, whatever the run's memory mode was.
    net = network(config).clone(memory="none", remat_policy="nothing")

    def apply(params: Params, x_t: Array, t: Array, label: Array):
        return net.apply({"params": params}, scaled_input(path, x_t, t), t, label, after=after)

    return on_mesh(mesh, apply)


def probed(config) -> bool:
    """Whether the train step measures the units' sensitivity."""
    return bool(config.log.sensitivity_every or config.optim.sensitivity_penalty)


def example(config, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of the network's arguments x_t, t, label."""
    return (
        jax.ShapeDtypeStruct((batch, *config.data.shape), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )


def on_mesh(mesh: Mesh, f: Callable) -> Callable:
    """`f`, traced with the model's constraints meaning this mesh."""

    @functools.wraps(f)
    def traced(*arguments):
        with axes.use(mesh, rules.RULES):
            return f(*arguments)

    return traced
