"""Moving emoji by name: text -> video, 8 frames of 32 x 32.

Purpose: clips from words; MiniLM reads what is drawn and how it moves. Otherwise
configs/moving_emoji.py. `:smoke` is 20 steps, for tests.
Command: bash launch/local.sh configs/text_video.py
"""

# extras: text
from nrdm_jax.config import of_file

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    c = of_file(__file__, "moving_emoji", arg)
    c.text.encoder, c.text.length = "minilm", 24
    c.sample.guidance = 2.0
    return c
