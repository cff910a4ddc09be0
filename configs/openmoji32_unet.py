"""OpenMoji at 32 x 32 with a convolutional U-Net of gated units.

Purpose: the third stack: levels of 32, 16 and 8 pixels a side, 32, 64 and 64 channels, two blocks
each on the way down and up, attention at 8; the units on the way up read the skip inside the
branch. `:smoke` is 20 steps, for tests.
Expected result: 1,000 steps take the held-out loss of the EMA weights from 1.784 to 0.212, 0.72 of
the best linear denoiser's 0.295, in 28 minutes on one core that did other work as well. (Measured
2026-11-23.)
Command: bash launch/local.sh configs/openmoji32_unet.py
"""

from nrdm_jax import config as configuration

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    if arg not in ("", *ARGUMENTS):
        raise ValueError(f"openmoji32_unet has no argument {arg!r}; give none, or smoke")
    c = configuration.of_file(__file__, "openmoji32", arg)
    c.model.name, c.model.patch = "unet", (1,)
    c.model.depth, c.model.width = (1, 8) if arg else (2, 32)
    c.model.channel_factors, c.model.attention_at = (1, 2, 2), (8,)
    c.train.steps = c.train.steps if arg else 1_000
    return c
