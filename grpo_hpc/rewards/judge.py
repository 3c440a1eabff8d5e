"""A language model as judge, behind any OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.defaults import DEFAULT_NAMESPACE
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import SandboxedEnvironment
from pydantic import Field

from grpo_hpc.addresses import inside_cluster
from grpo_hpc.errors import ConfigError, EnvironmentProblem, RewardError
from grpo_hpc.redaction import keep_secret, redacted
from grpo_hpc.rewards.registry import reward

_NUMBER = r"-?\d+(?:\.\d+)?"
_DEFAULT_SCORE = rf"(?i)(?:reward|score)\W*\s({_NUMBER})"
_LONGEST_ANSWER = 20_000  # characters at the end of an answer that are searched
_MOST_OBJECTS = 200
_KNOWN = ("completion", "messages", "prompt")  # to the judge's prompt, besides the columns
_AGAIN = (408, 409, 425, 429)  # and everything from 500 on
Positive = Annotated[float, Field(gt=0)]


@reward("judge", source="LLM-as-a-judge (arXiv 2306.05685)")
class Judge:
    """The score that a language model gives a completion, scaled to 0..1; needs the package httpx.

    Args:
        base_url: as in ``http://127.0.0.1:8000/v1``.
        model: the name that the server knows it by.
        prompt: what the judge is asked: a jinja2 template of ``prompt`` (the last message), ``completion``,
            ``messages`` (the whole chat) and the columns of the data. No score where it would show a null.
        system: system message, if any.
        api_key_env, api_key_file: the environment variable or the file that holds the API key.
        score_regex: its first group, in the last place where it matches, is the score; ``Score: 7`` when absent.
        score_field: the key of the score in the last JSON object of the answer, instead of ``score_regex``.
        lowest, highest: the judge's scale, which becomes 0..1; a score outside of it is a failure.
        concurrency: requests at a time.
        timeout: seconds for one request. ``rewards.reward_timeout`` is for all attempts together.
        retries: further attempts when the server cannot be reached, is busy (429) or fails (5xx).
        backoff: seconds before the first further attempt; doubled for each one after it.

    Raises:
        ConfigError: a parameter is wrong, or the key cannot be read.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        prompt: str,
        system: str = "",
        api_key_env: str | None = None,
        api_key_file: str | None = None,
        score_regex: str | None = None,
        score_field: str | None = None,
        lowest: float = 0.0,
        highest: float = 10.0,
        temperature: Annotated[float, Field(ge=0)] = 0.0,
        max_tokens: Annotated[int, Field(ge=1)] = 512,
        concurrency: Annotated[int, Field(ge=1)] = 16,
        timeout: Positive = 15.0,
        retries: Annotated[int, Field(ge=0)] = 2,
        backoff: Positive = 0.5,
    ) -> None:
        self.check(
            base_url=base_url,
            prompt=prompt,
            api_key_env=api_key_env,
            api_key_file=api_key_file,
            score_regex=score_regex,
            score_field=score_field,
            lowest=lowest,
            highest=highest,
        )
        self.at_once = concurrency
        self._httpx = _httpx()
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._template = _compiled(prompt)
        self._system = [{"role": "system", "content": system}] if system else []
        self._body = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        self._pattern, self._field = re.compile(score_regex or _DEFAULT_SCORE), score_field
        self._lowest, self._highest = lowest, highest
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._key = _key(api_key_env, api_key_file)
        self._client: Any = None

    @classmethod
    def check(
        cls,
        *,
        base_url: str,
        prompt: str,
        api_key_env: str | None = None,
        api_key_file: str | None = None,
        score_regex: str | None = None,
        score_field: str | None = None,
        lowest: float = 0.0,
        highest: float = 10.0,
        **_: Any,
    ) -> None:
        """What can be seen without a server and without the key."""
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ConfigError(f"judge: base_url must be like http://host:8000/v1, got {base_url!r}")
        if url.username or url.password or url.query:
            raise ConfigError(
                "judge: base_url must hold no user, password or query", "Use api_key_env or api_key_file."
            )
        if api_key_env and api_key_file:
            raise ConfigError("judge: api_key_env and api_key_file are both given; give one")
        if api_key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", api_key_env):
            raise ConfigError("judge: api_key_env must be the name of an environment variable, not the key itself")
        if score_regex and score_field:
            raise ConfigError("judge: score_regex and score_field are both given; give one")
        if lowest >= highest:
            raise ConfigError(f"judge: lowest must be less than highest, got {lowest:g} and {highest:g}")
        try:
            groups = re.compile(score_regex or _DEFAULT_SCORE).groups
        except re.error as error:
            raise ConfigError(f"judge: score_regex is no regular expression: {error}") from None
        if not groups:
            raise ConfigError("judge: score_regex has no group", "Put the number in brackets, as in 'Score: ([0-9]+)'.")
        _compiled(prompt)

    @classmethod
    def needs(cls, *, prompt: str, **_: Any) -> list[str]:
        """Columns that ``prompt`` reads, but for those that it asks about first: ``{% if hint is defined %}``."""
        tree = _environment().parse(prompt)
        tests = [test for test in tree.find_all(nodes.Test) if test.name in ("defined", "undefined")]
        asked_about = {test.node.name for test in tests if isinstance(test.node, nodes.Name)}
        return sorted(find_undeclared_variables(tree) - asked_about - set(DEFAULT_NAMESPACE) - set(_KNOWN))

    async def __call__(
        self, completions: list[str], prompts: list[list[dict[str, Any]]], **columns: list[Any]
    ) -> list[float | None]:
        first = {name: values[0] for name, values in columns.items()}
        about_chat = (completions[0], prompts[0], prompts[0][-1]["content"])
        known = first | dict(zip(_KNOWN, about_chat, strict=True))
        try:
            question = self._template.render(known)
        except _NothingToSay:
            return [None]
        except TemplateError as error:
            raise RewardError(f"the judge's prompt: {error}", f"There is {', '.join(sorted(known))}.") from None
        answer = await self._ask([*self._system, {"role": "user", "content": question}])
        score = self._score(answer)
        if not self._lowest <= score <= self._highest:
            raise RewardError(f"the judge's score {score:g} lies outside of {self._lowest:g} to {self._highest:g}")
        return [(score - self._lowest) / (self._highest - self._lowest)]

    async def _ask(self, messages: list[dict[str, str]]) -> str:
        """The text of the judge's answer, after as many attempts as it takes."""
        if self._client is None:  # made on the event loop that uses it
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            self._client = self._httpx.AsyncClient(timeout=self._timeout, headers=headers, mounts=_direct(self._url))
        for attempt in range(self._retries + 1):
            if attempt:
                await asyncio.sleep(self._backoff * 2 ** (attempt - 1))
            try:
                response = await self._client.post(self._url, json=self._body | {"messages": messages})
            except self._httpx.HTTPError as error:
                failure = redacted(f"{type(error).__name__} {error}".strip())
                continue
            if response.status_code == 200:
                return _content(response.text)
            failure = f"status {response.status_code}: {_short(response.text)}"
            if response.status_code < 500 and response.status_code not in _AGAIN:
                break
        raise RewardError(f"the judge at {self._url} did not answer: {failure}")

    def _score(self, answer: str) -> float:
        text = answer[-_LONGEST_ANSWER:]
        if self._field:
            values = [found[self._field] for found in _objects(text) if self._field in found]
        else:
            values = [match[1] for match in self._pattern.finditer(text)]
        number = _number(values[-1]) if values else None
        if number is None:
            raise RewardError(f"the judge's answer holds no score: {_short(answer)!r}")
        return number


