"""Volumes, tried out: procedural solids of 16^3 voxels.

Purpose: the 3-D path end to end in minutes on a laptop, on shapes that are made up (`solids`).
Command: bash launch/local.sh configs/volume_smoke.py
"""

from nrdm_jax import config as configuration

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    c = configuration.default()
    c.data.name, c.data.shape, c.data.num_classes = "solids", (16, 16, 16, 1), 4
    c.model.depth, c.model.width, c.model.heads, c.model.patch = 4, 128, 4, (4,)
    c.model.positions, c.model.qk_norm, c.model.mlp = "rotary", True, "swiglu"
    c.diffusion.prediction = "x0"
    c.optim.learning_rate, c.optim.b2 = 2e-3, 0.99
    c.optim.warmup_steps, c.optim.schedule = 20, "cosine"
    c.train.steps, c.train.batch_size = 200, 32
    c.train.ema_halflife_images = 320.0
    c.checkpoint.every, c.evaluate.every = 100, 100
    c.sample.examples = c.sample.batch_size = 16
    c.log.sensitivity_every = 20
    if arg == "smoke":
        c.model.depth, c.model.width = 2, 32
        c.train.steps, c.train.batch_size, c.optim.warmup_steps = 20, 16, 1
    elif arg:
        raise ValueError(f"volume_smoke has no argument {arg!r}; give none, or smoke")
    return c
