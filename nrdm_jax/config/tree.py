"""The one config tree: every field with its default, its choices, and the tree as JSON.

Tuples stand for lists and `placeholder` for None, since ml_collections can override neither a list
nor a None.
"""

import difflib
import json
import pathlib
import runpy

import ml_collections
from ml_collections.config_dict import placeholder

MESH_AXES = ("data", "stage", "fsdp", "context", "tensor")
# Of model.variant, those whose units are z + something (models.unit.VARIANTS).
ADDITIVE_VARIANTS = ("gated", "adaln", "resnet", "rezero", "layerscale")
# Those whose gates are of the shape and condition that were asked for.
GATED_VARIANTS = ("gated", "adaln", "input_scale")

# Of model.attention_kernel, those that others wrote: one device's part of the batch and the heads.
FUSED_KERNELS = ("splash", "cudnn", "tokamax")

MOST_NESTED = 8  # lists in a list: no field has more than one

METRICS = ("fd", "kid", "inception_score", "sfd", "precision_recall")

CHOICES = {
    "task": ("diffusion", "autoencoder"),
    "autoencoder.name": ("none", "kl", "taef2", "sd"),
    "autoencoder.reconstruction": ("l1", "l2"),
    "checkpoint.best_metric": ("heldout_loss", "heldout_x0_error"),
    "model.name": ("dit", "uvit", "unet", "continuous"),
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
    "model.attention_kernel": (
        "xla",
        "blockwise",
        "ring",
        "ulysses",
        "splash",
        "cudnn",
        "tokamax",
    ),
    "model.quantize": ("none", "int8", "fp8"),
    "model.positions": ("sincos", "rotary"),
    "model.mlp": ("gelu", "swiglu"),
    "model.skip": ("inside", "project"),
    "model.solver": ("euler", "heun", "dopri5", "tsit5"),
    "model.adjoint": ("backpropagation", "ode"),
    "model.branch_dtype": ("float32", "bfloat16"),
    "model.memory": ("none", "remat", "sqrt", "offload", "reversible"),
    "model.remat_policy": ("nothing", "branches", "dots_no_batch", "dots"),
    "data.corrupt": ("skip", "fail"),
    "data.seen": ("none", "segmentation", "frames", "box"),
    "text.encoder": ("none", "bytes", "minilm", "t5", "clip"),
    "text.where": ("records", "step"),
    "diffusion.path": ("rectified_flow", "ddpm_linear", "ddpm_discrete", "cosine", "ve"),
    "diffusion.prediction": ("velocity", "v", "eps", "x0", "score", "edm"),
    "diffusion.times": ("uniform", "logit_normal", "log_normal", "mode", "discrete", "importance"),
    "diffusion.weight": ("uniform", "min_snr", "sigmoid", "edm", "velocity", "likelihood"),
    "guard.action": ("halt", "rollback"),
    "optim.name": ("adamw", "lion", "adafactor", "muon", "schedule_free"),
    "optim.schedule": ("cosine", "constant"),
    "evaluate.net": ("efflite0", "inception", "i3d", "i3d_videogpt", "dinov2"),
    "sample.sampler": (
        "euler",
        "heun",
        "ddim",
        "ddpm",
        "edm",
        "dpmpp_2m",
        "dpmpp_2m_sde",
        "unipc",
        "sde",
        "dopri5",
    ),
    "sample.grid": ("uniform", "quadratic", "karras", "log_snr", "respaced"),
    "sample.write": ("auto", "pictures", "clips", "scans", "shapes", "arrays"),
    "sample.diffusion": ("sigma", "sbdm", "constant", "sin2"),
}


