"""Environments that tests name as files."""

from __future__ import annotations

import os
import time

from grpo_hpc.rollout.agents.agent import Outcome
from grpo_hpc.rollout.environments.protocol import Opening, Reply


class Letters:
    """Wants letters, three times; each turn is worth its share of them. Some rows are of a kind that it fails at."""

    def start(self, row):
        self.heard, self.kind = 0, row.columns["answer"] % 6
        return Opening(row.messages)

    def reply(self, turn):
        self.heard += 1
        if self.heard == 2 and self.kind == 0:
            raise ValueError("it cannot hear this")
        if self.heard == 2 and self.kind == 1:
            os._exit(3)
        if self.heard == 1 and self.kind == 2:
            time.sleep(60)
        print(f"heard {turn.text!r}")
        letters = sum(character.isalpha() for character in turn.text) / max(1, len(turn.text))
        if self.heard == 3:
            return Reply(done=True, reward=letters)
        return Reply([{"role": "user", "content": "More."}], reward=letters)


class Asker:
    """An agent that asks twice, the second time with what it heard."""

    def run(self, row, base_url, key):
        from openai import OpenAI

        client = OpenAI(base_url=base_url, api_key=key)
        chat = list(row.messages)
        for _ in range(2):
            answer = client.chat.completions.create(model="policy", messages=chat)
            said = answer.choices[0].message.content
            chat += [{"role": "assistant", "content": said}, {"role": "user", "content": "More."}]
        return Outcome(sum(character.isalpha() for character in said) / max(1, len(said)))
