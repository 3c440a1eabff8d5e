"""OpenAI's client library, as it comes, against the endpoint; and strangers."""

from __future__ import annotations

import asyncio
import json
import socket
from http.client import HTTPConnection

import numpy as np
import openai
import pytest

from grpo_hpc import keyed_connection
from grpo_hpc.rollout.agents import chat_endpoint
from grpo_hpc.rollout.agents import conversation as conversation_module
from grpo_hpc.rollout.sample import Key

KEY = Key(3, 1)
USER = {"role": "user", "content": "2+2?"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def episode(stage):
    """A conversation and the client of its agent."""
    conversation, key = stage.begin()
    with openai.OpenAI(base_url=stage.endpoint.base_url, api_key=key, timeout=20) as client:
        yield conversation, client


def ask(client, messages, **told):
    return client.chat.completions.create(model="gpt-5", messages=messages, **told)


def sampled(stage, conversation) -> list[str]:
    """What was sampled in each sequence of an episode."""
    return [stage.words.decode(sample.response) for sample in conversation.samples(KEY)]


def test_an_answer(stage, episode):
    _, client = episode
    stage.script = ["four"]
    answer = ask(client, [USER], max_tokens=50)
    assert answer.choices[0].message.content == "four" and answer.choices[0].finish_reason == "stop"
    assert stage.asked == [("<user>2+2?</s><assistant>", 0, 50, ())]
    assert answer.usage.completion_tokens == 3
    assert answer.usage.prompt_tokens == len("<user>2+2?</s><assistant>")
    assert [model.id for model in client.models.list()] == ["policy"]


def test_turns_with_tools_are_one_sample_of_the_tokens_that_were_sampled(stage, episode):
    conversation, client = episode
    stage.script = ['CALL[["add", {"a": 2}], ["add", {"a": 3}]]', "thoughts|five"]
    first = ask(client, [USER], tools=[TOOL]).choices[0]
    assert first.finish_reason == "tool_calls" and first.message.content is None
    calls = first.message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == [{"a": 2}, {"a": 3}]
    assert len({call.id for call in calls}) == 2
    results = [{"role": "tool", "tool_call_id": call.id, "content": "5"} for call in calls]
    last = ask(client, [USER, first.message, *results], tools=[TOOL]).choices[0].message
    assert last.content == "five" and last.reasoning_content == "thoughts"
    (sample,) = conversation.samples(KEY)
    assert sampled(stage, conversation) == ['CALL[["add", {"a": 2}], ["add", {"a": 3}]]</s>thoughts|five</s>']
    assert stage.words.decode(sample.tokens[~sample.mask]).endswith("<tool>5</s><tool>5</s><assistant>")
    assert len(sample.turns) == 2 and sample.key == KEY


def test_streaming_says_the_same(stage, episode):
    _, client = episode
    stage.script = ["because|four", 'CALL[["add", {"a": 2}]]']
    with client.chat.completions.stream(model="m", messages=[USER], stream_options={"include_usage": True}) as stream:
        whole = stream.get_final_completion()
    assert whole.choices[0].message.content == "four" and whole.usage.completion_tokens == 7
    pieces = list(ask(client, [{"role": "user", "content": "add"}], stream=True, tools=[TOOL]))
    assert [piece.choices[0].finish_reason for piece in pieces][-1] == "tool_calls"
    (call,) = [call for piece in pieces for call in piece.choices[0].delta.tool_calls or []]
    assert (call.index, call.function.name, call.function.arguments) == (0, "add", '{"a": 2}')


def test_the_async_client(stage):
    conversation, key = stage.begin()

    async def work():
        async with openai.AsyncOpenAI(base_url=stage.endpoint.base_url, api_key=key, timeout=20) as client:
            answers = [ask(client, [{"role": "user", "content": str(number)}]) for number in range(20)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*answers)]

    stage.script = ["yes"] * 20
    assert asyncio.run(work()) == ["yes"] * 20
    assert [sample.key.branch for sample in conversation.samples(KEY)] == list(range(20))


