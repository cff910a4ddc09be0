"""One of the processes of a job, whose device computes other bits of a text than the others'; it
writes digests of its own states and of samples that are the states that they were given:
`prompted.py PORT PROCESS PROCESSES FILE`."""

import hashlib
import json
import pathlib
import sys

import numpy as np

from nrdm_jax import config as configuration
from nrdm_jax import drawing, texts
from nrdm_jax.processes import distributed
from nrdm_jax.sampling.generate import Generator
from nrdm_jax.sharding.mesh import make_mesh

LENGTHS = (5, 2, 0)


def main(port, process, processes, out):
    distributed.start(f"127.0.0.1:{port}", int(processes), int(process))
    states = np.random.default_rng(0).standard_normal((len(LENGTHS), 5, 8)).astype(np.float32)
    states *= np.float32(1.0 + 1e-6 * int(process))
    mask = np.arange(5)[None, :] < np.asarray(LENGTHS)[:, None]
    texts.given_of = lambda config, captions: {
        "text": states, "text_mask": mask, "text_pooled": states[:, 0],
    }  # fmt: skip
    config = configuration.default()
    config.text.encoder = "bytes"
    given = drawing.prompts(config, np.arange(3), lambda: None, captions=["a", "b", "c"])
    sampler = Generator(lambda params, seeds, told: told["text"], make_mesh(config.mesh), 4)
    drawn = sampler(None, np.arange(3), given)
    own = {"own": states, "drawn": drawn}
    digests = {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in own.items()}
    pathlib.Path(out).write_text(json.dumps(digests))
    distributed.leave(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
