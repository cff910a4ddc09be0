"""What can be seen to be wrong with a config before a device is touched or a directory made."""

import math
import re

import ml_collections

from nrdm_jax.config.autoencoder_checks import check_autoencoder
from nrdm_jax.config.buckets import check_buckets
from nrdm_jax.config.conditions import get, is_number, nearest_divisor, require
from nrdm_jax.config.mesh_checks import check_mesh
from nrdm_jax.config.model_checks import check_memory, check_model, check_stack
from nrdm_jax.config.text_checks import check_text
from nrdm_jax.config.tree import CHOICES, METRICS, default, hint

MOST_WHOLE = 2**63  # what arrays and files can hold
EVEN_WIDTH = 12**-0.5  # of an even average over all steps, the widest: see training.power_ema


def validate(config) -> None:
    """Raises ValueError, naming the field and the fix, for everything that can be seen early.

    What depends on devices (the mesh) or data (counts, labels) is checked by build and data.
    """
    _check_keys(config)
    for field, choices in CHOICES.items():
        require(
            get(config, field) in choices,
            field,
            f"is {get(config, field)!r}",
            f"choose one of {', '.join(choices)}" + hint(str(get(config, field)), choices),
        )
    _check_numbers(config)
    check_autoencoder(config)
    _check_written(config)
    if config.task == "diffusion":
        _check_seen(config)
        _check_flip(config)
        check_text(config)
        check_model(config)
        check_stack(config)
        check_memory(config)
        _check_diffusion(config)
    _check_optimizer(config)
    _check_averages(config)
    _check_guard(config)
    check_mesh(config)
    check_buckets(config)


def _check_keys(config) -> None:
    """A config file may have replaced a field by one of another type or added one."""

    def walk(reference, given, path):
        for key in given:
            field = f"{path}{key}"
            if key not in reference:
                raise ValueError(f"{field} is not a config field" + hint(key, reference.keys()))
            field_of = reference.get_oneway_ref(key)
            want, have = field_of.get(), given[key]
            if _is_beyond(have):
                raise ValueError(f"{field} has a whole number beyond 2^63; give a smaller one")
            if isinstance(want, ml_collections.ConfigDict):
                if not isinstance(have, ml_collections.ConfigDict):
                    raise ValueError(f"{field} is a group of fields, got {have!r}")
                walk(want, have, field + ".")
            elif want is not None and have is None:
                raise ValueError(f"{field} must not be None; its default is {want!r}")
            elif want is not None and not _of_type(have, type(want)):
                raise ValueError(f"{field} is {have!r}; give one like its default, {want!r}")
            elif want is None and have is not None and not _of_type(have, field_of.get_type()):
                kind = field_of.get_type().__name__
                raise ValueError(f"{field} is {have!r}; give one of type {kind}, or None")
        for key in reference:
            if key not in given:
                raise ValueError(f"{path}{key} is missing; start from nrdm_jax.config.default()")

    walk(default(), config, "")


def _is_beyond(value) -> bool:
    """Python's whole numbers have no end, its floats do."""
    if isinstance(value, tuple | list):
        return any(map(_is_beyond, value))
    return isinstance(value, int) and abs(value) > MOST_WHOLE


def _of_type(value, wanted: type) -> bool:
    """Whole numbers are floats, too; truth values are no numbers. `start` fields are text or a
    number."""
    if isinstance(value, bool) or wanted is bool:
        return isinstance(value, bool) and wanted is bool
    allowed = {float: (float, int), str: (str, int, float)}.get(wanted, wanted)
    return isinstance(value, allowed)


