"""Every key of a cluster profile: for `grpo-hpc cluster keys`, and a page of docs."""

from __future__ import annotations

from grpo_hpc.cluster.profile import Floors, Profile
from grpo_hpc.config.key_table import Key, keys_of, markdown


def profile_keys() -> list[Key]:
    """All keys of a profile; those of the check of the nodes have the section ``preflight``."""
    return [*keys_of(Profile), *keys_of(Floors, "preflight")]


def page() -> str:
    """docs/cluster_profile.md."""
    keys = profile_keys()
    lines = [_HEAD, *markdown([key for key in keys if not key.section])]
    lines += [f"\n## preflight\n\n{Floors.__doc__}\n", *markdown([key for key in keys if key.section])]
    return "\n".join(lines) + "\n"


_HEAD = """# The cluster profile

What a cluster is like: a file that `grpo-hpc cluster add NAME` writes and you edit; a run file names it with
`cluster.profile`. `grpo-hpc cluster keys` shows this list, [first_job.md](first_job.md) an example and how paths and
variables are read.

This page is generated: `python -m grpo_hpc.cluster.profile_keys > docs/cluster_profile.md`.
"""


if __name__ == "__main__":
    print(page(), end="")
