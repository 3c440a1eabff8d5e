"""A model's config.json: planned, or refused in words."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz.odd import EDITS, changed_json, damaged

ROOT = Path(__file__).parents[2]
PUBLISHED = [
    *(json.loads(file.read_text()) for file in sorted((ROOT / "configs" / "models").glob("*.json"))),
    *json.loads((ROOT / "tests" / "unit" / "models" / "published.json").read_text()).values(),
]
CONFIGS = st.sampled_from(PUBLISHED).flatmap(changed_json).map(lambda config: json.dumps(config).encode())
RUNS = ("qwen3_8b", "qwen3_30b_a3b", "qwen3_30b_a3b_lora", "quickstart")


def test_config_json(fuzzing):
    def check(case: tuple[str, bytes]) -> None:
        run, config = case
        fuzzing.run({"m/config.json": config}, ["plan", run, "model.path=m", "model.config=null", "--json"])

    broken = st.tuples(CONFIGS, EDITS).map(lambda pair: damaged(*pair))
    fuzzing.cases(st.tuples(st.sampled_from(RUNS), CONFIGS | broken), check, 100)
