"""What a plan should know of the cluster that a run is for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from grpo_hpc.config import RunConfig
from grpo_hpc.plan.hardware import profile_names


@dataclass(frozen=True)
class Site:
    """The cluster of a run.

    Attributes:
        name: of its profile.
        gpu: the kind of GPU that its nodes have, as in ``resources.gpu``, or as Slurm calls it; None where nobody says.
        warned_s: seconds that a job has to save when its time limit comes near; None where it is not warned.
        refusal: why the run cannot be started there; empty where it can.
    """

    name: str = "local"
    gpu: str | None = None
    warned_s: int | None = None
    refusal: str = ""

    @property
    def hardware(self) -> str | None:
        """What ``resources.gpu`` would be on this cluster; None where it is not known."""
        return None if self.gpu is None else hardware_named(self.gpu)


def hardware_named(gpu: str) -> str | None:
    """The hardware profile of a GPU that is called ``gpu``, as Slurm's ``nvidia_h100_80gb_hbm3``; None unless one fits.

    A file made by measuring is one.
    """
    known, words = profile_names(), gpu.lower()
    if words in known or Path(gpu).is_file():
        return words if words in known else gpu
    fitting = [name for name in known if all(part in words for part in name.split("-"))]
    return max(fitting, key=len) if fitting else None


def on_site(cfg: RunConfig, site: Site) -> RunConfig:
    """``cfg`` for the GPUs of the cluster, where it names none itself."""
    if site.hardware is None or cfg.resources.device == "cpu" or "gpu" in cfg.resources.model_fields_set:
        return cfg
    return cfg.model_copy(update={"resources": cfg.resources.model_copy(update={"gpu": site.hardware})})


def site_warnings(cfg: RunConfig, site: Site) -> list[str]:
    """What does not go together."""
    found = [f"on the cluster {site.name} this cannot be started: {site.refusal}"] if site.refusal else []
    if cfg.resources.device == "cpu" or site.gpu is None or site.hardware == cfg.resources.gpu:
        return found
    planned = f"planned for {cfg.resources.gpu}, and GPUs of the cluster {site.name} are {site.gpu}"
    if site.hardware is not None:
        return [*found, f"{planned}: set resources.gpu to {site.hardware}, or leave it out"]
    if "gpu" in cfg.resources.model_fields_set:
        return found
    return [
        *found,
        f"{planned}: say in resources.gpu, or gpu of the profile, which of {', '.join(profile_names())} it is",
    ]
