from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.plan.topology import AXES, make_topology

size = st.integers(1, 4)


def test_order_is_tp_then_cp_then_dp_then_pp() -> None:
    topology = make_topology(nodes=2, nproc_per_node=8, tp=2, cp=2, pp=2)
    assert topology.sizes == {"tp": 2, "cp": 2, "dp": 2, "pp": 2}
    assert topology.groups("tp")[0] == [0, 1]
    assert topology.groups("cp")[0] == [0, 2]
    assert topology.groups("dp")[0] == [0, 4]
    assert topology.groups("pp")[0] == [0, 8]
    assert [place.node for place in topology.places] == [0] * 8 + [1] * 8
    assert (topology.nodes_spanned("tp"), topology.nodes_spanned("pp")) == (1, 2)


@given(tp=size, cp=size, dp=size, pp=size)
def test_groups_partition_the_ranks_and_differ_in_one_axis(tp: int, cp: int, dp: int, pp: int) -> None:
    topology = make_topology(1, tp * cp * dp * pp, tp=tp, cp=cp, pp=pp)
    sizes = {"tp": tp, "cp": cp, "dp": dp, "pp": pp}
    for axis in AXES:
        groups = topology.groups(axis)
        assert sorted(rank for group in groups for rank in group) == list(range(topology.world_size))
        for group in groups:
            assert [getattr(topology.places[rank], axis) for rank in group] == list(range(sizes[axis]))
            for other in set(AXES) - {axis}:
                assert len({getattr(topology.places[rank], other) for rank in group}) == 1


@given(tp=size, cp=size, dp=size, pp=size)
def test_rank_follows_from_its_coordinates(tp: int, cp: int, dp: int, pp: int) -> None:
    for place in make_topology(1, tp * cp * dp * pp, tp=tp, cp=cp, pp=pp).places:
        assert place.rank == place.tp + tp * (place.cp + cp * (place.dp + dp * place.pp))


@pytest.mark.parametrize(("nproc", "spanned"), [(4, 1), (2, 2), (1, 4)])
def test_nodes_spanned_by_tp(nproc: int, spanned: int) -> None:
    assert make_topology(8 // nproc, nproc, tp=4, cp=1, pp=1).nodes_spanned("tp") == spanned
