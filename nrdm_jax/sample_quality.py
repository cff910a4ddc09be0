"""How good the samples of a run are: drawn, put through a feature network, and scored beside the
training set; inside a run and after it, on all processes together."""

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax import build, drawing
from nrdm_jax.data import loader
from nrdm_jax.data.captions import plain
from nrdm_jax.data.errors import DataError
from nrdm_jax.data.sources import Source, fingerprint_of
from nrdm_jax.evaluation import feature_sets, features
from nrdm_jax.evaluation.feature_sets import FeatureSet
from nrdm_jax.evaluation.features import FeatureNet
from nrdm_jax.evaluation.networks.outputs import Outputs
from nrdm_jax.evaluation.scores import SETTINGS, check, class_scores, scores
from nrdm_jax.processes import distributed, lifecycle
from nrdm_jax.processes.exit_codes import NotFinite
from nrdm_jax.sampling import generate
from nrdm_jax.sampling.generate import Generator
from nrdm_jax.sharding.mesh import batch_sharding, replicated, rows_here
from nrdm_jax.signatures import Array, Params
from nrdm_jax.training.metrics import warned_of

# Of the reference, so many keep their features, for the metrics of neighbours and kernels.
KEPT = 10_000
SPLIT = "train"  # the reference, as in the papers
FORMAT = 2  # of a reference on disk
_calls = itertools.count()  # of this process: a meeting each

# Gets of each batch the samples (n, *S, C) in the network's range, their pixels (n, *S', C') uint8,
# and labels (n,).
Sink = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


