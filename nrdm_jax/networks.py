"""The network that a config describes, as pure functions."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from nrdm_jax import config as configuration
from nrdm_jax.diffusion import known
from nrdm_jax.diffusion.schedules import Path, scaled_input
from nrdm_jax.models import conditioning
from nrdm_jax.models.continuous import ContinuousDiT
from nrdm_jax.models.denoiser import Denoiser
from nrdm_jax.models.dit import DiT
from nrdm_jax.models.sizes import DIT
from nrdm_jax.models.stack import Schedule
from nrdm_jax.models.uncertainty import Uncertainty
from nrdm_jax.models.unet import UNet
from nrdm_jax.models.uvit import UViT
from nrdm_jax.sharding import axes, rules
from nrdm_jax.signatures import Array, Given, Params
from nrdm_jax.text import encoders, tokens
from nrdm_jax.training import objectives

UNCERTAINTY = "uncertainty"  # in the tree of weights: what is no network's


NETWORKS: dict[str, type[Denoiser]] = {
    "dit": DiT,
    "uvit": UViT,
    "unet": UNet,
    "continuous": ContinuousDiT,
}


def network(config) -> Denoiser:
    """The module that `config.model` describes: its attributes are fields of the same name. It is
    of `data.shape`, which is the reference of its positions at other shapes, see `at`."""
    m = config.model
    kind = NETWORKS[m.name]
    settings = {f.name: m[f.name] for f in dataclasses.fields(kind) if f.name in m}
    settings |= DIT[m.size] if m.size else {}
    settings |= {
        "name": None,  # Flax's, of a submodule
        "shape": tuple(config.data.shape),
        "reference": tuple(config.data.shape),
        "patch": configuration.patch_of(config),
        "num_classes": config.data.num_classes,
        "text_width": text_width(config),
    }
    if config.text.encoder == "bytes":
        settings |= {
            "text_vocabulary": tokens.BYTES,
            "text_depth": config.text.depth,
            "text_heads": config.text.heads,
        }
    if kind is DiT:
        settings["schedule"] = Schedule(config.pipeline.micro_batches, config.pipeline.repeats)
    return kind(**settings)


def at(net: Denoiser, x_t: Array) -> Denoiser:
    """The network with the same parameters for examples as these, (B, *S, C)."""
    return net.clone(shape=tuple(x_t.shape[1:]))


def model(
    config, mesh: Mesh | None = None, path: Path | None = None
) -> tuple[Callable[[Array], Params], objectives.ApplyFn]:
    """(init, apply) of the network, its input scaled as the path asks for; `apply` takes examples
    of any shape, see `at`. With `diffusion.uncertainty` the weights have those of that head beside,
    which `apply` does not see.
    """
    net, with_uncertainty = network(config), config.diffusion.uncertainty
    x, t, given = example(config, 1)

    def init(key: Array) -> Params:
        zeros = jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), (x, t, given))
        params = net.init(key, *zeros)["params"]
        if with_uncertainty:
            params = {**params, UNCERTAINTY: Uncertainty().init(key, zeros[1])["params"]}
        return params

    def apply(params: Params, x_t: Array, t: Array, given: Given, taps: Array | None = None):
        x_t = x_t if path is None else scaled_input(path, x_t, t)
        return at(net, x_t).apply({"params": params}, x_t, t, given, taps)

    return init, on_mesh(mesh, apply) if mesh is not None else apply


def nothing(config) -> Callable[[Given], Given]:
    """What is given -> the same without class and text, for guidance."""
    return functools.partial(conditioning.nothing, num_classes=config.data.num_classes)


def uncertainty(params: Params, log_snr: Array) -> Array:
    """u (B,) of those weights at a log SNR (B,)."""
    u = Uncertainty().apply({"params": params[UNCERTAINTY]}, log_snr)
    return cast(Array, u)


def readouts(config, mesh: Mesh, path: Path, after: tuple[int, ...]) -> objectives.ApplyFn:
    """(params, x_t, t, given) -> what the head makes of the trunk after so many blocks each,
    (len(after), B, *S, C)."""
    # A forward pass keeps nothing for a backward one, whatever the run's memory mode was.
    net = network(config).clone(memory="none", remat_policy="nothing")

    def apply(params: Params, x_t: Array, t: Array, given: Given):
        x_t = scaled_input(path, x_t, t)
        return at(net, x_t).apply({"params": params}, x_t, t, given, after=after)

    return on_mesh(mesh, apply)


def probed(config) -> bool:
    """Whether the train step measures the units' sensitivity."""
    return bool(config.log.sensitivity_every or config.optim.sensitivity_penalty)


def example(config, batch: int) -> tuple[Any, Any, dict]:
    """Shapes of the network's arguments x_t, t, given."""
    return (
        jax.ShapeDtypeStruct((batch, *config.data.shape), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.float32),
        given(config, batch),
    )


def given(config, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what the network is told of a batch."""
    shapes = {"label": jax.ShapeDtypeStruct((batch,), jnp.int32)}
    length = config.text.length
    if config.text.encoder == "bytes":
        shapes["tokens"] = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    elif config.text.encoder != "none":
        states = (batch, length, text_width(config))
        shapes["text"] = jax.ShapeDtypeStruct(states, jnp.float32)
        shapes["text_mask"] = jax.ShapeDtypeStruct((batch, length), jnp.bool_)
        shapes["text_pooled"] = jax.ShapeDtypeStruct((batch, text_width(config)), jnp.float32)
    channels = seen_channels(config)
    if channels:
        at = (batch, *config.data.shape[:-1])
        shapes["seen"] = jax.ShapeDtypeStruct((*at, channels), jnp.float32)
    return shapes


def text_width(config) -> int:
    """Channels of the states of a text; 0 where there is none."""
    name = config.text.encoder
    if name == "none":
        return 0
    packaged = name in encoders.ENCODERS and not config.text.weights
    return (packaged and encoders.ENCODERS[name].width) or config.text.width


def seen_channels(config) -> int:
    """Channels of what is seen beside x_t."""
    seen = config.data.seen
    if seen == "segmentation":
        return config.data.seen_classes
    return 0 if seen == "none" else config.data.shape[-1] + 1


def see(config) -> known.See | None:
    """What the network sees beside x_t, where it does."""
    kinds = {
        "none": lambda: None,
        "segmentation": lambda: known.segmentation(config.data.seen_classes),
        "frames": lambda: known.first_frames(config.data.seen_frames),
        "box": known.around_a_box,
    }
    return kinds[config.data.seen]()


def on_mesh(mesh: Mesh, f: Callable) -> Callable:
    """`f`, traced with the model's constraints meaning this mesh."""

    @functools.wraps(f)
    def traced(*arguments):
        with axes.use(mesh, rules.RULES):
            return f(*arguments)

    return traced
