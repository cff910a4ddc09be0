import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax import trees
from nrdm_jax.models import attention, patches, positions
from nrdm_jax.models.dit import DiT
from nrdm_jax.models.norms import group_norm, layer_norm, rms_norm
from nrdm_jax.models.sizes import DIT
from nrdm_jax.models.unit import VARIANTS


def arguments(shape, batch=2):
    x = jax.random.normal(jax.random.key(0), (batch, *shape))
    return x, jnp.linspace(0.1, 0.9, batch), {"label": jnp.arange(batch) % 5}


def small(shape=(8, 8, 3), **changes):
    settings = dict(patch=2, depth=3, width=32, heads=2, num_classes=5) | changes
    return DiT(shape=shape, **settings)


@pytest.fixture(scope="module")
def filled(fill_zeros):
    """A network whose every parameter matters, and its parameters."""
    model = small()
    variables = jax.jit(model.init)(jax.random.key(1), *arguments(model.shape))
    return model, fill_zeros(variables, jax.random.key(2))


def test_dit_xl_2_has_its_published_parameters():
    model = DiT(
        shape=(32, 32, 4), patch=2, num_classes=1000, learn_variance=True, beta=False, **DIT["XL"]
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), *arguments((32, 32, 4)))
    assert trees.count(shapes) == 674_834_720


@pytest.mark.parametrize("size", DIT)
def test_sizes_fit_their_heads(size):
    assert DIT[size]["width"] % DIT[size]["heads"] == 0


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((8, 8, 3), 2), ((4, 8, 6, 3), (2, 4, 2)), ((8, 8, 8, 1), 4), ((12, 2), 3)],
    ids=["image", "video", "volume", "sequence"],
)
def test_modality_is_a_shape(shape, patch):
    model = small(shape, patch=patch)
    args = arguments(shape)
    out = model.apply(jax.jit(model.init)(jax.random.key(0), *args), *args)
    np.testing.assert_array_equal(out, jnp.zeros_like(args[0]))  # adaLN-Zero: zero at start


def test_second_half_of_the_channels():
    model = small(learn_variance=True)
    args = arguments(model.shape)
    shape = jax.eval_shape(lambda k: model.init_with_output(k, *args)[0], jax.random.key(0)).shape
    assert shape == (2, 8, 8, 6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_matters(variant, fill_zeros):
    model = small(variant=variant, depth=2)
    args = arguments(model.shape)
    variables = fill_zeros(jax.jit(model.init)(jax.random.key(1), *args), jax.random.key(2))
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(model.apply(v, *args) ** 2)))(variables)
    useless = [
        path
        for path, g in trees.leaves_with_path(jax.device_get(gradient))
        if not (np.any(g) and np.isfinite(g).all())
        and "key_bias" not in path  # softmax ignores a key bias
    ]
    assert useless == []


def test_time_and_label_matter(filled):
    model, variables = filled
    x, t, given = arguments(model.shape)
    out = model.apply(variables, x, t, given)
    assert not np.allclose(out, model.apply(variables, x, t + 0.05, given), atol=1e-7)
    assert not np.allclose(
        out, model.apply(variables, x, t, {"label": given["label"] + 1}), atol=1e-7
    )


def test_program_does_not_grow_with_depth():
    def equations(depth):
        model = small(depth=depth)
        args = arguments(model.shape)
        shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
        gradient = jax.grad(lambda v: jnp.sum(model.apply(v, *args) ** 2))
        return len(jax.jit(gradient).lower(shapes).as_text().splitlines())

    assert equations(2) == equations(64)


def test_bfloat16_branches_stay_near_float32(filled):
    model, variables = filled
    args = arguments(model.shape)
    half = small(branch_dtype="bfloat16").apply(variables, *args)
    full = model.apply(variables, *args)
    assert half.dtype == jnp.float32
    difference = float(jnp.sqrt(jnp.mean((half - full) ** 2) / jnp.mean(full**2)))
    assert 0 < difference < 0.02


@pytest.mark.parametrize("gate_condition", ["cond", "cond_shared", "static"])
@pytest.mark.parametrize("modulation", ["per_unit", "shared"])
def test_shared_projections_make_deep_stacks_cheap(gate_condition, modulation):
    def added(depth):
        model = small(gate_condition=gate_condition, modulation=modulation, depth=depth)
        shapes = jax.eval_shape(model.init, jax.random.key(0), *arguments(model.shape))
        return trees.count(shapes)

    d = 32
    branch = 12 * d * d + 9 * d  # attention and MLP with their biases
    norms = 4 * d + (4 * d * d if modulation == "per_unit" else 0)
    gates = 4 * d + (4 * d * d if gate_condition == "cond" else 0)
    assert added(3) - added(2) == branch + norms + gates


def test_attention_is_the_library_s():
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 3, 7, 8)) for i in range(3))
    swapped = [x.swapaxes(1, 2) for x in (q, k, v)]  # jax.nn has the heads behind the tokens
    expected = jax.nn.dot_product_attention(*swapped).swapaxes(1, 2)
    np.testing.assert_allclose(attention.attend(q, k, v), expected, rtol=1e-5, atol=1e-6)


def test_layer_norm_has_mean_zero_and_variance_one():
    z = 3.0 + 5.0 * jax.random.normal(jax.random.key(0), (4, 64))
    out = layer_norm(z)
    np.testing.assert_allclose(jnp.mean(out, -1), 0.0, atol=1e-6)
    np.testing.assert_allclose(jnp.var(out, -1), 1.0, atol=1e-5)


def test_norms_have_their_closed_forms():
    z = 3.0 + 5.0 * jax.random.normal(jax.random.key(0), (4, 6, 5, 64))
    np.testing.assert_allclose(jnp.mean(rms_norm(z) ** 2, -1), 1.0, atol=1e-5)
    groups = group_norm(z, 32).reshape(4, 30, 32, 2)
    np.testing.assert_allclose(jnp.mean(groups, (1, 3)), 0.0, atol=1e-5)
    np.testing.assert_allclose(jnp.var(groups, (1, 3)), 1.0, atol=1e-5)


@pytest.mark.parametrize(("shape", "patch"), [((6, 4, 3), (3, 2)), ((4, 6, 4, 2), (2, 3, 1))])
def test_patches_round_trip_and_are_local(shape, patch):
    x = jnp.arange(2 * np.prod(shape), dtype=jnp.float32).reshape(2, *shape)
    cut = patches.patchify(x, patch)
    np.testing.assert_array_equal(patches.unpatchify(cut, patches.grid_of(shape, patch), patch), x)
    corner = x[(0, *(slice(p) for p in patch))]
    np.testing.assert_array_equal(cut[0, 0], corner.reshape(-1))


def test_patch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="does not divide the axis of 8"):
        patches.grid_of((8, 8, 3), (3, 2))


@pytest.mark.parametrize("grid", [(4,), (4, 4), (2, 3, 4)])
def test_positions_tell_all_tokens_apart(grid):
    table = positions.sincos(grid, 26)
    assert table.shape == (np.prod(grid), 26)
    distance = np.linalg.norm(table[:, None] - table[None], axis=-1)
    assert np.min(distance + 10 * np.eye(len(table))) > 0.1
    with pytest.raises(ValueError, match="too small"):
        positions.sincos(grid, 1)
