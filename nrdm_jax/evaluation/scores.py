"""Scores of a set of samples from the features of a network, beside those of a reference set."""

from collections.abc import Sequence

import numpy as np

from nrdm_jax.evaluation.feature_sets import FeatureSet
from nrdm_jax.evaluation.frechet import distance
from nrdm_jax.evaluation.inception_score import inception_score
from nrdm_jax.evaluation.kernel_distance import kernel_distance
from nrdm_jax.evaluation.precision_recall import precision_recall

# The names of the distances whose network is part of the definition; no other has them.
PUBLISHED = {
    ("fd", "inception"): "fid",
    ("sfd", "inception"): "sfid",
    # Its weights are those of the network that FVD was defined with (Unterthiner et al., arXiv
    # 1812.01717); pytorch-i3d's `i3d` was trained otherwise.
    ("fd", "i3d_videogpt"): "fvd",
}
# Arguments of the metrics' functions: a part of the protocol.
SETTINGS: dict[str, dict[str, int]] = {
    "kid": {"subsets": 50, "size": 1000, "seed": 0},
    "inception_score": {"splits": 10},
    "precision_recall": {"neighbours": 3},
}


def name_of(metric: str, net: str) -> str:
    """`fid` of inception, `fd_efflite0` of efflite0."""
    return PUBLISHED.get((metric, net), f"{metric}_{net}")


def check(metrics: Sequence[str], net: str, *, spatial: bool, logits: bool) -> None:
    """Raises:
    ValueError: a metric needs what the network does not have.
    """
    for metric, has, lacks in (
        ("sfd", spatial, "has no spatial features"),
        ("inception_score", logits, "is no classifier"),
    ):
        if metric in metrics and not has:
            raise ValueError(f"evaluate.metrics: {net} {lacks}; leave out {metric}")


def scores(
    samples: FeatureSet, reference: FeatureSet, metrics: Sequence[str], net: str
) -> dict[str, float]:
    """Metrics by their names with this network.

    Args:
      samples, reference: of the same network.
      metrics: of fd, kid, inception_score, sfd, precision_recall.
      net: its name.

    Raises:
      ValueError: as `check`, or a set is too small.
    """
    logits = samples.all_logits()
    check(metrics, net, spatial=samples.spatial is not None, logits=logits is not None)
    values: dict[str, float] = {"scored_examples": samples.count}
    for metric in metrics:
        name = name_of(metric, net)
        if metric == "fd":
            values[name] = distance(samples.pooled, reference.pooled)
        elif metric == "sfd":
            assert samples.spatial is not None and reference.spatial is not None
            values[name] = distance(samples.spatial, reference.spatial)
        elif metric == "kid":
            values[name], values[f"{name}_std"] = kernel_distance(
                samples.all_features(), reference.all_features(), **SETTINGS[metric]
            )
        elif metric == "inception_score":
            assert logits is not None
            values[name], values[f"{name}_std"] = inception_score(logits, **SETTINGS[metric])
        elif metric == "precision_recall":
            precision, recall = precision_recall(
                samples.all_features(), reference.all_features(), **SETTINGS[metric]
            )
            values[f"precision_{net}"], values[f"recall_{net}"] = precision, recall
    return values


def class_scores(
    samples: FeatureSet, reference: FeatureSet, net: str, class_names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Kernel distance of each class to its own reference, by the class's name: unbiased, however
    few there are. Classes with fewer than two samples or references are left out."""
    a, b = samples.all_labels(), reference.all_labels()
    of_samples, of_reference = samples.all_features(), reference.all_features()
    values = {}
    for label in np.unique(a):
        ours, theirs = of_samples[a == label], of_reference[b == label]
        if min(len(ours), len(theirs)) >= 2:
            name = class_names[label] if label < len(class_names) else str(label)
            values[name] = {
                "samples": len(ours),
                "reference": len(theirs),
                name_of("kid", net): kernel_distance(ours, theirs, **SETTINGS["kid"])[0],
            }
    return values
