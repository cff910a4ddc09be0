"""The task of training an autoencoder, from a config."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nrdm_jax import measures, networks
from nrdm_jax.data import order
from nrdm_jax.data.sources import Source
from nrdm_jax.evaluation import features, reconstructions
from nrdm_jax.models.autoencoder import Gaussian, KLAutoencoder
from nrdm_jax.models.discriminator import PatchDiscriminator
from nrdm_jax.sampling.generate import Generator
from nrdm_jax.sharding.mesh import replicated
from nrdm_jax.signatures import Array, Params
from nrdm_jax.tasks import Task
from nrdm_jax.training import objectives, reconstruction

# Of the tree of weights.
AUTOENCODER, DISCRIMINATOR = "autoencoder", "discriminator"
SAMPLED = 64  # reconstructions at a time, where sample.batch_size is 0


def in_latents(config) -> bool:
    """Whether what is diffused are an autoencoder's latents."""
    return config.task == "diffusion" and config.autoencoder.name != "none"


def network(config) -> KLAutoencoder:
    """The module that `config.autoencoder` describes."""
    a = config.autoencoder
    return KLAutoencoder(
        channels=config.data.shape[-1],
        latent_channels=a.latent_channels,
        width=a.width,
        channel_factors=tuple(a.channel_factors),
        blocks=a.blocks,
        attention=a.attention,
        groups=a.groups,
    )


def discriminator(config) -> PatchDiscriminator | None:
    """Where there is one."""
    a = config.autoencoder
    return PatchDiscriminator(a.discriminator_width) if a.discriminator_weight else None


def init(config, key: Array) -> Params:
    """Weights of the autoencoder and, where there is one, of the discriminator."""
    x = jnp.zeros((1, *config.data.shape), jnp.float32)
    own, other = jax.random.split(key)
    params: dict[str, Any] = {AUTOENCODER: network(config).init(own, x)["params"]}
    judge = discriminator(config)
    if judge is not None:
        params[DISCRIMINATOR] = judge.init(other, x)["params"]
    return params


def encode(net: KLAutoencoder, params: Params, x: Array) -> Gaussian:
    return net.apply({"params": params[AUTOENCODER]}, x, method="encode")  # type: ignore[return-value]


def decode(net: KLAutoencoder, params: Params, z: Array) -> Array:
    return net.apply({"params": params[AUTOENCODER]}, z, method="decode")  # type: ignore[return-value]


