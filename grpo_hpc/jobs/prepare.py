"""From a run file to a run directory that any executor can start."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_hpc.cluster.profile import Profile, dump_profile, profile_of, read_profile
from grpo_hpc.cluster.secrets import read_secrets
from grpo_hpc.config import RunConfig
from grpo_hpc.files import write_atomically
from grpo_hpc.jobs.checks.node_reports import server_nodes
from grpo_hpc.jobs.job_script import Job, Step, render
from grpo_hpc.jobs.linked_files import links_of
from grpo_hpc.runs.run_dir import PlanLike, RunDir, with_absolute_paths

TRAINER = ("-m", "grpo_hpc.train")
SERVER = ("-m", "grpo_hpc.rollout.server")
_LOOK, _MEET = ("-m", "grpo_hpc.jobs.checks.check_node"), ("-m", "grpo_hpc.jobs.checks.check_rank")
_SERVE = ("-m", "grpo_hpc.jobs.serving.node_servers")


def make_job(
    cfg: RunConfig, profile: Profile, program: tuple[str, ...] = TRAINER, server: tuple[str, ...] = SERVER
) -> Job:
    """The job that trains ``cfg`` on the cluster ``profile``: in server mode one allocation, the servers' nodes last.

    Args:
        program: what torchrun starts on every rank; the run directory comes after it.
        server: what is started for every server; it takes the options and the environment of vLLM's own.

    Raises:
        ConfigError, EnvironmentProblem: the secrets file is wrong.
    """
    cfg = with_absolute_paths(cfg)
    nodes, ranks, servers = cfg.resources.nodes, cfg.resources.nproc_per_node, server_nodes(cfg)
    steps = [Step("check", _MEET, nodes + servers, ranks, before=_LOOK)]
    steps.append(Step("train", program, nodes, ranks, obeys=True))
    if servers:
        steps.append(Step("serve", (*_SERVE, *server), servers, ranks, first_node=nodes, torchrun=False))
    run_dir, binds = RunDir.of(cfg), tuple(cfg.inputs)
    read = [*binds, str(run_dir.path)] if profile.image else []
    return Job(
        name=cfg.name,
        run_dir=str(run_dir.path),
        device=cfg.resources.device,
        profile=profile,
        steps=tuple(steps),
        nodes=nodes + servers,
        python=sys.executable,
        binds=binds,
        links=links_of(read, [str(run_dir.path), *binds, *profile.binds]),
        secret_names=tuple(read_secrets(Path(profile.secrets)) if profile.secrets else ()),
    )


def create_run(
    cfg: RunConfig,
    plan: PlanLike,
    make_room: Callable[[RunDir], None] | None = None,
    program: tuple[str, ...] = TRAINER,
    server: tuple[str, ...] = SERVER,
) -> RunDir:
    """Make the run directory with everything that starting it needs; nothing is started.

    Args:
        make_room: called with an existing directory of that name first; absent: such a directory is an error.

    Raises:
        ConfigError: the cluster profile is wrong, or the directory is taken.
        EnvironmentProblem: the directory cannot be written, or holds a run that waits or runs.
    """
    profile = with_absolute_image(profile_of(cfg))
    job = make_job(cfg, profile, program, server)
    files = {"cluster.yaml": dump_profile(profile), "job.sh": render(job)}
    run_dir = RunDir.create(cfg, plan, files, make_room)
    if profile.image:
        lock = json.loads(run_dir.lock_file.read_text())
        lock["image"] = {"name": profile.image, "digest": image_digest(profile)}
        write_atomically(run_dir.lock_file, json.dumps(lock, indent=2) + "\n")
    return run_dir


def script_of(cfg: RunConfig) -> str:
    """The script that :func:`create_run` would write; nothing is written."""
    return render(make_job(cfg, with_absolute_image(profile_of(cfg))))


def stored_profile(run_dir: RunDir) -> Profile:
    """The cluster that the run was prepared for."""
    return read_profile(run_dir.cluster_file)


def move_run(
    run_dir: RunDir, profile: Profile, program: tuple[str, ...] = TRAINER, server: tuple[str, ...] = SERVER
) -> None:
    """Prepare a run for another cluster, or for a changed one: its profile and script are written anew."""
    profile = with_absolute_image(profile)
    script = render(make_job(run_dir.config(), profile, program, server))
    write_atomically(run_dir.cluster_file, dump_profile(profile))
    write_atomically(run_dir.job_script, script)


def with_absolute_image(profile: Profile) -> Profile:
    """``profile`` with the paths that it names made absolute, so that the run can be resumed from any folder."""
    changed: dict[str, Any] = {}
    for key in ("image", "secrets", "scratch", "cache"):
        value = getattr(profile, key)
        other = value is None or value.startswith("$") or (key == "image" and not _is_file_image(profile))
        if not other:  # a scratch may begin with what only the nodes know
            changed[key] = str(Path(value).absolute())
    changed["binds"] = [str(Path(bind).absolute()) for bind in profile.binds]
    return profile.model_copy(update=changed)


def image_digest(profile: Profile) -> str | None:
    """What tells one build of the image from another: its SHA-256, or the runtime's digest; None where unknown."""
    if profile.image is None:
        return None
    if _is_file_image(profile):
        path = Path(profile.image)
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    inspect = [profile.runtime, "image", "inspect", "--format", "{{.Id}}", profile.image]
    try:
        done = subprocess.run(inspect, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _is_file_image(profile: Profile) -> bool:
    image = profile.image or ""
    if profile.runtime == "apptainer":
        return "://" not in image
    return profile.runtime == "pyxis" and image.endswith(".sqsh")
