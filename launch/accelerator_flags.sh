# shellcheck shell=bash
# Sourced by the launch scripts: the flags of XLA and libtpu that a generation wants, in one place.
#   accelerator_flags GENERATION      of v4 v5e v5p v6e tpu7x a100 h100 h200 b200 cpu
# What you have set yourself in XLA_FLAGS or LIBTPU_INIT_ARGS comes last, and so wins.
#
# GPUs (https://docs.jax.dev/en/latest/gpu_performance_tips.html):
#   latency_hiding_scheduler  moves collectives apart from what needs them: gathers of the next block's weights
#                             run while a block is computed. The one flag that fsdp cannot do without.
#   MEM_FRACTION              of a GPU's memory that jax takes; nrdm_jax.compile_ahead counts on as much.
# TPUs (libtpu's own; the same that MaxText sets for its large runs):
#   async collective fusion   the same for a TPU: all-gathers in the background, fused with what they feed.
#   SparseCore offload        of v6e and later: collectives run beside the matrix units.

accelerator_flags() {
  local xla="" tpu=""
  case "$1" in
    a100 | h100 | h200 | b200)
      xla="--xla_gpu_enable_latency_hiding_scheduler=true"
      export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
      ;;
    v4 | v5e | v5p)
      tpu="--xla_tpu_enable_async_collective_fusion=true
        --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
        --xla_tpu_enable_async_collective_fusion_multiple_steps=true
        --xla_tpu_overlap_compute_collective_tc=true"
      ;;
    v6e | tpu7x)
      tpu="--xla_tpu_enable_async_collective_fusion=true
        --xla_tpu_enable_sparse_core_collective_offload_all_gather=true
        --xla_tpu_enable_sparse_core_collective_offload_reduce_scatter=true"
      ;;
    cpu) ;;
    *)
      echo "error: no flags are known for $1; give v4, v5e, v5p, v6e, tpu7x, a100, h100, h200, b200 or cpu" >&2
      return 2
      ;;
  esac
  # shellcheck disable=SC2086,SC2116  # words are wanted: one line of flags
  XLA_FLAGS="$(echo $xla ${XLA_FLAGS:-})"
  # shellcheck disable=SC2086,SC2116
  LIBTPU_INIT_ARGS="$(echo $tpu ${LIBTPU_INIT_ARGS:-})"
  export XLA_FLAGS LIBTPU_INIT_ARGS
}
