import importlib.util
import pathlib

import jax
import pytest

from nrdm_jax import config as configuration
from nrdm_jax import networks
from nrdm_jax.config import conditions
from nrdm_jax.diffusion import grids, predictions, schedules, times, weights
from nrdm_jax.diffusion.samplers import sde, table
from nrdm_jax.models import attention, continuous, memory, sizes, unit
from nrdm_jax.sharding import mesh
from nrdm_jax.training import optimizer

CONFIGS = sorted((pathlib.Path(__file__).resolve().parents[1] / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(module):
    return ("", *getattr(module, "ARGUMENTS", ()))


@pytest.mark.parametrize(
    "path, argument",
    [(path, argument) for path in CONFIGS for argument in arguments(load(path))],
    ids=lambda x: x.stem if isinstance(x, pathlib.Path) else x,
)
def test_every_config_validates_and_survives_json(path, argument):
    config = load(path).get_config(argument)
    configuration.validate(config)
    again = configuration.from_dict(configuration.to_dict(config))
    assert configuration.to_dict(again) == configuration.to_dict(config)
    assert again.data.shape == config.data.shape


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_no_config_takes_an_argument_it_does_not_know(path):
    with pytest.raises(ValueError, match="has no argument 'nothing'"):
        load(path).get_config("nothing")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_says_what_it_is_for_and_its_command(path):
    assert f"configs/{path.name}" in (load(path).__doc__ or "")


def test_a_context_that_fills_may_have_a_ring():
    c = configuration.default()
    c.mesh.data, c.mesh.context, c.model.attention_kernel = 1, -1, "ring"
    configuration.validate(c)
    with pytest.raises(ValueError, match="set mesh.context, or choose xla"):
        configuration.check_parallel(c, dict.fromkeys(configuration.MESH_AXES, 1))


def test_choices_are_the_tables_of_the_parts():
    # config imports nothing of ours, so that the names stand there twice; here they are held equal.
    choices = configuration.CHOICES
    assert set(choices["model.variant"]) == set(unit.VARIANTS)
    assert set(choices["diffusion.path"]) == set(schedules.PATHS)
    assert set(choices["diffusion.prediction"]) == set(predictions.PREDICTIONS)
    assert set(choices["sample.sampler"]) == set(table.SAMPLERS)
    assert configuration.MESH_AXES == mesh.AXES
    assert set(choices["model.name"]) == set(networks.NETWORKS)
    assert set(choices["model.remat_policy"]) == set(memory.POLICIES)
    assert set(choices["model.attention_kernel"]) == set(attention.KERNELS)
    assert set(choices["optim.name"]) == {*optimizer.SCALES, "schedule_free"}
    assert set(choices["model.solver"]) == set(continuous.SOLVERS)
    assert set(choices["model.adjoint"]) == set(continuous.ADJOINTS)
    assert set(choices["diffusion.times"]) == {*times.TIMES, "importance"}
    assert set(choices["diffusion.weight"]) == set(weights.WEIGHTS)
    assert set(choices["sample.grid"]) == set(grids.GRIDS)
    assert set(choices["sample.diffusion"]) == set(sde.DIFFUSIONS)
    for name in sizes.DIT:
        c = configuration.default()
        c.model.size = name
        configuration.validate(c)


def test_the_nearest_divisor_is_that_of_all_and_of_a_number_without_end_one_of_the_small():
    for whole in range(1, 100):
        every = [d for d in range(1, whole + 1) if whole % d == 0]
        for wanted in range(1, 110):
            nearest = min(every, key=lambda d: abs(d - wanted))
            assert conditions.nearest_divisor(whole, wanted) == nearest
    assert conditions.nearest_divisor(10**18, 7) == 8
    assert conditions.nearest_divisor(10**18, 10**18 - 1) == 10**18


@pytest.mark.parametrize("path", schedules.PATHS)
@pytest.mark.parametrize("prediction", predictions.PREDICTIONS)
def test_early_refusals_are_those_of_the_algebra(path, prediction):
    c = configuration.default()
    c.diffusion.path, c.diffusion.prediction = path, prediction
    refused = []
    for check in (
        lambda: configuration.validate(c),
        lambda: predictions.check(schedules.make_path(path), prediction),
    ):
        try:
            check()
            refused.append(False)
        except ValueError as error:
            assert "diffusion.path" in str(error) and "diffusion.prediction" in str(error)
            refused.append(True)
    assert refused[0] == refused[1]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model.heads", 5, "nearest that does is 4"),
        ("model.patch", (5,), "nearest that does is 4"),
        ("model.patch", (2, 2, 2), "2 spatial axes"),
        ("model.variant", "gatd", 'did you mean "gated"'),
        ("model.size", "XXL", "S, B, L, XL"),
        ("model.alpha_start", "zeros", 'did you mean "zero"'),
        ("model.beta_start", "aut", 'did you mean "auto"'),
        ("model.label_dropout", 1.0, r"\[0, 1\)"),
        ("data.shape", (32,), "channels last"),
        ("train.micro_batches", 7, "nearest that does is 8"),
        ("train.steps", 0, "at least 1"),
        ("optim.learning_rate", float("nan"), "positive"),
        ("optim.warmup_steps", 10**6, "train.steps"),
        ("train.ema_widths", (0.1, 0.3), r"within \(0, 0.289\)"),
        ("train.ema_widths", (0.1, 0.1), "different numbers"),
        ("train.ema_widths", (True,), "different numbers"),
        ("train.ema_snapshots", -1, "at least 0"),
        ("mesh.data", 0, "positive number or -1"),
        ("mesh.fsdp", 7, "multiple of 7"),
        ("evaluate.log_snr", (), "tuple of numbers"),
        ("seed", 2**32, r"below 2\^32"),
        ("diffusion.importance_bins", 1, "at least 2"),
        ("train.steps", 10.5, "like its default, 1000"),
        ("model.depth", True, "like its default, 8"),
        ("model.beta", 1, "like its default, True"),
    ],
)
def test_a_bad_value_is_refused_with_its_field_and_the_fix(field, value, says):
    c = configuration.default()
    *group, name = field.split(".")
    if field == "mesh.fsdp":
        c.mesh.data = 1
    with c.ignore_type():
        (c[group[0]] if group else c)[name] = value
    with pytest.raises(ValueError, match=says) as error:
        configuration.validate(c)
    assert field in str(error.value) or group[0] in str(error.value)


