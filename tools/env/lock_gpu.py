"""Write containers/gpu.lock: the GPU image's pins with everything they need, resolved for Python 3.12 on Linux.

    .venv/bin/python tools/env/lock_gpu.py

Run it after a change of the pins in containers/versions.yaml or of the dependencies in pyproject.toml. pip resolves
from the index it is configured with and reads metadata only: about a minute, nothing is installed.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from grpo_hpc.images.context import target_options  # noqa: E402
from grpo_hpc.images.spec import load_images  # noqa: E402

HEAD = f"""\
# The GPU set of containers/versions.yaml, for Python 3.12 on {platform.machine()}. Made by tools/env/lock_gpu.py.
"""
# of transformer-engine-torch, whose source archive pip cannot resolve for another machine, and to build it
FOR_SOURCE_BUILDS = [
    "transformer-engine-cu13",
    "einops",
    "onnx",
    "onnxscript",
    "setuptools<82",
    "wheel",
    "pybind11",
    "ninja",
]


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    image = load_images()["gpu"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    # the extra that would pull in the source build
    wanted = [line.replace("[pytorch]", "") for line in wanted]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--dry-run",
            "--ignore-installed",
            "--report",
            str(report),
        ]
        command += [*target_options(image), "--target", folder]
        subprocess.run([*command, *wanted, *image.pins, *FOR_SOURCE_BUILDS], check=True)
        found = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    lines = sorted((f"{package['name']}=={package['version']}" for package in found), key=str.lower)
    (ROOT / image.lock).write_text(HEAD + "\n".join(lines) + "\n")
    print(f"{image.lock}: {len(lines)} packages")


if __name__ == "__main__":
    main()
