"""Which autoencoders can be trained, and which diffusions can be in their latents."""

from nrdm_jax.config.conditions import is_int, require

TAEF2_CHANNELS, TAEF2_FACTOR = 32, 8


def check_autoencoder(c) -> None:
    """Raises:
    ValueError: names the field, the reason and the fix.
    """
    if c.task == "autoencoder":
        _check_training(c)
    elif c.autoencoder.name != "none":
        _check_latents(c)
    else:
        return
    require(
        not c.data.buckets,
        "data.buckets",
        f"is {c.data.buckets}, and autoencoder.name={c.autoencoder.name} with task={c.task} has "
        "one shape",
        "set it to ()",
    )


def _check_training(c) -> None:
    a = c.autoencoder
    require(
        a.name == "kl",
        "autoencoder.name",
        f"is {a.name} with task=autoencoder, and the weights of the others are given",
        "choose kl",
    )
    factors = a.channel_factors
    require(
        isinstance(factors, tuple)
        and len(factors) > 0
        and all(is_int(factor) and factor > 0 for factor in factors),
        "autoencoder.channel_factors",
        f"is {factors!r}",
        "give a tuple of positive whole numbers, one a level",
    )
    shape = tuple(c.data.shape)
    require(
        len(shape) in (3, 4) and all(is_int(n) and n > 0 for n in shape),
        "data.shape",
        f"is {shape}",
        "give (H, W, C), or (T, H, W, C) or (D, H, W, C): channels last",
    )
    halvings = len(factors) - 1
    for size in shape[:-1]:
        require(
            size % 2**halvings == 0,
            "autoencoder.channel_factors",
            f"has {len(factors)} levels, and the size {size} of data.shape={shape} cannot be "
            f"halved {halvings} times",
            f"give at most {_halvings(size) + 1} levels, or another data.shape",
        )
    require(
        not a.perceptual_weight or (len(shape) == 3 and shape[-1] in (1, 3)),
        "autoencoder.perceptual_weight",
        f"is {a.perceptual_weight}, for pictures, and data.shape is {shape}",
        "set it to 0",
    )
    require(
        not a.perceptual_weight or c.evaluate.net == "efflite0" or c.evaluate.weights,
        "evaluate.weights",
        f"is not set, and evaluate.net={c.evaluate.net}, of autoencoder.perceptual_weight, has no "
        "weights of its own",
        "give the file of its published weights, or choose evaluate.net=efflite0",
    )
    require(
        not c.optim.sensitivity_penalty,
        "optim.sensitivity_penalty",
        f"is {c.optim.sensitivity_penalty}, of residual units, which task=autoencoder has none of",
        "set it to 0",
    )
    require(
        c.text.encoder == "none",
        "text.encoder",
        f"is {c.text.encoder}, and task=autoencoder reads no text",
        "set it to none",
    )
    for axis in ("stage", "context", "tensor"):
        require(
            c.mesh[axis] == 1 and c.mesh.slices[axis] == 1,
            f"mesh.{axis}",
            f"is {c.mesh[axis]}, and task=autoencoder divides the batch alone",
            "set it to 1; use mesh.data",
        )


def _halvings(size: int) -> int:
    """How often it can be halved."""
    return (size & -size).bit_length() - 1


def _check_latents(c) -> None:
    a, shape = c.autoencoder, tuple(c.data.shape)
    require(
        a.name == "taef2" or a.weights is not None,
        "autoencoder.weights",
        f"is not set with autoencoder.name={a.name}",
        "give the workdir of its run" if a.name == "kl" else "give its .safetensors file",
    )
    if a.name == "taef2":
        require(
            len(shape) == 3 and shape[-1] == TAEF2_CHANNELS,
            "data.shape",
            f"is {shape}, and latents of autoencoder.name=taef2 are (H / {TAEF2_FACTOR}, "
            f"W / {TAEF2_FACTOR}, {TAEF2_CHANNELS})",
            "give such a shape",
        )
    require(
        not c.data.flip,
        "data.flip",
        "is True, and mirrored latents are not the latents of what is mirrored",
        "set it to False",
    )
    require(
        c.data.seen != "segmentation",
        "data.seen",
        f"is segmentation, at the places of pixels, and autoencoder.name={a.name} has others",
        "choose none, or autoencoder.name=none",
    )
    require(
        c.data.scale == 1 and c.data.shift == 0,
        "data.scale",
        f"is {c.data.scale} and data.shift {c.data.shift}; latents of autoencoder.name={a.name} "
        "get mean 0 and variance 1 by themselves",
        "set them to 1 and 0",
    )
    require(
        not c.sample.threshold,
        "sample.threshold",
        f"is {c.sample.threshold}, for pixels, and autoencoder.name={a.name} makes latents",
        "set it to 0",
    )
