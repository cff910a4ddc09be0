"""Whether a text-conditioned run makes what its captions say: the category of what it draws.

  bash launch/local.sh configs/text_emoji64.py
  python -m benchmarks.text_control --workdir=runs/text_emoji64

Each held-out caption is drawn once. The picture's category is that of the real training pictures
whose features (efflite0) are nearest: a vote of --neighbours, by cosine. `accuracy` is the share of
pictures whose category is that of their caption's drawing, of which the run was told nothing but
the caption; `chance` the share of the largest category among the captions; `p` that of 10,000
permutations of the categories that do as well; `shuffled` the accuracy where the captions are dealt
out anew before they are drawn; `real` that of the same vote on the held-out drawings themselves,
which no network can be expected to pass. Exits 1 unless accuracy is at least 0.1 above chance, p
below 0.01, and shuffled no more than two standard errors above chance.
"""

import pathlib

from absl import flags

from benchmarks import measuring
from nrdm_jax import config as configuration
from nrdm_jax.processes import lifecycle
from nrdm_jax.processes.stored_config import read_config

MARGIN, P, PERMUTATIONS = 0.1, 0.01, 10_000


def define_flags() -> None:
    flags.DEFINE_string("workdir", "runs/text_emoji64", "of the run")
    flags.DEFINE_integer("neighbours", 10, "training pictures that vote", lower_bound=1)
    flags.DEFINE_float("guidance", None, "by default the config's")
    flags.DEFINE_integer("most", 0, "captions that are drawn, evenly spread; 0: all", lower_bound=0)
    flags.DEFINE_integer("batch_size", 32, "pictures whose features are computed at a time")


def voted(near, labels, queries, neighbours: int):
    """(m,) categories: of each query the one most common among its nearest, by their cosines.

    Args:
      near, labels: features (n, F) and categories (n,) of the pictures that vote.
      queries: features (m, F).
    """
    import numpy as np

    near, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (near, queries))
    cosines = queries @ near.T
    closest = np.argpartition(-cosines, neighbours, axis=1)[:, :neighbours]
    votes = np.zeros((len(queries), labels.max() + 1))
    for rank in range(neighbours):
        at = closest[:, rank]
        np.add.at(votes, (np.arange(len(queries)), labels[at]), cosines[np.arange(len(at)), at])
    return votes.argmax(axis=1)


def run() -> int:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from nrdm_jax import build, drawing, measures, records, run_weights

    f = flags.FLAGS
    config = configuration.from_dict(read_config(pathlib.Path(f.workdir)))
    if config.text.encoder == "none":
        raise ValueError(f"--workdir={f.workdir} is a run without text; name one with text.encoder")
    config.text.with_class = False
    data_dir = str(lifecycle.data_dir())
    parts = build.run(config)
    told = records.source(config, "heldout", data_dir)
    plain = config.copy_and_resolve_references()
    plain.text.encoder = "none"  # with it, records do not say their class
    real, train = (
        records.pictures(plain, split, data_dir, records.source(plain, split, data_dir))
        for split in ("heldout", "train")
    )
    count = min(f.most or len(told), len(told))
    seeds = np.arange(count)
    numbers = seeds * len(told) // count
    net = measures.feature_net(config, "efflite0")
    apply = jax.jit(lambda params, x: net.apply(params, x.astype(jnp.float32)).pooled)

    def features(pixels):
        parts = []
        for start in range(0, len(pixels), f.batch_size):
            part = pixels[start : start + f.batch_size]
            whole = np.resize(part, (f.batch_size, *part.shape[1:]))
            parts.append(np.asarray(apply(net.params, whole))[: len(part)])
        return np.concatenate(parts)

    weights = run_weights.find(f.workdir).read(parts.abstract_state.ema)
    sampler = drawing.generator(config, parts.apply, parts.path, parts.mesh, scale=f.guidance)
    given = drawing.prompts(config, seeds, lambda: told)
    to_pixels = records.to_pixels(config, parts.mesh, records.statistics_of(told))
    draw = np.random.default_rng(0)
    dealt_out = draw.permutation(count)
    drawn, drawn_anew = (
        to_pixels(sampler(weights, seeds, {name: some[rows] for name, some in given.items()}))
        for rows in (seeds, dealt_out)
    )

    everything = train.gather(np.arange(len(train)))
    near, near_labels = features(everything["x"]), everything["label"]
    wanted = real.gather(numbers)
    labels = wanted["label"]
    found = voted(near, near_labels, features(drawn), f.neighbours)
    accuracy = float(np.mean(found == labels))
    dealt = np.asarray([np.mean(found == draw.permutation(labels)) for _ in range(PERMUTATIONS)])
    shuffled = float(
        np.mean(voted(near, near_labels, features(drawn_anew), f.neighbours) == labels)
    )
    chance = float(np.bincount(labels).max() / count)
    p = float((1 + np.sum(dealt >= accuracy)) / (1 + PERMUTATIONS))
    of_real = voted(near, near_labels, features(wanted["x"]), f.neighbours)
    measuring.print_result({
        "accuracy": round(accuracy, 4),
        "chance": round(chance, 4),
        "above_chance": round(accuracy - chance, 4),
        "p": float(f"{p:.1e}"),
        "shuffled": round(shuffled, 4),
        "real": round(float(np.mean(of_real == labels)), 4),
        "captions": count,
        "guidance": config.sample.guidance if f.guidance is None else f.guidance,
    })  # fmt: skip
    error = (chance * (1 - chance) / count) ** 0.5
    fine = accuracy >= chance + MARGIN and p < P and shuffled <= chance + 2 * error
    return 0 if fine else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
