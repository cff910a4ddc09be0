"""ModelNet10's chairs and monitors: class -> 3-D shape, 32^3 voxels.

Purpose: shapes of a class, written as OBJ and PLY meshes with rendered views. The data are not in
the clone: ../shared/data/modelnet_voxels32.npz, or NRDM_MODELNET. Otherwise
configs/hippocampus.py. `:smoke` is 20 steps, for tests.
Command: bash launch/local.sh configs/shapes_class.py
"""

from nrdm_jax.config import of_file

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    c = of_file(__file__, "hippocampus", arg)
    c.data.name, c.data.shape, c.data.num_classes = "modelnet", (32, 32, 32, 1), 2
    c.sample.guidance, c.sample.write = 2.0, "shapes"
    return c
