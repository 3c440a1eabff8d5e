"""The rank grid: which coordinates every rank has, and who talks to whom.

Megatron-Core's default order is tp-cp-ep-dp-pp, the first axis changing fastest from rank to rank. It lays two grids
over the same ranks: dense layers are cut by tp, cp and pp and copied dp times; experts are cut by etp, ep and pp and
copied edp times. Pipeline stages are the same in both::

    rank = tp  + TP  * (cp + CP * (dp  + DP  * pp))        DP  = W / (TP * CP * PP)
    rank = etp + ETP * (ep + EP * (edp + EDP * pp))        EDP = W / (ETP * EP * PP)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

# Megatron's name of a process group -> the axes along which its members differ
GROUPS: dict[str, tuple[str, ...]] = {
    "tp": ("tp",),
    "cp": ("cp",),
    "dp": ("dp",),
    "dp-cp": ("cp", "dp"),
    "tp-cp": ("tp", "cp"),
    "pp": ("pp",),
    "tp-pp": ("tp", "pp"),
    "etp": ("etp",),
    "ep": ("ep",),
    "edp": ("edp",),
    "etp-ep": ("etp", "ep"),
    "etp-ep-pp": ("etp", "ep", "pp"),
}
DENSE, EXPERT = ("tp", "cp", "dp", "pp"), ("etp", "ep", "edp", "pp")


@dataclass(frozen=True)
class Degrees:
    """Sizes of all axes.

    Attributes:
        world: ranks that train.
        dp, edp: replicas of dense layers and of experts, as they follow from the others.
        vpp: model chunks on each pipeline stage.
    """

    world: int
    tp: int = 1
    cp: int = 1
    pp: int = 1
    ep: int = 1
    etp: int = 1
    vpp: int = 1

    @property
    def dp(self) -> int:
        return self.world // (self.tp * self.cp * self.pp)

    @property
    def edp(self) -> int:
        return self.world // (self.etp * self.ep * self.pp)

    def size(self, axis: str) -> int:
        value: int = getattr(self, axis)
        return value


@dataclass(frozen=True)
class Place:
    """Where one rank stands: its node and its coordinate along every axis of both grids."""

    rank: int
    node: int
    tp: int
    cp: int
    dp: int
    pp: int
    etp: int
    ep: int
    edp: int


@dataclass(frozen=True)
class Topology:
    """All training ranks of a run.

    Attributes:
        nproc_per_node: ranks on one node.
        places: one entry per rank, in the order of ranks.
        vllm_tensor_parallel_size: consecutive ranks that share an engine when trainer and vLLM share GPUs.
    """

    degrees: Degrees
    nproc_per_node: int
    places: tuple[Place, ...]

    @property
    def world_size(self) -> int:
        return len(self.places)

    def groups(self, name: str) -> list[list[int]]:
        """The process groups called ``name`` (see ``GROUPS``), each in the order of Megatron's group ranks."""
        axes = GROUPS[name]
        grid = EXPERT if set(axes) & {"etp", "ep", "edp"} else DENSE
        others = [axis for axis in grid if axis not in axes]
        found: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place in self.places:
            found[tuple(getattr(place, axis) for axis in others)].append(place.rank)
        return list(found.values())

    def engines(self, tensor_parallel: int) -> list[list[int]]:
        """Ranks that share one vLLM engine on the training GPUs: neighbours."""
        ranks = list(range(self.world_size))
        return [ranks[at : at + tensor_parallel] for at in range(0, len(ranks), tensor_parallel)]

    def nodes_spanned(self, name: str) -> int:
        """The most nodes that one group called ``name`` reaches over."""
        return self.spread(self.groups(name))

    def spread(self, groups: Sequence[Sequence[int]]) -> int:
        """The most nodes that one of ``groups`` reaches over."""
        return max(len({rank // self.nproc_per_node for rank in group}) for group in groups)

    def crossing(self) -> dict[str, int]:
        """Names of the groups of more than one rank, with the nodes that the widest of them reaches over."""
        found = {}
        for name, axes in GROUPS.items():
            size = 1
            for axis in axes:
                size *= self.degrees.size(axis)
            if size > 1:
                found[name] = self.nodes_spanned(name)
        return found


def make_topology(degrees: Degrees, nproc_per_node: int) -> Topology:
    """The rank grid; the world must be a multiple of ``tp * cp * pp`` and of ``etp * ep * pp``."""
    return Topology(
        degrees, nproc_per_node, tuple(_place(rank, degrees, nproc_per_node) for rank in range(degrees.world))
    )


def _place(rank: int, d: Degrees, nproc_per_node: int) -> Place:
    rest, tp = divmod(rank, d.tp)
    rest, cp = divmod(rest, d.cp)
    pp, dp = divmod(rest, d.dp)
    rest, etp = divmod(rank, d.etp)
    rest, ep = divmod(rest, d.ep)
    edp = rest % d.edp
    return Place(rank, rank // nproc_per_node, tp=tp, cp=cp, dp=dp, pp=pp, etp=etp, ep=ep, edp=edp)


@dataclass(frozen=True)
class ServerPlace:
    """One vLLM server of server mode.

    Attributes:
        node: counted over all nodes of the job; those that train come first.
        gpus: local numbers of its GPUs on that node; a server over several nodes has all of each.
        nodes: nodes that it reaches over, from ``node`` on.
    """

    node: int
    nodes: int
    gpus: tuple[int, ...]
    port: int


def make_servers(
    train_nodes: int, server_nodes: int, per_node: int, tensor_parallel: int, port: int
) -> list[ServerPlace]:
    """The servers on the nodes behind those that train; ports count up on each node."""
    if tensor_parallel > per_node:
        span = tensor_parallel // per_node
        every = tuple(range(per_node))
        return [ServerPlace(train_nodes + at, span, every, port) for at in range(0, server_nodes - span + 1, span)]
    each = per_node // tensor_parallel
    return [
        ServerPlace(train_nodes + node, 1, tuple(range(n * tensor_parallel, (n + 1) * tensor_parallel)), port + n)
        for node in range(server_nodes)
        for n in range(each)
    ]
