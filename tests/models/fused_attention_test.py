"""Where a kernel of others does not run, the config is refused with a way out."""

import jax
import jax.numpy as jnp
import pytest

from nrdm_jax import build
from nrdm_jax import config as configuration
from nrdm_jax.models import fused_attention


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_a_kernel_of_another_platform_is_refused_before_anything_is_built(kernel):
    c = configuration.default()
    c.data.name, c.model.branch_dtype, c.model.attention_kernel = "synthetic", "bfloat16", kernel
    configuration.validate(c)
    with pytest.raises(ValueError, match=f"model.attention_kernel is {kernel}.*choose xla"):
        build.run(c)


def test_each_runs_where_it_says():
    for kernel, platforms in fused_attention.PLATFORMS.items():
        for platform in set(platforms) - {"cpu"} if kernel != "tokamax" else {"cpu"}:
            fused_attention.check(kernel, platform)
    for kernel in ("xla", "blockwise", "ring", "ulysses"):
        fused_attention.check(kernel, "cpu")


def test_tokamax_is_not_compiled_for_what_is_not_there(monkeypatch):
    with pytest.raises(ValueError, match="choose splash for a TPU, cudnn for a GPU"):
        fused_attention.check("tokamax", "tpu")
    monkeypatch.setattr(fused_attention.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--extras=tokamax"):
        fused_attention.check("tokamax", "cpu")


def test_without_cudnn_its_extra_is_named(monkeypatch):
    def absent(*_, **__):
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(jax.nn, "dot_product_attention", absent)
    with pytest.raises(ValueError, match="--extras=cuda"):
        fused_attention.cudnn(*(jnp.zeros((1, 1, 8, 8), jnp.bfloat16),) * 3)
