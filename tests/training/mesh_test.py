"""Eight devices give what one gives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import measuring
from nrdm_jax import build, programs, trees
from nrdm_jax.data.loader import Loader
from nrdm_jax.data.sources import synthetic
from nrdm_jax.sharding import axes, partition, rules
from nrdm_jax.sharding.mesh import check_batch, make_mesh

STEPS = 20


def losses_on(config, devices, fill_zeros, monkeypatch, steps=STEPS, **mesh):
    some = jax.devices()[:devices]
    monkeypatch.setattr(jax, "devices", lambda *_: some)
    for axis, size in mesh.items():
        config.mesh[axis] = size
    parts = build.run(config)
    filled = fill_zeros(jax.device_get(parts.fresh_state().params), jax.random.key(7))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, parts.abstract_state.params)
    state = parts.fresh_state()
    # The step gives its buffers away, so that parameters and average must not share theirs.
    state = state.replace(
        **{
            name: jax.tree.map(
                lambda x, s: jax.device_put(np.array(x), s, may_alias=False), filled, shardings
            )
            for name in ("params", "ema")
        }
    )
    step = programs.compiled_step(parts, np.dtype("uint8"))
    source = synthetic(tuple(config.data.shape), config.data.num_classes, "train")
    losses = []
    for batch, _ in zip(build.train_loader(config, source, parts.mesh).iterate(0), range(steps)):  # noqa: B905
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return np.asarray(losses), state


@pytest.fixture(scope="module")
def single():
    return {}


@pytest.mark.parametrize(
    ("mesh", "micro_batches"),
    [
        pytest.param({"data": 8, "fsdp": 1}, 1, marks=pytest.mark.slow),
        pytest.param({"data": 1, "fsdp": 8}, 1, marks=pytest.mark.slow),
        ({"data": 2, "fsdp": 4}, 2),
    ],
    ids=["data", "fsdp", "both-accumulated"],
)
def test_eight_devices_give_the_losses_of_one(
    tiny_config, fill_zeros, monkeypatch, single, mesh, micro_batches
):
    tiny_config.train.ema_widths = (0.1, 0.25)
    if not single:
        with monkeypatch.context() as patch:
            losses, state = losses_on(tiny_config, 1, fill_zeros, patch, data=1, fsdp=1)
        single["losses"], single["averages"] = losses, jax.device_get(state.averages)
    tiny_config.train.micro_batches = micro_batches
    losses, state = losses_on(tiny_config, 8, fill_zeros, monkeypatch, **mesh)
    assert (
        single["losses"][-1] < single["losses"][0]
    )  # it learns, so that there is something to compare
    np.testing.assert_allclose(losses, single["losses"], rtol=1e-5)
    wanted, found = jax.device_get((single["averages"], state.averages))
    apart = optax.global_norm(jax.tree.map(np.subtract, wanted, found))
    assert apart < 1e-6 * optax.global_norm(wanted)
    kernel = state.params["stack"]["blocks"]["mlp"]["branch"]["hidden"]["kernel"]
    local = kernel.addressable_shards[0].data.shape
    assert local == (2, 32 // mesh["fsdp"], 128)  # fsdp really divides the weights


STACKS = {
    "uvit": {"name": "uvit", "depth": 3, "memory": "sqrt"},
    "unet": {"name": "unet", "patch": (1,), "channel_factors": (1, 2), "attention_at": (4,),
             "skip": "project", "memory": "remat"},
    "latte": {"attention": "factorised", "positions": "rotary", "mlp": "swiglu", "qk_norm": True,
              "patch": (2,)},
    "reversible": {"streams": 2, "memory": "reversible", "branch_dtype": "bfloat16",
                   "gate_condition": "cond_shared", "modulation": "shared"},
}  # fmt: skip


@pytest.mark.parametrize(
    "stack", ["reversible", *(pytest.param(s, marks=pytest.mark.slow) for s in STACKS
                              if s != "reversible")],
)  # fmt: skip
def test_eight_devices_give_what_one_gives_for_every_stack(
    tiny_config, fill_zeros, monkeypatch, stack
):
    c = tiny_config
    c.model.width = 16
    for name, value in STACKS[stack].items():
        c.model[name] = value
    found = []
    for devices, mesh in ((1, {"data": 1, "fsdp": 1}), (8, {"data": 2, "fsdp": 4})):
        c.train.micro_batches = 2 if devices == 8 else 1
        with monkeypatch.context() as patch:
            losses, state = losses_on(c, devices, fill_zeros, patch, steps=4, **mesh)
        found.append(losses)
    half = c.model.branch_dtype == "bfloat16"
    np.testing.assert_allclose(*found, rtol=1e-3 if half else 1e-5)
    assert len(set(found[0])) == 4 and np.all(np.isfinite(found[0]))
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_eight_devices_remember_the_losses_that_one_remembers(tiny_config, fill_zeros, monkeypatch):
    c = tiny_config
    c.model.depth, c.model.width, c.model.learn_variance = 1, 16, True
    c.diffusion.path, c.diffusion.prediction = "ddpm_discrete", "eps"
    c.diffusion.times, c.diffusion.importance_bins, c.diffusion.importance_history = (
        "importance", 3, 5,
    )  # fmt: skip
    found = []
    for devices, mesh in ((1, {"data": 1, "fsdp": 1}), (8, {"data": 2, "fsdp": 4})):
        c.train.micro_batches = 2 if devices == 8 else 1
        with monkeypatch.context() as patch:
            losses, state = losses_on(c, devices, fill_zeros, patch, steps=6, **mesh)
        found.append((losses, jax.device_get(state.importance)))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    times = build.importance(c, build.diffusion_path(c))
    assert np.ptp(times.chances(state.importance)) > 1e-3  # they have been used
    assert state.importance.squares.sharding.is_fully_replicated


def gradients_on(config, devices, fill_zeros, **mesh):
    """{path: gradient of the loss} on normal numbers, from drawn zeros."""
    for axis, size in mesh.items():
        config.mesh[axis] = size
    parts = build.run(config, jax.devices()[:devices])
    filled = fill_zeros(jax.device_get(parts.fresh_state().params), jax.random.key(7))
    params = jax.tree.map(
        lambda x, leaf: jax.device_put(x, leaf.sharding), filled, parts.abstract_state.params
    )
    batch = measuring.placed_batch(parts)
    keys = jax.random.split(jax.random.key(3), config.train.batch_size)
    objective = build.objective(config, parts.apply, parts.path)
    found = jax.jit(jax.grad(lambda p: jnp.mean(objective(p, batch, keys, None)[0])))(params)
    return {path: np.asarray(leaf) for path, leaf in trees.leaves_with_path(found)}


@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 1, "context": 4}], ids=str)
def test_no_part_of_a_gradient_is_lost_where_groups_are_divided(tiny_config, fill_zeros, mesh):
    """Every leaf by itself: Adam hides from the first losses that one is half of what it should
    be."""
    c = tiny_config
    c.data.shape, c.model.patch, c.model.attention = (4, 8, 8, 3), (1, 2, 2), "factorised"
    c.model.width, c.train.batch_size = 16, 8
    c.evaluate.batch_size = 8
    whole = gradients_on(c, 1, fill_zeros, data=1, fsdp=1, context=1)
    found = gradients_on(c, 8, fill_zeros, **mesh)
    for path, gradient in whole.items():
        if not path.endswith("key_bias"):  # that of a softmax does not depend on it
            error = np.linalg.norm(found[path] - gradient) / np.linalg.norm(gradient)
            assert error < 1e-5, path


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [
        {"data": 2, "fsdp": 4},
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"data": 2, "fsdp": 2, "stage": 2},
        {"data": 2, "fsdp": 1, "context": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("encoder", ["bytes", "minilm"])
def test_no_part_of_a_gradient_is_lost_with_text(tiny_config, fill_zeros, mesh, encoder):
    c = tiny_config
    c.model.width, c.train.batch_size, c.evaluate.batch_size = 16, 8, 8
    c.text.update(encoder=encoder, length=6, width=16, depth=1, heads=2)
    one = dict.fromkeys(("data", "stage", "fsdp", "context", "tensor"), 1)
    whole = gradients_on(c, 1, fill_zeros, **one)
    found = gradients_on(c, 8, fill_zeros, **(one | mesh))
    assert any(path.startswith("text_encoder/") for path in whole) == (encoder == "bytes")
    for path, gradient in whole.items():
        if not path.endswith("key_bias"):
            error = np.linalg.norm(found[path] - gradient) / np.linalg.norm(gradient)
            assert error < 1e-5, path


def test_compiled_step_refuses_what_would_be_a_second_compile(tiny_config):
    parts = build.run(tiny_config)
    step = programs.compiled_step(parts, np.dtype("uint8"))
    wrong = {"x": jnp.zeros((16, 8, 8, 3), jnp.float32), "label": jnp.zeros(16, jnp.int32)}
    with pytest.raises(TypeError, match=r"uint8|float32"):
        step(parts.fresh_state(), wrong)


def test_no_collective_moves_what_belongs_to_examples(tiny_config):
    """Under fsdp devices gather weights: traffic does not grow with the batch."""
    c = tiny_config
    c.model.width, c.train.batch_size = 16, 136  # a number of nothing else
    c.mesh.data, c.mesh.fsdp = 1, 8
    program = programs.compiled_step(build.run(c), np.dtype("uint8")).as_text()
    collectives = [
        line for line in program.splitlines()
        if re.search(r" (all-gather|all-reduce|all-to-all|reduce-scatter)(-start)?\(", line)
    ]  # fmt: skip
    assert len(collectives) > 10
    moved = [line for line in collectives if re.search(r"\[(\d+,)*136[,\]]", line.split("(%")[0])]
    assert moved == []


def test_golden_shardings(tiny_config):
    """Changing one needs a reason in the commit."""
    tiny_config.mesh.data, tiny_config.mesh.fsdp = 1, 8
    state = build.run(tiny_config).abstract_state
    specs = {path: tuple(leaf.sharding.spec) for path, leaf in trees.leaves_with_path(state.params)}
    branch = "stack/blocks/attention/branch"
    assert specs[f"{branch}/query_kernel"] == ("stage", "fsdp", "tensor", None)
    assert specs[f"{branch}/out_kernel"] == ("stage", "tensor", None, "fsdp")
    assert specs["stack/blocks/mlp/branch/out/kernel"] == ("stage", "tensor", "fsdp")
    assert specs["stack/blocks/mlp/alpha/kernel"] == ("stage", "fsdp", None)
    assert specs["final/kernel"] == ("fsdp", None)
    # The moments and the average are divided as their parameters are.
    for path, leaf in trees.leaves_with_path(state):
        own = next((p for p in specs if path.endswith(p)), None)
        assert own is None or tuple(leaf.sharding.spec) == specs[own]
        assert own is not None or leaf.ndim == 0 or path == "key"


def test_rules_name_the_parameter_that_they_do_not_know():
    with pytest.raises(ValueError, match=r"stack/blocks/mystery/kernel matches no row"):
        partition.logical_axes("stack/blocks/mystery/kernel", 3)
    with pytest.raises(ValueError, match="has 2 axes, but the row"):
        partition.logical_axes("final/bias", 2)


def test_an_axis_that_does_not_divide_names_the_nearest_that_does():
    mesh = make_mesh({"data": 1, "fsdp": 8})
    leaf = jax.ShapeDtypeStruct((36, 12), jnp.float32)
    with pytest.raises(
        ValueError, match=r"final/kernel: axis 'embed' of 36 .* nearest size that is: (32|40)"
    ):
        partition.sharding_of("final/kernel", leaf, mesh)
    with pytest.raises(ValueError, match="train.batch_size is 12, .* nearest that is: (8|16)"):
        check_batch("train.batch_size", 12, mesh)


def test_a_mesh_axis_used_twice_is_an_error():
    with pytest.raises(ValueError, match="'fsdp' would shard two"):
        axes.spec_of(("embed", "also"), dict(rules.RULES, also=("fsdp",)))


def test_mesh_that_is_not_the_devices_says_so():
    with pytest.raises(ValueError, match="mesh.data=3 make 3 devices, but there are 8"):
        make_mesh({"data": 3, "fsdp": 1})
    found = dict(make_mesh({"data": -1, "fsdp": 2}).shape)
    assert found == {"data": 4, "stage": 1, "fsdp": 2, "context": 1, "tensor": 1}


def test_order_of_the_data_does_not_depend_on_the_mesh(tiny_config):
    source = synthetic((8, 8, 3), 4, "train")
    plain = Loader(source, batch_size=16, seed=0).batch_at(48)
    placed = next(build.train_loader(tiny_config, source, make_mesh(tiny_config.mesh)).iterate(48))
    np.testing.assert_array_equal(plain["x"], placed["x"])
