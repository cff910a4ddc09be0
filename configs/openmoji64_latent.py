"""OpenMoji at 64 x 64 in the latents of TAEF2: diffusion of 8 x 8 x 32 numbers in the place of 64 x
64 x 3.

Purpose: a class-conditional diffusion in latents on a laptop; the set is encoded once, on first
use, or before by several processes with the second command. `:smoke` is the same shrunk to 20
steps, for tests.
Expected result: not measured at full length.
Needs: ../shared/data/taef2_{encoder,decoder}.safetensors, or NRDM_TAEF2
Command: bash launch/local.sh configs/openmoji64_latent.py
         nrdm encode --config=configs/openmoji64_latent.py --workdir=latents/openmoji64
"""

from nrdm_jax import config as configuration

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    if arg not in ("", *ARGUMENTS):
        raise ValueError(f"openmoji64_latent has no argument {arg!r}; give none, or smoke")
    c = configuration.default()
    c.data.name = "openmoji"
    c.data.shape = (8, 8, 32)  # of 64 x 64 x 3 pixels
    c.data.num_classes = 10
    c.autoencoder.name = "taef2"
    c.model.depth, c.model.width, c.model.heads, c.model.patch = 6, 128, 4, (1,)
    c.optim.learning_rate = 2e-3
    c.optim.warmup_steps = 100
    c.optim.schedule = "cosine"
    c.optim.b2 = 0.99
    c.train.steps = 2_400
    c.train.batch_size = 32
    c.train.ema_halflife_images = 5_000.0
    c.checkpoint.every = 400
    c.evaluate.every = 400
    c.sample.every = 1_200
    c.sample.guidance = 2.0
    c.sample.steps = 40
    if arg == "smoke":
        c.model.depth, c.model.width, c.model.heads = 2, 32, 2
        c.optim.warmup_steps = 1
        c.train.steps, c.train.batch_size = 20, 16
        c.log.every, c.log.sensitivity_every, c.checkpoint.every = 5, 5, 5
        c.evaluate.every, c.evaluate.batch_size, c.evaluate.examples = 10, 32, 64
        c.sample.every = 10
        c.sample.examples, c.sample.batch_size, c.sample.steps = 8, 8, 4
    return c
