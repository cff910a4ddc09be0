"""Text within a network: padding is nothing, no text is the null, and the encoder learns."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax import trees
from nrdm_jax.models import conditioning, norms
from nrdm_jax.models.dit import DiT
from nrdm_jax.models.text_encoder import TextEncoder
from nrdm_jax.models.unet import UNet
from nrdm_jax.models.uvit import UViT

OWN = {"text_width": 8, "text_vocabulary": 20, "text_depth": 1, "text_heads": 2}
STACKS = {
    "dit": functools.partial(DiT, patch=4, depth=2, prefix_tokens=True),
    "uvit": functools.partial(UViT, patch=4, depth=3),
    "unet": functools.partial(UNet, patch=2, depth=1, channel_factors=(1, 2)),
}
CLASSES = 5


def tokens_of(length):
    """A text of 5 tokens, one of 2, one of none."""
    rows = np.zeros((3, length), np.int32)
    rows[0, :5], rows[1, :2] = (3, 1, 19, 3, 7), (4, 4)
    return rows


def states_of(length, padding):
    draw = np.random.default_rng(1).standard_normal((3, 5, 8)).astype(np.float32)
    text = np.full((3, length, 8), padding, np.float32)
    text[:, :5] = draw
    mask = tokens_of(length) > 0
    pooled = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
    pooled[2] = padding  # of no text
    return {
        "text": np.where(mask[..., None], text, padding),
        "text_mask": mask,
        "text_pooled": pooled,
    }


def given(own, length, padding=0.0):
    label = {"label": np.arange(3, dtype=np.int32)}
    return label | ({"tokens": tokens_of(length)} if own else states_of(length, padding))


@pytest.fixture(
    scope="module",
    params=[
        "dit-own",
        "dit",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("uvit-own", "unet-own")),
    ],
)
def network(request, fill_zeros):
    """(whether the encoder is its own, compiled (given) -> output, its variables)"""
    kind, _, own = request.param.partition("-")
    text = OWN if own else {"text_width": 8}
    model = STACKS[kind](shape=(8, 8, 3), width=16, heads=2, num_classes=CLASSES, **text)
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
    t = jnp.linspace(0.1, 0.9, 3)
    shapes = jax.eval_shape(model.init, jax.random.key(1), x, t, given(own, 5))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    variables = fill_zeros(zeros, jax.random.key(2), 0.2)
    apply = jax.jit(functools.partial(model.apply))
    return bool(own), lambda told, v=variables: apply(v, x, t, told), variables


def test_padding_is_as_if_it_were_not_there(network):
    own, apply, _ = network
    short = apply(given(own, 5))
    np.testing.assert_allclose(apply(given(own, 8)), short, atol=2e-5)
    if not own:  # whatever is in it
        for padding in (7.0, np.nan, np.inf):
            np.testing.assert_allclose(apply(given(own, 8, padding)), short, atol=2e-5)


def test_no_text_is_the_null_text_and_texts_differ(network):
    own, apply, _ = network
    told = given(own, 5)
    null = conditioning.nothing(told, CLASSES)
    found, without = apply(told), apply(null)
    unlabelled = dict(told, label=null["label"])
    np.testing.assert_array_equal(apply(unlabelled)[2], without[2])  # the third has no tokens
    difference = np.abs(apply(unlabelled) - without).max(axis=(1, 2, 3))
    assert np.all(difference[:2] > 1e-3) and np.all(np.isfinite(found))


def test_text_is_read_and_what_reads_it_learns(network):
    own, apply, variables = network
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(apply(given(own, 5), v) ** 2)))(variables)
    paths = dict(trees.leaves_with_path(gradient["params"]))
    of_text = {p: g for p, g in paths.items() if p.startswith("text") or "cross_attention" in p}
    assert any(p.startswith("text_encoder/") for p in of_text) == own
    useless = [p for p, g in of_text.items() if not np.any(g) and "key_bias" not in p]
    # A U-Net has the mean of the states and attends to none, so that it never sees the first.
    assert useless == (["text/start"] if "middle/blocks/convolution/alpha/kernel" in paths else [])


def test_what_is_pooled_as_a_mean_is_embedded_as_the_mean_of_normed_states(fill_zeros):
    """Those who give states alone would take a norm of each and the mean; the weights are the
    same, those of a LayerNorm and of a linear."""
    told = given(False, 7)
    mask = told["text_mask"][..., None]
    counts = np.maximum(mask.sum(axis=1), 1)
    pooled = np.where(mask, norms.layer_norm(told["text"]), 0).sum(axis=1) / counts
    embedding = conditioning.TextEmbedding(16)
    arguments = told["text"], told["text_mask"]
    variables = jax.jit(embedding.init)(jax.random.key(0), *arguments, pooled)
    variables = fill_zeros(variables, jax.random.key(1), 0.3)
    _, _, found = embedding.apply(variables, *arguments, pooled)
    weights = variables["params"]
    normed = nn.LayerNorm().apply({"params": weights["norm"]}, told["text"])
    mean = np.where(mask, normed, 0).sum(axis=1) / counts
    np.testing.assert_allclose(found, mean @ weights["pooled"]["kernel"], atol=1e-5)
    np.testing.assert_array_equal(found[2], 0.0)


def test_the_whole_text_is_read_from_what_is_pooled(network):
    own, apply, _ = network
    if own:
        return
    told = given(own, 5)
    moved = apply(dict(told, text_pooled=told["text_pooled"] + np.arange(8, dtype=np.float32)))
    moved -= apply(told)
    assert np.abs(moved[:2]).max() > 1e-3 and not moved[2].any()


def test_the_encoder_does_not_see_padding_and_tells_places_apart(fill_zeros):
    encoder = TextEncoder(20, 8, 2, 2)
    variables = jax.jit(encoder.init)(jax.random.key(0), tokens_of(5))
    variables = fill_zeros(variables, jax.random.key(1), 0.3)
    (short, pooled), (longer, other) = (encoder.apply(variables, tokens_of(n)) for n in (5, 9))
    np.testing.assert_allclose(other, pooled, atol=1e-5)
    np.testing.assert_allclose(pooled[1], norms.layer_norm(short[1, :2]).mean(axis=0), atol=1e-5)
    np.testing.assert_array_equal(pooled[2], 0.0)
    np.testing.assert_allclose(longer[0, :5], short[0], atol=1e-5)
    np.testing.assert_allclose(longer[1, :2], short[1, :2], atol=1e-5)
    assert np.abs(short[1, 0] - short[1, 1]).max() > 1e-3  # the same token twice
    assert np.all(np.isfinite(longer))
