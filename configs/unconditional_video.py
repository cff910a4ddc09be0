"""Moving emoji of which nothing is told: unconditional video, 8 frames of 32 x 32.

Purpose: the same network without a condition, as on clips that nobody has labelled. Otherwise
configs/moving_emoji.py. `:smoke` is 20 steps, for tests.
Command: bash launch/local.sh configs/unconditional_video.py
"""

from nrdm_jax.config import of_file

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    c = of_file(__file__, "moving_emoji", arg)
    c.data.with_class, c.sample.guidance = False, 1.0
    return c
