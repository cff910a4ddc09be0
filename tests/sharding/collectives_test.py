"""What is read from a compiled program is what the program sends."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nrdm_jax.sharding import collectives, roofline, topologies
from nrdm_jax.sharding.mesh import make_mesh

HLO = r"""
HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (s: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %s = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %ag = (bf16[8,128]{1,0:T(8,128)}, bf16[32,128]{1,0:T(8,128)S(1)}) all-gather-start(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %done = bf16[32,128]{1,0} all-gather-done(%ag)
  %p = (f32[8,128]{1,0}, f32[8,128]{1,0}) collective-permute-start(%x), source_target_pairs={{0,4},{4,0}}
  ROOT %out = (s32[], f32[8,128]) tuple(%i, %x)
}

%condition (s: (s32[], f32[8,128])) -> pred[] {
  %s = (s32[], f32[8,128]) parameter(0)
  %n = s32[] constant(10)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %loop = (s32[], f32[8,128]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  %ar = f32[16]{0} all-reduce(%y), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %rs = f32[4]{0} reduce-scatter(%z), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}, to_apply=%add
  ROOT %r = f32[8,128]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


@pytest.mark.parametrize("known", [True, False])
def test_kinds_axes_counts_and_bytes(known):
    text = HLO if known else HLO.replace(', backend_config={"known_trip_count":{"n":"10"}}', "")
    found = {(c.kind, c.axes): c for c in collectives.collectives(text, {"data": 2, "fsdp": 4})}
    gather = found["all-gather", ("fsdp",)]
    assert (gather.times, gather.bytes) == (10, 10 * 32 * 128 * 2 * 3 // 4)
    permute = found["collective-permute", ("data",)]
    assert (permute.times, permute.bytes) == (10, 10 * 8 * 128 * 4)
    reduce = found["all-reduce", ("data",)]
    assert (reduce.times, reduce.bytes) == (1, 2 * 16 * 4 // 2)
    scatter = found["reduce-scatter", ("data",)]
    assert (scatter.times, scatter.bytes) == (1, 4 * 4)
    assert len(found) == 4


def test_what_is_started_has_its_operands_in_its_result():
    line = "  %rs = ((f32[16]{0}), f32[4]{0}) reduce-scatter-start(%z), replica_groups=[2,4]<=[8]"
    text = "ENTRY %main (x: f32[16]) -> f32[4] {\n" + line + "\n}\n"
    (found,) = collectives.collectives(text, {"data": 2, "fsdp": 4})
    assert (found.axes, found.bytes) == (("fsdp",), 3 * 4 * 4)


def test_an_exchange_that_is_started_has_its_operand_in_its_result():
    line = "%a = ((f32[128,256]), f32[128,256]) all-to-all-start(%x), replica_groups=[1,4]<=[4]"
    (found,) = collectives.collectives(program(line), {"context": 4})
    assert found.bytes == 128 * 256 * 4 * 3 // 4


def test_groups_by_axes_of_a_mesh():
    line = """  %ar = f32[16]{0} all-reduce(%y), replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}"""
    text = "ENTRY %main (x: f32[16]) -> f32[16] {\n" + line + "\n}\n"
    (found,) = collectives.collectives(text, {"data": 2, "fsdp": 2, "tensor": 2})
    assert (found.axes, found.group) == (("data", "tensor"), (0, 1, 4, 5))


def program(line: str, name: str = "main") -> str:
    return f"ENTRY %{name} (x: f32[16]) -> f32[16] {{\n  {line}\n}}\n"


def test_groups_by_axes_of_a_mesh_of_devices_in_another_order():
    # Devices lie along the second axis first: `a` takes 0, 1, 2, 3 and `b` 0, 4.
    line = "%ar = f32[16]{0} all-reduce(%y), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'AXIS'}"  # noqa: E501
    mesh = {"data": 2, "fsdp": 4}
    (found,) = collectives.collectives(program(line.replace("AXIS", "a")), mesh)
    assert (found.axes, found.group) == (("fsdp",), (0, 1, 2, 3))
    (found,) = collectives.collectives(program(line.replace("AXIS", "b")), mesh)
    assert (found.axes, found.group) == (("data",), (0, 4))


def test_groups_in_an_unknown_form_are_an_error():
    with pytest.raises(ValueError, match="unknown groups"):
        collectives.collectives(program("%ar = f32[16]{0} all-reduce(%y), replica_groups=new"),
                                {"data": 8})  # fmt: skip


def test_a_fused_sum_of_which_each_device_keeps_a_part_is_a_reduce_scatter():
    line = "%ar = f32[16]{0} all-reduce(%y), replica_groups={{0,1,2,3}}"
    (found,) = collectives.collectives(program(line, "all-reduce-scatter.3"), {"fsdp": 4})
    assert (found.kind, found.bytes) == ("reduce-scatter", 16 * 4 * 3 // 4)


def test_a_loop_that_counts_by_twos():
    loop = """
%body (s: (f32[8], u32[])) -> (f32[8], u32[]) {
  %s = (f32[8]{0}, u32[]{:T(128)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%s), index=1
  %one = u32[]{:T(128)} constant(1)
  %moved = u32[]{:T(128)S(6)} copy(%i)
  %next = u32[]{:T(128)} add(%moved, %one)
  %after = u32[]{:T(128)} add(%one, %next)
  %p = f32[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %out = (f32[8]{0}, u32[]{:T(128)}) tuple(%p, /*index=1*/%after)
}

%condition (s: (f32[8], u32[])) -> pred[] {
  %s = (f32[8]{0}, u32[]{:T(128)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%s), index=1
  %n = u32[]{:T(128)} constant(8)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

"""
    call = "%l = (f32[8]{0}, u32[]) while(%t), condition=%condition, body=%body"
    (found,) = collectives.collectives(loop + program(call), {"fsdp": 2})
    assert found.times == 4


def test_a_compiled_scan_over_divided_weights_gathers_them_in_each_iteration():
    mesh = make_mesh({"data": 1, "fsdp": 8})
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def block(x, w):
        return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows), None

    def f(x, w):
        return jax.lax.scan(block, x, w)[0]

    x = jax.ShapeDtypeStruct((4096, 32), jnp.float32, sharding=rows)
    w = jax.ShapeDtypeStruct(
        (12, 32, 32), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    )
    program = jax.jit(f, out_shardings=x.sharding).lower(x, w).compile().as_text()
    found = collectives.collectives(program, dict(mesh.shape))
    total = sum(c.bytes for c in found if c.axes == ("fsdp",))
    # All of every kernel but the eighth that is here.
    assert total == 12 * 32 * 32 * 4 * 7 // 8, found
    assert all(c.axes == ("fsdp",) for c in found)


def test_topologies_by_name():
    assert topologies.parse("tpu:v5p:4x4x4").devices == 64
    assert topologies.parse("tpu:tpu7x:4x4x4").devices == 128
    assert topologies.parse("gpu:h100:8x8").lowering_platform == "cuda"
    assert topologies.parse("cpu:8").chip is None


@pytest.mark.parametrize(
    ("name", "says"),
    [("v5p", "give one like"), ("tpu:v9:2x2", "unknown; choose one of tpu:v4"),
     ("tpu:v5p:4x4", "has 3 axes, such as 4x4x4"), ("gpu:h100:8", "has 2 axes")],
)  # fmt: skip
def test_what_is_no_topology_is_refused(name, says):
    with pytest.raises(ValueError, match=says):
        topologies.parse(name)


def test_a_roofline_adds_up_what_cannot_be_hidden():
    chip = topologies.Chip(
        flops=100.0, memory=1.0, memory_rate=10.0, link_rate=4.0, network_rate=1.0
    )
    mesh = make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
    sent = [
        collectives.Collective("all-gather", ("fsdp",), (0, 2, 4, 6), 1, 40),
        collectives.Collective("all-reduce", ("tensor",), (0, 1), 1, 8),
    ]
    found = roofline.estimate(chip, mesh, sent, model_flops=8 * 600.0, recomputed=1.5, traffic=20.0)
    assert (found.compute, found.memory, found.overlapping, found.waiting) == (9.0, 2.0, 10.0, 2.0)
    assert found.seconds == 12.0 and found.mfu == 0.5
    assert found.mfu_overlapped == 0.6 and found.mfu_not_overlapped == pytest.approx(6 / 21)
