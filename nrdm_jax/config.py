"""The one config tree: `default()` holds every field and its meaning, `validate()` every check.

This module imports neither jax nor anything of ours, so that a wrong config is refused in well
under two seconds, before a device is touched or a directory made. Tuples stand for lists and
`placeholder` for None, since ml_collections can override neither a list nor a None.
"""

import difflib
import json
import math

import ml_collections
from ml_collections.config_dict import placeholder

MESH_AXES = ("data", "fsdp")
# Of model.variant, those whose units are z + something (models.unit.VARIANTS).
ADDITIVE_VARIANTS = ("gated", "adaln", "resnet", "rezero", "layerscale")

CHOICES = {
    "model.name": ("dit", "uvit", "unet"),
    "model.variant": (
        "gated",
        "adaln",
        "input_scale",
        "resnet",
        "rezero",
        "layerscale",
        "deepnorm",
        "mv_split",
    ),
    "model.gate_shape": ("channel", "scalar"),
    "model.gate_condition": ("cond", "cond_shared", "static"),
    "model.modulation": ("per_unit", "shared", "none"),
    "model.attention": ("joint", "factorised"),
    "model.positions": ("sincos", "rotary"),
    "model.mlp": ("gelu", "swiglu"),
    "model.skip": ("inside", "project"),
    "model.branch_dtype": ("float32", "bfloat16"),
    "model.memory": ("none", "remat", "sqrt", "offload", "reversible"),
    "model.remat_policy": ("nothing", "branches", "dots_no_batch", "dots"),
    "diffusion.path": ("rectified_flow", "ddpm_linear", "cosine"),
    "diffusion.prediction": ("velocity", "v", "eps", "x0"),
    "diffusion.times": ("uniform", "logit_normal"),
    "optim.schedule": ("cosine", "constant"),
    "sample.sampler": ("euler", "heun", "ddim"),
}