def numbers(config) -> int:
    """Of an example's latents."""
    net = network(config)
    places = math.prod(size // net.factor for size in config.data.shape[:-1])
    return places * net.latent_channels


def task(config, mesh: Mesh | None = None) -> Task:
    """Raises as `measures.feature_net`, where features are compared."""
    net = network(config)
    start = functools.partial(init, config)

    def reconstruct(params: Params, x: Array) -> Array:
        return decode(net, params, encode(net, params, x).mean)

    apply = reconstruct if mesh is None else networks.on_mesh(mesh, reconstruct)
    shape = (1, *config.data.shape)
    return Task(
        init=start,
        apply=apply,
        objective=_objective(config, net),
        in_words=(
            f"autoencoder: {tuple(config.data.shape)} to {numbers(config)} numbers, "
            f"{math.prod(shape) / numbers(config):g} times fewer"
        ),
        forward=functools.partial(_forward, reconstruct),
        sampler=functools.partial(_sampler, config, apply=apply),
        prompts=_originals,
        heldout=functools.partial(_heldout, config, net),
        yardstick=functools.partial(_linear, config),
        result=_result,
        by_step=True,
        original="x",
    )


def _forward(reconstruct, at):
    return reconstruct, (jax.ShapeDtypeStruct((1, *at.data.shape), jnp.float32),)


def _objective(config, net: KLAutoencoder):
    a, judge = config.autoencoder, discriminator(config)

    def discriminate(params: Params, x: Array) -> Array:
        assert judge is not None
        return judge.apply({"params": params[DISCRIMINATOR]}, x)  # type: ignore[return-value]

    return reconstruction.reconstruction_objective(
        functools.partial(encode, net),
        functools.partial(decode, net),
        kind=a.reconstruction,
        kl_weight=a.kl_weight,
        perceptual=_perceptual(config) if a.perceptual_weight else None,
        perceptual_weight=a.perceptual_weight,
        discriminate=discriminate if judge is not None else None,
        discriminator_weight=a.discriminator_weight,
        discriminator_start=a.discriminator_start,
        scale=config.data.scale,
        shift=config.data.shift,
    )


def _perceptual(config) -> reconstruction.DistanceFn:
    """Between features of `evaluate.net`, each kind of them of length 1 (as LPIPS does with its
    channels, Zhang et al., arXiv 1801.03924): the mean of their squared distances. Its weights are
    constants of the step."""
    net = measures.feature_net(config)

    def parts(x: Array) -> list[Array]:
        outputs = net.apply(net.params, features.as_colour((x + 1.0) * 127.5))
        found = [outputs.pooled, outputs.spatial]
        return [f / (jnp.linalg.norm(f, axis=-1, keepdims=True) + 1e-6) for f in found
                if f is not None]  # fmt: skip

    def distance(x: Array, y: Array) -> Array:
        gaps = [jnp.sum((a - b) ** 2, axis=-1)
                for a, b in zip(parts(x), parts(y), strict=True)]  # fmt: skip
        return sum(gaps[1:], gaps[0]) / len(gaps)

    return distance


def _sampler(config, mesh: Mesh, *, apply, **options) -> Generator:
    """Reconstructions of what it is given, "x".

    Raises:
      ValueError: an option is given that only a diffusion has.
    """
    asked = sorted(name for name, value in options.items() if value is not None)
    if asked:
        raise ValueError(
            f"task=autoencoder reconstructs, without {', '.join(asked)}; leave out such options"
        )
    scale, shift = config.data.scale, config.data.shift

    def sample(params: Params, seeds: Array, given: Any) -> Array:
        return apply(params, objectives.to_model_range(given["x"], scale, shift))

    return Generator(sample, mesh, config.sample.batch_size or SAMPLED)


def _originals(
    seeds: np.ndarray, heldout, labels=None, captions=None, rows=None
) -> dict[str, np.ndarray]:
    """Held-out records, evenly from the first to the last, one a seed; see `drawing.prompts`.

    Raises:
      ValueError: there are labels or captions.
    """
    if labels is not None or captions is not None:
        raise ValueError(
            "an autoencoder is given records and nothing else; leave out --labels and --captions"
        )
    records = heldout()
    places = order.spread(len(seeds), len(records))
    batch = records.gather(places if rows is None else places[rows])
    return {"x": batch["x"], "label": batch["label"]}


def _heldout(config, net: KLAutoencoder, heldout: Source, mesh: Mesh, limit: int = 0):
    def reconstruct(params: Params, x: Array):
        found = encode(net, params, x)
        return decode(net, params, found.mean), found.divergence() / math.prod(x.shape[1:])

    batches = measures.heldout_batches(config, heldout, mesh, limit)
    return functools.partial(_scores, _sums(config, reconstruct, mesh), batches)


def _scores(sums, batches, params, poll=lambda: None) -> dict[str, float]:
    return reconstructions.reconstruction_scores(sums, params, batches, poll)


def _sums(config, reconstruct, mesh: Mesh) -> reconstructions.Sums:
    """Jitted; `reconstruct`: (params, x) -> (reconstruction, divergence (B,)). The square error is
    that of what is shown, held within [-1, 1]."""

    def sums(params, batch):
        x = objectives.to_model_range(batch["x"], config.data.scale, config.data.shift)
        y, divergence = reconstruct(params, x)
        each = {
            "error": reconstruction.error(config.autoencoder.reconstruction, x, y),
            "square_error": reconstruction.error("l2", x, jnp.clip(y, -1.0, 1.0)),
            "divergence": divergence,
        }
        return {name: jnp.sum(jnp.where(batch["mask"], value, 0.0)) for name, value in each.items()}

    return jax.jit(sums, out_shardings=replicated(mesh))


def _linear(config, records: Source, heldout: Source, mesh: Mesh, poll=lambda: None):
    """`psnr_linear`, of the best linear projection to as many numbers as there are latents."""
    linear = measures.fitted(config, records)
    if linear is None:
        return {}
    poll()
    count = numbers(config)

    def reconstruct(linear, x):
        return reconstructions.project(linear, x, count), jnp.zeros(x.shape[:1])

    batches = measures.heldout_batches(config, heldout, mesh)
    found = _scores(_sums(config, reconstruct, mesh), batches, linear, poll)
    return {"psnr_linear": found["psnr"], "linear_loss": found["heldout_loss"],
            "latent_numbers": count}  # fmt: skip


def _result(losses: list[float], scores: dict) -> dict:
    """What the job reports of an autoencoder; the ratio is that of the mean square errors."""
    linear = scores.get("psnr_linear")
    return {
        "heldout_loss_first": losses[0] if losses else None,
        "heldout_loss_last": scores["heldout_loss"],
        "psnr": scores["psnr"],
        "psnr_linear": linear,
        "latent_numbers": scores.get("latent_numbers"),
        "ratio": None if linear is None else 10 ** ((linear - scores["psnr"]) / 10),
    }
