"""Report what an environment holds. Runs inside any image through ``python3 -P -``: the standard library alone.

Reads one JSON object from its first argument, ``{"imports": [module, ...], "paths": [path, ...]}``, and prints one JSON
object on its last line. Each import runs in a process of its own, so that one that crashes is a result like any other,
and without the working directory (``-P``), which may hold a checkout of what the image should bring.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

_TORCH = """
import json, torch
found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
gpus = [{"name": g.name, "memory_gib": round(g.total_memory / 2**30, 1)} for g in found]
print(json.dumps({
    "cuda": torch.version.cuda,
    "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
    "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda else None,
    "gpus": gpus,
}))
"""


def main() -> None:
    asked = json.loads(sys.argv[1])
    facts: dict[str, Any] = {
        "image": os.environ.get("GRPO_HPC_IMAGE"),
        "python": platform.python_version(),
        "prefix": sys.prefix,
        "libc": " ".join(platform.libc_ver()),
        "packages": {_normalised(d.metadata["Name"]): d.version for d in distributions() if d.metadata["Name"]},
        "imports": {module: _import(module) for module in asked["imports"]},
        "torch": _torch() if "torch" in asked["imports"] else None,
        "driver": _driver(),
        "shm_gib": _shm_gib(),
        "paths": {path: {"readable": os.access(path, os.R_OK), "writable": _writable(path)} for path in asked["paths"]},
    }
    print()
    print(json.dumps(facts))


def _import(module: str) -> dict[str, Any]:
    """Seconds that the import took, and what went wrong if it failed."""
    start = time.monotonic()
    done = _python(f"import {module}")
    seconds = round(time.monotonic() - start, 1)
    if done.returncode < 0:
        error = f"killed by signal {-done.returncode}"
    else:
        error = done.stderr.strip().splitlines()[-1] if done.returncode and done.stderr.strip() else ""
        error = error or (f"exit code {done.returncode}" if done.returncode else "")
    return {"error": error or None, "seconds": seconds}


def _torch() -> dict[str, Any] | None:
    done = _python(_TORCH)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)


def _driver() -> str | None:
    """Version of the NVIDIA driver that is visible here."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    return _driver_version(text)


def _driver_version(text: str) -> str | None:
    """The first number of the form 580.82.07 in the kernel module's own description."""
    found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", text)
    return found[1] if found else None


def _shm_gib() -> float | None:
    """Size of the shared memory that NCCL and data loaders use between the processes of a node."""
    return round(shutil.disk_usage("/dev/shm").total / 2**30, 2) if Path("/dev/shm").is_dir() else None


def _writable(path: str) -> bool:
    """Can ``path`` be written, or be made in its nearest folder that exists?"""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return os.access(place, os.W_OK)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
