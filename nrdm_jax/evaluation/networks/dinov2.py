"""DINOv2's vision transformers (Oquab et al., arXiv 2304.07193), with which FD_DINOv2 is defined
(Stein et al., arXiv 2306.04675), in the layout of dinov2_vitl14_pretrain.pth. Sizes are read from
the tensors: small, base and large, without register tokens.

N tokens: the class token, then the patches; D width; H heads of 64; L blocks.
"""

import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.evaluation.networks import layers
from nrdm_jax.evaluation.networks.outputs import Outputs
from nrdm_jax.named_tensors import select
from nrdm_jax.signatures import Array, Params

SIZE = 224
HEAD = 64  # width of a head in all of them
EPSILON = 1e-6  # of the layer norms
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, pixels in [0, 1]
OF = "a DINOv2 transformer (dinov2_vitl14_pretrain.pth)"

PREPROCESSING = (
    "DINOv2: bicubic to 224 x 224 with antialiasing, without rounding to 8 bits, ImageNet's mean "
    "and standard deviation; pooled the class token after the last norm"
)


def load(tensors: Mapping[str, np.ndarray]) -> Params:
    """Params of a file's tensors, blocks stacked; others of the file are left (mask_token).

    Raises:
      ValueError: a tensor is missing or of another shape; each is named. Or there are register
        tokens, which make it another network.
    """
    if "register_tokens" in tensors:
        raise ValueError(f"these weights have register_tokens; take {OF} without reg4 in its name")
    sizes = select(
        tensors,
        {
            "patch_embed.proj.weight": (None, 3, None, None),
            "pos_embed": (1, None, None),
            "blocks.0.mlp.fc1.weight": (None, None),
        },
        OF,
    )
    width, _, patch, _ = sizes["patch_embed.proj.weight"].shape
    tokens = sizes["pos_embed"].shape[1]
    hidden = len(sizes["blocks.0.mlp.fc1.weight"])
    if width % HEAD or SIZE % patch or math.isqrt(tokens - 1) ** 2 != tokens - 1:
        raise ValueError(
            f"these are not the weights of {OF}: width {width} has to be a multiple of {HEAD}, "
            f"{SIZE} one of the patch {patch}, and pos_embed's {tokens} tokens a square and one"
        )
    block: dict[str, tuple[int, ...]] = {
        **{
            f"{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")
        },
        "ls1.gamma": (width,),
        "ls2.gamma": (width,),
    }
    for name, inputs, outputs in (
        ("attn.qkv", width, 3 * width),
        ("attn.proj", width, width),
        ("mlp.fc1", width, hidden),
        ("mlp.fc2", hidden, width),
    ):
        block |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    numbers = [re.match(r"blocks\.(\d+)\.", name) for name in tensors]
    depth = 1 + max(int(number[1]) for number in numbers if number)
    if depth > len(tensors):
        raise ValueError(f"a tensor of block {depth - 1} among {len(tensors)} tensors")
    shapes = {f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()}
    found = select(
        tensors,
        {
            "cls_token": (1, 1, width),
            "pos_embed": (1, tokens, width),
            "patch_embed.proj.weight": (width, 3, patch, patch),
            "patch_embed.proj.bias": (width,),
            "norm.weight": (width,),
            "norm.bias": (width,),
            **shapes,
        },
        OF,
    )
    positions = interpolate(found["pos_embed"][0, 1:], SIZE // patch)
    first = found["cls_token"][0, 0] + found["pos_embed"][0, 0]

    def stacked(name: str) -> Array:
        rows = [found[f"blocks.{i}.{name}"] for i in range(depth)]
        return jnp.asarray(np.stack([row.T for row in rows]))

    return {
        "patch": jnp.asarray(found["patch_embed.proj.weight"].transpose(2, 3, 1, 0)),
        # The first token is the same for all images; the patches' have the bias in their places.
        "first": jnp.asarray(first),
        "positions": jnp.asarray(positions + found["patch_embed.proj.bias"][None, :]),
        "blocks": {name: stacked(name) for name in block},
        "norm": {part: jnp.asarray(found[f"norm.{part}"]) for part in ("weight", "bias")},
    }


def interpolate(positions: np.ndarray, size: int) -> np.ndarray:
    """Embeddings of places (n * n, D) of a square at size x size places (size * size, D).

    Bicubic as torch's (a = -0.75, edges repeated), with the step of dinov2's published code, n /
    (size + 0.1): its places are not quite those of a resize.
    """
    n = math.isqrt(len(positions))
    if n == size:
        return positions
    at = (np.arange(size) + 0.5) * n / (size + 0.1) - 0.5
    low = np.floor(at).astype(int)
    matrix = np.zeros((size, n))
    for tap in range(-1, 3):
        weights = _cubic(np.abs(at - (low + tap)))
        np.add.at(matrix, (np.arange(size), np.clip(low + tap, 0, n - 1)), weights)
    grid = positions.reshape(n, n, -1)
    return (
        np.einsum("ih,jw,hwd->ijd", matrix, matrix, grid, optimize=True)
        .reshape(size * size, -1)
        .astype(np.float32)
    )


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' kernel of |x| < 2 (1981, eq. 8, of his a)."""
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    return np.where(x <= 1, near, a * (((x - 5) * x + 8) * x - 4))


def apply(params: Params, pixels: Array) -> Outputs:
    """pooled (B, D): the class token after the last norm.

    Args:
      params: of `load`.
      pixels: (B, H, W, 3), float32 in [0, 255].
    """
    count = pixels.shape[0]
    # Antialiased as PIL's, which FD_DINOv2's own code resizes with, then to 8 bits.
    x = jax.image.resize(
        pixels.astype(jnp.float32), (count, SIZE, SIZE, 3), "cubic", antialias=True
    )
    mean, std = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (MEAN, STD))
    x = (x / 255.0 - mean) / std
    patch = params["patch"].shape[0]
    x = jax.lax.conv_general_dilated(
        x,
        params["patch"],
        (patch, patch),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=layers.PRECISION,
    )
    x = x.reshape(count, -1, x.shape[-1]) + params["positions"][None]
    first = jnp.broadcast_to(params["first"], (count, 1, x.shape[-1]))
    z_BND = jnp.concatenate([first, x], axis=1)
    z_BND, _ = jax.lax.scan(lambda z, block: (_block(z, block), None), z_BND, params["blocks"])
    pooled = _norm(z_BND[:, 0], params["norm"]["weight"], params["norm"]["bias"])
    return Outputs(pooled, spatial=None, logits=None)


