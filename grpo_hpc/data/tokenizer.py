"""The model's tokenizer and chat template. Importing this module imports no torch; making a tokenizer does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from grpo_hpc.data.rows import Row
from grpo_hpc.errors import ConfigError

_FILES = ("*.json", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*/*.jinja")  # what a tokenizer may be made from


class Tokenizer:
    """Turns chats into token ids and token ids into text.

    Args:
        model_path: a Hugging Face folder.

    Raises:
        ConfigError: its tokenizer has no chat template.
    """

    def __init__(self, model_path: str) -> None:
        from transformers import AutoTokenizer

        self._folder = Path(model_path)
        self._tokenizer = AutoTokenizer.from_pretrained(model_path)
        if not self._tokenizer.chat_template:
            raise ConfigError(f"the tokenizer in {model_path} has no chat template", "Add a chat_template to it.")

    @cached_property
    def digest(self) -> str:
        """Of everything that decides which tokens a chat becomes: files of the folder, and versions of packages."""
        digest = hashlib.blake2b(f"{version('transformers')} {version('tokenizers')}".encode(), digest_size=16)
        for file in sorted(file for pattern in _FILES for file in self._folder.glob(pattern)):
            content = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
            digest.update(f"\n{file.relative_to(self._folder)} {content}".encode())
        return digest.hexdigest()

    def text(self, row: Row) -> str:
        """The chat as the template writes it, ending where the assistant is to speak.

        Raises:
            ConfigError: the template refuses the chat.
        """
        try:
            return str(self._tokenizer.apply_chat_template(row.messages, add_generation_prompt=True, tokenize=False))
        except Exception as error:  # a template is a program of its own
            raise ConfigError(f"is refused by the model's chat template: {type(error).__name__}: {error}") from None

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of what :meth:`text` gave; many at once are spread over the processor's cores."""
        return list(self._tokenizer(list(texts), add_special_tokens=False)["input_ids"])  # the template writes its own

    def encode(self, row: Row) -> list[int]:
        """The chat as token ids."""
        return self.encode_all([self.text(row)])[0]

    def decode(self, tokens: list[int]) -> str:
        """``tokens`` as text, without special tokens."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
