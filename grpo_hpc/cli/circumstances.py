"""What a person can mend although no code of ours said so: a refusal of the system, a package that is not there."""

from __future__ import annotations

import re

from grpo_hpc.errors import ConfigError, EnvironmentProblem, GrpoHpcError, of_system

# optional packages by the name that is imported, and the extra that installs them
_EXTRAS = {
    **dict.fromkeys(("numpy", "xxhash"), "checkpoint"),
    **dict.fromkeys(("torch", "safetensors", "transformers", "megatron", "vllm", "datasets", "pyarrow"), "cpu"),
    **dict.fromkeys(("math_verify", "httpx"), "rewards"),
    **{name: name for name in ("wandb", "swanlab")},
}


def explained(error: Exception) -> GrpoHpcError | None:
    """``error`` as one of ours; None for what is a fault of the program."""
    match error:
        case GrpoHpcError():
            return error
        case OSError():
            return of_system(error)
        case ModuleNotFoundError():
            return _missing(str(error.name).partition(".")[0])
        case ValueError() if re.match("embedded null (byte|character)", str(error)):
            return ConfigError("a path has a NUL character in it", "Look for \\0 in the run file and its overrides.")
    return None


def _missing(package: str) -> GrpoHpcError | None:
    extra = _EXTRAS.get(package)
    if extra is None:
        return None
    other = ", or with [gpu] where there is one" if extra == "cpu" else ""
    return EnvironmentProblem(
        f"this needs the package {package}, which is not installed",
        f"pip install 'grpo-hpc[{extra}]'{other}. The container images have it.",
    )
