"""An autoencoder of OpenMoji at 32 x 32, on a laptop.

Purpose: 3,072 numbers of a drawing to 256 and back, on two CPU cores, better than the best linear
projection to as many. `:smoke` is the same job shrunk to 20 steps, for tests.
Expected result: on 2 cores, beside other work, 16 minutes: PSNR 24.1 dB on held-out drawings, the
linear projection's is 23.2; letters and thin lines are blurred. (Measured 2026-11-26.)
Command: bash launch/local.sh configs/autoencoder32.py
"""

from nrdm_jax import config as configuration

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    if arg not in ("", *ARGUMENTS):
        raise ValueError(f"autoencoder32 has no argument {arg!r}; give none, or smoke")
    c = configuration.default()
    c.task = "autoencoder"
    c.data.name = "openmoji"
    c.data.shape = (32, 32, 3)
    c.data.num_classes = 10
    c.autoencoder.name = "kl"
    c.autoencoder.width, c.autoencoder.channel_factors = 16, (1, 2, 4)
    c.autoencoder.blocks, c.autoencoder.latent_channels = 1, 4
    c.autoencoder.reconstruction = "l2"  # what PSNR is of
    c.optim.learning_rate = 2e-3
    c.optim.warmup_steps = 100
    c.optim.schedule = "cosine"
    c.optim.b2 = 0.99
    c.train.steps = 2_500
    c.train.batch_size = 32
    c.train.ema_halflife_images = 5_000.0
    c.checkpoint.every = 500
    c.evaluate.every = 500
    c.sample.every = 1_250
    c.sample.examples = 32
    if arg == "smoke":
        c.autoencoder.width, c.autoencoder.channel_factors = 8, (1, 1)
        c.optim.warmup_steps = 1
        c.train.steps, c.train.batch_size = 20, 16
        c.log.every, c.checkpoint.every = 5, 10
        c.evaluate.every, c.evaluate.batch_size, c.evaluate.examples = 10, 32, 64
        c.sample.every, c.sample.examples = 0, 8
    return c
