"""The environment that the steps of a job start from, and what of it is written down."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from grpo_hpc.cluster.profile import Profile
from grpo_hpc.cluster.secrets import read_secrets
from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.files import write_atomically
from grpo_hpc.redaction import HIDDEN, holds_secret, keep_secret, redacted

RECORDED = (
    *("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "HOME", "USER", "HOSTNAME", "LANG", "LC_ALL", "TMPDIR"),
    *("LOADEDMODULES", "MODULEPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "XDG_CACHE_HOME"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM"),
    *("SLURM_CLUSTER_NAME", "SLURM_JOB_*", "SLURM_ARRAY_*", "SLURM_CPUS_*", "SLURM_GPUS_*", "SLURM_MEM_*"),
    *("SLURM_NNODES", "SLURM_NTASKS*", "SLURM_NODELIST", "SLURM_RESTART_COUNT", "SLURM_SUBMIT_DIR", "SLURM_EXPORT_ENV"),
    *("CUDA_*", "NVIDIA_*", "ROCR_*", "NCCL_*", "GLOO_*", "UCX_*", "FI_*", "OMP_*", "MKL_*", "KMP_*", "OPENBLAS_*"),
    *("PYTHON*", "PYTORCH_*", "TORCH_*", "TORCHINDUCTOR_*", "TRITON_*", "NVTE_*", "VLLM_*", "MASTER_*", "GRPO_HPC_*"),
)
"""Variables that ``environment.json`` has; a star stands for any letters."""
_RECORDED = re.compile("|".join(name.replace("*", "[A-Z0-9_]*") for name in RECORDED))


def job_environment(profile: Profile, attempt: int) -> dict[str, str]:
    """What every step of an attempt starts from, secrets included; the script adds what the cluster wants.

    Raises:
        ConfigError, EnvironmentProblem: the secrets file is wrong.
    """
    secrets = read_secrets(Path(profile.secrets)) if profile.secrets else {}
    for name in profile.inherit:
        keep_secret(os.environ.get(name, ""))
    # of the step that this supervisor itself may be, nothing may reach the steps that it starts
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_STEP", "SUBMITIT_"))}
    return {**inherited, **secrets, "GRPO_HPC_ATTEMPT": str(attempt)}


def record_environment(script: Path, profile: Profile, folder: Path, env: Mapping[str, str]) -> None:
    """Write ``environment.json`` into the attempt's ``folder``, for its owner alone: what ``script`` makes of ``env``.

    Raises:
        EnvironmentProblem: the script cannot set the environment.
    """
    command = ["bash", str(script), "environment"]
    done = subprocess.run(command, env=env, capture_output=True, check=False)
    if done.returncode:
        said = redacted(done.stderr.decode(errors="replace")).strip()[-300:]
        raise EnvironmentProblem(f"the environment of the job cannot be set: {said}")
    entries = done.stdout.decode(errors="replace").split("\0")
    found = dict(entry.partition("=")[::2] for entry in entries if entry)
    secret = [*profile.inherit, *(read_secrets(Path(profile.secrets)) if profile.secrets else ())]
    text = json.dumps(recorded(found, profile.environment, secret), indent=2)
    write_atomically(folder / "environment.json", text + "\n", private=True)


def recorded(variables: Mapping[str, str], own: Iterable[str], secret: Iterable[str]) -> dict[str, str]:
    """Those of ``variables`` that are written down, without secrets.

    Args:
        own: names that the cluster profile sets, which are recorded, too.
        secret: names whose values are not shown.
    """
    wanted, hidden = set(own), set(secret)
    return {
        name: HIDDEN if name in hidden or holds_secret(name, value) else redacted(value)
        for name, value in sorted(variables.items())
        if name in wanted or name in hidden or _RECORDED.fullmatch(name)
    }