def default() -> ml_collections.ConfigDict:
    """The whole tree with its default values; a config file changes fields, never adds one."""
    c = ml_collections.ConfigDict()
    c.seed = 0  # of the initial weights, the data order and the training noise
    # diffusion | autoencoder: what is trained. An autoencoder is one of `autoencoder`'s group, and
    # model, diffusion and sample's fields of solvers are not read.
    c.task = "diffusion"

    c.data = ml_collections.ConfigDict()
    # openmoji | cifar10 | fashion_mnist | image_folder:PATH | moving_emoji | weizmann |
    # fluent_emoji | video_folder:PATH | solids | hippocampus | nifti_folder:PATH |
    # dicom_folder:PATH | modelnet | sweethome3d | synthetic | tfds:NAME[/CONFIG]
    c.data.name = "openmoji"
    c.data.shape = (32, 32, 3)  # of one example: H, W, C (video T, H, W, C; volume D, H, W, C)
    # Shapes to train at, such as ((32, 32, 3), (24, 40, 3)), data.shape among them, which held-out
    # losses and samples have and whose grid positions span; (): data.shape alone.
    c.data.buckets = ()
    # Patches of a batch, about as many in each bucket; 0: train.batch_size examples in each.
    c.data.bucket_tokens = 0
    # Batches by bucket_tokens are multiples of it; a mesh divides them or is refused, so that none
    # changes the order of the data.
    c.data.bucket_multiple = 8
    c.data.num_classes = 10
    # The network is told the class of a record; False: nothing. Of captions see text.with_class.
    c.data.with_class = True
    c.data.dir = placeholder(str)  # prepared sets; else TFDS_DATA_DIR, else .cache/data
    c.data.corrupt = "skip"  # skip | fail: pictures and videos that cannot be read
    c.data.frame_stride = 1  # of weizmann and video_folder: frames from one of a clip to the next
    c.data.flip = False  # mirror the last spatial axis, half of the time
    c.data.scale = 1.0  # float records (latents) are used as (record - shift) * scale
    c.data.shift = 0.0
    # none | segmentation | frames | box: what the network sees at each place beside x_t: the
    # classes of the set's segmentation, the first frames of a clip, all but a box.
    c.data.seen = "none"
    c.data.seen_classes = 0  # of segmentation, its background among them
    c.data.seen_frames = 1  # of frames
    c.data.in_memory_gib = 2.0  # a set that fits is decoded once, into host memory
    c.data.threads = 2  # that read and decode, where the set does not fit
    c.data.prefetch = 2  # batches prepared ahead of the device

    c.autoencoder = ml_collections.ConfigDict()
    # none | kl | taef2 | sd. With task=diffusion: whose latents of data.name's pixels are diffused,
    # data.shape being that of the latents; with task=autoencoder: kl, which is trained.
    c.autoencoder.name = "none"
    # Of a diffusion in latents. kl: workdir of the autoencoder's run; sd: file of an AutoencoderKL
    # in diffusers' layout; taef2: directory of taef2_{encoder,decoder}.safetensors, else
    # NRDM_TAEF2, else ../shared/data.
    c.autoencoder.weights = placeholder(str)
    # Directory that `nrdm encode` has made; else the records are encoded on first use, into the
    # prepared sets.
    c.autoencoder.encoded = placeholder(str)
    c.autoencoder.batch_size = 32  # that is encoded or decoded at a time
    c.autoencoder.width = 64  # channels of the first level
    c.autoencoder.channel_factors = (1, 2, 2)  # of each level over width; each has half the size
    c.autoencoder.blocks = 1  # of a level on the way to the latents; one more on the way back
    c.autoencoder.latent_channels = 4
    c.autoencoder.attention = False  # in the middle
    c.autoencoder.groups = 32  # of channels, normalised together; fewer where they do not divide
    c.autoencoder.reconstruction = "l1"  # l1 | l2: absolute or squared error, a number's mean
    c.autoencoder.kl_weight = 1e-6  # of the divergence from N(0, 1), in nats a number of the record
    c.autoencoder.perceptual_weight = 0.0  # of the distance of features of evaluate.net; pictures
    c.autoencoder.discriminator_weight = 0.0  # of the patch discriminator's verdict; 0: none
    c.autoencoder.discriminator_width = 32  # channels of its first level
    c.autoencoder.discriminator_start = 1000  # steps before it is trained and heard
    c.text = ml_collections.ConfigDict()
    # none | bytes | minilm | t5 | clip: what reads the captions of the records. bytes is a part of
    # the network and learns with it, the others stay as they are; minilm's weights are a package's
    # (extra text).
    c.text.encoder = "none"
    c.text.length = 32  # tokens (of bytes: bytes) of a caption, which is cut and padded to so many
    c.text.weights = placeholder(str)  # of t5 and clip: a folder as Hugging Face has it, or a file
    # Channels of the encoder's states: of bytes as one likes, of t5 and clip those of the weights.
    c.text.width = 128
    c.text.depth = 2  # of bytes: blocks
    c.text.heads = 4  # of bytes
    # records | step: captions are encoded once and kept beside the prepared data; or in every step.
    c.text.where = "records"
    c.text.with_class = False  # the network is told the class of a captioned record as well

    c.model = ml_collections.ConfigDict()
    c.model.name = "dit"  # dit | uvit | unet | continuous
    c.model.size = placeholder(str)  # S | B | L | XL: sets depth, width and heads
    # Blocks; a block of a transformer has two residual units (attention, MLP). unet: blocks of a
    # level on its way down, and as many on its way up. continuous: the length of the integral.
    c.model.depth = 8
    c.model.width = 192
    c.model.heads = 3
    c.model.mlp = "gelu"  # gelu | swiglu
    c.model.mlp_ratio = 4.0
    c.model.qk_norm = False  # RMSNorm on queries and keys
    c.model.attention = "joint"  # joint | factorised: within frames and across them, taking turns
    # How attention is computed: xla | blockwise | ring, ulysses (mesh.context) | splash (TPU) |
    # cudnn (GPU) | tokamax (an extra)
    c.model.attention_kernel = "xla"
    c.model.positions = "sincos"  # sincos | rotary
    c.model.skip = "inside"  # inside | project: how uvit and unet read the way down
    c.model.channel_factors = (1, 2, 2)  # unet: channels of each level over model.width
    c.model.attention_at = (8,)  # unet: sizes of the longest axis at which levels attend
    c.model.knots = 1  # continuous: blocks of weights, interpolated over the depth
    c.model.solver = "tsit5"  # continuous: euler | heun | dopri5 | tsit5
    c.model.tolerance = 1e-3  # continuous: of a solver's step, relative and absolute
    c.model.adjoint = "backpropagation"  # continuous: backpropagation | ode
    c.model.patch = (2,)  # side of a patch: one number for all axes, or one each: (1, 2, 2)
    # Share of examples trained with the null class and without text, for guidance
    c.model.label_dropout = 0.1
    c.model.learn_variance = False  # twice the output channels: the second half is of the variance
    c.model.variant = "gated"  # the form of every residual unit, one of models.unit.VARIANTS
    c.model.gate_shape = "channel"  # channel | scalar
    c.model.gate_condition = "cond"  # cond | cond_shared | static
    c.model.alpha_start = "auto"  # auto | zero | one | inv_sqrt_units | a number
    c.model.alpha_bound = True  # of gated: alpha = alpha_raw / sqrt(units)
    c.model.beta = True  # the additive gate; False fixes it at 0 and removes its parameters
    c.model.beta_start = "auto"  # auto: 0, of mv_split its authors' | a number
    c.model.beta_bound = True  # beta = beta_raw / units, learning rate of beta_raw * 0.1
    c.model.modulation = (
        "per_unit"  # per_unit | shared | none: who owns the kernel of the adaptive norms
    )
    c.model.prefix_tokens = False  # time and class are two tokens in front of the patches, too
    c.model.branch_dtype = "float32"  # of the branches; trunk, gates, norms stay float32
    # none | int8 | fp8: products of a transformer's branches with their weights (extra quantize)
    c.model.quantize = "none"
    c.model.streams = 1  # 2: the trunk twice, units write the one and read the other
    c.model.memory = "none"  # none | remat | sqrt | offload | reversible: see models/memory.py
    c.model.remat_policy = "nothing"  # nothing | branches | dots_no_batch | dots: kept by remat

    c.diffusion = ml_collections.ConfigDict()
    # rectified_flow | ddpm_linear | ddpm_discrete | cosine | ve
    c.diffusion.path = "rectified_flow"
    c.diffusion.shift = (
        1.0  # factor of sigma / alpha at every t: above 1 for many pixels; not of ve
    )
    c.diffusion.sigma_min = 0.002  # of ve
    c.diffusion.sigma_max = 80.0  # of ve
    c.diffusion.sigma_data = 0.5  # standard deviation of the data: of ve, prediction and weight edm
    c.diffusion.t_min = placeholder(float)  # training times; None: the path's own
    c.diffusion.t_max = placeholder(float)
    c.diffusion.prediction = "velocity"  # velocity | v | eps | x0 | score | edm
    # logit_normal | uniform | log_normal | mode | discrete | importance
    c.diffusion.times = "logit_normal"
    # Of logit_normal, before the logistic function, > 0 is noisier; of log_normal, of
    # log(sigma / alpha).
    c.diffusion.logit_mean = 0.0
    c.diffusion.logit_std = 1.0
    c.diffusion.mode_scale = 1.29  # of mode, at most 2 / (pi - 2)
    c.diffusion.importance_bins = 100  # of importance: parts of the times, drawn by their losses
    c.diffusion.importance_history = 10  # examples of each part that are remembered
    c.diffusion.weight = "uniform"  # uniform | min_snr | sigmoid | edm | velocity | likelihood
    c.diffusion.snr_gamma = 5.0  # of min_snr
    c.diffusion.sigmoid_bias = 0.0  # of sigmoid
    # The weighted loss l of a noise level becomes l / exp(u) + u, with a learned u: in the end all
    # levels weigh alike, whatever diffusion.weight.
    c.diffusion.uncertainty = False
    # With model.learn_variance: factor of the variational bound, 1 is DiT's; 0: the variance is not
    # learned, and no sampler looks at it.
    c.diffusion.variance_weight = 1.0

    c.optim = ml_collections.ConfigDict()
    c.optim.name = "adamw"  # adamw | lion | adafactor | muon | schedule_free
    c.optim.learning_rate = 1e-4
    c.optim.gate_rate = 1.0  # factor of the learning rate of all gates
    c.optim.rates = ()  # ((pattern in a parameter's path, factor of its learning rate), ...)
    c.optim.no_decay = ()  # (pattern, ...): not decayed, beside gates, norms, biases, embeddings
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
    # The average that is scored and drawn from: its half-life is a number of examples, and warms up
    # to it as a twentieth of those seen.
    c.train.ema_halflife_images = 500_000.0
    # Further averages, whose widths grow with the run: standard deviations of power functions, as
    # shares of the steps so far, such as (0.1, 0.25). Each is one more copy of the weights.
    c.train.ema_widths = ()
    # How often those are kept, evenly over train.steps, all of them and in float32, in
    # WORKDIR/ema_snapshots: `nrdm ema` makes the average of any width from them. 0: never
    c.train.ema_snapshots = 32

    # What is done about a loss that goes wrong. The update of a step whose loss or gradient is not
    # finite is always skipped and counted.
    c.guard = ml_collections.ConfigDict()
    c.guard.most_in_a_row = 3  # bad steps in a row that are one too many; 1 bears none
    # halt | rollback: the run ends (exit code 70); or the newest checkpoint from before the first
    # of them is restored, and the data go on behind the last of them.
    c.guard.action = "halt"
    c.guard.most_rollbacks = 3  # of a run, which then ends
    # A loss so many robust standard deviations above the running median is a spike, and its step is
    # bad; 0: none is. 10 is high enough for small batches. Not for losses that jump by design, as
    # at autoencoder.discriminator_start.
    c.guard.spike_factor = 0.0
    c.guard.spike_window = 128  # losses of which median and deviation are taken
    # The largest token-mean share of the units, looked at every log.sensitivity_every steps, above
    # so many times its median is a collapse, one too many at once; 0: none is.
    c.guard.collapse_factor = 0.0

    c.mesh = ml_collections.ConfigDict()
    # Devices along each axis; -1: all that are left. See sharding/mesh.py.
    c.mesh.data = -1
    c.mesh.stage = 1
    c.mesh.fsdp = 1
    c.mesh.context = 1
    c.mesh.tensor = 1
    # Of several slices, joined by a slow network, so many along each axis; the sizes above are then
    # those of one slice.
    c.mesh.slices = ml_collections.ConfigDict(dict.fromkeys(MESH_AXES, 1))
    c.mesh.zero1 = False  # the optimizer's state and the averages are divided over data as well

    c.pipeline = ml_collections.ConfigDict()  # with mesh.stage > 1
    c.pipeline.micro_batches = 0  # into which a batch is cut; 0: as many as there are stages
    c.pipeline.repeats = 1  # times that a micro-batch goes round all stages

    c.checkpoint = ml_collections.ConfigDict()
    c.checkpoint.every = 1000  # steps
    c.checkpoint.keep = 3  # newest steps kept
    c.checkpoint.keep_every = 0  # and those that it divides; 0: none for that
    # And so many of the least held-out loss, of those that were evaluated; 0: none for that.
    c.checkpoint.keep_best = 0
    c.checkpoint.best_metric = "heldout_loss"  # or heldout_x0_error
    # GiB of a process's memory that a save may take. A state of which it holds less is copied at
    # once, and written while training goes on; of a larger one a few leaves at a time are, and
    # training waits.
    c.checkpoint.host_gib = 64.0
    # Saves in a row that fail, as on a full disk, after which the run ends (exit code 74): until
    # then it trains on, since the next one may be written. 0: it never ends for that.
    c.checkpoint.most_failed = 10
    c.checkpoint.init_from = placeholder(str)  # workdir of a run whose EMA weights are the start

    c.evaluate = ml_collections.ConfigDict()
    c.evaluate.every = 1000  # steps between held-out losses inside the run; 0: never
    c.evaluate.batch_size = 64
    c.evaluate.examples = 0  # held-out examples used inside the run, 0: all
    # Images between scores of samples inside the run, rounded up to steps; 0: never.
    c.evaluate.metrics_every = 0
    # fd | kid | inception_score | sfd | precision_recall
    c.evaluate.metrics = ("fd", "kid")
    c.evaluate.samples = 1000  # that are scored
    c.evaluate.reference = 0  # training examples that they are compared with, 0: all
    # efflite0 | inception | i3d | i3d_videogpt | dinov2: whose features are compared
    c.evaluate.net = "efflite0"
    c.evaluate.weights = placeholder(str)  # file of the network's weights; efflite0 has a package
    c.evaluate.log_snr = (-6.0, -4.5, -3.0, -1.5, 0.0, 1.5, 3.0, 4.5)  # fixed levels

    c.sample = ml_collections.ConfigDict()
    c.sample.every = 0  # steps between sample grids inside the run; 0: never
    c.sample.examples = 64
    # auto | pictures | clips | scans | shapes | arrays: what samples are written as. auto goes by
    # their shape: (H, W, C) pictures, (T, H, W, 3) clips, (D, H, W, 1) scans. What is inside of
    # shapes is above the middle of the range.
    c.sample.write = "auto"
    c.sample.voxel_mm = 1.0  # edge of a voxel, in the files of scans
    # Examples at a time, all devices together; 0: 64, and on a CPU fewer, so that a batch stays in
    # its caches (drawing.batch_size).
    c.sample.batch_size = 0
    # euler | heun | ddim | ddpm | edm | dpmpp_2m | dpmpp_2m_sde | unipc | sde | dopri5
    # ddpm draws with the learned variance of model.learn_variance, others do not look at it.
    c.sample.sampler = "heun"
    c.sample.steps = 30  # times at which the network is evaluated; heun and edm do so twice
    c.sample.grid = "uniform"  # uniform | quadratic | karras | log_snr | respaced
    c.sample.rho = 7.0  # of grid karras
    c.sample.eta = 0.0  # ddim: share of noise, 1 is ddpm
    c.sample.churn = 0.0  # edm: S_churn, noise added over all steps
    c.sample.order = 2  # unipc: p = 1, 2 or 3, of the predictor
    c.sample.diffusion = "sigma"  # sde: sigma | sbdm | constant | sin2, the diffusion coefficient
    c.sample.tolerance = 1e-4  # dopri5: of a step, relative and absolute
    c.sample.guidance = 1.0  # classifier-free; 1 is off
    c.sample.guidance_interval = ()  # (low, high) of sigma/alpha, outside of which it is off
    c.sample.guidance_rescale = 0.0  # share brought back to the conditional output's deviation
    c.sample.threshold = 0.0  # quantile of |x0| that pixels are clipped to, such as 0.995; 0: off

    # Seconds without a sign of life after which a process ends with exit code 71 and the stacks of
    # its threads in workdir/stacks.txt; 0: never. Time in which the process is stopped, as on a
    # machine that sleeps, does not count; the first two rounds of each may take what compile may.
    c.watchdog = ml_collections.ConfigDict()
    c.watchdog.start = 14400.0  # data that are prepared, and waiting for the others
    c.watchdog.compile = 3600.0
    c.watchdog.data = 600.0  # a batch
    c.watchdog.step = 600.0
    c.watchdog.save = 1800.0
    c.watchdog.evaluate = 1800.0  # a batch, or what is computed of all
    c.watchdog.sample = 1800.0  # a batch
    c.watchdog.encode = 3600.0  # a shard
    # What is closed at the end is left to itself after so many seconds; the exit code stays.
    c.watchdog.exit = 120.0

    c.log = ml_collections.ConfigDict()
    c.log.every = 50  # steps between lines
    # Steps between records of the units' sensitivity and the trunk's health; 0: never.
    c.log.sensitivity_every = 100
    c.log.profile_start = 0  # first step of a profiler trace in workdir/profile; 0: none
    c.log.profile_steps = 3
    c.log.peak_tflops = 0.0  # of one device, to print MFU; 0: looked up, unknown on a CPU
    return c


