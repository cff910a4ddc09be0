"""Hippocampus MRI: real scans, 32 x 48 x 32 voxels of 1 mm.

Purpose: medical volumes on real data in minutes on two CPU cores: 225 scans for training, 35 held
out (Medical Segmentation Decathlon, task 4, CC-BY-SA 4.0). The data are not in the clone:
../shared/data/hippocampus_mri.npz, or NRDM_HIPPOCAMPUS. `:smoke` is 20 steps, for tests.
Expected result: on 2 cores, 17 minutes beside other work take the held-out loss of the EMA weights
from 1.280 to 0.331, 0.79 of the best linear denoiser's 0.418; samples have the light and dark of
the region, and the grain of their patches. (Measured 2026-11-26.)
Command: bash launch/local.sh configs/hippocampus.py
"""

# extras: medical
from nrdm_jax import config as configuration

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    c = configuration.default()
    c.data.name, c.data.shape, c.data.num_classes = "hippocampus", (32, 48, 32, 1), 1
    c.model.depth, c.model.width, c.model.heads, c.model.patch = 6, 128, 4, (4, 4, 4)
    c.diffusion.logit_mean, c.diffusion.logit_std = 0.7, 1.6
    c.optim.learning_rate, c.optim.b2 = 3e-3, 0.99
    c.optim.warmup_steps, c.optim.schedule = 40, "cosine"
    c.train.steps, c.train.batch_size = 400, 8
    c.train.ema_halflife_images = 160.0
    c.checkpoint.every, c.evaluate.every = 100, 100
    c.evaluate.batch_size = 8
    c.sample.examples = c.sample.batch_size = 16
    c.log.every, c.log.sensitivity_every = 20, 20
    if arg == "smoke":
        c.model.depth, c.model.width = 2, 48
        c.train.steps, c.train.batch_size, c.optim.warmup_steps = 20, 8, 1
        c.evaluate.examples = 16
        c.sample.examples, c.sample.batch_size, c.sample.steps = 4, 4, 4
    elif arg:
        raise ValueError(f"hippocampus has no argument {arg!r}; give none, or smoke")
    return c