BUCKETS = {"data.buckets": ((32, 32, 3), (24, 40, 3)), "data.bucket_tokens": 16384}
UNET = {"model.name": "unet", "model.patch": (1,)}
REVERSIBLE = {"model.memory": "reversible", "model.streams": 2}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.streams": 3}, "model.streams"),
        ({"model.memory": "reversible"}, "a unit of one stream cannot be inverted"),
        (REVERSIBLE | {"model.variant": "mv_split"}, "units of model.variant=mv_split are not z +"),
        (REVERSIBLE | {"model.variant": "deepnorm"}, "units of model.variant=deepnorm are not"),
        (REVERSIBLE | {"model.variant": "input_scale"}, "model.variant=input_scale are not"),
        ({"model.name": "uvit", "model.streams": 2}, "model.streams is 2, but model.name=uvit"),
        ({"model.name": "uvit", "model.memory": "reversible"}, "skips of model.name=uvit must be"),
        ({"model.name": "continuous", "model.memory": "remat"}, "choose model.adjoint"),
        ({"model.name": "continuous", "model.variant": "mv_split"}, "have no limit of depth"),
        ({"model.name": "continuous", "model.streams": 2}, "has one stream"),
        ({"model.name": "continuous", "model.tolerance": 0.0}, "positive number"),
        (UNET | {"model.memory": "reversible"}, "skips of model.name=unet must be kept"),
        ({"model.remat_policy": "dots"}, "which model.memory=none does not look at"),
        ({"optim.sensitivity_penalty": 0.1, "model.memory": "sqrt"}, "gradient of a gradient"),
        (REVERSIBLE | {"optim.sensitivity_penalty": 0.1}, "gradient of a gradient"),
        ({"optim.sensitivity_penalty": 0.1, "optim.sensitivity_examples": 65}, "give fewer"),
        ({"optim.sensitivity_penalty": 0.1, "model.name": "continuous"}, "solver of model.name"),
        ({"model.label_dropout": 0.0, "sample.guidance": 2.0}, "sample.guidance is 2.0"),
        ({"data.with_class": False, "sample.guidance": 2.0}, "nothing to be guided to"),
        (
            {"diffusion.times": "importance", "diffusion.uncertainty": True},
            "makes those of all times alike",
        ),
        ({"model.mlp_ratio": 0.001}, "leaves no hidden channel"),
        ({"model.learn_variance": True}, "no variance for model.learn_variance=True to learn"),
        (
            {"model.modulation": "none", "model.variant": "resnet"},
            "nothing else tells the network the time",
        ),
        ({"model.modulation": "none", "model.gate_condition": "static"}, "model.prefix_tokens"),
        ({"model.attention": "factorised", "model.depth": 7}, "give an even number"),
        ({"model.attention": "factorised", "model.name": "uvit"}, "choose joint"),
        ({"model.attention": "factorised", "model.prefix_tokens": True}, "belong to no frame"),
        ({"model.positions": "rotary", "model.heads": 96}, "too few to rotate on 2 axes"),
        ({"model.name": "uvit", "model.depth": 1}, "has two halves"),
        ({"model.name": "uvit", "model.modulation": "shared"}, "norms of twice the width"),
        (UNET | {"model.channel_factors": (1, 2, 2, 2, 2, 2, 2)}, "cannot be halved 6 times"),
        (UNET | {"model.channel_factors": (1, 0)}, "model.channel_factors"),
        (UNET | {"model.attention_at": (9,)}, r"the levels' sizes are \[32, 16, 8\]"),
        (
            UNET
            | {"data.shape": (8, 32, 32, 3), "model.patch": (1, 2, 2), "model.attention_at": (32,)},
            r"the levels' sizes are \[16, 8, 4\]",
        ),
        (UNET | {"model.gate_condition": "cond_shared"}, "levels of unet differ in width"),
        (UNET | {"model.mlp": "swiglu"}, "which unet does not have"),
        (UNET | {"model.size": "S"}, "a size of dit"),
        (UNET | {"mesh.context": 2}, "their neighbours' rows"),
        ({"mesh.context": 2, "model.prefix_tokens": True}, "no part of the grid"),
        ({"mesh.context": 3}, "does not divide the 256 tokens .* nearest that does is 2"),
        ({"model.attention_kernel": "ring"}, "set mesh.context, or choose xla"),
        (
            {"mesh.context": 2, "model.attention_kernel": "ulysses"},
            "whole heads, and model.heads is 3",
        ),
        (
            {"mesh.context": 2, "model.attention_kernel": "ring", "model.attention": "factorised"},
            "each group of tokens whole",
        ),
        ({"mesh.tensor": 2}, "model.heads is 3, not divisible by mesh.tensor=2"),
        ({"mesh.stage": 2, "model.name": "uvit"}, "travel through all stages"),
        ({"mesh.stage": 2, "model.name": "continuous"}, "one block of weights"),
        (REVERSIBLE | {"mesh.stage": 2}, "outputs are on other devices"),
        ({"mesh.stage": 3}, "8 scanned blocks are not divisible"),
        (
            {"mesh.stage": 4, "pipeline.repeats": 2, "pipeline.micro_batches": 2},
            "fewer than mesh.s",
        ),
        ({"mesh.stage": 2, "pipeline.micro_batches": 3}, "not divisible by 3 micro-batches"),
        ({"mesh.stage": 2, "optim.sensitivity_penalty": 0.1}, "measured on a few examples"),
        (
            {"mesh.context": 2, "model.attention_kernel": "splash"},
            "needs all tokens of an example on a device.*ring or ulysses",
        ),
        (
            {
                "mesh.context": 2,
                "mesh.data": 4,
                "model.attention_kernel": "ring",
                "optim.sensitivity_penalty": 0.1,
                "optim.sensitivity_examples": 3,
            },
            "divides over the 4 parts.*a multiple of 4",
        ),
        ({"model.attention_kernel": "cudnn"}, "does not compute in float32"),
        (
            {
                "model.attention_kernel": "cudnn",
                "model.branch_dtype": "bfloat16",
                "model.heads": 16,
            },
            "12 channels a head are not a multiple of 8",
        ),
        (
            {"model.attention_kernel": "tokamax", "optim.sensitivity_penalty": 0.1},
            "gradient of a gradient.*choose model.attention_kernel=xla",
        ),
        (
            {"model.quantize": "fp8", "optim.sensitivity_penalty": 0.1},
            "gradient of a gradient.*choose model.quantize=none",
        ),
        (UNET | {"model.quantize": "int8"}, "which unet does not have"),
        ({"data.buckets": ((32, 32, 3), (24, 41, 3))}, r"has \(24, 41, 3\).* axis of 41"),
        ({"data.buckets": ((24, 40, 3),)}, "none of data.buckets"),
        ({"data.buckets": ((32, 32, 3), (32, 32, 1))}, "as many axes and channels"),
        ({"data.buckets": ((32, 32, 3), (32, 32, 3))}, "a tuple of different shapes"),
        ({"data.buckets": ((32, 32, 3), 32)}, "data.buckets has 32"),
        (
            {"data.shape": (32, 2, 3), "data.buckets": ((32, 2, 3), (32, 4, 3))},
            "positions have nothing to span",
        ),
        (
            UNET | {"data.buckets": ((32, 32, 3), (32, 44, 3)), "model.channel_factors": (1,) * 4},
            r"data.buckets has \(32, 44, 3\).*44 patches cannot be halved 3 times",
        ),
        (
            BUCKETS | {"train.micro_batches": 16},
            r"train.micro_batches=16 do not divide batches of 72",
        ),
        (
            BUCKETS
            | {
                "optim.sensitivity_penalty": 0.1,
                "optim.sensitivity_examples": 64,
                "data.bucket_tokens": 8192,
            },
            r"more than the 32 examples of a batch of \(32, 32, 3\)",
        ),
        (BUCKETS | {"mesh.data": 16}, r"has \(24, 40, 3\), 72 at a time, .* the 16 parts"),
        (
            {
                "data.shape": (8, 32, 32, 3),
                "data.buckets": ((8, 32, 32, 3), (2, 32, 32, 3)),
                "data.seen": "frames",
                "data.seen_frames": 2,
            },
            "fewer than the frames of each",
        ),
        ({"data.flip": True, "data.name": "moving_emoji"}, "data.flip is True .* set it to False"),
        ({"optim.rates": (("(", 2.0),)}, "pairs of a regular expression and a factor"),
        ({"optim.name": "schedule_free", "train.ema_widths": (0.1,)}, "mean of its own"),
        ({"optim.name": "schedule_free", "optim.schedule": "cosine"}, "rate that does not fall"),
        (
            {"guard.action": "rollback", "guard.most_in_a_row": 4, "checkpoint.every": 1},
            "checkpoint.keep is 3, and guard.action=rollback .* keep 5",
        ),
        (
            {
                "guard.action": "rollback",
                "guard.collapse_factor": 3.0,
                "log.sensitivity_every": 1000,
                "checkpoint.every": 100,
            },
            "goes back to one from before 1000 bad steps, .* keep 11",
        ),
        ({"guard.collapse_factor": 3.0, "log.sensitivity_every": 0}, "does not measure"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_with_the_reason(changes, says):
    c = configuration.default()
    with c.ignore_type():
        for field, value in changes.items():
            group, name = field.split(".")
            c[group][name] = value
    with pytest.raises(ValueError, match=says) as error:
        configuration.validate(c)
    assert any(field.split(".")[1] in str(error.value) for field in changes)


def test_batches_of_buckets_have_about_as_many_tokens():
    c = configuration.default()
    c.data.shape, c.model.patch = (8, 32, 32, 3), (2, 4, 4)
    c.data.buckets = tuple((t, 32, 32, 3) for t in (2, 4, 8, 16))
    c.data.bucket_tokens = 256 * 24
    configuration.validate(c)
    sizes = [configuration.batch_size(c, shape) for shape in configuration.shapes(c)]
    assert sizes == [96, 48, 24, 16]  # 12 are no multiple of 8
    assert configuration.sizes_differ(c)
    assert configuration.at_shape(c, (2, 32, 32, 3)).train.batch_size == 96
    again = configuration.from_dict(configuration.to_dict(c))
    assert again.data.buckets == c.data.buckets
    c.train.batch_size = 3
    assert configuration.idle_fields(c) == ["train.batch_size=3 is not read with "
                                            "data.bucket_tokens=6144"]  # fmt: skip
    c.data.bucket_tokens = 0
    assert {configuration.batch_size(c, shape) for shape in configuration.shapes(c)} == {3}
    assert not configuration.sizes_differ(c)


@pytest.mark.parametrize(
    "changes",
    [
        BUCKETS,
        UNET | {"data.buckets": ((32, 32, 3), (64, 16, 3)), "model.attention_at": (16,)},
        *(REVERSIBLE | {"model.variant": v} for v in configuration.ADDITIVE_VARIANTS),
        *({"model.memory": m, "model.variant": "mv_split"} for m in ("none", "remat", "sqrt")),
        *({"model.memory": m, "model.name": "uvit"} for m in ("remat", "sqrt")),
        {"model.memory": "sqrt", "model.streams": 2, "model.variant": "deepnorm"},
        UNET | {"model.memory": "remat", "model.remat_policy": "branches"},
        {"model.modulation": "none", "model.variant": "mv_split", "model.prefix_tokens": True},
        {"model.name": "uvit", "model.modulation": "shared", "model.skip": "project"},
        {"model.learn_variance": True, "diffusion.variance_weight": 0.0},
        {"data.flip": True, "data.name": "openmoji"},
    ],
)
def test_what_goes_together_is_let_through(changes):
    c = configuration.default()
    for field, value in changes.items():
        group, name = field.split(".")
        c[group][name] = value
    configuration.validate(c)
    init, _ = networks.model(c)  # what is let through can be built
    assert jax.tree.leaves(jax.eval_shape(init, jax.random.key(0)))


def test_fields_that_nothing_reads_are_told():
    c = configuration.default()
    assert configuration.idle_fields(c) == []
    c.model.variant, c.model.alpha_start, c.model.knots = "rezero", "one", 3
    assert configuration.idle_fields(c) == [
        "model.alpha_start='one' is not read with model.variant='rezero'",
        "model.knots=3 is not read with model.name='dit'",
    ]
    c.model.variant, c.model.name = "gated", "continuous"
    assert configuration.idle_fields(c) == []


@pytest.mark.parametrize("variant", unit.VARIANTS)
def test_gates_that_are_as_asked_for_are_those_of_the_variants_that_say_so(variant):
    """What `idle_fields` tells of gates is what the units do."""
    asked = unit.Gates(8, shape="scalar", condition="cond_shared", alpha_start=0.5, beta_start=0.25)
    made = unit.gate_makers(variant, asked)
    as_asked = bool(made) and all(
        (g.args[0], g.args[1]) == ("scalar", "cond_shared") for g in made.values()
    )
    assert as_asked == (variant in configuration.GATED_VARIANTS)
    c = configuration.default()
    c.model.variant = variant
    for field, value, start in (("alpha_start", "0.5", 0.5), ("beta_start", "0.25", 0.25)):
        c.model[field] = value
        idle = any(f"model.{field}=" in text for text in configuration.idle_fields(c))
        gate = made.get(field.split("_")[0])
        assert idle == (gate is None or gate.args[2] != start), (variant, field)
        c.model[field] = "auto"


def test_a_file_cannot_add_or_remove_a_field():
    c = configuration.default()
    c.model.depht = 3
    with pytest.raises(ValueError, match='model.depht .*did you mean "depth"'):
        configuration.validate(c)
    c = configuration.default()
    del c.model["depth"]
    with pytest.raises(ValueError, match="model.depth is missing"):
        configuration.validate(c)


def test_difference_names_each_changed_field():
    a, b = configuration.default(), configuration.default()
    b.model.depth, b.seed = 9, 1
    lines = configuration.difference(configuration.to_dict(a), configuration.to_dict(b))
    assert lines == ["model.depth: 8 -> 9", "seed: 0 -> 1"]
