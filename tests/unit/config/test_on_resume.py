"""What may change between two starts of a run is settled for every key."""

from __future__ import annotations

from collections import Counter

from grpo_hpc.config.on_resume import BOUND, LAYOUT, MACHINES, OBEYED
from grpo_hpc.config.sections import SECTION_OF, SECTIONS, TOP_LEVEL


def test_every_key_is_in_one_of_the_lists() -> None:
    listed = Counter([*OBEYED, *LAYOUT, *MACHINES, *(key for keys in BOUND.values() for key in keys)])
    assert set(listed) == {*SECTION_OF, *(key for key in TOP_LEVEL if key not in SECTIONS)}
    assert [key for key, count in listed.items() if count > 1] == []
