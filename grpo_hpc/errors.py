"""What can go wrong, sorted by what the reader can do about it.

GrpoHpcError
├── ConfigError          the run file (or an override, or a data row) is wrong: mend it
├── PlanError            the run is described correctly but does not fit the machine
├── EnvironmentProblem   a package, device, container or folder is not as it must be
├── CheckpointError      a checkpoint or model folder is incomplete or does not match
├── RolloutError         the inference engine failed
│   └── ServersLost      it does not answer any more: save, and go on with others
├── TrainingDiverged     loss or gradients stay infinite or undefined: go on from a checkpoint with other settings
└── RewardError          a reward function failed or returned something that is no reward

Each is a mistake or a circumstance that a person can act on, so each is shown as one message without a
traceback and ends the program with exit code 2. Anything else is our bug and keeps its traceback.
"""

from __future__ import annotations

EXIT_USER_ERROR = 2


class GrpoHpcError(Exception):
    """Base of every error that is shown to people.

    Args:
        message: what is wrong, with the numbers.
        hint: what to do about it; shown on a line of its own.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class ConfigError(GrpoHpcError):
    """The run file, an override or a data row is wrong."""


class PlanError(GrpoHpcError):
    """The run does not fit the machine it asks for."""


class EnvironmentProblem(GrpoHpcError):
    """Something the run needs from the machine is missing or broken."""


class CheckpointError(GrpoHpcError):
    """A checkpoint or model folder is incomplete, damaged or does not match the run."""


class RolloutError(GrpoHpcError):
    """The inference engine failed."""


class ServersLost(RolloutError):
    """An inference server does not answer any more."""


class TrainingDiverged(GrpoHpcError):
    """The loss or the gradients were not finite in too many optimizer steps in a row."""


class RewardError(GrpoHpcError):
    """A reward function failed or returned something that is no reward."""