class SampleQuality:
    """Scores samples of a run.

    Args:
      parts: of the run.
      records: its training set, as pixels.
      sampler: that draws; see `drawing.generator`.
      net: the feature network.
      heldout: records whose texts, and what else they have beside a class, samples are given.
      metrics: see `evaluation.scores`; by default the config's.
      samples: how many, by default the config's.
      by_class: scores of each class as well.
      to_pixels: of the samples, uint8.

    Raises:
      ValueError: the records are no pixels, or the network is not for such.
    """

    def __init__(
        self,
        parts: build.Run,
        records: Source,
        sampler: Generator,
        net: FeatureNet,
        heldout: Source,
        *,
        metrics: tuple[str, ...] | None = None,
        samples: int | None = None,
        by_class: bool = False,
        to_pixels: Callable[[np.ndarray], np.ndarray] = generate.to_pixels,
    ):
        c = parts.config.evaluate
        records = plain(records)  # they are looked at only
        self._mesh, self._records, self._sampler = parts.mesh, records, sampler
        self._config, self._heldout = parts.config, heldout
        self._to_pixels, self._task = to_pixels, parts.task
        self._metrics = tuple(c.metrics if metrics is None else metrics)
        self._samples = c.samples if samples is None else samples
        self._by_class, self._batch_size = by_class, c.batch_size
        if records.dtype != np.uint8:
            raise ValueError(
                "evaluate.metrics are of pixels, and the records of data.name="
                f"{parts.config.data.name} are not; set evaluate.metrics_every=0, or give pixels"
            )
        self._net = net
        _check_shape(self._net, records.shape)
        self._params = jax.device_put(self._net.params, replicated(self._mesh))
        self._outputs = jax.jit(_of_batch(self._net), out_shardings=replicated(self._mesh))
        self._check_metrics()
        examples = min(c.reference or len(records), len(records))
        self.protocol = {
            "net": self._net.name,
            "weights": self._net.fingerprint,
            "preprocessing": self._net.preprocessing,
            "pixels": "uint8, 0 to 255, rounded"
            + ("" if self._net.clips or len(records.shape) == 3 else "; each frame an example"),
            "samples": self._samples,
            "seeds": f"0 to {self._samples - 1}",
            "given": self._given_in_words(),
            "reference": {
                "data": parts.config.data.name,
                "fingerprint": records.fingerprint,
                "split": SPLIT,
                "examples": examples,
                "features_kept": KEPT,
            },
            "settings": {
                metric: SETTINGS[metric]
                for metric in SETTINGS
                if metric in self._metrics or (by_class and metric == "kid")
            },
            **drawing.protocol(parts.config),
        }
        self._examples = examples
        self._known: FeatureSet | None = None

    def _given_in_words(self) -> str:
        if self._by_prompted_class():
            return "classes in the reference's proportions"
        if not self._task.original and drawing.unconditional(self._config):
            return "nothing"
        return "held-out records evenly from the first to the last"

    def _by_prompted_class(self) -> bool:
        """Whether samples are given a class and nothing else."""
        return not self._task.original and drawing.by_class(self._config)

    def _check_metrics(self) -> None:
        """Raises ValueError now, and not at the first scores."""
        pixels = jax.ShapeDtypeStruct((2, *self._records.shape), jnp.uint8)
        outputs = jax.eval_shape(self._outputs, self._params, pixels)
        has = {"spatial": outputs.spatial is not None, "logits": outputs.logits is not None}
        check(self._metrics, self._net.name, **has)
        least = 4 if "precision_recall" in self._metrics else 2
        if self._samples * self._frames() < least:
            raise ValueError(f"evaluate.samples is {self._samples}; give at least {least}")

    def __call__(
        self,
        params: Any,
        poll: Callable[[], None] = lambda: None,
        sink: Sink = lambda x, pixels, labels: None,
    ) -> dict:
        """Draws with these weights and scores: {"scores": {…}, "classes": {…}, "protocol": {…}} on
        the writer, {} on the others; all processes must call it.

        Raises:
          NotFinite: samples are not, or their features; on all processes.
        """
        before = time.monotonic()
        self._prepare(poll)
        seeds, classes = np.arange(self._samples), self._classes()
        found = FeatureSet()
        for start in range(0, self._samples, self._sampler.batch_size):
            chunk = np.arange(start, min(start + self._sampler.batch_size, self._samples))
            poll()
            given = self._task.prompts(seeds, lambda: self._heldout, classes, rows=chunk)
            x, labels = self._sampler(params, chunk, given), given["label"]
            if not np.all(np.isfinite(x)):
                raise NotFinite(f"samples {chunk[0]} to {chunk[-1]} are not all finite")
            pixels = self._to_pixels(x)
            sink(x, pixels, labels)
            for batch in self._batches(pixels, labels):
                self._add(found, batch)
        result = self._scores(found, before) if distributed.is_writer() else {}
        # The others would give up on a collective that the writer is late for.
        distributed.meet(f"sample quality {next(_calls)}")
        return result

    def _scores(self, found: FeatureSet, before: float) -> dict:
        assert self._known is not None
        net, names = self._net.name, self._records.class_names
        return {
            "scores": scores(found, self._known, self._metrics, net),
            "classes": class_scores(found, self._known, net, names) if self._by_class else {},
            "seconds": round(time.monotonic() - before, 1),
            "protocol": self.protocol,
        }

    def _prepare(self, poll: Callable[[], None]) -> None:
        """Makes the reference known to the writer: from the cache, or by all processes."""
        if self._known is not None:
            return
        about = self.protocol["reference"] | {
            name: self.protocol[name] for name in ("net", "weights", "preprocessing", "pixels")
        }
        path = lifecycle.cache_dir() / "references" / f"{fingerprint_of(FORMAT, about)}.npz"
        cached = feature_sets.load(path) if distributed.is_writer() else None
        if distributed.of_writer(np.int32(cached is not None)):
            self._known = cached or FeatureSet()
            return
        count = self._examples * self._frames()
        print(f"features of {count} reference examples by {self._net.name}", flush=True)
        found = FeatureSet(kept=feature_sets.drawn(KEPT, count))
        sharding = batch_sharding(self._mesh)
        for batch in loader.in_order(
            self._records, self._batch_size, sharding, limit=self._examples
        ):
            poll()
            try:
                self._add(found, batch)
            except NotFinite as error:
                raise DataError(f"the reference cannot be scored with: {error}") from error
        self._known = found
        if distributed.is_writer():
            with warned_of(f"the features of the reference are not kept in {path}"):
                feature_sets.save(path, found, about)

    def _classes(self) -> np.ndarray | None:
        """Labels of the samples in the proportions of the reference, mixed, exact and no matter how
        many devices; None where they are given what held-out records have."""
        if not self._by_prompted_class():
            return None
        labels = np.zeros(self._samples, np.int32)
        if distributed.is_writer():
            assert self._known is not None
            ends = np.cumsum(self._known.of_classes)
            places = (np.arange(self._samples) + 0.5) / self._samples * ends[-1]
            labels = np.searchsorted(ends, places, side="right")
            labels = np.random.default_rng(0).permutation(labels).astype(np.int32)
        return np.asarray(distributed.of_writer(labels))

    def _frames(self) -> int:
        """Examples that a record is to the network."""
        shape = self._records.shape
        return 1 if self._net.clips or len(shape) == 3 else shape[0]

    def _batches(self, pixels: np.ndarray, labels: np.ndarray) -> Iterator[dict]:
        """Batches of one size, on the devices; the last one filled up."""
        sharding, size = batch_sharding(self._mesh), self._batch_size
        rows = list(rows_here(sharding, size))
        for start in range(0, len(pixels), size):
            numbers = start + np.asarray(rows)
            near = np.minimum(numbers, len(pixels) - 1)
            batch = {
                "x": pixels[near],
                "label": labels[near],
                "mask": numbers < len(pixels),
            }
            yield loader.to_devices(batch, sharding, rows, size)

    def _add(self, found: FeatureSet, batch: dict) -> None:
        outputs = self._outputs(self._params, batch["x"])
        label, mask = _on_all((batch["label"], batch["mask"]), self._mesh)
        mask, label = (np.repeat(np.asarray(x), self._frames()) for x in (mask, label))

        def some(x: Array | None) -> np.ndarray | None:
            return None if x is None else np.asarray(x)[mask]

        pooled = some(outputs.pooled)
        assert pooled is not None
        try:
            found.add(pooled, some(outputs.spatial), some(outputs.logits), label[mask])
        except FloatingPointError as error:
            raise NotFinite(f"of {self._net.name}: {error}") from error


def _of_batch(net: FeatureNet) -> Callable[[Params, Array], Outputs]:
    """(params, pixels (B, *S, C) uint8) -> features, (B, F); frame by frame, (B T, F), where a
    network of pictures gets clips or volumes."""

    def of_pictures(params: Params, pixels: Array) -> Outputs:
        return net.apply(params, features.as_colour(pixels.astype(jnp.float32)))

    def of_batch(params: Params, pixels: Array) -> Outputs:
        if net.clips or pixels.ndim == 4:
            return of_pictures(params, pixels)
        frames = jnp.moveaxis(pixels, 1, 0)
        outputs = jax.lax.map(functools.partial(of_pictures, params), frames)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), outputs)

    return of_batch


@functools.partial(jax.jit, static_argnums=1)
def _on_all(tree, mesh):
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def _check_shape(net: FeatureNet, shape: tuple[int, ...]) -> None:
    if net.clips and len(shape) != 4:
        raise ValueError(
            f"evaluate.net={net.name} is of clips (T, H, W, C), and data.shape is {shape}; choose "
            "efflite0, inception or dinov2"
        )
    if shape[-1] not in (1, 3):
        raise ValueError(
            f"evaluate.net={net.name} is of grey or colour pictures, and data.shape is {shape}"
        )
