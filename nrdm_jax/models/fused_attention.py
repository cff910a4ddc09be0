"""Attention kernels that others wrote, of the examples and heads of one device: softmax(q k^T /
sqrt(K)) v for q, k, v (B, H, N, K), no mask. On an accelerator none holds the weights."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp

from nrdm_jax.sharding import axes
from nrdm_jax.signatures import Array

# kernel -> platforms that it runs on
PLATFORMS = {"splash": ("tpu",), "cudnn": ("gpu", "cuda"), "tokamax": ("cpu", "tpu", "gpu", "cuda")}
LANES = 128  # of a TPU's registers: blocks of tokens are multiples
BLOCK = 512  # tokens of a block, at most


def check(kernel: str, platform: str) -> None:
    """Raises:
    ValueError: the kernel does not run on this platform, its package is not installed, or it
      cannot be compiled for devices that are not there.
    """
    if platform not in PLATFORMS.get(kernel, (platform,)):
        raise ValueError(
            f"model.attention_kernel is {kernel}, which runs on {PLATFORMS[kernel][0]}, and the "
            f"devices are of platform {platform}; choose xla or blockwise"
        )
    if kernel == "tokamax":
        if importlib.util.find_spec("tokamax") is None:
            raise ValueError(
                "model.attention_kernel is tokamax, which is not installed; "
                "bash launch/local.sh --setup-only --extras=tokamax, or choose xla"
            )
        if platform != jax.default_backend():
            raise ValueError(
                "model.attention_kernel is tokamax, which chooses by the devices at hand, of "
                f"platform {jax.default_backend()}, and not by those of platform {platform} that "
                "are compiled for; choose splash for a TPU, cudnn for a GPU"
            )


def splash(q_BHNK: Array, k_BHNK: Array, v_BHNK: Array) -> Array:
    """Pallas's kernel for TPUs, which ships with jax. Tokens are padded to whole blocks, and the
    padding is masked as a segment of its own. On a CPU it is interpreted, which is for tests."""
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas

    _, heads, count, width = q_BHNK.shape
    padding = -count % LANES
    tokens = count + padding
    block = max(size for size in range(LANES, BLOCK + 1, LANES) if tokens % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv",
             "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")  # fmt: skip
    sizes: dict[str, Any] = dict.fromkeys(names, block)
    kernel = pallas.make_splash_mha(
        pallas.MultiHeadMask([pallas.FullMask((tokens, tokens))] * heads),
        block_sizes=pallas.BlockSizes(**sizes),
        head_shards=1,
        q_seq_shards=1,
        interpret=axes.platform() == "cpu",
    )
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0)))
        for x in (q_BHNK * width**-0.5, k_BHNK, v_BHNK)
    )
    segments = None
    if padding:
        real = (jnp.arange(tokens) < count).astype(jnp.int32)
        segments = pallas.SegmentIds(real, real)
    out = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=segments))(q, k, v)
    return out[:, :, :count].astype(v_BHNK.dtype)


def cudnn(q_BHNK: Array, k_BHNK: Array, v_BHNK: Array) -> Array:
    """NVIDIA's flash attention, in bfloat16.

    Raises:
      ValueError: cuDNN is not there, or does not have this size. jax asks the device at hand for
        its limit: ahead of time, on a CPU, it is that of older GPUs, 128 channels a head.
    """
    q, k, v = (x.swapaxes(1, 2) for x in (q_BHNK, k_BHNK, v_BHNK))
    try:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn").swapaxes(1, 2)
    except NotImplementedError as error:  # as above 128 channels a head, but on Hopper
        raise ValueError(f"model.attention_kernel is cudnn: {error} Choose xla") from error
    except RuntimeError as error:
        raise ValueError(
            f"model.attention_kernel is cudnn: {error} bash launch/local.sh --setup-only "
            "--extras=cuda, or cudnn-aot to compile ahead; or choose xla"
        ) from error


def tokamax(q_BHNK: Array, k_BHNK: Array, v_BHNK: Array) -> Array:
    """What the library tokamax has for the device at hand; on a CPU that holds the weights."""
    import tokamax as library

    q, k, v = (x.swapaxes(1, 2) for x in (q_BHNK, k_BHNK, v_BHNK))
    return library.dot_product_attention(q, k, v).swapaxes(1, 2)
