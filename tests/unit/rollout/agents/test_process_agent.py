"""Agents in the processes that environments have, and what they do there."""

from __future__ import annotations

import os
import sys

import pytest

from grpo_hpc.rollout.agents.agent import Outcome
from grpo_hpc.rollout.agents.process_agent import ProcessAgent
from grpo_hpc.rollout.environments.environment_pool import EnvironmentPool
from grpo_hpc.rollout.environments.protocol import EpisodeFailed
from grpo_hpc.rollout.sample import Key

AGENT = """
import json, os, signal, subprocess, sys, time, urllib.request

class Agent:
    def __init__(self, then="return"):
        self.then = then

    def run(self, row, base_url, key):
        head = {"Authorization": "Bearer " + key}
        body = json.dumps({"messages": row.messages}).encode()
        asked = urllib.request.Request(base_url + "/chat/completions", body, head)
        said = json.load(urllib.request.urlopen(asked))["choices"][0]["message"]["content"]
        print("heard", said)
        if self.then == "child":
            child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
            return {"counts": {"pid": child.pid}}
        if self.then == "hang":
            time.sleep(600)
        if self.then == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.then == "raise":
            raise ValueError("no more")
        if self.then == "odd":
            return "well done"
        return float(said == str(row.columns["answer"]))
"""
PROGRAM = """
from grpo_hpc.rollout.agents.program_agent import ProgramAgent

class Agent(ProgramAgent):
    command = ["sh", "-c", {script!r}]
"""
ASK = """
import json, os, sys, urllib.request as web
head = {'Authorization': 'Bearer ' + os.environ['OPENAI_API_KEY']}
body = json.dumps({'messages': json.load(sys.stdin)['messages']}).encode()
asked = web.Request(os.environ['OPENAI_BASE_URL'] + '/chat/completions', body, head)
said = json.load(web.urlopen(asked))['choices'][0]['message']['content']
print(json.dumps({'reward': float(said)}))
"""


@pytest.fixture
def played(stage, tmp_path):
    """``played(text, then)``: what came of an episode of the agent with this text."""
    pools = []

    def play(text: str, silence_s: float = 20.0, **params):
        (tmp_path / "mine.py").write_text(text)
        pools.append(EnvironmentPool(f"{tmp_path}/mine.py:Agent", params, log=tmp_path / "printed.log"))
        pools[-1].start()
        stage.script = ["4"]
        return stage.play(ProcessAgent(pools[-1].process("0-0")), silence_s)

    yield play
    for pool in pools:
        pool.close()


def test_an_agent_in_its_process(stage, played, tmp_path):
    outcome, conversation = played(AGENT)
    assert outcome == Outcome(1.0)
    assert stage.words.decode(conversation.samples(Key(0, 0))[0].response) == "4</s>"
    assert (tmp_path / "printed.log").read_text() == "0-0 | heard 4\n"


@pytest.mark.parametrize(("name", "known"), [("http_proxy", {}), ("HTTP_PROXY", {"NO_PROXY": "node1"})])
def test_a_proxy_is_not_asked(played, monkeypatch, name, known):
    """It knows nothing of the endpoint: each node of a cluster has that address."""
    for variable, value in (known | {name: "http://127.0.0.1:9"}).items():
        monkeypatch.setenv(variable, value)
    assert played(AGENT)[0] == Outcome(1.0)


@pytest.mark.parametrize(
    ("then", "kind", "text"),
    [
        ("die", "killed", "SIGKILL"),
        ("raise", "error", "no more"),
        ("odd", "error", "well done"),
    ],
)
def test_an_agent_that_fails(played, then, kind, text):
    with pytest.raises(EpisodeFailed, match=text) as caught:
        played(AGENT, then=then)
    assert caught.value.kind == kind


def test_an_agent_that_hangs(played):
    with pytest.raises(EpisodeFailed, match=r"nothing for 0\.5 s"):
        played(AGENT, silence_s=0.5, then="hang")


def test_what_an_agent_started_ends_with_it(played):
    pid = played(AGENT, then="child")[0].counts["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_program_in_its_process(played, tmp_path):
    (tmp_path / "ask.py").write_text(ASK)
    script = f"echo begun; exec {sys.executable} -S {tmp_path}/ask.py"
    assert played(PROGRAM.format(script=script))[0] == Outcome(4.0)
    assert (tmp_path / "printed.log").read_text() == "0-0 | begun\n"


def test_a_program_that_asks_nothing(played, tmp_path):
    with pytest.raises(EpisodeFailed, match="asked the policy nothing"):
        played(PROGRAM.format(script="wc -c"))
    assert int((tmp_path / "printed.log").read_text().partition("|")[2]) > 50, "it was given the row"
