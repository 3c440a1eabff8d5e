"""vLLM alone on the benchmark's prompts: what the rollout phase could reach. Prints one JSON object as its last line.

python tools/bench/peer_vllm.py WORK.json
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tools.bench.work import Work


def main(work: Work) -> dict[str, Any]:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams, TokensPrompt

    length = work.prompt_length + work.completion_length
    llm = LLM(model=str(work.model), dtype="bfloat16", gpu_memory_utilization=work.memory_share, max_model_len=length,
              seed=0, disable_log_stats=True)  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    rows = [json.loads(line)["messages"][0]["content"] for line in work.data.read_text().splitlines()[: work.prompts]]
    prompts = [TokensPrompt(prompt_token_ids=tokenizer(text)["input_ids"]) for text in rows]
    sampling = SamplingParams(n=work.generations, max_tokens=work.completion_length, temperature=1.0, detokenize=False)
    best = {"rollout_tokens_per_s": 0.0}
    for _ in range(3):
        started = time.perf_counter()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - started
        llm.reset_prefix_cache()
        sampled = sum(len(part.token_ids) for output in outputs for part in output.outputs)
        found = {
            "rollout_s": seconds,
            "rollout_tokens_per_s": sampled / seconds,
            "mean_length": sampled / work.completions,
        }
        best = max(best, found, key=lambda each: each["rollout_tokens_per_s"])
    return best


if __name__ == "__main__":
    print(json.dumps(main(Work.load(sys.argv[1]))), flush=True)
