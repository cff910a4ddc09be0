"""Inpainting: a box of a drawing is hidden, all around it is given.

Purpose: completion by mask; the network sees what is known and where, losses are of what is not.
Otherwise configs/openmoji32.py. `:smoke` is 20 steps, for tests.
Command: bash launch/local.sh configs/inpainting.py
"""

from nrdm_jax.config import of_file

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    c = of_file(__file__, "openmoji32", arg)
    c.data.seen = "box"
    c.sample.guidance = 1.0  # what is around tells more than the class
    return c
