"""The cluster of a run as a plan sees it."""

from __future__ import annotations

from dataclasses import replace

from grpo_hpc.cluster.profile import Profile, profile_over, require_complete
from grpo_hpc.config import RunConfig
from grpo_hpc.errors import ConfigError
from grpo_hpc.plan.site import Site


def site_of(cfg: RunConfig, profile: Profile) -> Site:
    """The cluster that ``cfg`` names, as its ``profile`` describes it."""
    return Site(cfg.cluster.profile, profile.gpu or profile.gpu_type, profile.warned_s)


def planned_site(cfg: RunConfig) -> Site:
    """The cluster of a run that is not to be started; what stands against that is noted, where the file names one."""
    site = Site(cfg.cluster.profile)
    try:
        profile = profile_over(cfg)
        site = site_of(cfg, profile)
        require_complete(cfg, profile)
    except ConfigError as error:
        if "profile" in cfg.cluster.model_fields_set:
            return replace(site, refusal=f"{error.message}. {error.hint}")
    return site
