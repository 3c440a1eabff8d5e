"""Does an environment hold what an image's list, and a run, say it should?"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grpo_hpc
from grpo_hpc.config import RunConfig
from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.images import probe
from grpo_hpc.images.spec import ImageSpec, pinned

_SHM_GIB = 1.0
"""Docker's default of 64 MB breaks NCCL between the GPUs of a node; what NCCL takes is well below this."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: what was looked at.
        wanted: what it should be; empty when anything is right.
        found: what it is.
        verdict: ``note`` is worth knowing and fails nothing.
    """

    what: str
    wanted: str
    found: str
    verdict: Literal["ok", "wrong", "note"]


def probe_environment(python: Sequence[str], image: ImageSpec, cfg: RunConfig | None) -> dict[str, Any]:
    """Run the probe with ``python``, a command that reads a program from its standard input, and return its facts.

    Raises:
        EnvironmentProblem: the command failed, such as for a missing image or runtime.
    """
    asked = {"imports": image.imports, "paths": [*_read(cfg), *_written(cfg)]}
    command = [*python, "-P", "-", json.dumps(asked)]
    try:
        with Path(probe.__file__).open("rb") as program:
            done = subprocess.run(command, stdin=program, capture_output=True, check=False)
    except FileNotFoundError:
        raise EnvironmentProblem(f"{python[0]} is not installed") from None
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    if done.returncode or not lines:
        last = "\n  ".join(done.stderr.decode(errors="replace").strip().splitlines()[-4:])
        raise EnvironmentProblem(f"the check could not run inside the image:\n  {last}", f"Command: {' '.join(python)}")
    return dict(json.loads(lines[-1]))


def image_name(inside: Sequence[str]) -> str:
    """Name that an image says it has, or this environment when ``inside`` is empty.

    Raises:
        EnvironmentProblem: the image cannot be run, or says nothing.
    """
    command = [*inside, "printenv", "GRPO_HPC_IMAGE"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise EnvironmentProblem(f"{inside[0]} is not installed") from None
    if said := done.stdout.split():
        return said[-1]  # the entry points of some bases greet first
    if done.stderr.strip():
        raise EnvironmentProblem("the image cannot be run:\n  " + "\n  ".join(done.stderr.strip().splitlines()[-4:]))
    raise EnvironmentProblem(
        "it does not say which image it is", "Say what it should be with --name cpu, gpu or gpu-ngc."
    )


def compare(facts: dict[str, Any], image: ImageSpec, cfg: RunConfig | None) -> list[Finding]:
    """Every finding about ``facts``, those of :func:`probe_environment`."""
    return [
        *_python(facts, image),
        *_packages(facts, image),
        *_imports(facts),
        *_device(facts, image, cfg),
        *(_paths(facts, cfg) if cfg else ()),
    ]


def failed(findings: Sequence[Finding]) -> bool:
    """Is any of them wrong?"""
    return any(finding.verdict == "wrong" for finding in findings)


def _python(facts: dict[str, Any], image: ImageSpec) -> Iterator[Finding]:
    series = ".".join(facts["python"].split(".")[:2])
    yield Finding("Python", image.python, facts["python"], _verdict(series == image.python))
    yield Finding("C library", "", facts["libc"], "ok")


def _packages(facts: dict[str, Any], image: ImageSpec) -> Iterator[Finding]:
    """The pins that matter one by one; of the others those that differ."""
    found = facts["packages"]
    wanted = {"grpo-hpc": grpo_hpc.__version__, **image.requirements()}
    shown = {"grpo-hpc", *pinned(image.pins)}
    differing = 0
    for name, version in wanted.items():
        here = found.get(name)
        same = here is not None and here.partition("+")[0] == version.partition("+")[0]
        differing += not same
        if name in shown or not same:
            yield Finding(name, version, here or "missing", _verdict(same))
    yield Finding(
        "packages of the lock", f"{len(wanted)}", f"{len(wanted) - differing} as pinned", _verdict(not differing)
    )


def _imports(facts: dict[str, Any]) -> Iterator[Finding]:
    for module, result in facts["imports"].items():
        text = result["error"] or f"{result['seconds']} s"
        yield Finding(f"import {module}", "works", text, _verdict(result["error"] is None))


def _device(facts: dict[str, Any], image: ImageSpec, cfg: RunConfig | None) -> Iterator[Finding]:
    if cfg is not None and cfg.resources.device != image.device:
        yield Finding("resources.device", cfg.resources.device, f"an image for {image.device}", "wrong")
    torch = facts["torch"]
    if torch is None:
        return
    build = f"CUDA {torch['cuda']}" if torch["cuda"] else "CPU"
    yield Finding("torch build", image.device.upper(), build, _verdict(bool(torch["cuda"]) == (image.device == "cuda")))
    if image.device == "cuda":
        yield from _gpus(facts, torch, image, cfg)


def _gpus(facts: dict[str, Any], torch: dict[str, Any], image: ImageSpec, cfg: RunConfig | None) -> Iterator[Finding]:
    nccl = image.requirements().get("nvidia-nccl-cu13", "")
    yield Finding("NCCL that torch loads", nccl, torch["nccl"] or "none", _verdict(not nccl or torch["nccl"] == nccl))
    yield Finding("cuDNN that torch loads", "", str(torch["cudnn"]), "ok")
    yield Finding("NVIDIA driver", "", facts["driver"] or "none visible", "ok" if facts["driver"] else "note")
    seen = torch["gpus"]
    text = f"{len(seen)} x {seen[0]['name']}, {seen[0]['memory_gib']} GiB" if seen else "none"
    if cfg is None or cfg.resources.device != "cuda":
        yield Finding("GPUs", "", text, "ok" if seen else "note")
    else:
        need = cfg.resources.nproc_per_node
        yield Finding("GPUs", f"at least {need}", text, _verdict(len(seen) >= need))
    if (shm := facts["shm_gib"]) is not None and shm < _SHM_GIB:
        yield Finding("/dev/shm", f"at least {_SHM_GIB} GiB", f"{shm} GiB; use the host's (--ipc=host)", "note")


def _paths(facts: dict[str, Any], cfg: RunConfig) -> Iterator[Finding]:
    for right, verb, paths in (("readable", "read", _read(cfg)), ("writable", "written", _written(cfg))):
        for path in paths:
            ok = facts["paths"][path][right]
            yield Finding(path, right, right if ok else f"cannot be {verb} inside the image; bind it", _verdict(ok))


def _read(cfg: RunConfig | None) -> list[str]:
    """Files and folders that the run reads."""
    return [] if cfg is None else cfg.inputs


def _written(cfg: RunConfig | None) -> list[str]:
    return [] if cfg is None else [cfg.output_dir]


def _verdict(good: bool) -> Literal["ok", "wrong"]:
    return "ok" if good else "wrong"
