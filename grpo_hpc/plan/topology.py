"""The rank grid: which coordinates every rank has, and who talks to whom.

Megatron-Core's default order is tp-cp-ep-dp-pp, the first axis changing fastest from rank to rank: tensor-parallel
ranks are neighbours, pipeline stages lie farthest apart.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

AXES = ("tp", "cp", "dp", "pp")


@dataclass(frozen=True)
class Place:
    """Where one rank stands.

    Attributes:
        node: machine that the rank runs on.
        tp, cp, dp, pp: coordinate along each axis.
    """

    rank: int
    node: int
    tp: int
    cp: int
    dp: int
    pp: int


@dataclass(frozen=True)
class Topology:
    """All ranks of a run.

    Attributes:
        sizes: size of each axis, by its name.
        places: one entry per rank, in the order of ranks.
    """

    sizes: dict[str, int]
    places: tuple[Place, ...]

    @property
    def world_size(self) -> int:
        return len(self.places)

    def groups(self, axis: str) -> list[list[int]]:
        """The groups of ranks that differ in ``axis`` alone; each is in the order of that axis."""
        others = [name for name in AXES if name != axis]
        found: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place in self.places:
            found[tuple(getattr(place, name) for name in others)].append(place.rank)
        return list(found.values())

    def nodes_spanned(self, axis: str) -> int:
        """The most nodes that one group of ``axis`` reaches over."""
        return max(len({self.places[rank].node for rank in group}) for group in self.groups(axis))


def make_topology(nodes: int, nproc_per_node: int, tp: int, cp: int, pp: int) -> Topology:
    """The rank grid of ``nodes * nproc_per_node`` ranks; the ranks must be a multiple of ``tp * cp * pp``."""
    world = nodes * nproc_per_node
    dp = world // (tp * cp * pp)
    places = []
    for rank in range(world):
        rest, i_tp = divmod(rank, tp)
        rest, i_cp = divmod(rest, cp)
        i_pp, i_dp = divmod(rest, dp)
        places.append(Place(rank, rank // nproc_per_node, tp=i_tp, cp=i_cp, dp=i_dp, pp=i_pp))
    return Topology({"tp": tp, "cp": cp, "dp": dp, "pp": pp}, tuple(places))