def _check_numbers(c) -> None:
    at_least = {
        8: "guard.spike_window",
        2: "diffusion.importance_bins",
        1: "data.num_classes data.frame_stride data.threads data.prefetch model.depth model.width "
        "model.heads train.steps train.batch_size train.micro_batches checkpoint.every "
        "checkpoint.keep evaluate.batch_size evaluate.samples sample.examples sample.steps "
        "log.every log.profile_steps model.streams optim.sensitivity_examples model.knots "
        "pipeline.repeats diffusion.importance_history data.bucket_multiple text.length "
        "text.width text.depth text.heads autoencoder.batch_size autoencoder.width "
        "autoencoder.blocks autoencoder.latent_channels autoencoder.groups "
        "autoencoder.discriminator_width guard.most_in_a_row",
        0: "seed optim.warmup_steps optim.weight_decay optim.clip_norm evaluate.every "
        "evaluate.examples evaluate.metrics_every evaluate.reference sample.every "
        "sample.guidance log.profile_start log.peak_tflops "
        "log.sensitivity_every optim.sensitivity_penalty data.in_memory_gib "
        "pipeline.micro_batches sample.churn sample.batch_size diffusion.variance_weight "
        "train.ema_snapshots data.bucket_tokens autoencoder.kl_weight "
        "autoencoder.perceptual_weight autoencoder.discriminator_weight "
        "autoencoder.discriminator_start checkpoint.keep_every checkpoint.keep_best "
        "checkpoint.most_failed "
        "guard.most_rollbacks guard.spike_factor "
        "guard.collapse_factor "
        "watchdog.start watchdog.compile watchdog.data watchdog.step watchdog.save "
        "watchdog.evaluate watchdog.sample watchdog.encode watchdog.exit",
    }
    for low, fields in at_least.items():
        for field in fields.split():
            value = get(c, field)
            require(
                math.isfinite(value) and value >= low,
                field,
                f"is {value}",
                f"give a number of at least {low}",
            )
    positive = (
        "optim.learning_rate optim.gate_rate optim.eps train.ema_halflife_images data.scale "
        "model.mlp_ratio model.tolerance diffusion.logit_std diffusion.shift diffusion.sigma_min "
        "diffusion.sigma_data diffusion.snr_gamma sample.rho sample.tolerance sample.voxel_mm "
        "checkpoint.host_gib"
    )
    for field in positive.split():
        value = get(c, field)
        require(math.isfinite(value) and value > 0, field, f"is {value}", "give a positive number")
    for field in ("model.label_dropout", "optim.b1", "optim.b2"):
        value = get(c, field)
        require(0 <= value < 1, field, f"is {value}", "give a number in [0, 1)")
    require(c.seed < 2**32, "seed", f"is {c.seed}", "give a number below 2^32")
    require(
        c.model.label_dropout > 0 or c.sample.guidance == 1,
        "sample.guidance",
        f"is {c.sample.guidance}, away from a null class that model.label_dropout=0 never trains",
        "set it to 1, or train with label dropout",
    )
    require(
        c.data.with_class or c.text.encoder != "none" or c.sample.guidance == 1,
        "sample.guidance",
        f"is {c.sample.guidance}, and data.with_class=False: there is nothing to be guided to",
        "set it to 1",
    )
    require(
        c.train.batch_size % c.train.micro_batches == 0,
        "train.micro_batches",
        f"is {c.train.micro_batches}, which does not divide train.batch_size={c.train.batch_size}",
        f"the nearest that does is {nearest_divisor(c.train.batch_size, c.train.micro_batches)}",
    )
    require(
        c.optim.warmup_steps <= c.train.steps,
        "optim.warmup_steps",
        f"is {c.optim.warmup_steps}, more than train.steps={c.train.steps}",
        "shorten it",
    )
    metrics = c.evaluate.metrics
    require(
        isinstance(metrics, tuple) and len(metrics) > 0 and all(m in METRICS for m in metrics),
        "evaluate.metrics",
        f"is {metrics!r}",
        f"give a tuple of {', '.join(METRICS)}; evaluate.metrics_every=0 turns them off",
    )
    require(
        not c.evaluate.metrics_every or c.evaluate.net == "efflite0" or c.evaluate.weights,
        "evaluate.weights",
        f"is not set, and evaluate.net={c.evaluate.net} has no weights of its own",
        "give the file of its published weights, or choose evaluate.net=efflite0",
    )
    levels = c.evaluate.log_snr
    require(
        isinstance(levels, tuple) and len(levels) > 0 and all(map(is_number, levels)),
        "evaluate.log_snr",
        f"is {levels!r}",
        "give a tuple of numbers",
    )


