"""Weizmann actions: real clips of people who bend, jack, … , 16 frames of 32 x 32.

Purpose: class -> video on real data, with factorised space-time attention, in minutes on two CPU
cores. 54 clips for training, cut into windows; no performer is in both splits. The data are not in
the clone: ../shared/data/weizmann_actions.zip, or NRDM_WEIZMANN. `:smoke` is 20 steps, for tests.
Expected result: on 2 cores, 17 minutes beside other work take the held-out loss of the EMA weights
from 1.063 to 0.050, 0.56 of the best linear denoiser's 0.090; samples are a dark figure in the
middle of the right ground. (Measured 2026-11-26.)
Command: bash launch/local.sh configs/weizmann_video.py
"""

from nrdm_jax.config import of_file

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    c = of_file(__file__, "moving_emoji", arg)
    c.data.name, c.data.shape, c.data.num_classes = "weizmann", (16, 32, 32, 3), 4
    c.optim.learning_rate = 3e-3
    if not arg:
        c.model.depth = 6
        c.optim.warmup_steps = 40
        c.train.steps, c.train.batch_size = 400, 16
        c.log.every = 20
    return c
