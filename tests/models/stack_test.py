"""Memory modes, streams and the probe of a stack, against plain loops and plain autodiff."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.config import ADDITIVE_VARIANTS
from nrdm_jax.models import memory, probe
from nrdm_jax.models.dit import DiT
from nrdm_jax.models.unit import VARIANTS, token_mean

DEPTH = 5  # no square: the two-level scan has a rest


def model(**changes):
    settings = dict(patch=2, depth=DEPTH, width=16, heads=2, num_classes=5) | changes
    return DiT(shape=(8, 8, 3), **settings)


X = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
ARGUMENTS = (X, jnp.linspace(0.1, 0.9, 4), {"label": jnp.arange(4)})


@pytest.fixture(scope="module")
def gradient_of(fill_zeros):
    """((loss, health), (of the params, of the taps)) of a network whose every parameter matters."""

    @functools.cache
    def of(**changes):
        net = model(**changes)
        start = model(**{k: v for k, v in changes.items() if k not in ("memory", "remat_policy")})
        variables = fill_zeros(
            jax.jit(start.init)(jax.random.key(1), *ARGUMENTS), jax.random.key(2)
        )

        def loss(variables, taps):
            y, health = net.apply(variables, *ARGUMENTS, taps)
            return jnp.mean((y - X) ** 2), health

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
            variables, jnp.zeros(net.units + 1)
        )

    return of


def relative_difference(a, b):
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


CASES = [
    pytest.param("gated", 1, "remat", "nothing", marks=pytest.mark.slow),
    ("gated", 1, "sqrt", "nothing"),
    ("gated", 1, "remat", "branches"),
    *(
        pytest.param("gated", 1, "remat", policy, marks=pytest.mark.slow)
        for policy in ("dots", "dots_no_batch")
    ),
    pytest.param("gated", 2, "sqrt", "nothing", marks=pytest.mark.slow),
    ("mv_split", 2, "sqrt", "nothing"),
    *((variant, 2, "reversible", "nothing") for variant in ADDITIVE_VARIANTS),
]


@pytest.mark.parametrize(("variant", "streams", "mode", "policy"), CASES)
def test_memory_modes_change_no_gradient(gradient_of, variant, streams, mode, policy):
    plain = gradient_of(variant=variant, streams=streams)
    other = gradient_of(variant=variant, streams=streams, memory=mode, remat_policy=policy)
    assert relative_difference(other[1][0], plain[1][0]) < 2e-6
    np.testing.assert_allclose(other[0][0], plain[0][0], rtol=1e-6)
    np.testing.assert_allclose(other[0][1], plain[0][1], rtol=1e-5)  # health
    np.testing.assert_allclose(other[1][1], plain[1][1], rtol=1e-5)  # squared sensitivity


def test_the_variants_that_can_be_inverted_are_those_the_config_allows():
    additive = tuple(name for name, variant in VARIANTS.items() if variant.additive)
    assert additive == ADDITIVE_VARIANTS


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"streams": 1}, "a unit of one stream cannot be inverted"),
        ({"streams": 2, "variant": "mv_split"}, "units of variant mv_split are not z"),
        ({"streams": 2, "variant": "input_scale"}, "units of variant input_scale are not z"),
    ],
)
def test_what_cannot_be_inverted_is_refused_without_a_config_too(changes, reason):
    with pytest.raises(ValueError, match=reason):
        jax.jit(model(memory="reversible", **changes).init)(jax.random.key(0), *ARGUMENTS)
    with pytest.raises(ValueError, match="trunk between blocks must be kept"):
        net = model(memory="reversible", streams=2)
        variables = jax.jit(net.init)(jax.random.key(0), *ARGUMENTS)
        net.apply(variables, *ARGUMENTS, after=(1,))


@pytest.mark.parametrize(
    ("streams", "mode", "policy"),
    [(1, "remat", "branches"), (1, "sqrt", "nothing"), (2, "reversible", "nothing")],
)
def test_text_is_a_third_unit_in_every_memory_mode(streams, mode, policy, fill_zeros):
    text = jax.random.normal(jax.random.key(5), (4, 3, 7))
    mask = jnp.arange(3)[None, :] < jnp.asarray([[1], [2], [3], [0]])

    def given(text):
        return ARGUMENTS[2] | {"text": text, "text_mask": mask, "text_pooled": text[:, 0]}

    def gradient(**changes):
        net = model(streams=streams, text_width=7, depth=3, **changes)
        variables = fill_zeros(
            jax.jit(model(streams=streams, text_width=7, depth=3).init)(
                jax.random.key(1), *ARGUMENTS[:2], given(text)
            ),
            jax.random.key(2),
        )
        assert net.unit_names == ("attention", "cross_attention", "mlp") and net.units == 9

        def loss(variables, taps, text):
            y, health = net.apply(variables, *ARGUMENTS[:2], given(text), taps)
            return jnp.mean((y - X) ** 2), health

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(
            variables, jnp.zeros(net.units + 1), text
        )

    plain, health = gradient()
    other, other_health = gradient(memory=mode, remat_policy=policy)
    assert relative_difference(other, plain) < 2e-6
    np.testing.assert_allclose(other_health, health, rtol=1e-5)
    of_text = np.asarray(plain[2])
    assert np.all(of_text[~np.asarray(mask)] == 0) and np.all(of_text[np.asarray(mask)] != 0)


def test_scalar_gates_share_a_column_and_no_more():
    net = model(gate_condition="cond_shared", gate_shape="scalar")
    shared = jax.eval_shape(net.init, jax.random.key(0), *ARGUMENTS)["params"]["shared"]
    assert {name: x["kernel"].shape for name, x in shared.items()} == {
        "alpha": (16, 1), "beta": (16, 1)
    }  # fmt: skip


def test_what_branches_keep_is_of_the_branches_type():
    def kept(dtype):
        net = model(memory="remat", remat_policy="branches", branch_dtype=dtype)
        shapes = jax.eval_shape(net.init, jax.random.key(0), *ARGUMENTS)
        vjp = jax.eval_shape(lambda v: jax.vjp(lambda v: net.apply(v, *ARGUMENTS), v)[1], shapes)
        # (L, B, N, D): of each block its input and the outputs of its two branches
        each = [x.dtype.name for x in jax.tree.leaves(vjp) if x.shape == (DEPTH, 4, 16, 16)]
        return sorted(each)

    assert kept("float32").count("float32") == 3
    assert kept("bfloat16") == ["bfloat16", "bfloat16", "float32"]


def test_memory_of_the_modes():
    def temporaries(**changes):
        net = model(depth=36, **changes)
        many = jax.tree.map(lambda x: jnp.tile(x, (16,) + (1,) * (x.ndim - 1)), ARGUMENTS)
        shapes = jax.eval_shape(net.init, jax.random.key(0), *many)
        gradient = jax.jit(jax.grad(lambda v: jnp.mean(net.apply(v, *many) ** 2)))
        return gradient.lower(shapes).compile().memory_analysis().temp_size_in_bytes

    none, remat, sqrt = (temporaries(memory=m) for m in ("none", "remat", "sqrt"))
    reversible = temporaries(memory="reversible", streams=2)
    branches = temporaries(memory="remat", remat_policy="branches")
    assert reversible < sqrt < remat < branches < none


@pytest.mark.parametrize("length", [1, 2, 7, 12, 13, 36, 37])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("mode", ["none", "remat", "sqrt"])
def test_scan_is_the_loop(mode, reverse, length, unrolled_scan):
    xs = {"a": jnp.linspace(0.5, 1.5, length), "b": jnp.arange(float(length))}

    def body(carry, x):
        (z,) = carry
        z = jnp.sin(z) * x["a"] + x["b"]
        return (z,), z[0]

    start = (jnp.linspace(-1, 1, 3),)
    expected = unrolled_scan(body, start, xs, reverse=reverse)
    found = memory.scan(body, start, xs, mode, reverse=reverse)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def _matrix_body(carry, x):
    (z,) = carry
    return (jnp.tanh(z @ x),), None


@pytest.mark.parametrize("policy", ["branches", "dots_no_batch"])
def test_a_policy_that_changes_nothing_is_refused(policy):
    def body(carry, x):  # without a named branch, and without a product that has no batch
        (z,) = carry
        return (jnp.sin(z) * x[None],), None

    with pytest.raises(ValueError, match=f"'{policy}', which changes nothing .*remat_policy=noth"):
        memory.scan(body, (jnp.ones((2, 3)),), jnp.ones((4, 3)), "remat", policy)


def test_a_policy_that_keeps_everything_is_refused():
    def body(carry, x):  # all there is to keep is a product's result
        (z,) = carry
        return (jax.ad_checkpoint.checkpoint_name(jnp.sin(z), "branch"),), None

    memory.POLICIES["everything"] = jax.checkpoint_policies.everything_saveable
    try:
        with pytest.raises(ValueError, match="changes nothing .* model.memory=none"):
            memory.scan(
                _matrix_body, (jnp.ones((2, 3)),), jnp.ones((4, 3, 3)), "remat", "everything"
            )
    finally:
        del memory.POLICIES["everything"]


def test_offload_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match="model.memory is offload, which needs a TPU or a GPU"):
        memory.scan(_matrix_body, (jnp.ones((2, 3)),), jnp.ones((4, 3, 3)), "offload")


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_offload_moves_every_block_input_to_the_host(platform, monkeypatch):
    """Lowered for the platform, without one: the program names the host's memory."""
    monkeypatch.setattr(memory, "check_offload", lambda platform: None)

    def loss(z, xs):
        return jnp.sum(memory.scan(_matrix_body, (z,), xs, "offload")[0][0] ** 2)

    traced = jax.jit(jax.grad(loss, argnums=1)).trace(jnp.ones((2, 3)), jnp.ones((4, 3, 3)))
    assert "pinned_host" in traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("streams", "mode"), [(1, "none"), (1, "remat"), (1, "sqrt"), (2, "none"), (2, "reversible")]
)
def test_profile_is_plain_autodiff_with_explicit_inputs(
    streams, mode, gradient_of, fill_zeros, explicit_inputs
):
    net = model(streams=streams, memory=mode)
    variables = fill_zeros(
        jax.jit(model(streams=streams).init)(jax.random.key(1), *ARGUMENTS), jax.random.key(2)
    )
    _, (_, squares) = gradient_of(streams=streams, memory=mode)

    plain = model(streams=streams)
    zeros = [jnp.zeros((streams, 4, 16, 16)) for _ in range(net.units + 1)]

    def loss(zeros):
        with explicit_inputs(zeros):
            y, _ = plain.apply(variables, *ARGUMENTS, jnp.zeros(plain.units + 1))
        return jnp.mean((y - X) ** 2)

    explicit = [jnp.sum(g**2) for g in jax.jit(jax.grad(loss))(zeros)]
    np.testing.assert_allclose(squares, jnp.stack(explicit), rtol=1e-5)
    assert np.all(np.asarray(squares) > 0)


