"""One of the processes of a job, whose device computes other bits of a text than the others'; it
writes a digest of what samples are given: `prompted.py PORT PROCESS PROCESSES FILE`."""

import hashlib
import json
import pathlib
import sys

import numpy as np

from nrdm_jax import config as configuration
from nrdm_jax import drawing, texts
from nrdm_jax.processes import distributed

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
    np.testing.assert_array_equal(given["text_mask"], mask)
    own = {"own": states, **given}
    digests = {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in own.items()}
    pathlib.Path(out).write_text(json.dumps(digests))
    distributed.leave(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
