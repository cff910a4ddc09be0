"""Video prediction: the first two frames of a clip are given, six follow.

Purpose: moving emoji whose motion the network must see and carry on; losses are of the frames that
are not given. Otherwise configs/moving_emoji.py. `:smoke` is 20 steps, for tests.
Command: bash launch/local.sh configs/video_prediction.py
"""

from nrdm_jax.config import of_file

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    c = of_file(__file__, "moving_emoji", arg)
    c.data.seen, c.data.seen_frames = "frames", 2
    return c
