"""Weizmann actions: real clips of people who bend, jack, … , 16 frames of 32 x 32.

Purpose: class -> video on real data, with factorised space-time attention, in minutes on two CPU
cores. 54 clips for training, cut into windows; no performer is in both splits. The data are not in
the clone: ../shared/data/weizmann_actions.zip, or NRDM_WEIZMANN. `:smoke` is 20 steps, for tests.
Command: bash launch/local.sh configs/weizmann_video.py
"""

from nrdm_jax import config as configuration

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    c = configuration.default()
    c.data.name, c.data.shape, c.data.num_classes = "weizmann", (16, 32, 32, 3), 4
    c.model.depth, c.model.width, c.model.heads, c.model.patch = 6, 192, 6, (2, 4, 4)
    c.model.attention = "factorised"
    c.diffusion.logit_mean, c.diffusion.logit_std = 0.7, 1.6
    c.optim.learning_rate, c.optim.b2 = 3e-3, 0.99
    c.optim.warmup_steps, c.optim.schedule = 40, "cosine"
    c.train.steps, c.train.batch_size = 400, 16
    c.train.ema_halflife_images = 160.0
    c.checkpoint.every, c.evaluate.every = 100, 100
    c.evaluate.batch_size = 16
    c.sample.examples = c.sample.batch_size = 16
    c.log.every, c.log.sensitivity_every = 20, 20
    if arg == "smoke":
        c.model.depth, c.model.width = 2, 48
        c.train.steps, c.train.batch_size, c.optim.warmup_steps = 20, 8, 1
        c.evaluate.examples = 32
        c.sample.examples, c.sample.batch_size, c.sample.steps = 4, 4, 4
    elif arg:
        raise ValueError(f"weizmann_video has no argument {arg!r}; give none, or smoke")
    return c