def test_log_probabilities(stage, episode):
    _, client = episode
    stage.script = ["four"]
    told = ask(client, [USER], logprobs=True).choices[0].logprobs.content
    assert [(entry.token, entry.logprob) for entry in told] == [("fo", -0.5), ("ur", -0.5), ("</s>", -0.5)]


def test_a_stop_text_ends_the_answer_and_the_chat_goes_on(stage, episode):
    conversation, client = episode
    stage.script = ["foSTOP", "more"]
    answer = ask(client, [USER], stop="STOP").choices[0].message
    assert answer.content == "fo" and stage.asked[0][3] == ("STOP",)
    ask(client, [USER, answer, USER])
    assert sampled(stage, conversation) == ["foSTOP</s>more</s>"]


AGAIN = {"x-stainless-retry-count": "1"}


@pytest.mark.parametrize("says", [AGAIN, {"x-stainless-retry-count": openai.Omit()}])
def test_a_repeated_request_has_the_same_answer_without_sampling(stage, episode, says):
    """Where the client says that it tries again, or does not say."""
    conversation, client = episode
    stage.script = ["one", "two"]
    assert ask(client, [USER]).choices[0].message.content == "one"
    assert [ask(client, [USER], extra_headers=says).choices[0].message.content for _ in range(3)] == ["one"] * 3
    assert ask(client, [USER], extra_headers=says, seed=2).choices[0].message.content == "two"
    assert sampled(stage, conversation) == ["one</s>", "two</s>"]


def test_who_asks_on_purpose_for_another_answer_gets_one(stage, episode):
    conversation, client = episode
    stage.script = ["one", "two", "three"]
    assert [ask(client, [USER]).choices[0].message.content for _ in range(3)] == ["one", "two", "three"]
    assert sampled(stage, conversation) == ["one</s>", "two</s>", "three</s>"]


def test_an_agent_that_asks_the_same_for_ever_is_told(stage, episode, monkeypatch):
    monkeypatch.setattr(conversation_module, "MOST_TIMES", 3)
    _, client = episode
    stage.script = ["one"]
    for _ in range(3):
        assert ask(client, [USER], extra_headers=AGAIN).choices[0].message.content == "one"
    with pytest.raises(openai.BadRequestError, match="another `seed`"):
        ask(client, [USER], extra_headers=AGAIN)


@pytest.mark.parametrize("retries", [0, 5])
def test_a_client_that_was_too_impatient_gets_the_answer_that_it_did_not_wait_for(stage, episode, retries, monkeypatch):
    """Whether its library asks again or the agent itself."""
    conversation, client = episode
    again, ask_it = asyncio.Event(), conversation.ask

    def asked(*told):
        if stage.asked:
            again.set()
        return ask_it(*told)

    async def until_asked_again():
        await again.wait()
        return "late"

    monkeypatch.setattr(conversation, "ask", asked)
    stage.script = [until_asked_again]
    if retries == 0:
        with pytest.raises(openai.APITimeoutError):
            ask(client.with_options(timeout=1.0, max_retries=0), [USER])
    told = ask(client.with_options(timeout=20 if retries == 0 else 0.6, max_retries=retries), [USER])
    assert told.choices[0].message.content == "late"
    assert len(stage.asked) == 1 and len(conversation.samples(KEY)) == 1


def test_an_edited_chat_is_a_branch_and_every_token_is_trained_once(stage, episode):
    conversation, client = episode
    stage.script = ["first", "second", "third"]
    said = ask(client, [USER]).choices[0].message.content
    ask(client, [USER, {"role": "assistant", "content": said.upper()}, USER])
    ask(client, [USER, {"role": "assistant", "content": f" {said}\n"}, USER])
    assert sampled(stage, conversation) == ["first</s>third</s>", "second</s>"]
    assert [sample.key for sample in conversation.samples(KEY)] == [KEY, KEY._replace(branch=1)]


