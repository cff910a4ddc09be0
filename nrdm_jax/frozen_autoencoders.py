"""Autoencoders whose weights are given: one that a run here has trained, SD's, or a tiny one; what
encodes a data set and decodes samples."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nrdm_jax import autoencoding, run_weights, trees, weight_files
from nrdm_jax.data.sources import fingerprint_of
from nrdm_jax.models import autoencoder_weights, tiny_autoencoder
from nrdm_jax.models.autoencoder import KLAutoencoder
from nrdm_jax.processes.stored_config import open_config
from nrdm_jax.signatures import Array, Params

TAEF2_VARIABLE = "NRDM_TAEF2"
TAEF2_FILES = ("taef2_encoder.safetensors", "taef2_decoder.safetensors")
TAEF2_HOME = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclasses.dataclass(frozen=True)
class Frozen:
    """An autoencoder with its weights.

    Attributes:
      params: of `encode` and `decode`.
      encode: (params, x (B, *S, C) in [-1, 1]) -> (mean, standard deviation) of the latents.
      decode: (params, z) -> x.
      factor: by which every axis shrinks.
      channels, latent_channels: of x and z.
      fingerprint: of the weights, and what else decides the latents.
      scale, shift: of records that are floats, see `objectives.to_model_range`: as it was trained.
    """

    params: Params
    encode: Callable[[Params, Array], tuple[Array, Array]]
    decode: Callable[[Params, Array], Array]
    factor: int
    channels: int
    latent_channels: int
    fingerprint: str
    scale: float = 1.0
    shift: float = 0.0

    def pixel_shape(self, latents: tuple[int, ...]) -> tuple[int, ...]:
        """Of what has latents of such a shape.

        Raises:
          ValueError: nothing has.
        """
        if latents[-1] != self.latent_channels:
            raise ValueError(
                f"data.shape is {latents}, and latents of this autoencoder have "
                f"{self.latent_channels} channels; give (..., {self.latent_channels})"
            )
        return (*(size * self.factor for size in latents[:-1]), self.channels)


def open_frozen(config) -> Frozen:
    """The one whose latents `config` diffuses.

    Raises:
      ValueError: the weights are not there, or of something else.
    """
    a = config.autoencoder
    return _open(a.name, a.weights, a.groups)


@functools.lru_cache(maxsize=2)
def _open(name: str, weights: str | None, groups: int) -> Frozen:
    try:
        if name == "kl":
            assert weights is not None
            return _of_run(weights)
        if name == "sd":
            return _of_file(pathlib.Path(weights or ""), groups)
        return _tiny(_taef2_home(weights))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"autoencoder.weights: {error}; give where they are") from error


def _of_run(workdir: str) -> Frozen:
    config = open_config(pathlib.Path(workdir))
    if config.task != "autoencoder":
        raise ValueError(
            f"autoencoder.weights={workdir} is a run of task={config.task}; give one of "
            "task=autoencoder"
        )
    net = autoencoding.network(config)
    shapes = jax.eval_shape(functools.partial(autoencoding.init, config), jax.random.key(0))
    everywhere = NamedSharding(Mesh(np.asarray(jax.devices()), ("all",)), PartitionSpec())
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), shapes
    )
    found = run_weights.find(workdir).read(wanted)[autoencoding.AUTOENCODER]
    params = jax.tree.map(np.asarray, found)  # of no mesh, so that any can use them
    return _kl(net, params, _fingerprint(params), config.data.scale, config.data.shift)


def _of_file(path: pathlib.Path, groups: int) -> Frozen:
    tensors = weight_files.read_weights(path)
    try:
        net = autoencoder_weights.network_of(tensors, groups)
        params = autoencoder_weights.params_of(tensors, net)
    except ValueError as error:
        raise ValueError(f"autoencoder.weights={path}: {error}") from error
    return _kl(net, params, weight_files.fingerprint(path))


def _kl(
    net: KLAutoencoder, params: Params, weights: str, scale: float = 1.0, shift: float = 0.0
) -> Frozen:
    """`weights`: fingerprint of the weights alone."""

    def encode(params: Params, x: Array) -> tuple[Array, Array]:
        found = autoencoding.encode(net, {autoencoding.AUTOENCODER: params}, x)
        return found.mean, found.std

    def decode(params: Params, z: Array) -> Array:
        return autoencoding.decode(net, {autoencoding.AUTOENCODER: params}, z)

    made_as = {f.name: getattr(net, f.name) for f in dataclasses.fields(net)
               if f.name not in ("parent", "name")}  # fmt: skip
    return Frozen(
        params,
        encode,
        decode,
        net.factor,
        net.channels,
        net.latent_channels,
        fingerprint_of(weights, made_as, scale, shift),
        scale,
        shift,
    )


def _fingerprint(params: Params) -> str:
    digest = hashlib.sha256()
    for path, leaf in trees.leaves_with_path(params):
        digest.update(path.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _taef2_home(weights: str | None) -> pathlib.Path:
    """The directory that was given, the variable's, or that beside the project."""
    return pathlib.Path(weights or os.environ.get(TAEF2_VARIABLE) or TAEF2_HOME)


def _tiny(home: pathlib.Path) -> Frozen:
    """Its latents have no variance."""
    files = [home / name for name in TAEF2_FILES]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"autoencoder.name=taef2: there is no {missing[0]}; give their directory as "
            f"autoencoder.weights, or as {TAEF2_VARIABLE}"
        )
    encoder, decoder = (
        tiny_autoencoder.params_of(weight_files.read_weights(file)) for file in files
    )

    def encode(params: Params, x: Array) -> tuple[Array, Array]:
        z = tiny_autoencoder.encode(params["encoder"], (x + 1.0) / 2.0)
        return z, jnp.zeros_like(z)

    def decode(params: Params, z: Array) -> Array:
        return tiny_autoencoder.decode(params["decoder"], z) * 2.0 - 1.0

    return Frozen(
        {"encoder": encoder, "decoder": decoder},
        encode,
        decode,
        factor=tiny_autoencoder.factor_of(encoder),
        channels=3,
        latent_channels=tiny_autoencoder.latent_channels_of(encoder),
        fingerprint=fingerprint_of([weight_files.fingerprint(file) for file in files]),
    )
