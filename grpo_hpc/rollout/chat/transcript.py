"""What was said in an episode, as messages and as token ids: the only maker of an episode's token ids.

A transcript grows by turns of the policy, kept as they were sampled, and by what the policy hears, written by the chat
template. Where the template, or an agent, writes differently what was before, a new *branch* begins: its tokens so far
are foreign to it, whoever sampled them, so each sampled token is trained in one branch only.

Shapes: T tokens of a branch, n of them sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from grpo_hpc.errors import RolloutError
from grpo_hpc.rollout.chat.dialect import THOUGHTS, call
from grpo_hpc.rollout.chat.reading import Answer, Call
from grpo_hpc.rollout.chat.rendering import Chat, Renderer
from grpo_hpc.rollout.environments.protocol import Message, Turn
from grpo_hpc.rollout.sample import REASONS, Key, Sample

if TYPE_CHECKING:
    from grpo_hpc.rollout.engine import Completion


class Transcript:
    """One episode.

    Attributes:
        messages: the whole chat, for logs and reward functions.
        opened: messages of it that were there before the policy spoke.
        text: the policy's last turn without special tokens.
        cut: messages that were longer than allowed.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self.messages: list[Message] = []
        self.opened, self.text = 0, ""
        self.cut = 0
        self._turns = 0
        self._answered: Chat | None = None
        self._branches: list[_Branch] = []

    def open(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        template: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin, or go on with a chat that somebody has edited: in a new branch.

        Args:
            messages: all of the chat, up to where the policy is to speak.
            template: what the chat template is told beside the messages.

        Raises:
            ConfigError: the chat template refuses the chat, or nobody could read what the policy calls.
        """
        self._chat = self._renderer.open(messages, tools, template or {})
        self._branches.append(_Branch(self._renderer.encode(self._chat.prompt)))
        self.messages, self.opened = list(messages), len(messages)

    @property
    def tokens(self) -> np.ndarray:
        """What the policy goes on with now: int32 [T]."""
        return self._branches[-1].tokens

    @property
    def opening(self) -> str:
        """What the chat template itself began the policy's last turn with; often nothing."""
        return "" if self._answered is None else self._renderer.opening(self._answered)

    def said(self, completion: Completion) -> Turn:
        """Add what the policy sampled.

        Returns:
            The turn as the environment is told of it. Where a tool call cannot be read it says so.

        Raises:
            RolloutError: routing is there for some completions only, or for too few tokens.
        """
        self._branches[-1].sampled(completion)
        self._last, self._answered = np.asarray(completion.tokens, np.int32), self._chat
        self._chat, answer, self.text = self._renderer.said(self._chat, self._last, completion.finish_reason)
        number, self._turns = self._turns, self._turns + 1
        self.messages.append(_message(answer, number))
        return Turn(number, self.messages[-1], self.text, completion.finish_reason, answer.problem)

    def heard(self, messages: Sequence[Message]) -> bool:
        """Add what the policy hears behind its turn, up to where it is to speak again.

        Returns:
            Whether the branch goes on; False if the chat template now writes differently what was before.

        Raises:
            EpisodeFailed: the chat template refuses the messages.
        """
        short, cut = self._renderer.cut(messages)
        end = int(self._last[-1]) if self._renderer.ended(self._last) else None
        heard = self._renderer.heard(self._chat, self.messages[-1], short, end)
        if heard.rewritten:
            self._branches.append(_Branch(heard.tokens))
        else:
            self._branches[-1].heard(heard.tokens)
        self._chat, self.cut = heard.chat, self.cut + cut
        self.messages += short
        return not heard.rewritten

    def samples(self, key: Key) -> list[Sample]:
        """One sample for each branch in which the policy spoke, each up to its last token.

        Args:
            key: of the first one; the others are its next branches.
        """
        spoken = [branch for branch in self._branches if branch.turns]
        return [branch.sample(key._replace(branch=key.branch + number)) for number, branch in enumerate(spoken)]


@dataclass
class _Branch:
    """A token sequence that only grows.

    Attributes:
        tokens: int32 [T].
        spans: where what was sampled at once begins and ends in it.
        turns: sampled tokens up to the end of a turn, and the place in ``REASONS`` of why it ended.
        routing: experts, [T - 1, L * k] up to the last sampled token; each of them as it was first told.
    """

    tokens: np.ndarray
    spans: list[tuple[int, int]] = field(default_factory=list)
    logprobs: list[np.ndarray] = field(default_factory=list)
    versions: list[np.ndarray] = field(default_factory=list)
    turns: list[tuple[int, int]] = field(default_factory=list)
    routing: list[np.ndarray] = field(default_factory=list)

    def heard(self, tokens: np.ndarray) -> None:
        self.tokens = np.concatenate([self.tokens, tokens])

    def sampled(self, completion: Completion) -> None:
        begin, count = len(self.tokens), len(completion.tokens)
        self.tokens = np.concatenate([self.tokens, np.asarray(completion.tokens, np.int32)])
        self._add_routing(completion.routing)
        self.spans.append((begin, begin + count))
        self.logprobs.append(np.asarray(completion.logprobs, np.float32))
        self.versions.append(np.full(count, completion.version, np.int32))
        before = self.turns[-1][0] if self.turns else 0
        reason = completion.finish_reason if completion.finish_reason in REASONS else "error"
        self.turns.append((before + count, REASONS.index(reason)))

    def _add_routing(self, routing: np.ndarray | None) -> None:
        """The rows of tokens that no turn before this one told of: a token keeps the experts that sampled from it."""
        if self.spans and (routing is not None) != bool(self.routing):
            raise RolloutError("the engine returned experts with some turns of an episode and not with others")
        if routing is None:
            return
        known, wanted = sum(map(len, self.routing)), len(self.tokens) - 1
        if len(routing) < wanted:
            raise RolloutError(f"the engine returned experts of {len(routing)} tokens, and {wanted} were read")
        self.routing.append(routing[known:wanted].copy())

    def sample(self, key: Key) -> Sample:
        end = self.spans[-1][1]
        mask = np.zeros(end, bool)
        for begin, stop in self.spans:
            mask[begin:stop] = True
        arrays = np.concatenate(self.logprobs), np.concatenate(self.versions), np.array(self.turns, np.int32)
        routing = {"routing": np.concatenate(self.routing)} if self.routing else {}
        return Sample(key, self.tokens[:end].copy(), mask, *arrays, **routing)


def _message(answer: Answer, turn: int) -> Message:
    """A turn as chat templates are given it back."""
    message: Message = {"role": "assistant", "content": answer.content}
    if answer.thoughts:
        message[THOUGHTS[0]] = answer.thoughts
    if answer.calls:
        message["tool_calls"] = [_tool_call(one, turn, number) for number, one in enumerate(answer.calls)]
    return message


def _tool_call(read: Call, turn: int, number: int) -> dict[str, Any]:
    """A call with an id that is the same in every run: nine letters and digits, as Mistral's templates want them."""
    return call(read.name or f"call{turn % 1000:03}{number % 100:02}", read.function, read.arguments)