def _check_optimizer(c) -> None:
    o = c.optim
    for row in o.rates:
        require(
            isinstance(row, tuple | list)
            and len(row) == 2
            and _is_pattern(row[0])
            and is_number(row[1])
            and row[1] >= 0,
            "optim.rates",
            f"has {row!r}",
            "give pairs of a regular expression and a factor",
        )
    for pattern in o.no_decay:
        require(
            _is_pattern(pattern), "optim.no_decay", f"has {pattern!r}", "give regular expressions"
        )
    require(
        o.name != "schedule_free" or o.schedule == "constant",
        "optim.schedule",
        f"is {o.schedule}, and optim.name=schedule_free needs a rate that does not fall",
        "choose constant",
    )
    require(
        o.name != "schedule_free" or o.b1 > 0,
        "optim.b1",
        "is 0, the share of the mean in the weights of optim.name=schedule_free",
        "give 0.9",
    )


def _check_averages(c) -> None:
    widths = c.train.ema_widths
    require(
        isinstance(widths, tuple)
        and all(is_number(width) and 0 < width < EVEN_WIDTH for width in widths)
        and len(set(widths)) == len(widths),
        "train.ema_widths",
        f"is {widths!r}",
        f"give (), or different numbers within (0, {EVEN_WIDTH:.3f}), such as (0.1, 0.25)",
    )
    require(
        not widths or c.optim.name != "schedule_free",
        "train.ema_widths",
        f"is {widths!r}, and optim.name=schedule_free has a mean of its own in the place of any",
        "set it to ()",
    )


def _check_guard(c) -> None:
    g = c.guard
    # Those that may be written until it is known that steps are bad, and the one before them.
    bad = max(g.most_in_a_row, c.log.sensitivity_every if g.collapse_factor else 0)
    needed = 2 + (bad - 1) // c.checkpoint.every
    require(
        g.action != "rollback" or c.checkpoint.keep >= needed,
        "checkpoint.keep",
        f"is {c.checkpoint.keep}, and guard.action=rollback goes back to one from before "
        f"{bad} bad steps, with checkpoint.every={c.checkpoint.every}",
        f"keep {needed}",
    )
    require(
        not g.collapse_factor or c.task == "diffusion",
        "guard.collapse_factor",
        f"is {g.collapse_factor}, and task={c.task} has no units whose tokens could become alike",
        "set it to 0",
    )
    require(
        not g.collapse_factor or c.log.sensitivity_every > 0,
        "guard.collapse_factor",
        f"is {g.collapse_factor}, of a share that log.sensitivity_every=0 does not measure",
        "set that to 100",
    )


def _is_pattern(text) -> bool:
    try:
        re.compile(text)
    except (re.error, TypeError, OverflowError, RecursionError):
        return False
    return True


def _check_seen(c) -> None:
    """What the network sees beside x_t must be there, and leave something to make."""
    d = c.data
    require(
        d.seen != "segmentation" or d.seen_classes >= 1,
        "data.seen_classes",
        f"is {d.seen_classes} with data.seen=segmentation",
        "give the number of classes, the background among them",
    )
    require(
        d.seen != "frames" or (len(d.shape) == 4 and 1 <= d.seen_frames < d.shape[0]),
        "data.seen_frames",
        f"is {d.seen_frames} with data.shape={tuple(d.shape)}",
        "give 1 or more, fewer than the frames of a clip (T, H, W, C)",
    )


