"""Requests of any shape: one is read, or refused in words, and nothing else happens."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_hpc.rollout.agents.chat_request import _KNOWN, ChatRequest, Refusal, digest_of, fingerprints, read_request

PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["", "auto", "x"])
)
ANYTHING = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
FUNCTION = st.fixed_dictionaries({}, optional={"name": PLAIN, "arguments": PLAIN | st.just('{"a": 1}') | ANYTHING})
CALL = st.fixed_dictionaries({}, optional={"id": PLAIN, "type": PLAIN, "function": FUNCTION | ANYTHING}) | ANYTHING
PART = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]), "text": PLAIN})
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"]) | ANYTHING},
    optional={
        "content": st.lists(PART, max_size=2) | ANYTHING,
        "tool_calls": st.lists(CALL, max_size=2) | ANYTHING,
        **dict.fromkeys(("tool_call_id", "name", "reasoning_content", "reasoning", "refusal", "audio"), ANYTHING),
    },
)
REQUEST = st.dictionaries(st.sampled_from(_KNOWN), ANYTHING, max_size=4).flatmap(
    lambda told: st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=3) | ANYTHING}).map(lambda m: told | m)
)


@given(REQUEST | ANYTHING)
@settings(max_examples=200, deadline=None)
def test_any_request_is_read_or_refused(told):
    try:
        request = read_request(json.dumps(told).encode())
    except Refusal as refusal:
        assert refusal.status == 400 and json.dumps(refusal.body) and len(refusal.text) < 400
        return
    assert isinstance(request, ChatRequest) and len(fingerprints(request.messages, b"")) == len(request.messages)
    for message in request.messages:
        assert isinstance(message["content"], str)
        assert all(isinstance(call["function"]["arguments"], dict) for call in message.get("tool_calls", []))
    assert request.limit is None or request.limit > 0


def said(**changed):
    call = {"id": "call00000", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    return {"role": "assistant", "content": "so", "tool_calls": [call]} | changed


def end(*messages) -> bytes:
    return fingerprints(messages, digest_of([]))[-1]


@pytest.mark.parametrize("same", [{"reasoning_content": "hm"}, {"content": " so\n"}])
def test_what_clients_leave_out_tells_no_chats_apart(same):
    assert end(said(**same)) == end(said())


@pytest.mark.parametrize("other", [{"content": "So"}, {"tool_calls": []}, {"role": "user"}])
def test_what_tells_chats_apart(other):
    assert end(said(**other)) != end(said())
    assert end(said(), said()) != end(said())


def test_a_result_has_the_name_of_its_tool():
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    chat = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "3"}]
    told = read_request(json.dumps({"messages": chat}).encode()).messages[1]
    assert told == {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"}
