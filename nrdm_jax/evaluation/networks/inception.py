"""InceptionV3 of 2015 (Szegedy et al., arXiv 1512.00567), with which FID, sFID and the inception
score are defined, in the layout of pytorch-fid's file.

It is torchvision's InceptionV3 but for 1008 classes, average pools that do not count padding, and a
max pool in the last block. torchvision's own weights (1000 classes) are another network, and are
refused.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.evaluation.networks import layers
from nrdm_jax.evaluation.networks.layers import Convolution, Fork, Pool, Step
from nrdm_jax.evaluation.networks.outputs import Outputs
from nrdm_jax.signatures import Array, Params

SIZE, CHANNELS, CLASSES = 299, 2048, 1008
EPSILON = 1e-3  # of the batch norms
SPATIAL = 7  # channels that sFID takes
OF = "FID's InceptionV3 (pytorch-fid's pt_inception-2015-12-05-6726825d.pth)"

PREPROCESSING = (
    "InceptionV3 as pytorch-fid: bilinear to 299 x 299 (half-pixel centres, no antialiasing), "
    "scaled to [-1, 1]; pooled 2048; spatial the first 7 channels of Mixed_6d.branch1x1 after ReLU "
    "(ADM's mixed_6/conv); logits without bias"
)

AVERAGE = Pool("average", (3, 3), (1, 1))
MAX = Pool("max", (3, 3), (1, 1))
HALVE = Pool("max", (3, 3), (2, 2), "VALID")


def _halving(name: str, features: int) -> Convolution:
    return Convolution(name, features, (3, 3), 2, "VALID")


def _a(name: str, pooled: int) -> Fork:
    return Fork((
        (Convolution("branch1x1", 64, (1, 1)),),
        (Convolution("branch5x5_1", 48, (1, 1)), Convolution("branch5x5_2", 64, (5, 5))),
        (
            Convolution("branch3x3dbl_1", 64, (1, 1)),
            Convolution("branch3x3dbl_2", 96, (3, 3)),
            Convolution("branch3x3dbl_3", 96, (3, 3)),
        ),
        (AVERAGE, Convolution("branch_pool", pooled, (1, 1))),
    ), name)  # fmt: skip


def _b(name: str) -> Fork:
    return Fork((
        (_halving("branch3x3", 384),),
        (
            Convolution("branch3x3dbl_1", 64, (1, 1)),
            Convolution("branch3x3dbl_2", 96, (3, 3)),
            _halving("branch3x3dbl_3", 96),
        ),
        (HALVE,),
    ), name)  # fmt: skip


def _c(name: str, width: int) -> Fork:
    return Fork((
        (Convolution("branch1x1", 192, (1, 1)),),
        (
            Convolution("branch7x7_1", width, (1, 1)),
            Convolution("branch7x7_2", width, (1, 7)),
            Convolution("branch7x7_3", 192, (7, 1)),
        ),
        (
            Convolution("branch7x7dbl_1", width, (1, 1)),
            Convolution("branch7x7dbl_2", width, (7, 1)),
            Convolution("branch7x7dbl_3", width, (1, 7)),
            Convolution("branch7x7dbl_4", width, (7, 1)),
            Convolution("branch7x7dbl_5", 192, (1, 7)),
        ),
        (AVERAGE, Convolution("branch_pool", 192, (1, 1))),
    ), name)  # fmt: skip


def _d(name: str) -> Fork:
    return Fork((
        (Convolution("branch3x3_1", 192, (1, 1)), _halving("branch3x3_2", 320)),
        (
            Convolution("branch7x7x3_1", 192, (1, 1)),
            Convolution("branch7x7x3_2", 192, (1, 7)),
            Convolution("branch7x7x3_3", 192, (7, 1)),
            _halving("branch7x7x3_4", 192),
        ),
        (HALVE,),
    ), name)  # fmt: skip


def _e(name: str, pool: Pool) -> Fork:
    def both(a: str, b: str) -> Fork:
        return Fork(((Convolution(a, 384, (1, 3)),), (Convolution(b, 384, (3, 1)),)))

    return Fork((
        (Convolution("branch1x1", 320, (1, 1)),),
        (Convolution("branch3x3_1", 384, (1, 1)), both("branch3x3_2a", "branch3x3_2b")),
        (
            Convolution("branch3x3dbl_1", 448, (1, 1)),
            Convolution("branch3x3dbl_2", 384, (3, 3)),
            both("branch3x3dbl_3a", "branch3x3dbl_3b"),
        ),
        (pool, Convolution("branch_pool", 192, (1, 1))),
    ), name)  # fmt: skip


# Up to the block whose first branch is the spatial features, and from there.
TO_MIXED_6D: tuple[Step, ...] = (
    _halving("Conv2d_1a_3x3", 32),
    Convolution("Conv2d_2a_3x3", 32, (3, 3), padding="VALID"),
    Convolution("Conv2d_2b_3x3", 64, (3, 3)),
    HALVE,
    Convolution("Conv2d_3b_1x1", 80, (1, 1)),
    Convolution("Conv2d_4a_3x3", 192, (3, 3), padding="VALID"),
    HALVE,
    _a("Mixed_5b.", 32),
    _a("Mixed_5c.", 64),
    _a("Mixed_5d.", 64),
    _b("Mixed_6a."),
    _c("Mixed_6b.", 128),
    _c("Mixed_6c.", 160),
    _c("Mixed_6d.", 160),
)
FROM_MIXED_6E: tuple[Step, ...] = (
    _c("Mixed_6e.", 192),
    _d("Mixed_7a."),
    _e("Mixed_7b.", AVERAGE),
    # A max pool: a fault of the published graph, which the published figures have.
    _e("Mixed_7c.", MAX),
)
KERNELS, _ = layers.convolutions((*TO_MIXED_6D, *FROM_MIXED_6E), 3)


def load(tensors: Mapping[str, np.ndarray]) -> Params:
    """Params of a file's tensors: pytorch-fid's, or torch-fidelity's (weights-inception-2015-12-05-
    6726825d.pth), which has the same by the same names. Others of the file are left (fc.bias,
    num_batches_tracked, AuxLogits).

    Raises:
      ValueError: a tensor is missing or of another shape; each is named.
    """
    units, others = layers.load_convolutions(
        tensors,
        KERNELS,
        weight="conv.weight",
        others={"fc.weight": (CLASSES, CHANNELS)},
        epsilon=EPSILON,
        of=OF,
    )
    return {"units": units, "classes": jnp.asarray(others["fc.weight"].T)}


def apply(params: Params, pixels: Array) -> Outputs:
    """pooled (B, 2048); spatial (B, 17 * 17 * 7), as ADM's evaluator (arXiv 2105.05233) takes them
    for sFID (arXiv 2103.03841); logits (B, 1008) without the bias of the classes, as the inception
    score's own code and torch-fidelity (`logits_unbiased`).

    Args:
      params: of `load`.
      pixels: (B, H, W, 3), float32 in [0, 255].
    """
    shape = (pixels.shape[0], SIZE, SIZE, 3)
    x = jax.image.resize(pixels.astype(jnp.float32), shape, "linear", antialias=False) / 127.5 - 1.0
    middle = layers.run(params["units"], TO_MIXED_6D, x)
    pooled = layers.run(params["units"], FROM_MIXED_6E, middle).mean(axis=(1, 2))
    return Outputs(
        pooled=pooled,
        spatial=middle[..., :SPATIAL].reshape(pixels.shape[0], -1),
        logits=jnp.matmul(pooled, params["classes"], precision=layers.PRECISION),
    )
