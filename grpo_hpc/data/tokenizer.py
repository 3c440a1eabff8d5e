"""The model's tokenizer and chat template. Importing this module imports no torch; making a tokenizer does."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from grpo_hpc.data.rows import Row
from grpo_hpc.errors import ConfigError

_FILES = (
    "*.json",
    "*.model",
    "*.tiktoken",
    "*.txt",
    "*.jinja",
    "*/*.jinja",
    "*.py",
)  # what a tokenizer may be made from

_ANSWER, _THOUGHTS = "\ue000", "<think>"  # a text that no template begins an answer with; where thoughts begin


def own_code(folder: Path) -> str:
    """The class that a model's folder names for its tokenizer and brings the code of; empty where transformers has one.

    Raises:
        ConfigError: the tokenizer's configuration cannot be read.
    """
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{folder / 'tokenizer_config.json'} cannot be read: {error}") from error
    named = config.get("auto_map") if isinstance(config, dict) else None
    classes = named.get("AutoTokenizer") if isinstance(named, dict) else named
    return next((str(name) for name in (classes if isinstance(classes, list) else [classes]) if name), "")


class Tokenizer:
    """Turns chats into token ids and token ids into text.

    Args:
        model_path: a Hugging Face folder.
        kwargs: what its chat template is told beside each row's messages; a row may say otherwise.
        trust_remote_code: run the tokenizer's own code, if the folder brings some.

    Raises:
        ConfigError: it brings some that is not trusted; or it has no chat template, or one that does not read all of
            ``kwargs``.
    """

    def __init__(
        self, model_path: str, kwargs: Mapping[str, Any] | None = None, trust_remote_code: bool = False
    ) -> None:
        from transformers import AutoTokenizer

        self.folder = Path(model_path)
        if not trust_remote_code and (code := own_code(self.folder)):
            raise ConfigError(
                f"the tokenizer in {model_path} is a program of its own: {code}",
                "Read it; model.trust_remote_code: true then runs it on every node, with all that the run may do.",
            )
        self._tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code)
        if not self._tokenizer.chat_template:
            raise ConfigError(f"the tokenizer in {model_path} has no chat template", "Add a chat_template to it.")
        self._kwargs = dict(kwargs or {})
        if unread := self._unread(self._kwargs):
            raise ConfigError(
                f"data.chat_template_kwargs: the chat template in {model_path} does not read {unread[0]!r}",
                f"It asks for: {', '.join(_options(self._tokenizer.get_chat_template())) or 'nothing'}.",
            )

    @cached_property
    def digest(self) -> str:
        """Of everything that decides which tokens a chat becomes: files, arguments of the template, packages."""
        decisive = [self._kwargs, version("transformers"), version("tokenizers")]
        digest = hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=16)
        for file in sorted(file for pattern in _FILES for file in self.folder.glob(pattern)):
            content = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
            digest.update(f"\n{file.relative_to(self.folder)} {content}".encode())
        return digest.hexdigest()

    def text(self, row: Row) -> str:
        """The chat as the template writes it, ending where the assistant is to speak.

        Raises:
            ConfigError: the template refuses the chat, or does not read what the row has for it.
        """
        if unread := self._unread(row.template):
            raise ConfigError(f"has {unread[0]!r}, which the model's chat template does not read")
        return self.written(row.messages, row.template, begins=True)

    def opening(self, row: Row) -> str:
        """What the template itself begins the assistant's answer with: ``<think>`` and a line feed; often nothing.

        It is what the template adds for the answer, without what it writes in front of any turn of the assistant.
        Some write empty thoughts in front of every turn: where thoughts begin the answer has begun.
        """
        return self.opening_of(row.messages, row.template)

    def opening_of(self, messages: list[dict[str, Any]], template: Mapping[str, Any]) -> str:
        """The same of a chat, whose last message may be any that the assistant answers."""
        before, begun = self.written(messages, template), self.written(messages, template, begins=True)
        try:
            answered = self.written([*messages, {"role": "assistant", "content": _ANSWER}], template)
        except ConfigError:  # it writes no turn of the assistant
            answered = begun
        added, turn = (text[len(before) :] if text.startswith(before) else "" for text in (begun, answered))
        header, _, _ = shared_beginning(added, turn or added).partition(_THOUGHTS)
        return added.removeprefix(header)

    def written(self, messages: list[dict[str, Any]], template: Mapping[str, Any], *, begins: bool = False) -> str:
        """A chat as the template writes it.

        Args:
            template: what it is told beside the messages and the run file's arguments.
            begins: whether the text ends where the assistant is to speak, or behind the last message.

        Raises:
            ConfigError: the template refuses the chat.
        """
        told = self._kwargs | dict(template)
        try:
            return str(
                self._tokenizer.apply_chat_template(messages, add_generation_prompt=begins, tokenize=False, **told)
            )
        except Exception as error:  # a template is a program of its own
            raise ConfigError(f"is refused by the model's chat template: {type(error).__name__}: {error}") from None

    def _unread(self, kwargs: Mapping[str, Any]) -> list[str]:
        """Names that the chat template never mentions."""
        if not kwargs:
            return []
        template = self._tokenizer.get_chat_template(tools=kwargs.get("tools"))
        return [name for name in kwargs if not _mentions(template, name)]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of what :meth:`text` gave; many at once are spread over the processor's cores."""
        return list(self._tokenizer(list(texts), add_special_tokens=False)["input_ids"])  # the template writes its own

    def encode(self, row: Row) -> list[int]:
        """The chat as token ids."""
        return self.encode_all([self.text(row)])[0]

    def decode(self, tokens: list[int], *, special: bool = False) -> str:
        """``tokens`` as text, without special tokens unless they are wanted."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=not special))

    @property
    def of_transformers(self) -> Any:
        """The tokenizer as transformers made it."""
        return self._tokenizer

    @property
    def template(self) -> str:
        """The chat template, a program in Jinja; where there are several, the one for tools."""
        return str(self._tokenizer.get_chat_template(tools=[{}]))

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes that each token of the vocabulary has in the text of :meth:`decode`, uint16 [vocabulary]."""
        plain = self._tokenizer.convert_ids_to_tokens(list(range(len(self._tokenizer))))
        fast = getattr(self._tokenizer, "backend_tokenizer", None)
        of_bytes = "ByteLevel" in str(fast and fast.decoder)
        lengths = np.array([_bytes_of(token or "", of_bytes) for token in plain], np.uint16)
        for number, added in self._tokenizer.added_tokens_decoder.items():
            lengths[number] = 0 if added.special else len(added.content.encode())
        return lengths


def _bytes_of(token: str, of_bytes: bool) -> int:
    """Of a token as the vocabulary writes it: one sign for each byte (GPT-2), or text with marks (SentencePiece)."""
    if of_bytes:
        return len(token)
    return 1 if re.fullmatch(r"<0x[0-9A-F]{2}>", token) else len(token.replace("\u2581", " ").encode())


def shared_beginning(first: str, second: str) -> str:
    """What both texts begin with."""
    return "".join(one for one, other in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


@cache
def _mentions(template: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def _options(template: str) -> list[str]:
    """Names that the template looks for before it reads them."""
    return sorted(set(re.findall(r"\b(\w+) is (?:not )?defined", template)))
