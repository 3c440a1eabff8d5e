"""What every key of sampling makes of the same requests.

Arguments: run file, output folder, settings as JSON. Writes OUTPUT/result.json: for each of them a list of
[tokens, log-probabilities, finish reason] of every request.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from onlayouts import control, requests_for


def main() -> None:
    from grpo_hpc.config import load_run
    from grpo_hpc.rollout.engine import ColocateEngine, complete
    from grpo_hpc.train.megatron.parallel import init_model_parallel
    from grpo_hpc.train.megatron.platform import make_platform
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    run, target, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    cfg = load_run(run)
    platform = make_platform(cfg.resources.device)
    platform.init_distributed()
    init_model_parallel(cfg, platform)
    policy = TrainedPolicy(cfg, platform, control())
    engine = ColocateEngine(cfg, platform)
    assert engine._llm.llm_engine.vllm_config.cache_config.enable_prefix_caching is False, "vllm_engine_kwargs says so"
    engine.load_weights(policy.exporter.tensors(), 0)
    prompts = [[256, *range(60, 64 + n)] for n in range(6)]
    found = {}
    for name, keys in settings.items():
        changed = load_run(run, [f"{key}={json.dumps(value)}" for key, value in keys.items()])
        completions = complete(engine, requests_for(changed, prompts))
        found[name] = [[c.tokens.tolist(), c.logprobs.tolist(), c.finish_reason] for c in completions]
    (target / "result.json").write_text(json.dumps({"prompts": prompts} | found))
    engine.close()


if __name__ == "__main__":
    main()
