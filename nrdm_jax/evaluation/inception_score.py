"""Inception score: how sure a classifier is of each sample, and how evenly it uses its classes
(Salimans et al., arXiv 1606.03498, section 4)."""

import numpy as np
import scipy.special


def inception_score(logits: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """exp(E KL(p(y|x) | p(y))), mean and standard deviation over consecutive splits.

    Args:
      logits: (n, classes).
      splits: of the samples, each with a p(y) of its own; fewer where there are fewer samples.
    """
    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=1)
    scores = []
    for part in np.array_split(log_p, min(splits, len(log_p))):
        p = np.exp(part)
        marginal = np.log(p.mean(axis=0))
        scores.append(np.exp(np.mean(np.sum(p * (part - marginal), axis=1))))
    return float(np.mean(scores)), float(np.std(scores))