def _check_flip(c) -> None:
    """What is mirrored must still be of its class and caption; an autoencoder reads neither."""
    require(
        not (c.data.flip and c.data.name == "moving_emoji"),
        "data.flip",
        "is True with data.name=moving_emoji, of which what moves to the right is of another class "
        "than what moves to the left",
        "set it to False",
    )


def _check_written(c) -> None:
    """Latents, of as many channels as there may be, are decoded before they are written."""
    shape, form = tuple(c.data.shape), c.sample.write
    volume = form in ("scans", "shapes")
    require(
        form in ("auto", "arrays")
        or (len(shape) == (3 if form == "pictures" else 4) and not (volume and shape[-1] == 3)),
        "sample.write",
        f"is {form} with data.shape={shape}",
        "choose auto; pictures are (H, W, C), clips (T, H, W, C), scans and shapes (D, H, W, 1)",
    )


def _check_diffusion(c) -> None:
    d = c.diffusion
    require(
        d.sigma_min < d.sigma_max,
        "diffusion.sigma_min",
        f"is {d.sigma_min}, not below diffusion.sigma_max={d.sigma_max}",
        "make it smaller",
    )
    require(
        0 <= d.mode_scale <= 2 / (math.pi - 2),
        "diffusion.mode_scale",
        f"is {d.mode_scale}",
        "give a number from 0 to 2 / (pi - 2) = 1.75",
    )
    require(
        d.times != "importance" or not d.uncertainty,
        "diffusion.times",
        "is importance, by the size of the losses, and diffusion.uncertainty=True makes those of "
        "all times alike",
        "choose other times, or diffusion.uncertainty=False",
    )
    require(
        d.path != "ve" or d.shift == 1,
        "diffusion.shift",
        f"is {d.shift}, which diffusion.path=ve does not have",
        "set it to 1, and diffusion.sigma_max",
    )
    require(c.sample.order in (1, 2, 3), "sample.order", f"is {c.sample.order}", "choose 1, 2 or 3")
    require(0 <= c.sample.eta <= 1, "sample.eta", f"is {c.sample.eta}", "give a number from 0 to 1")
    require(
        not c.sample.threshold or c.data.shape[-1] in (1, 3),
        "sample.threshold",
        f"is {c.sample.threshold}, for pixels, and data.shape={c.data.shape} is of latents",
        "set it to 0",
    )
    interval = c.sample.guidance_interval
    require(
        isinstance(interval, tuple)
        and (not interval or (len(interval) == 2 and all(map(is_number, interval))
                              and 0 <= interval[0] < interval[1])),
        "sample.guidance_interval",
        f"is {interval!r}",
        "give (), or two numbers of sigma / alpha, such as (0.2, 2.0)",
    )  # fmt: skip
    for field in ("guidance_rescale", "threshold"):
        require(
            0 <= c.sample[field] <= 1,
            f"sample.{field}",
            f"is {c.sample[field]}",
            "give a number from 0 to 1",
        )
    require(
        not (c.model.learn_variance and d.variance_weight and d.path == "rectified_flow"
             and not d.t_min),
        "diffusion.t_min",
        "is 0, where sigma of diffusion.path=rectified_flow is 0 and a step to it has no variance "
        "for model.learn_variance=True to learn",
        "set it to 0.001, or diffusion.variance_weight=0",
    )  # fmt: skip
    # On this path alpha(1) = 0: the data cannot be told from eps there (see diffusion.predictions).
    require(
        not (d.path == "rectified_flow" and d.prediction in ("eps", "score") and d.t_max is None),
        "diffusion.prediction",
        f"is {d.prediction}, which divides by alpha = 0 at t = 1 of diffusion.path=rectified_flow",
        "choose velocity, v, x0 or edm, diffusion.path=ddpm_linear, or diffusion.t_max=0.999"
        + (" and diffusion.t_min=0.001" if d.prediction == "score" else ""),
    )
