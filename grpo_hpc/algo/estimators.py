"""Advantage estimators: what a completion's reward is compared with.

Adding one means writing one function of rewards and groups under :func:`estimator`, and its slow reference in
``tests/cpu/reference``. Nothing here imports torch when it is loaded: the run file and the command line read this
registry.

Shapes: B completions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_hpc.algo.groups import Groups

Centre = Callable[["Tensor", "Groups"], "Tensor"]


@dataclass(frozen=True)
class Estimator:
    """One advantage estimator.

    Attributes:
        source: the paper.
        function: rewards [B] and their groups -> rewards minus the baseline [B].
        scaled_by: whose standard deviation ``scale_rewards`` divides by: that of the rewards, or of what ``function``
            returns.
    """

    name: str
    source: str
    function: Centre
    scaled_by: Literal["rewards", "centred"]

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").splitlines()[0]


ESTIMATORS: dict[str, Estimator] = {}


def estimator(
    name: str, *, source: str, scaled_by: Literal["rewards", "centred"] = "rewards"
) -> Callable[[Centre], Centre]:
    """Decorator: make a function known as the estimator ``name``."""

    def register(function: Centre) -> Centre:
        ESTIMATORS[name] = Estimator(name, source, function, scaled_by)
        return function

    return register


@estimator("grpo", source="DeepSeekMath, arXiv 2402.03300, section 4.1")
def group_mean(rewards: Tensor, groups: Groups) -> Tensor:
    """Reward minus the mean reward of its group."""
    return groups.centred(rewards)


@estimator("rloo", source="Ahmadian et al., Back to Basics, arXiv 2402.14740, section 3")
def leave_one_out(rewards: Tensor, groups: Groups) -> Tensor:
    """Reward minus the mean reward of the others in its group: n/(n-1) times the distance from the group's mean."""
    sizes = groups.sizes(rewards)
    return groups.centred(rewards) * (sizes / (sizes - 1).clamp(min=1))[groups.index]


@estimator("reinforce_plus_plus", source="REINFORCE++ with a group baseline, arXiv 2501.03262", scaled_by="centred")
def reinforce_plus_plus(rewards: Tensor, groups: Groups) -> Tensor:
    """Reward minus the mean reward of its group, to be scaled by the deviation of these differences."""
    return groups.centred(rewards)
