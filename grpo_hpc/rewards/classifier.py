"""A reward model with a scalar head: any Hugging Face sequence classifier."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from grpo_hpc.errors import ConfigError, EnvironmentProblem
from grpo_hpc.rewards.registry import reward

Chat = list[dict[str, Any]]


@reward("reward_model", source="transformers AutoModelForSequenceClassification")
class Classifier:
    """One output (logit) of a sequence classifier for prompt and completion in the model's own chat template.

    Plugins may use it too: ``Classifier(path=...).scores(chats)``.

    Args:
        path: local folder with model and tokenizer.
        device: ``cuda`` is the GPU of the rank that asks.
        batch_size: chats computed together.
        max_length: tokens; of a longer chat the end is kept.
        label: which output, where the model has several.

    Raises:
        ConfigError: the tokenizer has no chat template, or the model no such output.
        EnvironmentProblem: the folder is incomplete, or torch or transformers is not installed.
    """

    def __init__(
        self,
        *,
        path: str,
        device: Literal["cpu", "cuda"] = "cpu",
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        batch_size: Annotated[int, Field(ge=1)] = 8,
        max_length: Annotated[int, Field(ge=1)] = 4096,
        label: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        self.check(path=path)
        torch, transformers = _packages()
        self.at_once = batch_size
        self._torch, self._max_length, self._label = torch, max_length, label
        self._device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else "cpu"
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        if not self._tokenizer.chat_template:
            raise ConfigError(f"the reward model {path} has no chat template", "Save its tokenizer with one.")
        self._tokenizer.truncation_side, self._tokenizer.padding_side = "left", "right"
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            path, local_files_only=True, dtype=getattr(torch, dtype)
        )
        if label >= model.config.num_labels:
            raise ConfigError(f"the reward model {path} has {model.config.num_labels} outputs, and label is {label}")
        self._model = model.to(self._device).eval()

    @classmethod
    def check(cls, *, path: str, **_: Any) -> None:
        """What can be seen without loading the model."""
        missing = [name for name in ("config.json", "*.safetensors", "tokenizer*") if not any(Path(path).glob(name))]
        if missing:
            raise EnvironmentProblem(
                f"the reward model {path} lacks {', '.join(missing)}",
                "Its parameter `path` must be a local folder with model and tokenizer, as save_pretrained() makes it.",
            )

    def __call__(self, assistant_turns: list[str], prompts: list[Chat]) -> list[float | None]:
        pairs = zip(prompts, assistant_turns, strict=True)
        return list(self.scores([[*prompt, {"role": "assistant", "content": turn}] for prompt, turn in pairs]))

    def scores(self, chats: Sequence[Chat]) -> list[float]:
        """The output for each chat, ``at_once`` of them computed together."""
        padded = self._tokenizer.pad_token_id is not None and self._model.config.pad_token_id is not None
        size = self.at_once if padded else 1  # without a padding token the model cannot tell where a chat ends
        return [score for start in range(0, len(chats), size) for score in self._batch(chats[start : start + size])]

    def _batch(self, chats: Sequence[Chat]) -> list[float]:
        texts = [self._tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        inputs = self._tokenizer(
            texts,
            add_special_tokens=False,  # the template has them
            padding=len(texts) > 1,
            truncation=True,
            max_length=self._max_length,
            return_tensors="pt",
        )
        with self._torch.inference_mode():
            logits = self._model(**inputs.to(self._device)).logits
        return [float(value) for value in logits[:, self._label].float().tolist()]


def _packages() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"a reward model needs {error.name}", f"Install it with: pip install {error.name}"
        ) from None
    return torch, transformers
