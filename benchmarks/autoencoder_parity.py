"""Whether our autoencoder is the field's: beside diffusers' AutoencoderKL, and a released tiny one.

  bash launch/local.sh --setup-only --extras=torch
  python -m benchmarks.autoencoder_parity

Random weights of diffusers' class, in its own layout, in several forms (with and without attention
in the middle, with and without quant_conv, levels of other widths), read from a .safetensors file
that it has written: `differences`, the largest absolute ones of the encoder's mean and logarithm of
the variance and of the decoder, all scaled to outputs of standard deviation 1; `worst` of them.
Exits 1 if worst is above 1e-4. `taef2_db`: mean PSNR over 64 held-out drawings of OpenMoji at 64
px, encoded and decoded by TAEF2; null where its weights are not beside the project.
"""

import os
import pathlib
import tempfile

import numpy as np

from benchmarks import measuring
from nrdm_jax.processes import lifecycle

BAR = 1e-4
SIDE, BATCH, PICTURES, TAEF2_SIDE = 32, 2, 64, 64
# name -> settings of diffusers' class
CASES = {
    "sd": {"block_out_channels": (32, 64, 64), "layers_per_block": 2, "latent_channels": 4},
    "no_attention": {"block_out_channels": (32, 64), "layers_per_block": 1, "latent_channels": 8,
                     "mid_block_add_attention": False},
    "no_quant_conv": {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 2,
                      "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
    "grey": {"block_out_channels": (64, 128), "layers_per_block": 1, "latent_channels": 3,
             "in_channels": 1, "out_channels": 1},
}  # fmt: skip


def theirs(settings: dict, directory: str):
    """(file of its weights, x, mean, log variance, z, decoded), channels last."""
    import diffusers
    import torch

    torch.manual_seed(0)
    levels = len(settings["block_out_channels"])
    net = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=32,
        **settings,
    ).eval()
    with torch.no_grad():
        for parameter in net.parameters():  # norms and biases begin at 1 and 0
            parameter.add_(0.05 * torch.randn_like(parameter))
        x = torch.rand(BATCH, settings.get("in_channels", 3), SIDE, SIDE) * 2 - 1
        found = net.encode(x).latent_dist
        z = torch.randn_like(found.mean)
        decoded = net.decode(z).sample
    net.save_pretrained(directory)
    arrays = (x, found.mean, found.logvar, z, decoded)
    file = pathlib.Path(directory) / "diffusion_pytorch_model.safetensors"
    return file, *(np.moveaxis(a.numpy(), 1, -1) for a in arrays)


def difference(name: str) -> dict[str, float]:
    """The largest of each output."""
    from nrdm_jax.models import autoencoder_weights
    from nrdm_jax.weight_files import read_weights

    with tempfile.TemporaryDirectory() as directory:
        file, x, mean, log_variance, z, decoded = theirs(CASES[name], directory)
        tensors = read_weights(file)
        net = autoencoder_weights.network_of(tensors)
        params = {"params": autoencoder_weights.params_of(tensors, net)}
    found = net.apply(params, x, method="encode")
    ours = {
        "mean": (found.mean, mean),
        "log_variance": (found.log_variance, log_variance),
        "decoded": (net.apply(params, z, method="decode"), decoded),
    }
    return {
        output: float(np.abs(np.asarray(a) - b).max() / np.std(b))
        for output, (a, b) in ours.items()
    }


def taef2_db() -> float | None:
    """PSNR of the round trip, pixels in [0, 1]; None, with the reason, without the weights."""
    import jax

    from nrdm_jax import config as configuration
    from nrdm_jax import frozen_autoencoders
    from nrdm_jax.data.sources import open_source
    from nrdm_jax.training.objectives import to_model_range

    c = configuration.default()
    c.autoencoder.name, c.data.shape = "taef2", (TAEF2_SIDE // 8, TAEF2_SIDE // 8, 32)
    try:
        frozen = frozen_autoencoders.open_frozen(c)
    except ValueError as error:
        print(f"taef2 skipped: {error}", flush=True)
        return None
    pictures = open_source(
        "openmoji", "heldout", shape=frozen.pixel_shape(c.data.shape), num_classes=10,
        data_dir=str(lifecycle.data_dir()), in_memory_bytes=2**31,
    )  # fmt: skip
    places = np.arange(PICTURES) * len(pictures) // PICTURES
    x = to_model_range(pictures.gather(places)["x"], 1.0, 0.0)
    round_trip = jax.jit(lambda p, x: frozen.decode(p, frozen.encode(p, x)[0]))
    y = np.clip(np.asarray(round_trip(frozen.params, x)), -1, 1)
    error = np.mean(((y - np.asarray(x)) / 2) ** 2, axis=(1, 2, 3))
    return float(np.mean(-10 * np.log10(np.maximum(error, 1e-10))))


def run() -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"
    measuring.require("torch", "diffusers", extra="torch")
    differences = {}
    for name in CASES:
        differences[name] = difference(name)
        words = ", ".join(f"{output} {value:.1e}" for output, value in differences[name].items())
        print(f"{name:14} {words}", flush=True)
    worst = max(value for found in differences.values() for value in found.values())
    decibels = taef2_db()
    measuring.print_result({
        "worst": float(f"{worst:.2e}"),
        "taef2_db": None if decibels is None else round(decibels, 2),
        "differences": {name: {output: float(f"{value:.2e}") for output, value in found.items()}
                        for name, found in differences.items()},
    })  # fmt: skip
    return 0 if worst <= BAR else 1


def main() -> None:
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
