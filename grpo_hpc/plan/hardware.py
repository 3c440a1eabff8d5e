"""Hardware profiles: what one GPU and its links can do, from data sheets, or measured on a machine of one's own."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from grpo_hpc.config.document import read_yaml
from grpo_hpc.config.keys import closest
from grpo_hpc.config.problems import Problem, raise_problems, shown
from grpo_hpc.errors import ConfigError

_FOLDER = Path(__file__).parent / "hardware"
_TEXTS = ("name", "source")


@dataclass(frozen=True)
class Hardware:
    """One kind of GPU in its node.

    Attributes:
        memory_gib: usable device memory.
        bf16_tflops: dense bf16 matrix rate of the data sheet.
        matmul_efficiency: share of it that the dense layers of a real training reach (Megatron-LM's README reports 41
            to 48 % of an H100's rate for whole steps, norms and communication included).
        grouped_efficiency: the same for the experts' grouped products, which are small (published runs of 30B and 235B
            models with experts use 7 to 17 % of the rate in all).
        attention_efficiency: share of it that fused attention reaches, forward and backward together.
        hbm_gb_per_s: device memory bandwidth that copies reach, bytes read and written.
        decode_efficiency: share of it that decoding reaches; experts, which few tokens visit, reach half of that.
        nvlink_gb_per_s: per GPU and direction between GPUs of a domain; PCIe's rate where there is no such link.
        nvlink_domain: GPUs that such links join.
        nic_gb_per_s: network bandwidth per GPU and direction.
        pcie_gb_per_s: between one GPU and host memory.
        disk_gb_per_s: of one node to the file system.
        host_memory_gib: of one node.
        launch_us: host time to start one kernel; 10 in all profiles, as measured on machines with H200s.
        source: where the figures come from.
    """

    name: str
    memory_gib: float
    bf16_tflops: float
    matmul_efficiency: float
    grouped_efficiency: float
    attention_efficiency: float
    hbm_gb_per_s: float
    decode_efficiency: float
    nvlink_gb_per_s: float
    nvlink_domain: int
    nic_gb_per_s: float
    pcie_gb_per_s: float
    disk_gb_per_s: float
    host_memory_gib: float
    launch_us: float
    source: str

    @property
    def memory(self) -> int:
        """Usable device memory in bytes."""
        return int(self.memory_gib * 2**30)


def profile_names() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


@cache
def read_hardware(name: str) -> Hardware:
    """The profile called ``name``, or the one in the YAML file of that name.

    Raises:
        ConfigError: there is none, or it is not a complete profile.
    """
    file = _FOLDER / f"{name.lower()}.yaml"
    if not file.is_file():
        file = Path(name)
    if not file.is_file():
        near = closest(name, profile_names())
        hint = f"Did you mean {near}? " if near else ""
        known = f"{hint}Profiles: {', '.join(profile_names())}; or a file written by tools/measure_hardware.py."
        raise ConfigError(f"resources.gpu: there is no hardware profile {name!r}", known)
    document = read_yaml(file, "hardware profile", "memory_gib: 80")
    problems = [*document.problems, *_problems(document.values)]
    raise_problems(problems, f"the hardware profile {file}", document.places)
    return Hardware(**{**document.values, "nvlink_domain": int(document.values["nvlink_domain"])})


def _problems(values: dict[str, Any]) -> list[Problem]:
    known = [field.name for field in fields(Hardware)]
    problems = [Problem(key, "is missing") for key in known if key not in values]
    for key, value in values.items():
        if key not in known:
            near = closest(str(key), known)
            problems.append(Problem(str(key), "is unknown" + (f"; did you mean {near}?" if near else "")))
        elif key in _TEXTS and not isinstance(value, str):
            problems.append(Problem(key, "must be a text"))
        elif key not in _TEXTS and not _positive(value):
            problems.append(Problem(key, f"must be a number above 0, got {shown(value)}"))
    return problems


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
