"""What one benchmark is: the sizes that ours and the peers share, and how a step's seconds become figures."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

H200_BF16_TFLOPS = 989.0  # dense, of the data sheet
HBM_TB_PER_S = 4.8


@dataclass(frozen=True)
class Work:
    """Sizes of a benchmark; everything counts completions or tokens.

    Attributes:
        folder: holds the model, ``prompts.jsonl`` and what the runs leave.
        prompts, generations: per step.
        prompt_length, completion_length: tokens.
        steps: optimizer steps; the first ``warmup`` are not counted.
        memory_share: of the GPU that vLLM may take.
    """

    folder: str
    prompts: int
    generations: int
    prompt_length: int
    completion_length: int
    steps: int
    warmup: int
    memory_share: float

    @property
    def model(self) -> Path:
        return Path(self.folder) / "model"

    @property
    def data(self) -> Path:
        return Path(self.folder) / "prompts.jsonl"

    @property
    def completions(self) -> int:
        return self.prompts * self.generations

    def tokens(self, mean_length: float) -> float:
        """Prompt and completion tokens of a step whose completions have ``mean_length`` tokens."""
        return self.completions * (self.prompt_length + mean_length)

    def save(self) -> Path:
        file = Path(self.folder) / "work.json"
        file.write_text(json.dumps(asdict(self)))
        return file

    @classmethod
    def load(cls, file: str | Path) -> Work:
        return cls(**json.loads(Path(file).read_text()))


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of the model, from its configuration (dense and mixture-of-experts decoders).

    Attributes:
        active: parameters that a token is multiplied with, without the embedding look-up and the LM head.
        head: parameters of the LM head.
        attention: query width times layers.
    """

    active: int
    head: int
    attention: int

    @classmethod
    def of(cls, config: dict[str, int]) -> Flops:
        hidden, layers = config["hidden_size"], config["num_hidden_layers"]
        queries = config["num_attention_heads"] * config["head_dim"]
        keys = config["num_key_value_heads"] * config["head_dim"]
        attention = hidden * (queries + 2 * keys) + queries * hidden
        experts = config.get("num_experts_per_tok", 1)
        width = config.get("moe_intermediate_size", config["intermediate_size"])
        router = hidden * config.get("num_experts", 0)
        active = layers * (attention + 3 * hidden * width * experts + router)
        return cls(active, hidden * config["vocab_size"], queries * layers)

    def train(self, prompt: int, completion: int) -> float:
        """Forward and backward of one sequence; the LM head sees completion tokens only. No recomputation counted.

        6 per parameter and token, and for causal attention 2 matrix products of s*s/2 per head, three times
        (arXiv 2205.05198, equation 3, without its recomputed forward).
        """
        tokens = prompt + completion
        return 6.0 * (self.active * tokens + self.head * completion) + 6.0 * self.attention * tokens**2
