"""The generative judge against a real server that is slow, fails at times and answers garbage."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import httpx
import pytest

from grpo_hpc.addresses import inside_cluster
from grpo_hpc.errors import ConfigError, RewardError
from grpo_hpc.rewards.judge import Judge, _direct
from grpo_hpc.rewards.registry import check_names
from grpo_hpc.rewards.runner import RewardRunner
from grpo_hpc.rewards.worker_pool import Task

KEY = "k-0123456789"
PROMPT = 'Rate {{ completion }} for {{ prompt }} (right: {{ answer }}) as {"score": 0-10}.'


class Handler(BaseHTTPRequestHandler):
    """Answers by what the question says."""

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        with server.lock:
            server.questions.append((self.path, self.headers.get("Authorization"), body))
            server.seen[question] = server.seen.get(question, 0) + 1
            server.running += 1
            server.most = max(server.most, server.running)
        time.sleep(6.0 if "slow" in question else 0.05)
        status = 500 if "down" in question or ("once" in question and server.seen[question] == 1) else 200
        status = 401 if "refused" in question else status
        answer = "Score: 3.\nNo, Score: 7" if "garbage" not in question else "I would rather not"
        answer = '{"score": 1} then {"why": "x", "score": "8"} {' if "json" in question else answer
        answer = "Score: 70" if "far" in question else answer
        text = json.dumps({"choices": [{"message": {"content": answer}}]}) if status == 200 else f"no {KEY} here"
        data = ("<html>" if "html" in question else text).encode()
        with server.lock:
            server.running -= 1
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except BrokenPipeError:
            pass  # the client has given up

    def log_message(self, *words): ...


class Server(ThreadingHTTPServer):
    request_queue_size = 64


@pytest.fixture
def server():
    made = Server(("127.0.0.1", 0), Handler)
    made.lock, made.questions, made.seen, made.running, made.most = threading.Lock(), [], {}, 0, 0
    made.url = f"http://127.0.0.1:{made.server_port}/v1"
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def answers(server, completion, **given):
    """The score of a judge in this process."""
    made = Judge(**{"base_url": server.url, "model": "m", "prompt": PROMPT, "backoff": 0.01} | given)

    async def call():
        return await made(completions=[completion], prompts=[[{"role": "user", "content": "2 + 2"}]], answer=["4"])

    return asyncio.run(call())[0]


def test_slow_failing_and_garbage_answers_through_the_pool(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    given = {"base_url": server.url, "model": "m", "prompt": PROMPT, "backoff": 0.05}
    given |= {"api_key_env": "JUDGE_KEY", "concurrency": 4, "retries": 1}
    texts = ["slow", "fine", "once", "down", "garbage", "far", "html", "refused", *(f"more {n}" for n in range(12))]
    offered = {"prompts": [[{"role": "user", "content": "2 + 2"}]], "answer": ["4"]}
    pools = RewardRunner(["taste=judge"], {"taste": given}, {}, timeout=3.0)
    try:
        outcomes = pools.run([Task("taste", offered | {"completions": [text]}) for text in texts])
    finally:
        pools.close()
    assert [o.score for o in outcomes] == [None, 0.7, 0.7, *[None] * 5, *[0.7] * 12]
    said = [o.text for o in outcomes]
    assert outcomes[0].failure == "timeout"
    assert "did not answer: status 500: no (secret) here" in said[3]
    assert "holds no score: 'I would rather not'" in said[4]
    assert "70 lies outside of 0 to 10" in said[5]
    assert "not answer with a chat completion: '<html>'" in said[6]
    assert "status 401" in said[7]
    times = {question.split()[1]: count for question, count in server.seen.items()}
    assert (times["once"], times["down"], times["refused"], times["garbage"]) == (2, 2, 1, 1)
    assert server.most == 4
    assert {(path, authorization) for path, authorization, _ in server.questions} == {
        ("/v1/chat/completions", f"Bearer {KEY}")
    }
    assert not any(KEY in o.text + o.hint for o in outcomes)


class Echo(Handler):
    """A proxy that says what it was asked with, as it is and in a URL."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers["Authorization"].removeprefix("Bearer ")
        data = f"no key {key}: http://proxy/?key={quote(key, safe='')} {json.dumps(key)}".encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.mark.parametrize("end", ["", " ", "\t", "\r", "\n", "\r\n"])
@pytest.mark.parametrize("key", [KEY, 'a/b+c=d&e%f"g'])
def test_a_key_is_in_no_failure_however_it_ends(server, monkeypatch, key, end):
    server.RequestHandlerClass = Echo
    monkeypatch.setenv("JUDGE", key + end)
    with pytest.raises(RewardError) as caught:
        answers(server, "fine", api_key_env="JUDGE")
    assert str(caught.value).endswith('status 401: no key (secret): http://proxy/?key=(secret) "(secret)"')