class _NothingToSay(Exception):
    """The prompt would show a null: a judge that reads "The right answer is None" judges something else."""


def _shown(value: Any) -> Any:
    if value is None:
        raise _NothingToSay
    return value


def _environment() -> SandboxedEnvironment:
    return SandboxedEnvironment(undefined=StrictUndefined, finalize=_shown)


def _compiled(prompt: str) -> Any:
    try:
        return _environment().from_string(prompt)
    except TemplateError as error:
        raise ConfigError(f"judge: prompt is no jinja2 template: {error}") from None


def _key(variable: str | None, file: str | None) -> str:
    """The API key; empty where none is wanted. Messages name its place, never the key."""
    if variable:
        if not (key := os.environ.get(variable, "").strip()):
            raise ConfigError(f"judge: the environment variable {variable} (api_key_env) is not set")
        return _usable(key, f"the environment variable {variable} (api_key_env)")
    if file:
        try:
            key = Path(file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"judge: the file {file} (api_key_file) cannot be read") from None
        return _usable(key, f"the file {file} (api_key_file)")
    return ""


def _usable(key: str, place: str) -> str:
    """``key``, from now on left out of what people read, if HTTP can carry it."""
    if not re.fullmatch(r"[!-~]+", keep_secret(key)):
        raise ConfigError(
            f"judge: {place} holds no API key: one has neither blanks nor line breaks in it, nor letters beyond ASCII"
        )
    return key


def _direct(url: str) -> dict[str, None]:
    """The hosts that httpx asks without a proxy, whatever ``http_proxy`` says: those of the cluster."""
    host = urlsplit(url).hostname or ""
    shown = f"[{host}]" if ":" in host else host
    return {f"all://{shown}": None} if inside_cluster(host) else {}


def _content(text: str) -> str:
    """The message in a chat completion."""
    try:
        content = json.loads(text)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        content = None
    if not isinstance(content, str):
        raise RewardError(f"the judge's server did not answer with a chat completion: {_short(text)!r}")
    return content


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in ``text``, in their order."""
    decoder, at = json.JSONDecoder(), -1
    for _ in range(_MOST_OBJECTS):
        at = text.find("{", at + 1)
        if at < 0:
            return
        try:
            found, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        at = end - 1
        yield found


def _number(value: Any) -> float | None:
    if isinstance(value, str) and re.fullmatch(rf"\s*{_NUMBER}\s*", value):
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _short(text: str) -> str:
    one_line = " ".join(redacted(text).split())
    return one_line if len(one_line) <= 200 else one_line[:197] + "..."


def _httpx() -> Any:
    try:
        import httpx
    except ModuleNotFoundError:
        raise EnvironmentProblem(
            "the reward judge needs httpx", "Install it with: pip install 'grpo-hpc[rewards]'"
        ) from None
    return httpx
