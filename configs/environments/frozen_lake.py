"""The game of the run file quickstart_gym.yaml, with the interface of Gymnasium: reset and step."""

from __future__ import annotations

import random
import re
from typing import Any

Place = tuple[int, int]  # row and column, from the upper left

MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


class FrozenLake:
    """Walk over the ice to the goal, without a step into a hole.

    A step gives the share of the way that it saves, the goal 1 more, a hole -1, and what is no move -0.1.

    Args:
        size: rows and columns.
        holes: how many there are.
        moves: after so many the game is over.
    """

    def __init__(self, size: int = 4, holes: int = 3, moves: int = 8) -> None:
        self.size, self.count, self.moves = size, holes, moves

    def reset(self, *, seed: int) -> tuple[str, dict[str, Any]]:
        """A lake that the seed decides, with a way from start to goal."""
        chance = random.Random(seed)
        places = [(row, column) for row in range(self.size) for column in range(self.size)]
        self.made, self.left = 0, self.moves
        while True:
            self.here, self.goal, *holes = chance.sample(places, self.count + 2)
            self.holes = set(holes)
            self.steps = self._steps_to_goal()
            if self.steps.get(self.here, 0) >= 2:
                self.way = self.steps[self.here]
                return self._seen(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Move to where the first direction in ``action`` leads; at the edge one stays."""
        self.left -= 1
        found = re.search(r"\b(up|down|left|right)\b", action.lower())
        if found is None:
            return f"That is no move. {self._seen()}", -0.1, False, self.left == 0, {}
        before, self.here = self.here, self._beside(self.here, found[1])
        if self.here in self.holes:
            return "You fell into a hole.", -1.0, True, False, {}
        saved = (self.steps[before] - self.steps[self.here]) / self.way
        there = self.here == self.goal
        return self._seen(), saved + there, there, self.left == 0, {}

    def _seen(self) -> str:
        down, right = self.goal[0] - self.here[0], self.goal[1] - self.here[1]
        ways = [f"{abs(down)} {'down' if down > 0 else 'up'}"] * (down != 0)
        ways += [f"{abs(right)} {'right' if right > 0 else 'left'}"] * (right != 0)
        holes = [name for name in MOVES if self._beside(self.here, name) in self.holes]
        return f"Goal: {' and '.join(ways)}. Holes: {' and '.join(holes) or 'none'}."

    def _beside(self, place: Place, move: str) -> Place:
        row, column = place[0] + MOVES[move][0], place[1] + MOVES[move][1]
        return (row, column) if 0 <= row < self.size and 0 <= column < self.size else place

    def _steps_to_goal(self) -> dict[Place, int]:
        """Steps from every place that has a way to the goal."""
        found, border = {self.goal: 0}, [self.goal]
        for place in border:
            for near in {self._beside(place, move) for move in MOVES} - self.holes - found.keys():
                found[near] = found[place] + 1
                border.append(near)
        return found
