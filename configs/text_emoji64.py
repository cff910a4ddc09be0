"""OpenMoji by name: text -> image, 64 x 64, in the latents of TAEF2.

Purpose: a picture from words on a laptop: MiniLM reads the names of 4,072 drawings, and a DiT with
cross-attention makes 8 x 8 x 32 latents of a released autoencoder. How far it does what it is told
is measured by python -m benchmarks.text_control. The autoencoder is not in the clone:
../shared/data/taef2_{encoder,decoder}.safetensors, or NRDM_TAEF2. `:smoke` is 20 steps, for tests.
Expected result: on 2 cores, 19 minutes take the held-out loss of the EMA weights
from 1.999 to 0.647, 0.75 of the best linear denoiser's 0.859; people, hands and flags can be named,
and 69 % of the pictures are of the category of their names. (Measured 2026-11-26.)
Command: bash launch/local.sh configs/text_emoji64.py
"""

# extras: text
from nrdm_jax.config import of_file

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    c = of_file(__file__, "openmoji64_latent", arg)
    c.text.encoder, c.text.length = "minilm", 16
    c.sample.guidance = 3.0
    return c
