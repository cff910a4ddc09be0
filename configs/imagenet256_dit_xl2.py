"""DiT-XL/2 on ImageNet 256 x 256, in the latents of an autoencoder (32 x 32 x 4).

Purpose: the published reference, adaLN-Zero DiT (arXiv 2212.09748) as a setting of the gated unit:
alpha conditional and zero at start, beta off; eps on a thousand discrete steps, learned variance.
674,834,720 parameters.
Expected result: none measured here; dry run, and compiled ahead for `h100`.
(Published: FID-50K 2.27, guided.)
Data: a TFDS data set `imagenet256_latents` (array_record) with features `latent` (32, 32, 4)
float32 and `label`, prepared by the user in TFDS_DATA_DIR.
Argument: `h100`, for one host of eight H100s: data parallel, optimizer state and EMA divided.
Command: python -m nrdm_jax.train --config=configs/imagenet256_dit_xl2.py --workdir=/tmp/w --dry_run
"""

from nrdm_jax import config as configuration

ARGUMENTS = ("h100",)


def get_config(arg: str = ""):
    if arg not in ("", *ARGUMENTS):
        raise ValueError(f"imagenet256_dit_xl2 has no argument {arg!r}; give none or h100")
    c = configuration.default()
    c.data.name = "tfds:imagenet256_latents"
    c.data.shape = (32, 32, 4)
    c.data.num_classes = 1000
    c.data.scale = 0.18215  # of Stable Diffusion's autoencoder, as DiT uses it
    c.model.size = "XL"
    c.model.patch = (2,)
    c.model.learn_variance = True
    c.model.alpha_bound = c.model.beta = False
    c.model.branch_dtype = "bfloat16"
    c.model.memory = "remat"
    c.diffusion.path = "ddpm_discrete"
    c.diffusion.prediction = "eps"
    c.diffusion.times = "discrete"
    c.optim.learning_rate = 1e-4
    c.train.steps = 400_000
    c.train.batch_size = 256
    c.train.ema_halflife_images = 1_774_000.0  # decay 0.9999 a step of 256 images
    c.checkpoint.every = 5_000
    c.evaluate.every = 10_000
    c.evaluate.batch_size = 256
    c.sample.guidance = 1.5
    c.sample.sampler, c.sample.grid, c.sample.steps = "ddpm", "respaced", 250
    c.log.every = 100
    if arg == "h100":
        c.mesh.data, c.mesh.zero1 = 8, True
    return c