def test_two_answers_to_one_chat_do_not_share_a_sequence(stage, episode):
    conversation, client = episode
    stage.script = ["first", "left", "right"]
    chat = [USER, ask(client, [USER]).choices[0].message]
    for word in ("l", "r"):
        ask(client, [*chat, {"role": "user", "content": word}])
    assert sampled(stage, conversation) == ["first</s>left</s>", "right</s>"]


def test_other_tools_are_another_chat(stage, episode):
    conversation, client = episode
    stage.script = ["first", "second"]
    chat = [USER, ask(client, [USER]).choices[0].message, USER]
    ask(client, chat, tools=[TOOL])
    assert sampled(stage, conversation) == ["first</s>", "second</s>"]


@pytest.mark.parametrize(
    ("told", "about"),
    [
        ({"n": 2}, "n is 2"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True, "top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"max_tokens": 0}, "at least 1"),
        ({"stop": ["a"] * 17}, "17 texts"),
        ({"stop": ""}, "none of them empty"),
        ({"extra_body": {"temprature": 1}}, "did you mean 'temperature'"),
        ({"messages": []}, "messages are missing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages\\[0\\]"),
        ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "last message"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text alone"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}, "tool calls"),
        ({"messages": [{"role": "user", "content": "x", "audio": {"id": "a"}}]}, "audio"),
        ({"messages": [{"role": "user", "content": "forbidden"}]}, "chat template"),
        ({"messages": [{"role": "user", "content": "strange"}]}, "KeyError"),
        ({"tools": [{"type": "web_search"}]}, "tools\\[0\\]"),
    ],
)
def test_what_is_not_offered_is_refused_in_words(stage, episode, told, about):
    conversation, client = episode
    with pytest.raises(openai.BadRequestError, match=about) as caught:
        ask(client, **{"messages": [USER]} | told)
    assert caught.value.type == "invalid_request_error"
    assert stage.asked == [] and conversation.samples(KEY) == [] and not conversation.failure.done()


def test_sampling_is_the_run_files_and_a_wish_for_another_is_told_once(stage, episode):
    _, client = episode
    stage.script = ["a", "b", "c"]
    for number in range(3):
        ask(client, [{"role": "user", "content": str(number)}], temperature=0.2 if number else 1.0, top_p=0.5)
    assert (
        len(stage.said) == 2
        and "temperature 0.2" in stage.said[1]
        and "with 1.0, as the run file says" in stage.said[1]
    )


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_no_call_is_forced_and_that_is_told(stage, episode, choice):
    _, client = episode
    stage.script = ["no"] * 3
    for number, wanted in enumerate(("auto", choice, "none")):
        answer = ask(client, [{"role": "user", "content": str(number)}], tools=[TOOL], tool_choice=wanted)
        assert answer.choices[0].message.content == "no"
    (said,) = stage.said
    assert said == f"an agent asked for tool_choice {json.dumps(choice)}: completions are sampled without it"
    assert stage.asked[1][0].startswith("[add]") and not stage.asked[2][0].startswith("[add]")


def test_no_room_for_another_token(stage, episode):
    conversation, client = episode
    stage.script, stage.context = ["four"], 40
    chat = [USER, ask(client, [USER]).choices[0].message, {"role": "user", "content": "x" * 20}]
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, chat)
    assert caught.value.code == "context_length_exceeded" and conversation.full == "length"


def test_no_room_for_another_turn(stage):
    stage.script, stage.turns = ["four"], 1
    conversation, key = stage.begin()
    client = openai.OpenAI(base_url=stage.endpoint.base_url, api_key=key)
    chat = [USER, ask(client, [USER]).choices[0].message, USER]
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, chat)
    assert caught.value.code == "max_turns" and conversation.full == "turns"


def test_an_episode_that_has_ended_is_not_written_to(stage, episode):
    conversation, client = episode
    gate = asyncio.Event()

    async def slow():
        await gate.wait()
        return "late"

    async def asked():
        async with openai.AsyncOpenAI(base_url=stage.endpoint.base_url, api_key=client.api_key) as other:
            waiting = asyncio.create_task(ask(other, [USER]))
            while not stage.asked:
                await asyncio.sleep(0.01)
            stage.endpoint.dismiss(client.api_key)
            gate.set()
            await waiting

    stage.script = [slow]
    with pytest.raises(openai.APIStatusError, match="ended") as caught:
        stage.do(asked())
    assert caught.value.status_code == 410
    assert conversation.samples(KEY) == []
    with pytest.raises(openai.AuthenticationError):
        ask(client, [USER])