def test_health_has_its_closed_form():
    mean = jnp.asarray([[1.0, -2.0, 0.5]])[:, None, :]
    deviation = jnp.asarray([0.1, -0.1, 0.3, -0.3])[None, :, None] * jnp.ones((1, 1, 3))
    seen = probe.health((jnp.broadcast_to(mean, (1, 4, 3)) + deviation,))
    np.testing.assert_allclose(seen, [(1 + 4 + 0.25) / 3, 0.05], rtol=1e-5)
    both = probe.health((mean + deviation, 2 * (mean + deviation)))
    np.testing.assert_allclose(both, 2.5 * seen, rtol=1e-5)


def test_health_leaves_out_the_prefix():
    z = jnp.concatenate([100 * jnp.ones((2, 2, 3)), jnp.ones((2, 4, 3))], axis=1)
    np.testing.assert_allclose(probe.health((z,), prefix=2), [1.0, 0.0], atol=1e-6)


def test_token_mean_is_one_of_each_modality():
    z = jax.random.normal(jax.random.key(0), (2, 6, 3))
    mean = token_mean(z, prefix=2)
    for part in (slice(0, 2), slice(2, 6)):
        alone = jnp.mean(z[:, part], axis=1, keepdims=True)
        np.testing.assert_allclose(mean[:, part], jnp.broadcast_to(alone, z[:, part].shape))


def test_two_streams_are_the_usual_reversible_block(fill_zeros):
    """y1 = x1 + F(x2), y2 = x2 + G(y1), the trunk duplicated and the mean read out."""
    net = model(streams=2, depth=1, variant="resnet")
    variables = fill_zeros(jax.jit(net.init)(jax.random.key(1), *ARGUMENTS), jax.random.key(2))
    block = jax.tree.map(lambda x: x[0], variables["params"]["stack"]["blocks"])
    seen = {}

    from nrdm_jax.models import dit, stack

    class Spy(stack.Stack):
        def __call__(self, streams, condition, taps=None, skips=None):
            units = dict(self.block.units)
            f, g = (
                lambda u, n=n: units[n](parent=None).apply(
                    {"params": block[n]}, jnp.zeros_like(u), u, condition
                )
                for n in ("attention", "mlp")
            )
            x1, x2 = streams
            y1 = x1 + f(x2)
            seen["streams"] = (y1, x2 + g(y1))
            passed = super().__call__(streams, condition, taps, skips)
            seen["passed"] = passed.streams
            return passed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dit, "Stack", Spy)
        net.apply(variables, *ARGUMENTS)
    for a, b in zip(seen["streams"], seen["passed"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