@pytest.mark.parametrize("key", ["k-0123456789\nX: y", "k-01 23456789", "schlüssel-0"])
def test_a_key_that_no_request_can_carry_is_refused_and_not_shown(server, monkeypatch, key):
    monkeypatch.setenv("JUDGE", key)
    with pytest.raises(ConfigError, match=r"JUDGE .api_key_env. holds no API key") as caught:
        answers(server, "fine", api_key_env="JUDGE")
    assert key not in str(caught.value) and "01" not in str(caught.value)


def test_what_is_asked(server, tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert answers(server, "fine", system="Be fair.", api_key_file=str(tmp_path / "key"), max_tokens=5) == 0.7
    [(_, authorization, body)] = server.questions
    assert authorization == f"Bearer {KEY}"
    assert body == {
        "model": "m",
        "temperature": 0.0,
        "max_tokens": 5,
        "messages": [
            {"role": "system", "content": "Be fair."},
            {"role": "user", "content": 'Rate fine for 2 + 2 (right: 4) as {"score": 0-10}.'},
        ],
    }


def test_a_null_that_the_judge_would_read_is_no_score(server):
    made = Judge(
        base_url=server.url, model="m", prompt="{{ completion }}{% if hint %}{{ hint }}{% endif %}{{ answer }}"
    )
    known = {"completions": ["fine"], "prompts": [[{"role": "user", "content": "2 + 2"}]], "hint": [None]}

    async def call():
        return [*await made(**known, answer=[None]), *await made(**known, answer=["4"])]

    assert asyncio.run(call()) == [None, 0.7]
    assert len(server.questions) == 1


def test_json_fields_regular_expressions_and_scales(server):
    assert answers(server, "json", score_field="score", lowest=-10.0, highest=10.0) == 0.9
    assert answers(server, "json", score_regex=r'"score": "?(\d)') == 0.8
    with pytest.raises(RewardError, match="holds no score"):
        answers(server, "json", score_field="rating")


def test_a_column_that_is_not_there_and_a_server_that_is_not_there(server):
    with pytest.raises(RewardError, match="'answr' is undefined") as caught:
        answers(server, "fine", prompt="{{ answr }}")
    assert "answer" in caught.value.hint
    with pytest.raises(RewardError, match="did not answer: ConnectError"):
        answers(server, "fine", base_url="http://127.0.0.1:9/v1", retries=1)
    with pytest.raises(RewardError, match="did not answer: ReadTimeout"):
        answers(server, "slow", timeout=0.2, retries=1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"base_url": "127.0.0.1:8000"}, "must be like http://"),
        ({"base_url": "http://me:secret@host/v1"}, "no user, password"),
        ({"api_key": KEY}, "no parameter 'api_key'"),
        ({"api_key_env": "k-0123456789"}, "must be the name of an environment variable"),
        ({"api_key_env": "A", "api_key_file": "b"}, "give one"),
        ({"score_regex": "[0-9"}, "no regular expression"),
        ({"score_regex": "[0-9]"}, "has no group"),
        ({"score_regex": "(.)", "score_field": "x"}, "give one"),
        ({"lowest": 10.0}, "less than highest"),
        ({"prompt": "{{ completion"}, "no jinja2 template"),
        ({"timeout": 0.0}, "greater than 0"),
    ],
)
def test_mistakes_are_known_before_the_start_and_show_no_key(given, said):
    parameters = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "prompt": "{{ completion }}"} | given
    with pytest.raises(ConfigError) as caught:
        check_names(["taste=judge"], {"taste": parameters})
    assert said in str(caught.value)
    assert KEY not in str(caught.value) and "secret" not in str(caught.value)


def test_a_key_that_is_not_there(server, tmp_path):
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        answers(server, "fine", api_key_env="NO_SUCH_KEY")
    with pytest.raises(ConfigError, match="absent"):
        answers(server, "fine", api_key_file=str(tmp_path / "absent"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "node017"])
def test_addresses_inside_the_cluster_are_asked_without_a_proxy(server, monkeypatch, host):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    if host == "127.0.0.1":
        assert answers(server, "fine") == 0.7
    url = f"http://{host}:8000/v1"
    client = httpx.AsyncClient(mounts=_direct(url))
    assert client._transport_for_url(httpx.URL(url)) is client._transport
    outside = httpx.URL("http://judge.example:8000/v1")
    assert client._transport_for_url(outside) is not client._transport


@pytest.mark.parametrize(
    ("host", "inside"),
    [("127.0.0.1", True), ("10.1.2.3", True), ("fd00::1", True), ("node-3", True), ("8.8.8.8", False)],
)
def test_what_is_inside_the_cluster(host, inside):
    assert inside_cluster(host) is inside


def test_a_name_that_cannot_be_looked_up_is_outside():
    assert not inside_cluster("judge.invalid")