def _block(z_BND: Array, block: Params) -> Array:
    """z + g1 attention(norm(z)), then z + g2 mlp(norm(z))."""

    def norm(name: str, x: Array) -> Array:
        return _norm(x, block[f"{name}.weight"], block[f"{name}.bias"])

    def linear(name: str, x: Array) -> Array:
        y = jnp.matmul(x, block[f"{name}.weight"], precision=layers.PRECISION)
        return y + block[f"{name}.bias"].reshape(1, 1, -1)

    def scaled(name: str, x: Array) -> Array:
        return x * block[name].reshape(1, 1, -1)

    qkv = linear("attn.qkv", norm("norm1", z_BND))
    q, k, v = jnp.moveaxis(qkv.reshape(*qkv.shape[:2], 3, -1, HEAD), 2, 0)
    scores = jnp.einsum("bnhk,bmhk->bhnm", q, k, precision=layers.PRECISION) / math.sqrt(HEAD)
    heads = jnp.einsum(
        "bhnm,bmhk->bnhk", jax.nn.softmax(scores), v, precision=layers.PRECISION
    ).reshape(z_BND.shape)
    z_BND = z_BND + scaled("ls1.gamma", linear("attn.proj", heads))
    hidden = jax.nn.gelu(linear("mlp.fc1", norm("norm2", z_BND)), approximate=False)
    return z_BND + scaled("ls2.gamma", linear("mlp.fc2", hidden))


def _norm(x: Array, weight: Array, bias: Array) -> Array:
    x = x - x.mean(axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + EPSILON)
    ones = (1,) * (x.ndim - 1)
    return x * weight.reshape(*ones, -1) + bias.reshape(*ones, -1)