# -- strangers ---------------------------------------------------------------------------------------------------------


def posted(stage, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    address = stage.endpoint.base_url.removeprefix("http://").removesuffix("/v1")
    connection = HTTPConnection(address, timeout=20)
    connection.request("POST", "/v1/chat/completions", body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer no"}, {"Authorization": "Basic no"}, {"Authorization": "ü"}]
)
def test_without_a_key(stage, episode, headers):
    status, body = posted(stage, b"{}", headers)
    assert status == 401 and b"key" in body


def test_a_wrong_key_costs_no_memory(stage):
    status, _ = posted(stage, b" " * (64 << 20), {"Authorization": "Bearer no"})
    assert status == 401


@pytest.mark.parametrize("path", ["/", "/v1/chat/completions", "/v1/embeddings"])
def test_other_paths(stage, episode, path):
    _, client = episode
    with pytest.raises(openai.NotFoundError):
        client.get(stage.endpoint.base_url.removesuffix("/v1") + path, cast_to=object)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"messages": ' + b"[" * 100_000, b'{"n": ' + b"1" * 5000 + b"}",
     b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b'{"messages": {"0": 1}}', b'{"messages": [[]]}'],
)  # fmt: skip
def test_odd_bodies(stage, episode, body):
    _, client = episode
    status, told = posted(stage, body, {"Authorization": f"Bearer {client.api_key}"})
    assert status == 400 and json.loads(told)["error"]["type"] == "invalid_request_error"
    assert stage.asked == []


def test_a_long_body_is_refused(stage, episode, monkeypatch):
    _, client = episode
    monkeypatch.setattr(chat_endpoint, "LONGEST_BODY", 1000)
    with pytest.raises(openai.APIStatusError, match="1000") as caught:
        ask(client, [{"role": "user", "content": "x" * 2000}])
    assert caught.value.status_code == 413


def test_connections_without_a_key_end(stage, episode, monkeypatch):
    monkeypatch.setattr(keyed_connection, "STRANGER_S", 1.0)
    monkeypatch.setattr(keyed_connection, "STRANGERS", 3)
    _, client = episode
    host, _, port = stage.endpoint.base_url.removeprefix("http://").removesuffix("/v1").partition(":")
    silent = [socket.create_connection((host, int(port)), 10) for _ in range(8)]
    stage.script = ["four"]
    assert ask(client, [USER]).choices[0].message.content == "four"
    assert [connection.recv(1) for connection in silent] == [b""] * 8


def test_a_stranger_who_reads_nothing_ends(stage, monkeypatch):
    """A connection that is closed in order would wait until somebody reads what is left in its buffers."""
    monkeypatch.setattr(keyed_connection, "STRANGERS", 1)
    monkeypatch.setattr(keyed_connection, "STRANGER_S", 600.0)
    (listening,) = stage.endpoint._server.servers[0].sockets
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # as its connections have from now on
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        stranger.settimeout(2)
        stranger.connect(listening.getsockname())
        with pytest.raises(TimeoutError):  # nothing is taken from it any more
            while True:
                stranger.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        socket.create_connection(listening.getsockname()).close()
        stranger.settimeout(20)
        with pytest.raises(ConnectionError):
            while True:
                stranger.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)


def test_what_the_engine_said_is_what_is_trained(stage, episode):
    """The pairs of characters that were sampled, not the characters that the text would be encoded to."""
    conversation, client = episode
    stage.script = ["fourty"]
    ask(client, [USER])
    (sample,) = conversation.samples(KEY)
    np.testing.assert_array_equal(sample.response, [*stage.words.encode("fourty", 2), 1])
    assert len(sample.response) < len("fourty")
