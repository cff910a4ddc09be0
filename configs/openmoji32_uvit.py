"""OpenMoji at 32 x 32 with a U-shaped transformer: openmoji32 with U-ViT's long skips.

Purpose: the U-shaped stack of gated units beside the flow-shaped one, all else equal: 7 blocks of
width 128, three down, one between, three up, whose units read the way down inside the branch.
`:smoke` is 20 steps, for tests.
Expected result: 1,000 steps take the held-out loss of the EMA weights from 1.784 to 0.245, 0.83 of
the best linear denoiser's 0.295, in 6 minutes on 2 cores that did other work as well. (Measured
2026-11-23.)
Command: bash launch/local.sh configs/openmoji32_uvit.py
"""

from nrdm_jax import config as configuration

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    if arg not in ("", *ARGUMENTS):
        raise ValueError(f"openmoji32_uvit has no argument {arg!r}; give none, or smoke")
    c = configuration.of_file(__file__, "openmoji32", arg)
    c.model.name = "uvit"
    c.model.depth = 3 if arg else 7
    c.model.prefix_tokens = True
    c.train.steps = c.train.steps if arg else 1_000
    return c
