"""Which choices of the model go together, and with the data's shape."""

from nrdm_jax.config.conditions import is_int, nearest_divisor, parses_as_number, require
from nrdm_jax.config.tree import (
    ADDITIVE_VARIANTS,
    CHOICES,
    FUSED_KERNELS,
    GATED_VARIANTS,
    hint,
    patch_of,
)


def check_model(c) -> None:
    shape = c.data.shape
    require(
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
        require(
            m.size in sizes, "model.size", f"is {m.size!r}", f"choose one of {', '.join(sizes)}"
        )
    else:
        require(
            m.width % m.heads == 0,
            "model.heads",
            f"is {m.heads}, which does not divide model.width={m.width}",
            f"the nearest that does is {nearest_divisor(m.width, m.heads)}",
        )
        axes = len(shape) - 1
        require(
            m.width >= 2 * axes,
            "model.width",
            f"is {m.width}, too small for positions on {axes} axes",
            f"give at least {2 * axes}",
        )
    require(
        int(m.mlp_ratio * m.width) >= 1,
        "model.mlp_ratio",
        f"is {m.mlp_ratio}, which leaves no hidden channel of model.width={m.width}",
        f"give at least {1 / m.width:.2g}",
    )
    require(
        isinstance(m.patch, tuple) and len(m.patch) > 0 and all(map(is_int, m.patch)),
        "model.patch",
        f"is {m.patch!r}",
        "give a tuple: one whole number, or one a spatial axis such as (1, 2, 2)",
    )
    check_grid(c)
    starts = {"alpha_start": ("auto", "zero", "one", "inv_sqrt_units"), "beta_start": ("auto",)}
    for field, named in starts.items():
        require(
            m[field] in named or parses_as_number(m[field]),
            f"model.{field}",
            f"is {m[field]!r}",
            f"choose one of {', '.join(named)} or a number" + hint(str(m[field]), named),
        )


def check_grid(c) -> None:
    """Whether an example can be cut into patches, and these halved as often as levels need."""
    m, shape, patch = c.model, c.data.shape, patch_of(c)
    require(
        len(patch) == len(shape) - 1 and all(p >= 1 for p in patch),
        "model.patch",
        f"is {m.patch!r}",
        f"data.shape={shape} has {len(shape) - 1} spatial axes: give one positive number for each",
    )
    for size, side in zip(shape, patch, strict=False):
        require(
            size % side == 0,
            "model.patch",
            f"is {m.patch}, which does not divide the axis of {size} in data.shape={shape}",
            f"the nearest that does is {nearest_divisor(size, side)}",
        )
        halvings = len(m.channel_factors) - 1 if m.name == "unet" else 0
        require(
            size // side % 2**halvings == 0,
            "model.channel_factors",
            f"has {halvings + 1} levels, and {size // side} patches cannot be halved {halvings} "
            "times",
            "give fewer levels, or another model.patch",
        )


def check_stack(c) -> None:
    """Which choices of the model go together."""
    m, axes = c.model, len(c.data.shape) - 1
    sees_time = m.modulation != "none" or m.prefix_tokens or _gates_see_the_condition(m)
    require(
        sees_time,
        "model.modulation",
        "is none, and nothing else tells the network the time",
        "choose per_unit or shared, or model.prefix_tokens=True",
    )
    if m.attention == "factorised":
        require(axes >= 2, "model.attention", "is factorised on one axis", "choose joint")
        require(
            not m.prefix_tokens,
            "model.prefix_tokens",
            "is on, and tokens that are no patches belong to no frame of factorised attention",
            "switch it off, or choose model.attention=joint",
        )
        require(
            m.name == "dit",
            "model.attention",
            f"is factorised, which model.name={m.name} does not have",
            "choose joint, or model.name=dit",
        )
        require(
            m.size is not None or m.depth % 2 == 0,
            "model.depth",
            f"is {m.depth}, and factorised blocks come in pairs",
            "give an even number",
        )
    if m.positions == "rotary" and m.size is None:
        turned = axes if m.attention == "joint" else max(axes - 1, 1)
        require(
            m.width // m.heads >= 2 * turned,
            "model.heads",
            f"leaves {m.width // m.heads} channels a head, too few to rotate on {turned} axes",
            f"give at most {m.width // (2 * turned)}",
        )
    if m.attention_kernel == "cudnn":
        require(
            m.branch_dtype == "bfloat16",
            "model.attention_kernel",
            f"is cudnn, which does not compute in {m.branch_dtype}",
            "set model.branch_dtype=bfloat16, or choose xla",
        )
        require(
            m.size is not None or m.width // m.heads in range(8, 257, 8),
            "model.attention_kernel",
            f"is cudnn, and {m.width // m.heads} channels a head are not a multiple of 8 up to 256",
            "choose other model.heads, or xla",
        )
    if m.name == "unet":
        _check_unet(c)
    if m.name == "continuous":
        _check_continuous(m)
    if m.name == "uvit":
        require(
            m.size is not None or m.depth >= 2,
            "model.depth",
            f"is {m.depth}, and model.name=uvit has two halves",
            "give at least 2",
        )
    if m.skip == "inside" and m.name in ("uvit", "unet"):
        require(
            m.modulation != "shared",
            "model.modulation",
            "is shared, but units that read [z, skip] have norms of twice the width",
            "choose per_unit, or model.skip=project",
        )


def _check_continuous(m) -> None:
    for field, only in (("memory", "none"), ("size", None)):
        require(
            m[field] == only,
            f"model.{field}",
            f"is {m[field]!r}, which model.name=continuous does not have",
            "choose model.adjoint" if field == "memory" else "set model.depth, width and heads",
        )
    require(
        m.variant in ADDITIVE_VARIANTS,
        "model.variant",
        f"is {m.variant}, whose units are not z + something and have no limit of depth",
        f"choose one of {', '.join(ADDITIVE_VARIANTS)}",
    )


def _check_unet(c) -> None:
    m = c.model
    factors = m.channel_factors
    require(
        isinstance(factors, tuple)
        and len(factors) > 0
        and all(is_int(f) and f >= 1 for f in factors),
        "model.channel_factors",
        f"is {factors!r}",
        "give a tuple of whole numbers, one a level, such as (1, 2, 2)",
    )
    require(m.size is None, "model.size", f"is {m.size!r}, a size of dit", "set model.width")
    longest = max(n // p for n, p in zip(c.data.shape, patch_of(c), strict=False))
    sizes = [longest // 2**i for i in range(len(factors))]
    for size in m.attention_at:
        require(
            size in sizes,
            "model.attention_at",
            f"has {size}, and the levels' sizes are {sizes}",
            "choose among these",
        )
    for field in ("gate_condition", "modulation"):
        shared = m[field] in ("cond_shared", "shared")
        require(
            not shared or set(factors) == {1},
            f"model.{field}",
            f"is {m[field]}, one projection for all units, but levels of unet differ in width",
            "choose cond or per_unit, or model.channel_factors of ones",
        )
    for field, only in (("positions", "sincos"), ("mlp", "gelu"), ("prefix_tokens", False),
                        ("quantize", "none")):  # fmt: skip
        require(
            m[field] == only,
            f"model.{field}",
            f"is {m[field]!r}, which unet does not have",
            f"leave it at {only!r}",
        )


def check_memory(c) -> None:
    """Exactly the combinations of the memory modes that are possible; the platform's part is said
    by models.memory."""
    m = c.model
    require(m.streams in (1, 2), "model.streams", f"is {m.streams}", "give 1 or 2")
    require(
        m.streams == 1 or m.name == "dit",
        "model.streams",
        f"is 2, but model.name={m.name} has one stream",
        "give 1, or choose model.name=dit",
    )
    if m.memory == "reversible":
        require(
            m.name == "dit",
            "model.memory",
            f"is reversible, but the skips of model.name={m.name} must be kept",
            "choose remat or sqrt",
        )
        require(
            m.streams == 2,
            "model.memory",
            "is reversible, but a unit of one stream cannot be inverted",
            "set model.streams=2, or choose remat or sqrt",
        )
        require(
            m.variant in ADDITIVE_VARIANTS,
            "model.memory",
            f"is reversible, but units of model.variant={m.variant} are not z + something",
            f"choose remat or sqrt, or a variant of {', '.join(ADDITIVE_VARIANTS)}",
        )
    require(
        m.remat_policy == "nothing" or m.memory == "remat",
        "model.remat_policy",
        f"is {m.remat_policy!r}, which model.memory={m.memory} does not look at",
        "choose model.memory=remat, or leave it at nothing",
    )
    if c.optim.sensitivity_penalty:
        for field, refused in (("attention_kernel", FUSED_KERNELS), ("quantize", ("int8", "fp8"))):
            require(
                m[field] not in refused,
                "optim.sensitivity_penalty",
                f"needs the gradient of a gradient, which model.{field}={m[field]} does not have",
                f"set it to 0, or choose model.{field}={CHOICES[f'model.{field}'][0]}",
            )
        require(
            m.memory in ("none", "remat"),
            "optim.sensitivity_penalty",
            f"needs the gradient of a gradient, which model.memory={m.memory} does not have",
            "choose none or remat",
        )
        require(
            m.name != "continuous",
            "optim.sensitivity_penalty",
            "needs the gradient of a gradient, which the solver of model.name=continuous does not "
            "have",
            "set it to 0, or choose model.name=dit",
        )
        require(
            c.optim.sensitivity_examples <= c.train.batch_size,
            "optim.sensitivity_examples",
            f"is {c.optim.sensitivity_examples}, more than train.batch_size={c.train.batch_size}",
            "give fewer",
        )


def _gates_see_the_condition(m) -> bool:
    return m.variant in GATED_VARIANTS and m.gate_condition != "static"
