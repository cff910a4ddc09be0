"""U-ViT and U-Net: skips, levels, taps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax import trees
from nrdm_jax.models.dit import DiT
from nrdm_jax.models.unet import UNet
from nrdm_jax.models.uvit import UViT
from nrdm_jax.sharding import partition

SHAPE = (8, 8, 3)


def arguments(shape=SHAPE, batch=2):
    x = jax.random.normal(jax.random.key(0), (batch, *shape))
    return x, jnp.linspace(0.1, 0.9, batch), {"label": jnp.arange(batch)}


def uvit(**changes):
    settings = dict(shape=SHAPE, patch=2, depth=5, width=16, heads=2, num_classes=5)
    return UViT(**settings | changes)


def unet(**changes):
    settings = dict(shape=SHAPE, patch=1, depth=2, width=8, heads=2, num_classes=5)
    settings |= dict(channel_factors=(1, 2), attention_at=(4,))
    return UNet(**settings | changes)


MODELS = {
    "uvit": uvit,
    "unet": unet,
    "uvit_of_tokens": lambda **c: uvit(modulation="none", prefix_tokens=True, **c),
    "unet_3d": lambda **c: unet(shape=(4, 8, 8, 1), attention_at=(), **c),
}


def drawn(tree):
    """A head that is not zero. (One of ones would see nothing behind a layer norm.)"""
    return jax.tree.map(lambda x: jax.random.normal(jax.random.key(9), x.shape), tree)


@pytest.fixture(scope="module")
def gradient_of(fill_zeros):
    """(model, variables, ((of the params, of the taps), health)) of a network of `MODELS` whose
    every parameter matters."""

    @functools.cache
    def of(name, skip="inside", memory="none"):
        model = MODELS[name](skip=skip, memory=memory)
        args = arguments(model.shape)
        variables = fill_zeros(jax.jit(model.init)(jax.random.key(1), *args), jax.random.key(2))

        def loss(variables, taps):
            y, health = model.apply(variables, *args, taps)
            return jnp.mean((y - args[0]) ** 2), health

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        return model, variables, gradient(variables, jnp.zeros(model.units + 1))

    return of


def slow_if(wanted: bool):
    return (pytest.mark.slow,) if wanted else ()


@pytest.mark.parametrize(
    ("name", "skip"),
    [pytest.param(name, skip, marks=slow_if((name != "uvit" and skip == "project")
                                            or name == "unet_3d"))
     for name in MODELS for skip in ("inside", "project")],
)  # fmt: skip
def test_every_parameter_and_unit_matters_and_has_a_sharding(name, skip, gradient_of):
    model, variables, ((of_params, squares), health) = gradient_of(name, skip)
    useless = [
        path
        for path, g in trees.leaves_with_path(jax.device_get(of_params))
        if not (np.any(g) and np.isfinite(g).all())
        and "key_bias" not in path  # softmax ignores a key bias
    ]
    assert useless == []
    assert squares.shape == (model.units + 1,) and bool(jnp.all(squares > 0))
    assert health.shape == (model.units + 1, 2) and bool(jnp.all(health > 0))
    for path, leaf in trees.leaves_with_path(variables["params"]):
        partition.logical_axes(f"params/{path}", leaf.ndim)


def trunks(model, batch=2):
    """Shapes (1, B, *S, D) of z_0 and of what comes out of every unit."""
    if isinstance(model, UViT):
        return [(1, batch, 16, 16)] * (model.units + 1)
    wide, deep = (1, batch, 8, 8, 8), (1, batch, 4, 4, 16)
    return [wide] * 3 + [deep] * 10 + [wide] * 2


@pytest.mark.parametrize(
    ("name", "skip"),
    [pytest.param(name, skip, marks=slow_if(name == "unet" and skip == "project"))
     for name in ("uvit", "unet") for skip in ("inside", "project")],
)  # fmt: skip
def test_profile_is_plain_autodiff_with_explicit_inputs(name, skip, gradient_of, explicit_inputs):
    """What flows back through the skips is part of it."""
    model, variables, ((_, squares), _) = gradient_of(name, skip)
    args = arguments()

    def loss(zeros):
        with explicit_inputs(zeros):
            y, _ = model.apply(variables, *args, jnp.zeros(model.units + 1))
        return jnp.mean((y - args[0]) ** 2)

    explicit = jax.jit(jax.grad(loss))([jnp.zeros(shape) for shape in trunks(model)])
    expected = jnp.stack([jnp.sum(g**2) for g in explicit])
    np.testing.assert_allclose(squares, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "memory"),
    [pytest.param(name, memory, marks=slow_if((name, memory) != ("uvit", "sqrt")))
     for name in ("uvit", "unet") for memory in ("remat", "sqrt")],
)  # fmt: skip
def test_memory_modes_change_no_gradient(name, memory, gradient_of):
    (plain, squares), health = gradient_of(name)[2]
    (other, other_squares), other_health = gradient_of(name, memory=memory)[2]
    a, b = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(g)]) for g in (other, plain))
    assert float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) < 2e-6
    np.testing.assert_allclose(other_squares, squares, rtol=1e-5)
    np.testing.assert_allclose(other_health, health, rtol=1e-5)


def test_memory_modes_keep_less():
    args = arguments(batch=32)

    def temporaries(memory):
        model = uvit(depth=16, memory=memory)
        shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
        gradient = jax.jit(jax.grad(lambda v: jnp.mean(model.apply(v, *args) ** 2)))
        return gradient.lower(shapes).compile().memory_analysis().temp_size_in_bytes

    none, remat, sqrt = map(temporaries, ("none", "remat", "sqrt"))
    # The skips stay, so that what sqrt saves beside remat is what lies between them.
    assert max(remat, sqrt) < none / 2


def test_with_the_skip_projected_the_start_is_the_flow_shaped_stack():
    """W = [I; 0]: before training a skip changes nothing, whatever the units do."""
    args = arguments()
    model = uvit(variant="resnet", skip="project", depth=4)
    variables = jax.jit(model.init)(jax.random.key(1), *args)
    params = dict(variables["params"])
    # The same blocks in one stack of DiT's.
    params["final"] = drawn(params["final"])
    up = jax.tree.map(lambda x: x[::-1], dict(params["up"]["blocks"]))
    del up["project"]
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), params["down"]["blocks"], up)
    flow = {k: v for k, v in params.items() if k not in ("down", "up")}
    flow["stack"] = {"blocks": both}
    dit = DiT(shape=SHAPE, patch=2, depth=4, width=16, heads=2, num_classes=5, variant="resnet")
    expected = jax.jit(dit.apply)({"params": flow}, *args)
    assert float(jnp.std(expected)) > 0.1
    out = jax.jit(model.apply)({"params": params}, *args)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_skips_connect_partners():
    """The first block's output reaches the last block, and none between reads it."""
    model = uvit(variant="resnet", depth=4)
    args = arguments()
    variables = jax.jit(model.init)(jax.random.key(1), *args)
    params = dict(variables["params"])
    params["final"] = drawn(params["final"])

    @jax.jit
    def output(gammas):
        up = params["up"]["blocks"]
        attention = dict(up["attention"], gamma=up["attention"]["gamma"] * gammas[:, None])
        changed = dict(params, up={"blocks": dict(up, attention=attention)})
        return model.apply({"params": changed}, *args)

    whole = output(jnp.ones(2))
    # A gamma of 0 shuts one skip: both matter, and neither is the other.
    first, second = output(jnp.asarray([0.0, 1.0])), output(jnp.asarray([1.0, 0.0]))
    assert not np.allclose(whole, first, atol=1e-4)
    assert not np.allclose(whole, second, atol=1e-4)
    assert not np.allclose(first, second, atol=1e-4)


def test_no_skip_is_turned_round():
    """It would be held twice, in one order and in the other."""
    model, args = uvit(depth=8), arguments()
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
    gradient = jax.jit(jax.grad(lambda v: jnp.mean(model.apply(v, *args) ** 2)))
    assert "stablehlo.reverse" not in gradient.lower(shapes).as_text()


@pytest.mark.parametrize(("build", "depths"), [(unet, (2, 9)), (uvit, (5, 41))])
def test_levels_and_halves_scan(build, depths):
    def lines(depth):
        model = build(depth=depth)
        shapes = jax.eval_shape(model.init, jax.random.key(0), *arguments())
        f = jax.grad(lambda v: jnp.sum(model.apply(v, *arguments()) ** 2))
        return len(jax.jit(f).lower(shapes).as_text().splitlines())

    assert len(set(map(lines, depths))) == 1


def test_unet_counts_its_units():
    model = unet(depth=3, channel_factors=(1, 2, 2), attention_at=(4, 2))
    # Down and up: 1 unit a block at 8, 2 at 4 and 2; the middle: a convolution and attention.
    assert model.units == 2 * 3 * (1 + 2 + 2) + 2