def of_file(file: str, name: str, argument: str = "") -> ml_collections.ConfigDict:
    """The config of the file `name`.py beside `file`, for a config that changes a few of its
    fields."""
    return runpy.run_path(str(pathlib.Path(file).with_name(f"{name}.py")))["get_config"](argument)


def with_class(config) -> bool:
    """Whether the network is told the class of a record, and not that of none."""
    return config.data.with_class if config.text.encoder == "none" else config.text.with_class


def patch_of(config) -> tuple[int, ...]:
    """Side of a patch on every spatial axis of `data.shape`."""
    patch, axes = tuple(config.model.patch), len(config.data.shape) - 1
    return patch * axes if len(patch) == 1 else patch


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

    def tuples(value, depth=0):
        if depth > MOST_NESTED:
            raise TypeError("lists are nested too deeply")
        return tuple(tuples(v, depth + 1) for v in value) if isinstance(value, list) else value

    def fill(node, part, path):
        for key, value in part.items():
            if key not in node:
                raise ValueError(f"config field {path}{key} is unknown" + hint(key, node.keys()))
            if isinstance(node[key], ml_collections.ConfigDict) != isinstance(value, dict):
                raise ValueError(f"config field {path}{key} is {str(value)[:60]!r}: a group of "
                                 "fields has fields, and a field has none")  # fmt: skip
            if isinstance(value, dict):
                fill(node[key], value, f"{path}{key}.")
            else:
                try:
                    node[key] = tuples(value)
                except (TypeError, OverflowError) as error:
                    raise ValueError(f"config field {path}{key}: {error}") from error

    with config.ignore_type():
        try:
            fill(config, values, "")
        except RecursionError as error:
            raise ValueError("config is nested too deeply") from error
    return config


def hint(given: str, choices) -> str:
    close = difflib.get_close_matches(given, list(choices), n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""
