from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.plan.topology import DENSE, EXPERT, GROUPS, Degrees, Topology, make_servers, make_topology

size = st.integers(1, 3)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Any layout whose world is a multiple of both footprints."""
    tp, cp, pp, ep, etp = (draw(size) for _ in range(5))
    world = pp * math.lcm(tp * cp, ep * etp) * draw(st.integers(1, 2))
    per_node = draw(st.sampled_from([n for n in range(1, world + 1) if world % n == 0]))
    return make_topology(Degrees(world, tp=tp, cp=cp, pp=pp, ep=ep, etp=etp), per_node)


def test_order_is_tp_then_cp_then_dp_then_pp() -> None:
    topology = make_topology(Degrees(16, tp=2, cp=2, pp=2, ep=4), nproc_per_node=8)
    assert topology.groups("tp")[0] == [0, 1]
    assert topology.groups("cp")[0] == [0, 2]
    assert topology.groups("dp")[0] == [0, 4]
    assert topology.groups("pp")[0] == [0, 8]
    assert topology.groups("ep")[0] == [0, 1, 2, 3]
    assert topology.groups("edp")[0] == [0, 4]
    assert [place.node for place in topology.places] == [0] * 8 + [1] * 8
    assert (topology.nodes_spanned("tp"), topology.nodes_spanned("pp")) == (1, 2)
    assert topology.crossing()["tp-pp"] == 2


@given(topologies())
def test_groups_partition_the_ranks_and_differ_in_their_axes_alone(topology: Topology) -> None:
    for name, axes in GROUPS.items():
        groups = topology.groups(name)
        assert sorted(rank for group in groups for rank in group) == list(range(topology.world_size))
        grid = EXPERT if set(axes) & {"etp", "ep", "edp"} else DENSE
        for group in groups:
            assert len(group) == math.prod(topology.degrees.size(axis) for axis in axes)
            for other in set(grid) - set(axes):
                assert len({getattr(topology.places[rank], other) for rank in group}) == 1


@given(topologies())
def test_rank_follows_from_its_coordinates_in_both_grids(topology: Topology) -> None:
    d = topology.degrees
    for place in topology.places:
        assert place.rank == place.tp + d.tp * (place.cp + d.cp * (place.dp + d.dp * place.pp))
        assert place.rank == place.etp + d.etp * (place.ep + d.ep * (place.edp + d.edp * place.pp))


def test_engines_are_neighbours() -> None:
    assert make_topology(Degrees(6), 6).engines(3) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("tp", "expected"),
    [
        (2, [(2, (0, 1), 8000), (2, (2, 3), 8001), (3, (0, 1), 8000), (3, (2, 3), 8001)]),
        (4, [(2, (0, 1, 2, 3), 8000), (3, (0, 1, 2, 3), 8000)]),
        (8, [(2, (0, 1, 2, 3), 8000)]),
    ],
)
def test_servers_stand_behind_the_training_nodes(tp: int, expected: list[tuple[int, tuple[int, ...], int]]) -> None:
    servers = make_servers(train_nodes=2, server_nodes=2, per_node=4, tensor_parallel=tp, port=8000)
    assert [(server.node, server.gpus, server.port) for server in servers] == expected
    assert all(server.nodes * len(server.gpus) == tp for server in servers)