def default() -> ml_collections.ConfigDict:
    """The whole tree with its default values; a config file changes fields, never adds one."""
    c = ml_collections.ConfigDict()
    c.seed = 0  # of the initial weights, the data order and the training noise

    c.data = ml_collections.ConfigDict()
    # openmoji | moving_emoji | fashion_mnist | cifar10 | solids | synthetic | tfds:NAME[/CONFIG]
    c.data.name = "openmoji"
    c.data.shape = (32, 32, 3)  # of one example: H, W, C (video T, H, W, C; volume D, H, W, C)
    c.data.num_classes = 10
    c.data.dir = placeholder(str)  # prepared sets; else TFDS_DATA_DIR, else .cache/data
    c.data.flip = False  # mirror the last spatial axis, half of the time
    c.data.scale = 1.0  # float records (latents) are used as (record - shift) * scale
    c.data.shift = 0.0
    c.data.in_memory_gib = 2.0  # a set that fits is decoded once, into host memory
    c.data.threads = 2  # that read and decode, where the set does not fit
    c.data.prefetch = 2  # batches prepared ahead of the device

    c.model = ml_collections.ConfigDict()
    c.model.name = "dit"  # dit | uvit | unet
    c.model.size = placeholder(str)  # S | B | L | XL: sets depth, width and heads
    # Blocks; a block of a transformer has two residual units (attention, MLP). unet: blocks of a
    # level on its way down, and as many on its way up.
    c.model.depth = 8
    c.model.width = 192
    c.model.heads = 3
    c.model.mlp = "gelu"  # gelu | swiglu
    c.model.mlp_ratio = 4.0
    c.model.qk_norm = False  # RMSNorm on queries and keys
    c.model.attention = "joint"  # joint | factorised: within frames and across them, taking turns
    c.model.positions = "sincos"  # sincos | rotary
    c.model.skip = "inside"  # inside | project: how uvit and unet read the way down
    c.model.channel_factors = (1, 2, 2)  # unet: channels of each level over model.width
    c.model.attention_at = (8,)  # unet: sizes of the longest axis at which levels attend
    c.model.patch = (2,)  # side of a patch: one number for all axes, or one each: (1, 2, 2)
    c.model.label_dropout = 0.1  # share of examples trained with the null class, for guidance
    c.model.learn_variance = False  # twice the output channels; the second half is unused yet
    c.model.variant = "gated"  # the form of every residual unit, one of models.unit.VARIANTS
    c.model.gate_shape = "channel"  # channel | scalar
    c.model.gate_condition = "cond"  # cond | cond_shared | static
    c.model.alpha_start = "auto"  # auto | zero | one | inv_sqrt_units | a number
    c.model.beta = True  # the additive gate; False fixes it at 0 and removes its parameters
    c.model.beta_bound = True  # beta = beta_raw / units, learning rate of beta_raw * 0.1
    c.model.modulation = (
        "per_unit"  # per_unit | shared | none: who owns the kernel of the adaptive norms
    )
    c.model.prefix_tokens = False  # time and class are two tokens in front of the patches, too
    c.model.branch_dtype = "float32"  # of the branches; trunk, gates, norms stay float32
    c.model.streams = 1  # 2: the trunk twice, units write the one and read the other
    c.model.memory = "none"  # none | remat | sqrt | offload | reversible: see models/memory.py
    c.model.remat_policy = "nothing"  # nothing | branches | dots_no_batch | dots: kept by remat

    c.diffusion = ml_collections.ConfigDict()
    c.diffusion.path = "rectified_flow"  # rectified_flow | ddpm_linear | cosine
    c.diffusion.prediction = "velocity"  # velocity | v | eps | x0
    c.diffusion.times = "logit_normal"  # logit_normal | uniform: training times
    c.diffusion.logit_mean = 0.0  # of logit_normal, before the logistic function; > 0 is noisier
    c.diffusion.logit_std = 1.0

    c.optim = ml_collections.ConfigDict()
    c.optim.learning_rate = 1e-4
    c.optim.schedule = "constant"  # constant | cosine, after the warm-up
    c.optim.warmup_steps = 0
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.0  # not of gates, norms, biases and embeddings
    c.optim.clip_norm = 1.0  # global norm of the gradient; 0 does not clip
    c.optim.sensitivity_penalty = 0.0  # factor of mean_i log(|s_i|^2/|s_n|^2)^2 in the loss; 0: off
    c.optim.sensitivity_examples = 8  # of each batch, on which the penalty is measured

    c.train = ml_collections.ConfigDict()
    c.train.steps = 1000
    c.train.batch_size = 64  # examples a step, all devices together
    c.train.micro_batches = 1  # the batch is accumulated over so many forward-backward passes
    c.train.ema_halflife_images = 500_000.0  # examples after which a weight counts half

    c.mesh = ml_collections.ConfigDict()
    c.mesh.data = -1  # devices along each axis; -1: all that are left
    c.mesh.fsdp = 1

    c.checkpoint = ml_collections.ConfigDict()
    c.checkpoint.every = 1000  # steps
    c.checkpoint.keep = 3  # newest steps kept
    c.checkpoint.init_from = placeholder(str)  # workdir of a run whose EMA weights are the start

    c.evaluate = ml_collections.ConfigDict()
    c.evaluate.every = 1000  # steps between held-out losses inside the run; 0: never
    c.evaluate.batch_size = 64
    c.evaluate.examples = 0  # held-out examples used inside the run, 0: all
    c.evaluate.log_snr = (-6.0, -4.5, -3.0, -1.5, 0.0, 1.5, 3.0, 4.5)  # fixed levels

    c.sample = ml_collections.ConfigDict()
    c.sample.every = 0  # steps between sample grids inside the run; 0: never
    c.sample.examples = 64
    c.sample.batch_size = 64
    c.sample.sampler = "heun"  # euler | heun | ddim
    c.sample.steps = 30
    c.sample.guidance = 1.0  # classifier-free; 1 is off

    c.log = ml_collections.ConfigDict()
    c.log.every = 50  # steps between lines
    # Steps between records of the units' sensitivity and the trunk's health; 0: never.
    c.log.sensitivity_every = 100
    c.log.profile_start = 0  # first step of a profiler trace in workdir/profile; 0: none
    c.log.profile_steps = 3
    c.log.peak_tflops = 0.0  # of one device, to print MFU; 0: looked up, unknown on a CPU
    return c


def patch_of(config) -> tuple[int, ...]:
    """Side of a patch on every spatial axis of `data.shape`."""
    patch, axes = tuple(config.model.patch), len(config.data.shape) - 1
    return patch * axes if len(patch) == 1 else patch


def validate(config) -> None:
    """Raises ValueError, naming the field and the fix, for everything that can be seen early.

    What depends on devices (the mesh) or data (counts, labels) is checked by build and data.
    """
    _check_keys(config)
    for field, choices in CHOICES.items():
        _require(
            _get(config, field) in choices,
            field,
            f"is {_get(config, field)!r}",
            f"choose one of {', '.join(choices)}" + _hint(str(_get(config, field)), choices),
        )
    _check_numbers(config)
    _check_model(config)
    _check_stack(config)
    _check_memory(config)
    _check_diffusion(config)
    _check_mesh(config)


