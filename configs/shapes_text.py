"""Furniture by name: text -> 3-D shape, 32^3 voxels, from 820 meshes of Sweet Home 3D.

Purpose: shapes from words in minutes on two CPU cores; MiniLM reads the names, samples are written
as OBJ and PLY meshes with rendered views. The meshes are not in the clone: apt-get download
sweethome3d-furniture and dpkg -x, NRDM_SWEETHOME3D says where to. `:smoke` is 20 steps, for tests.
Expected result: on 2 cores, 11 minutes take the held-out loss of the EMA weights from 2.000 to
0.278, 0.64 of the best linear denoiser's 0.432; samples are lumps of about the right bulk, and no
furniture yet. (Measured 2026-11-26.)
Command: bash launch/local.sh configs/shapes_text.py
"""

# extras: text
# debian: sweethome3d-furniture NRDM_SWEETHOME3D
from nrdm_jax.config import of_file

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    c = of_file(__file__, "hippocampus", arg)
    c.data.name, c.data.shape, c.data.num_classes = "sweethome3d", (32, 32, 32, 1), 12
    c.text.encoder, c.text.length = "minilm", 16
    c.train.ema_halflife_images = 320.0
    c.sample.guidance, c.sample.write = 2.0, "shapes"
    return c
