"""What can go wrong, sorted by what the reader can do about it.

GrpoHpcError
├── ConfigError          the run file (or an override, or a data row) is wrong: mend it
├── PlanError            the run is described correctly but does not fit the machine
├── EnvironmentProblem   a package, device, container or folder is not as it must be
├── CheckpointError      a checkpoint or model folder is incomplete or does not match
├── RolloutError         the inference engine failed
│   └── ServersLost      it does not answer any more: save, and go on with others
├── RunTaken             another process has the run directory now: nothing more may be written there
├── TrainingDiverged     loss or gradients stay infinite or undefined: go on from a checkpoint with other settings
└── RewardError          a reward function failed or returned something that is no reward

Each is a mistake or a circumstance that a person can act on, so each is shown as one message without a
traceback and ends the program with exit code 2. Anything else is our bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os

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


_WHAT_TO_DO = {
    errno.EACCES: "Ask its owner for the right (ls -ld shows both), or name another place.",
    errno.EPERM: "Ask its owner for the right (ls -ld shows both), or name another place.",
    errno.EROFS: "Name a place that can be written.",
    errno.ENOSPC: "Free some space there (df -h and df -i show what is left), or name another place.",
    errno.EDQUOT: "Free some space there (your quota is used up), or name another place.",
    errno.ENAMETOOLONG: "Choose a shorter name: one part of a path may have 255 bytes, most file systems say.",
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "Check the path: a part of it is a file.",
    errno.EISDIR: "Check the path: a file is wanted.",
    errno.EEXIST: "Choose another name, or move away what is there.",
    errno.ELOOP: "Check the path: its symbolic links lead in a circle.",
    errno.ESTALE: "The file system lost it; try again.",
    errno.EIO: "The file system or its disk has a fault; try again, then ask who runs the machine.",
    errno.EMFILE: "Raise the limit of open files: ulimit -n.",
}


def of_system(error: OSError) -> EnvironmentProblem:
    """What the operating system refused, for people: which path, what went wrong, what to do."""
    said = (error.strerror or str(error) or type(error).__name__).lower()
    if error.filename is None and error.errno == errno.ENOENT and _nowhere():
        return EnvironmentProblem("the working directory does not exist any more", "Change to another one: cd.")
    place = "" if error.filename is None or isinstance(error.filename, int) else f"{os.fsdecode(error.filename)}: "
    place += "" if error.filename2 is None else f"to {os.fsdecode(error.filename2)}: "
    return EnvironmentProblem(f"{place}{said}", _WHAT_TO_DO.get(error.errno or 0, ""))


def _nowhere() -> bool:
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return True
    return False


class CheckpointError(GrpoHpcError):
    """A checkpoint or model folder is incomplete, damaged or does not match the run."""


class RolloutError(GrpoHpcError):
    """The inference engine failed."""


class ServersLost(RolloutError):
    """An inference server does not answer any more."""


class RunTaken(GrpoHpcError):
    """Another process has taken the place of this one in the run directory."""


class TrainingDiverged(GrpoHpcError):
    """The loss or the gradients were not finite in too many optimizer steps in a row."""


class RewardError(GrpoHpcError):
    """A reward function failed or returned something that is no reward."""
