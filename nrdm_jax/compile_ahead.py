"""Compiles the train step, or the sampler, for machines that need not be there, with the compilers
that run on them, and prints what it needs: memory, collectives, and an estimate of its time. Of
data.buckets the step of each is compiled, and the result is of the one that needs the most memory.

python -m nrdm_jax.compile_ahead --config=configs/nrdm_f_1000.py:v5p --topology=tpu:v5p:4x4x4
python -m nrdm_jax.compile_ahead --config=configs/openmoji32.py --topology=cpu:8
"""

import json
import pathlib

from absl import flags

from nrdm_jax import command_line
from nrdm_jax.processes import exit_codes, lifecycle
from nrdm_jax.processes.exit_codes import Stop
from nrdm_jax.sharding import topologies


def define_flags() -> None:
    command_line.define_config(required=True)
    flags.DEFINE_string("topology", None, "tpu:v5p:4x4x4, gpu:h100:8x8 (hosts x GPUs) or cpu:8")
    flags.mark_flag_as_required("topology")
    flags.DEFINE_enum("what", "train", ["train", "sample"], "the program")
    flags.DEFINE_bool("sweep", False, "over meshes of data, fsdp and tensor; ranks those that fit")
    flags.DEFINE_integer("most", 8, "meshes of a sweep, at most", lower_bound=1)
    flags.DEFINE_bool("table", False, "each parameter's sharding and bytes a device")
    flags.DEFINE_string("json", None, "file for the result")
    flags.DEFINE_string("picture", None, "PNG of a device's memory")


def run() -> int:
    f = flags.FLAGS
    if f.sweep and f.table:
        raise ValueError("--table is of one mesh; leave out --sweep")
    topology = topologies.parse(f.topology)
    config = command_line.config_of_flags()
    extra = topologies.missing_extra(topology)
    if extra:
        raise Stop(
            exit_codes.USAGE,
            f"--topology={f.topology} needs the extra {extra}; "
            f"bash launch/local.sh --setup-only --extras={extra}",
        )
    topologies.prepare_environment(topology)
    from nrdm_jax import ahead

    if f.sweep:
        rows = ahead.sweep(config, topology, f.what, f.most)
        for row in rows:
            sizes = {axis: size for axis, size in row["mesh"].items() if size > 1}
            print(f"{'does not fit' if row['fits'] is False else 'fits':12} {sizes} "
                  f"{row.get('step_seconds', '')}")  # fmt: skip
        result = {"fits": any(row["fits"] is not False for row in rows), "meshes": rows}
    else:
        result = ahead.view(config, topology, f.what, f.table)
        rows = [result]
    if f.json:
        pathlib.Path(f.json).write_text(json.dumps(result, indent=2))
    if f.picture:
        ahead.chart(pathlib.Path(f.picture), rows, topology)
    command_line.print_result(result)
    return 1 if result["fits"] is False else 0


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
