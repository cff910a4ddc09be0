"""Buckets: the shapes that a run trains at, and how many examples of each are a batch."""

import math

from nrdm_jax.config.conditions import is_int, require
from nrdm_jax.config.mesh_checks import check_mesh
from nrdm_jax.config.model_checks import check_grid
from nrdm_jax.config.tree import patch_of

Shape = tuple[int, ...]


def shapes(config) -> tuple[Shape, ...]:
    """At least one."""
    return tuple(config.data.buckets) or (tuple(config.data.shape),)


def tokens(config, shape: Shape) -> int:
    """Patches of an example."""
    return math.prod(n // p for n, p in zip(shape, patch_of(config), strict=False))


def batch_size(config, shape: Shape) -> int:
    """Examples of this shape in a step, all devices together."""
    wanted, multiple = config.data.bucket_tokens, config.data.bucket_multiple
    if not config.data.buckets or not wanted:
        return config.train.batch_size
    return max(1, round(wanted / tokens(config, shape) / multiple)) * multiple


def sizes_differ(config) -> bool:
    """Whether steps are of different numbers of examples."""
    return len({batch_size(config, shape) for shape in shapes(config)}) > 1


def at_shape(config, shape: Shape):
    """The config of a run at this shape alone. The network of the whole run is the one of the whole
    config: positions span its `data.shape`."""
    one = config.copy_and_resolve_references()
    one.train.batch_size = batch_size(config, shape)
    one.data.shape, one.data.buckets = tuple(shape), ()
    return one


def check_shape(config, shape: Shape, field: str) -> None:
    """Raises:
    ValueError: the network of the config, or the autoencoder, has no form for examples of this
      shape; names `field`.
    """
    reference = config.data.shape
    require(
        isinstance(shape, tuple)
        and len(shape) == len(reference)
        and all(is_int(n) and n > 0 for n in shape)
        and shape[-1] == reference[-1],
        field,
        f"has {shape!r}",
        f"give shapes of as many axes and channels as data.shape={reference}",
    )
    if config.task == "autoencoder":
        factor = 2 ** (len(config.autoencoder.channel_factors) - 1)
        require(
            all(size % factor == 0 for size in shape[:-1]),
            field,
            f"has {shape}, and every axis of what autoencoder.channel_factors="
            f"{config.autoencoder.channel_factors} reconstruct is halved {factor.bit_length() - 1} "
            "times",
            f"give sizes that {factor} divides",
        )
        return
    one = at_shape(config, shape)
    try:
        check_grid(one)
    except ValueError as error:
        raise ValueError(f"{field} has {shape}, with which {error}") from None
    for size, span, side in zip(shape, reference, patch_of(config), strict=False):
        require(
            config.model.name == "unet" or span > side or size == side,
            field,
            f"has {shape}, {size // side} patches on an axis of which data.shape={reference} has "
            "one, so that positions have nothing to span",
            "make data.shape larger there",
        )


def check_buckets(c) -> None:
    """What can be said before devices and data are known."""
    buckets = c.data.buckets
    require(
        isinstance(buckets, tuple) and len(set(map(str, buckets))) == len(buckets),
        "data.buckets",
        f"is {buckets!r}",
        "give a tuple of different shapes",
    )
    for shape in buckets:
        check_shape(c, shape, "data.buckets")
    require(
        not buckets or tuple(c.data.shape) in buckets,
        "data.shape",
        f"is {c.data.shape}, which is none of data.buckets={buckets}",
        "choose one of them: held-out losses and samples have it",
    )
    for shape in buckets:
        one = at_shape(c, shape)
        require(
            one.train.batch_size % c.train.micro_batches == 0,
            "data.bucket_multiple",
            f"is {c.data.bucket_multiple}, and train.micro_batches={c.train.micro_batches} do not "
            f"divide batches of {one.train.batch_size} examples {shape}",
            f"make it a multiple of {c.train.micro_batches}",
        )
        require(
            not c.optim.sensitivity_penalty or c.optim.sensitivity_examples <= one.train.batch_size,
            "optim.sensitivity_examples",
            f"is {c.optim.sensitivity_examples}, more than the {one.train.batch_size} examples of "
            f"a batch of {shape}",
            "give fewer",
        )
        require(
            c.data.seen != "frames" or c.data.seen_frames < shape[0],
            "data.seen_frames",
            f"is {c.data.seen_frames}, and data.buckets has {shape}",
            "give fewer than the frames of each",
        )
        try:
            check_mesh(one)
        except ValueError as error:
            raise ValueError(
                f"data.buckets has {shape}, {one.train.batch_size} at a time, with which {error}"
            ) from None


def batch_sizes(config) -> list[int]:
    """Of every shape."""
    return [batch_size(config, shape) for shape in shapes(config)]


def other_batch_size(config, meta: dict) -> str:
    """What a change of the batch size on the way, which had to be allowed, does to the rest; ""
    where there is none. `meta` is what the checkpoint says."""
    t, now = config.train, batch_sizes(config)
    # An older version did not say the sizes of buckets.
    before = meta.get("batch_sizes", now if config.data.buckets else [meta["batch_size"]])
    if before == now:
        return ""
    text = (
        f"batch size {_listed(before)} -> {_listed(now)}: the data go on from record "
        f"{meta['position']} of the order; the learning rate goes on from step {meta['step']} of "
        f"{t.steps}, as it is"
    )
    if config.data.buckets:
        text += (
            "; buckets are mixed anew, so that until this epoch ends some records are read twice "
            "and some not at all"
        )
    if config.optim.name != "schedule_free" and not sizes_differ(config):
        text += (
            f"; the EMA keeps its half-life of {t.ema_halflife_images:g} images, and warms up to "
            "it as if all steps had been of the new size"
        )
    return text


def _listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes))
