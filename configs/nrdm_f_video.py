"""A video model for a pod: 16 x 32 x 32 latents, tokens divided over devices.

Purpose: the flow-shaped stack on long sequences: 200 gated blocks of width 1,024, joint attention
over 4,096 tokens (and, with data.shape=(64,64,64,4), 65,536), which four devices divide: by
all-to-all for each attention (Ulysses), which here sends a quarter of what a ring does.
Expected result: none measured here; compiled for a v5p 4x4x4: 13.5 of 95 GiB a chip.
Data: a TFDS data set `video_latents` (array_record) with features `latent` (16, 32, 32, 4) float32
and `label`, prepared by the user in TFDS_DATA_DIR.
Command: python -m nrdm_jax.compile_ahead --config=configs/nrdm_f_video.py --topology=tpu:v5p:4x4x4
"""

from nrdm_jax import config as configuration


def get_config(arg: str = ""):
    if arg:
        raise ValueError(f"nrdm_f_video has no argument {arg!r}; give none")
    c = configuration.of_file(__file__, "nrdm_f_1000")
    c.data.name, c.data.shape = "tfds:video_latents", (16, 32, 32, 4)
    c.model.depth, c.model.patch = 200, (1, 2, 2)
    c.model.positions = "rotary"
    c.model.attention_kernel = "ulysses"
    c.model.memory = "remat"
    c.train.batch_size = c.evaluate.batch_size = c.sample.batch_size = 128
    c.mesh.data, c.mesh.fsdp, c.mesh.context = 1, -1, 4
    return c