def difference(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Lines `field: old -> new` for two config dicts as `to_dict` gives them."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def to_dict(config) -> dict:
    """The config as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


def from_dict(values: dict) -> ml_collections.ConfigDict:
    """The config that `to_dict` wrote.

    Raises:
      ValueError: a field is unknown or of the wrong type, as in a file of another version.
    """
    config = default()

    def fill(node, part, path):
        for key, value in part.items():
            if key not in node:
                raise ValueError(f"config field {path}{key} is unknown" + _hint(key, node.keys()))
            if isinstance(value, dict):
                fill(node[key], value, f"{path}{key}.")
            else:
                try:
                    node[key] = tuple(value) if isinstance(value, list) else value
                except TypeError as error:
                    raise ValueError(f"config field {path}{key}: {error}") from error

    with config.ignore_type():
        fill(config, values, "")
    return config


def _check_keys(config) -> None:
    """A config file may have replaced a field by one of another type or added one."""

    def walk(reference, given, path):
        for key in given:
            field = f"{path}{key}"
            if key not in reference:
                raise ValueError(f"{field} is not a config field" + _hint(key, reference.keys()))
            want, have = reference.get_oneway_ref(key).get(), given[key]
            if isinstance(want, ml_collections.ConfigDict):
                if not isinstance(have, ml_collections.ConfigDict):
                    raise ValueError(f"{field} is a group of fields, got {have!r}")
                walk(want, have, field + ".")
            elif want is not None and have is None:
                raise ValueError(f"{field} must not be None; its default is {want!r}")
        for key in reference:
            if key not in given:
                raise ValueError(f"{path}{key} is missing; start from nrdm_jax.config.default()")

    walk(default(), config, "")


def _check_numbers(c) -> None:
    at_least = {
        1: "data.num_classes data.threads data.prefetch model.depth model.width model.heads "
        "train.steps train.batch_size train.micro_batches checkpoint.every checkpoint.keep "
        "evaluate.batch_size sample.examples sample.batch_size sample.steps log.every "
        "log.profile_steps model.streams optim.sensitivity_examples",
        0: "seed optim.warmup_steps optim.weight_decay optim.clip_norm evaluate.every "
        "evaluate.examples sample.every sample.guidance log.profile_start log.peak_tflops "
        "log.sensitivity_every optim.sensitivity_penalty "
        "data.in_memory_gib",
    }
    for low, fields in at_least.items():
        for field in fields.split():
            value = _get(c, field)
            _require(
                math.isfinite(value) and value >= low,
                field,
                f"is {value}",
                f"give a number of at least {low}",
            )
    for field in ("optim.learning_rate", "optim.eps", "train.ema_halflife_images", "data.scale",
                  "model.mlp_ratio", "diffusion.logit_std"):  # fmt: skip
        value = _get(c, field)
        _require(math.isfinite(value) and value > 0, field, f"is {value}", "give a positive number")
    for field in ("model.label_dropout", "optim.b1", "optim.b2"):
        value = _get(c, field)
        _require(0 <= value < 1, field, f"is {value}", "give a number in [0, 1)")
    _require(
        c.train.batch_size % c.train.micro_batches == 0,
        "train.micro_batches",
        f"is {c.train.micro_batches}, which does not divide train.batch_size={c.train.batch_size}",
        f"the nearest that does is {_nearest_divisor(c.train.batch_size, c.train.micro_batches)}",
    )
    _require(
        c.optim.warmup_steps <= c.train.steps,
        "optim.warmup_steps",
        f"is {c.optim.warmup_steps}, more than train.steps={c.train.steps}",
        "shorten it",
    )
    levels = c.evaluate.log_snr
    _require(
        isinstance(levels, tuple) and len(levels) > 0 and all(map(_is_number, levels)),
        "evaluate.log_snr",
        f"is {levels!r}",
        "give a tuple of numbers",
    )


def _check_model(c) -> None:
    shape = c.data.shape
    _require(
        isinstance(shape, tuple)
        and len(shape) >= 2
        and all(isinstance(n, int) and n > 0 for n in shape),
        "data.shape",
        f"is {shape!r}",
        "give the axes of one example, channels last, such as (32, 32, 3)",
    )
    m = c.model
    if m.size is not None:
        sizes = ("S", "B", "L", "XL")
        _require(
            m.size in sizes, "model.size", f"is {m.size!r}", f"choose one of {', '.join(sizes)}"
        )
    else:
        _require(
            m.width % m.heads == 0,
            "model.heads",
            f"is {m.heads}, which does not divide model.width={m.width}",
            f"the nearest that does is {_nearest_divisor(m.width, m.heads)}",
        )
        axes = len(shape) - 1
        _require(
            m.width >= 2 * axes,
            "model.width",
            f"is {m.width}, too small for positions on {axes} axes",
            f"give at least {2 * axes}",
        )
    _require(
        isinstance(m.patch, tuple) and len(m.patch) > 0 and all(map(_is_int, m.patch)),
        "model.patch",
        f"is {m.patch!r}",
        "give a tuple: one whole number, or one a spatial axis such as (1, 2, 2)",
    )
    patch = patch_of(c)
    _require(
        len(patch) == len(shape) - 1 and all(p >= 1 for p in patch),
        "model.patch",
        f"is {m.patch!r}",
        f"data.shape={shape} has {len(shape) - 1} spatial axes: give one positive number for each",
    )
    for size, side in zip(shape, patch, strict=False):
        _require(
            size % side == 0,
            "model.patch",
            f"is {m.patch}, which does not divide the axis of {size} in data.shape={shape}",
            f"the nearest that does is {_nearest_divisor(size, side)}",
        )
    alpha = m.alpha_start
    named = ("auto", "zero", "one", "inv_sqrt_units")
    _require(
        alpha in named or _parses_as_number(alpha),
        "model.alpha_start",
        f"is {alpha!r}",
        f"choose one of {', '.join(named)} or a number" + _hint(alpha, named),
    )


def _check_stack(c) -> None:
    """Which choices of the model go together."""
    m, axes = c.model, len(c.data.shape) - 1
    sees_time = m.modulation != "none" or m.prefix_tokens or _gates_see_the_condition(m)
    _require(
        sees_time,
        "model.modulation",
        "is none, and nothing else tells the network the time",
        "choose per_unit or shared, or model.prefix_tokens=True",
    )
    if m.attention == "factorised":
        _require(axes >= 2, "model.attention", "is factorised on one axis", "choose joint")
        _require(
            not m.prefix_tokens,
            "model.prefix_tokens",
            "is on, and tokens that are no patches belong to no frame of factorised attention",
            "switch it off, or choose model.attention=joint",
        )
        _require(
            m.name == "dit",
            "model.attention",
            f"is factorised, which model.name={m.name} does not have",
            "choose joint, or model.name=dit",
        )
        _require(
            m.size is not None or m.depth % 2 == 0,
            "model.depth",
            f"is {m.depth}, and factorised blocks come in pairs",
            "give an even number",
        )
    if m.positions == "rotary" and m.size is None:
        turned = 1 if m.attention == "joint" and axes == 1 else axes
        _require(
            m.width // m.heads >= 2 * turned,
            "model.heads",
            f"leaves {m.width // m.heads} channels a head, too few to rotate on {turned} axes",
            f"give at most {m.width // (2 * turned)}",
        )
    if m.name == "unet":
        _check_unet(c)
    if m.name == "uvit":
        _require(
            m.size is not None or m.depth >= 2,
            "model.depth",
            f"is {m.depth}, and model.name=uvit has two halves",
            "give at least 2",
        )
    if m.skip == "inside" and m.name != "dit":
        _require(
            m.modulation != "shared",
            "model.modulation",
            "is shared, but units that read [z, skip] have norms of twice the width",
            "choose per_unit, or model.skip=project",
        )


def _check_unet(c) -> None:
    m = c.model
    factors = m.channel_factors
    _require(
        isinstance(factors, tuple)
        and len(factors) > 0
        and all(_is_int(f) and f >= 1 for f in factors),
        "model.channel_factors",
        f"is {factors!r}",
        "give a tuple of whole numbers, one a level, such as (1, 2, 2)",
    )
    _require(m.size is None, "model.size", f"is {m.size!r}, a size of dit", "set model.width")
    for size, side in zip(c.data.shape, patch_of(c), strict=False):
        grid, halvings = size // side, len(factors) - 1
        _require(
            grid % 2**halvings == 0,
            "model.channel_factors",
            f"has {len(factors)} levels, and {grid} patches cannot be halved {halvings} times",
            "give fewer levels, or another model.patch",
        )
    sizes = [max(c.data.shape[:-1]) // patch_of(c)[0] // 2**i for i in range(len(factors))]
    for size in m.attention_at:
        _require(
            size in sizes,
            "model.attention_at",
            f"has {size}, and the levels' sizes are {sizes}",
            "choose among these",
        )
    for field in ("gate_condition", "modulation"):
        shared = m[field] in ("cond_shared", "shared")
        _require(
            not shared or set(factors) == {1},
            f"model.{field}",
            f"is {m[field]}, one projection for all units, but levels of unet differ in width",
            "choose cond or per_unit, or model.channel_factors of ones",
        )
    for field, only in (("positions", "sincos"), ("mlp", "gelu"), ("prefix_tokens", False)):
        _require(
            m[field] == only,
            f"model.{field}",
            f"is {m[field]!r}, which unet does not have",
            f"leave it at {only!r}",
        )


def _check_memory(c) -> None:
    """Exactly the combinations of the memory modes that are possible; the platform's part is said
    by models.memory."""
    m = c.model
    _require(m.streams in (1, 2), "model.streams", f"is {m.streams}", "give 1 or 2")
    _require(
        m.streams == 1 or m.name == "dit",
        "model.streams",
        f"is 2, but model.name={m.name} keeps its skips of one stream",
        "give 1, or choose model.name=dit",
    )
    if m.memory == "reversible":
        _require(
            m.name == "dit",
            "model.memory",
            f"is reversible, but the skips of model.name={m.name} must be kept",
            "choose remat or sqrt",
        )
        _require(
            m.streams == 2,
            "model.memory",
            "is reversible, but a unit of one stream cannot be inverted",
            "set model.streams=2, or choose remat or sqrt",
        )
        _require(
            m.variant in ADDITIVE_VARIANTS,
            "model.memory",
            f"is reversible, but units of model.variant={m.variant} are not z + something",
            f"choose remat or sqrt, or a variant of {', '.join(ADDITIVE_VARIANTS)}",
        )
    _require(
        m.remat_policy == "nothing" or m.memory == "remat",
        "model.remat_policy",
        f"is {m.remat_policy!r}, which model.memory={m.memory} does not look at",
        "choose model.memory=remat, or leave it at nothing",
    )
    if c.optim.sensitivity_penalty:
        _require(
            m.memory in ("none", "remat"),
            "optim.sensitivity_penalty",
            f"needs the gradient of a gradient, which model.memory={m.memory} does not have",
            "choose none or remat",
        )
        _require(
            c.optim.sensitivity_examples <= c.train.batch_size,
            "optim.sensitivity_examples",
            f"is {c.optim.sensitivity_examples}, more than train.batch_size={c.train.batch_size}",
            "give fewer",
        )


def _gates_see_the_condition(m) -> bool:
    return m.variant in ("gated", "adaln", "input_scale") and m.gate_condition != "static"


def _check_diffusion(c) -> None:
    d = c.diffusion
    # On this path alpha(1) = 0: the data cannot be told from eps there (see diffusion.predictions).
    _require(
        not (d.path == "rectified_flow" and d.prediction == "eps"),
        "diffusion.prediction",
        "is eps, which divides by alpha = 0 at t = 1 of diffusion.path=rectified_flow",
        "choose velocity, v or x0, or diffusion.path=ddpm_linear",
    )


def _check_mesh(c) -> None:
    sizes = [c.mesh[axis] for axis in MESH_AXES]
    for axis, size in zip(MESH_AXES, sizes, strict=True):
        _require(
            size == -1 or size >= 1, f"mesh.{axis}", f"is {size}", "give a positive number or -1"
        )
    _require(sizes.count(-1) <= 1, "mesh", "has more than one -1", "let one axis only fill")
    known = math.prod(s for s in sizes if s != -1)
    micro = c.train.batch_size // c.train.micro_batches
    _require(
        micro % known == 0,
        "train.batch_size",
        f"gives micro-batches of {micro}, not divisible by the {known} devices of mesh={sizes}",
        f"make it a multiple of {known * c.train.micro_batches}",
    )


def _get(config, field: str):
    for key in field.split("."):
        config = config[key]
    return config


def _require(condition: bool, field: str, problem: str, fix: str) -> None:
    if not condition:
        raise ValueError(f"{field} {problem}; {fix}")


def _hint(given: str, choices) -> str:
    close = difflib.get_close_matches(given, list(choices), n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""


def _nearest_divisor(whole: int, wanted: int) -> int:
    return min((d for d in range(1, whole + 1) if whole % d == 0), key=lambda d: abs(d - wanted))


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _parses_as_number(text) -> bool:
    try:
        return math.isfinite(float(text))
    except (TypeError, ValueError):
        return False
