"""An episode's token ids: what was sampled stays as it is, and around it stands what the chat template writes."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from chat_families import FAMILIES, save_family
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo_hpc.data.tokenizer import Tokenizer
from grpo_hpc.errors import ConfigError, RolloutError
from grpo_hpc.rollout.chat.rendering import Renderer
from grpo_hpc.rollout.chat.transcript import Transcript
from grpo_hpc.rollout.engine import Completion
from grpo_hpc.rollout.environments.protocol import EpisodeFailed
from grpo_hpc.rollout.sample import REASONS, Key, Sample

NUMBER = {"type": "integer", "description": "A number."}
PARAMETERS = {"type": "object", "properties": {"a": NUMBER, "b": NUMBER}, "required": ["a", "b"]}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS}}]
CALLING = [name for name, family in FAMILIES.items() if family.call]
KEY = Key(7, 2)


class Policy:
    """Says what it is told to say, in the tokenizer's tokens or in random ones that make up the same text."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer, self.random = renderer, Random(0)

    def says(self, text, end="", reason="stop", *, splits=True, read=0, version=0):
        """A completion of ``text`` and the token ``end``.

        Args:
            read: tokens in front of it, for a model with experts; 0 for one without.
        """
        cuts = {self.random.randrange(len(text) + 1) for _ in range(len(text) // 4)} if splits else set()
        parts = [self._renderer.encode(text[begin:stop]) for begin, stop in pairwise(sorted({0, len(text), *cuts}))]
        tokens = np.concatenate([np.zeros(0, np.int32), *parts, self._renderer.encode(end)])
        logprobs = np.array([-self.random.random() for _ in tokens], np.float32)
        routing = np.full((read + len(tokens) - 1, 4), read % 251, np.uint8) if read else None
        return Completion(tokens, logprobs, reason, version, routing)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return {name: Tokenizer(str(save_family(tmp_path_factory.mktemp("family"), name))) for name in FAMILIES}


@pytest.fixture
def opened(tokenizers):
    """``opened("qwen3", TOOLS, thinking_history="template")``: a transcript, its renderer and a policy."""

    def make(family, tools=(), template=None, **options):
        renderer = Renderer(tokenizers[family], **options)
        transcript = Transcript(renderer)
        transcript.open([user("What is 2+3?")], tools, template or {})
        return transcript, renderer, Policy(renderer)

    return make


@pytest.fixture
def text_of(tokenizers):
    return lambda family, tokens: tokenizers[family].decode(list(tokens), special=True)


def user(text):
    return {"role": "user", "content": text}


def results(transcript, *texts):
    calls = transcript.messages[-1]["tool_calls"]
    told = zip(calls, texts or ("5",), strict=True)
    return [{"role": "tool", "tool_call_id": one["id"], "name": "add", "content": text} for one, text in told]


def end_of(family, called=False):
    """The token by which a policy ends its turn."""
    if family == "glm":
        return "<|observation|>" if called else "<|user|>"
    return "<|call|>" if family == "gpt-oss" and called else FAMILIES[family].ends[0]


# -- the template's words ------------------------------------------------------------------------------------------

# where an episode differs from the chat that the template writes of it, as nothing that was sampled is taken back
BOUNDARIES = {
    "qwen3.6": [("<think>\n\n</think>\n\n", "")],
    "gpt-oss": [("<|return|>", "<|end|>")],
    "deepseek": [("<think>\n</think>\n\n", "")],
    "mistral": [('"b": 3}}]', '"b": 3}, "id": "call00000"}]')],
}


def require_written(tokenizer, family, transcript, renderer, tools):
    told = {"tools": tools} if tools else {}
    written = tokenizer.written(renderer.as_read(transcript.messages), told, begins=True)
    if family not in BOUNDARIES:
        assert np.array_equal(transcript.tokens, renderer.encode(written))
    episode = tokenizer.decode(transcript.tokens.tolist(), special=True)
    for there, in_the_template in BOUNDARIES.get(family, []):  # some are in the last turns of the template, too
        episode, written = (text.replace(there, in_the_template) for text in (episode, written))
    assert episode == written


def test_tokens_that_the_model_has_no_row_for_end_an_episode(tokenizers, opened):
    """The first chat may have none of them, and a later message one."""
    added = max(tokenizers["qwen2.5"].of_transformers.added_tokens_decoder)
    word = tokenizers["qwen2.5"].of_transformers.added_tokens_decoder[added].content
    transcript, _, policy = opened("qwen2.5", vocabulary=added)
    transcript.said(policy.says("Hm.", end_of("qwen2.5")))
    with pytest.raises(EpisodeFailed, match=f"has the token {added}, and the model's embedding has {added} rows"):
        transcript.heard([user(f"Why {word}?")])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_talk_is_what_the_template_writes(tokenizers, opened, family):
    transcript, renderer, policy = opened(family)
    for question in ("Sure?", "Really?"):
        turn = transcript.said(policy.says(FAMILIES[family].begins + "It is 5.", end_of(family), splits=False))
        assert turn.message["content"].strip() == "It is 5."
        assert transcript.heard([user(question)])
    require_written(tokenizers[family], family, transcript, renderer, [])


@pytest.mark.parametrize("family", CALLING)
def test_tools_are_called_as_the_template_writes_it(tokenizers, opened, family):
    transcript, renderer, policy = opened(family, TOOLS)
    turn = transcript.said(policy.says(FAMILIES[family].call, end_of(family, called=True), splits=False))
    (call,) = turn.message["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": {"a": 2, "b": 3}}
    assert transcript.heard(results(transcript))
    if family != "deepseek":  # its template lists no tools: see below
        require_written(tokenizers[family], family, transcript, renderer, TOOLS)


@pytest.mark.parametrize("family", CALLING)
def test_what_was_sampled_stays_in_its_own_tokens(opened, text_of, family):
    transcript, _, policy = opened(family, TOOLS)
    canonical, _, _ = opened(family, TOOLS)
    split = policy.says(FAMILIES[family].call, end_of(family, called=True))
    whole = policy.says(FAMILIES[family].call, end_of(family, called=True), splits=False)
    assert len(split.tokens) > len(whole.tokens)
    for chat, completion in ((transcript, split), (canonical, whole)):
        begin = len(chat.tokens)
        chat.said(completion)
        assert chat.heard(results(chat))
        assert np.array_equal(chat.tokens[begin:][: len(completion.tokens)], completion.tokens)
    assert text_of(family, transcript.tokens) == text_of(family, canonical.tokens)


def test_what_has_no_place_in_a_template_is_told_in_words(opened, text_of):
    """Gemma's template lists no tools, writes no calls and has no place for results."""
    transcript, _, policy = opened("gemma3", TOOLS, tool_parser="auto")
    assert '"name": "add"' in text_of("gemma3", transcript.tokens)
    turn = transcript.said(policy.says(FAMILIES["qwen3"].call, "<end_of_turn>"))
    assert turn.message["tool_calls"][0]["function"]["arguments"] == {"a": 2, "b": 3}
    begin = len(transcript.tokens)
    assert transcript.heard(results(transcript, "5"))
    heard = text_of("gemma3", transcript.tokens[begin:])
    assert heard.startswith("\n<start_of_turn>user\n<tool_response>\n5\n</tool_response><end_of_turn>\n")


def test_tools_of_a_row_are_tools(opened):
    from_rows, _, policy = opened("qwen2.5", template={"tools": TOOLS})
    named, _, _ = opened("qwen2.5", TOOLS)
    assert np.array_equal(from_rows.tokens, named.tokens)
    assert "tool_calls" in from_rows.said(policy.says(FAMILIES["qwen2.5"].call, "<|im_end|>")).message


def test_tools_that_a_template_does_not_list_are_called_in_its_own_way(opened, text_of):
    transcript, _, policy = opened("deepseek", TOOLS)
    assert "<tool_call>" not in text_of("deepseek", transcript.tokens)
    transcript.said(policy.says(FAMILIES["deepseek"].call, "<｜end▁of▁sentence｜>"))
    assert transcript.heard(results(transcript))
    assert text_of("deepseek", transcript.tokens).endswith(
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>5<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
    )


# -- how turns end -------------------------------------------------------------------------------------------------


def test_what_ends_a_turn(tokenizers):
    ends = {name: Renderer(tokenizers[name], tool_parser="none").stop_token_ids for name in FAMILIES}
    told = {name: {tokenizers[name].of_transformers.convert_ids_to_tokens(end) for end in ends[name]} for name in ends}
    assert told["qwen3"] == {"<|im_end|>", "<|endoftext|>"}
    assert told["llama3"] == {"<|eot_id|>", "<|eom_id|>"}
    assert told["glm"] == {"<|endoftext|>", "<|user|>", "<|observation|>"}
    assert told["gpt-oss"] == {"<|return|>", "<|endoftext|>", "<|call|>"}, "the last is the template's alone"


@pytest.mark.parametrize(
    ("family", "end", "heard"),
    [
        ("qwen2.5", "<|im_end|>", "\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"),
        ("qwen2.5", "<|endoftext|>", "\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"),
        ("qwen2.5", "", "<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"),
        ("glm", "<|user|>", "\nSure?<|assistant|>"),
        ("glm", "<|observation|>", "<|user|>\nSure?<|assistant|>"),
        ("glm", "", "<|user|>\nSure?<|assistant|>"),
        ("gpt-oss", "<|return|>", "<|start|>user<|message|>Sure?<|end|><|start|>assistant"),
        ("llama3", "<|eom_id|>", "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"),
    ],
)
def test_a_turn_that_the_policy_did_not_end_is_ended(opened, text_of, family, end, heard):
    transcript, renderer, policy = opened(family)
    transcript.said(policy.says("It is 5.", end, "stop" if end else "length"))
    begin = len(transcript.tokens)
    assert transcript.heard([user("Sure?")])
    assert text_of(family, transcript.tokens[begin:]).startswith(heard)
    transcript.said(policy.says("Yes.", end))
    (sample,) = transcript.samples(KEY)
    foreign = sample.tokens[~sample.mask]
    assert heard in text_of(family, foreign), "what was added is not trained"
    assert (sample.response[-1] in renderer.stop_token_ids) is (end != "")


def test_a_call_that_was_not_ended_is_ended(opened, text_of):
    transcript, _, policy = opened("qwen3", TOOLS)
    transcript.said(policy.says(FAMILIES["qwen3"].call))
    begin = len(transcript.tokens)
    assert transcript.heard(results(transcript))
    assert text_of("qwen3", transcript.tokens[begin:]).startswith("<|im_end|>\n<|im_start|>user\n<tool_response>\n5")


# -- thoughts, and histories that change ---------------------------------------------------------------------------

THOUGHT = FAMILIES["qwen3"].thoughts.format("two and three")


def think_twice(transcript, policy):
    """A call and an answer, each behind thoughts, and another question."""
    said = [policy.says(THOUGHT + FAMILIES["qwen3"].call, "<|im_end|>")]
    assert transcript.said(said[0]).message["reasoning_content"] == "two and three"
    assert transcript.heard(results(transcript))
    said.append(policy.says(THOUGHT + "It is 5.", "<|im_end|>"))
    assert transcript.said(said[1]).message["content"] == "It is 5."
    goes_on = transcript.heard([user("And 2+4?")])
    said.append(policy.says(THOUGHT + "It is 6.", "<|im_end|>"))
    transcript.said(said[2])
    return said, goes_on


def test_thoughts_are_kept(opened):
    transcript, _, policy = opened("qwen3", TOOLS, thinking_history="keep")
    said, goes_on = think_twice(transcript, policy)
    assert goes_on
    (sample,) = transcript.samples(KEY)
    assert np.array_equal(sample.response, np.concatenate([one.tokens for one in said]))
    assert np.array_equal(sample.logprobs, np.concatenate([one.logprobs for one in said]))
    assert sample.turns.tolist() == [[int(n), 0] for n in np.cumsum([len(one.tokens) for one in said])]


def test_a_template_that_drops_thoughts_begins_a_branch(tokenizers, opened):
    """Qwen3 drops them before the last question of the user, and keeps them where tools are called."""
    transcript, renderer, policy = opened("qwen3", TOOLS, thinking_history="template")
    said, goes_on = think_twice(transcript, policy)
    assert not goes_on
    first, second = transcript.samples(KEY)
    assert (first.key, second.key) == (Key(7, 2, 0), Key(7, 2, 1))
    assert np.array_equal(first.response, np.concatenate([one.tokens for one in said[:2]]))
    assert np.array_equal(second.response, said[2].tokens), "each sampled token is trained once"
    written = tokenizers["qwen3"].written(transcript.messages[:-1], {"tools": TOOLS}, begins=True)
    assert "two and three" not in written
    assert np.array_equal(second.tokens[~second.mask], renderer.encode(written))
    assert len(first.turns), len(second.turns) == (2, 1)


def test_thoughts_that_were_switched_off(opened):
    """What stands for them in front of the last turn alone is what the template drops."""
    off = {"enable_thinking": False}
    keeps, _, policy = opened("qwen3", template=off)
    follows, _, _ = opened("qwen3", template=off, thinking_history="template")
    said = policy.says("It is 5.", "<|im_end|>")
    assert "reasoning_content" not in keeps.said(said).message
    follows.said(said)
    assert keeps.heard([user("Sure?")]) and not follows.heard([user("Sure?")])


def test_thoughts_that_the_prompt_has_begun(opened):
    transcript, _, policy = opened("deepseek", thinking_history="template")
    turn = transcript.said(policy.says("two and three\n</think>\n\nIt is 5.", "<｜end▁of▁sentence｜>"))
    assert turn.message == {"role": "assistant", "content": "It is 5.", "reasoning_content": "two and three"}
    assert not transcript.heard([user("Sure?")])


def test_gpt_oss_has_thoughts_in_a_channel(opened, text_of):
    keeps, _, policy = opened("gpt-oss", TOOLS)
    follows, _, _ = opened("gpt-oss", TOOLS, thinking_history="template")
    thoughts = "<|channel|>analysis<|message|>Let me add.<|end|><|start|>assistant"
    for transcript in (keeps, follows):
        turn = transcript.said(policy.says(thoughts + FAMILIES["gpt-oss"].call, "<|call|>"))
        assert turn.message["reasoning_content"] == "Let me add."
        assert transcript.heard(results(transcript)), "thoughts in front of a call stay"
        assert "<|start|>functions.add to=assistant" in text_of("gpt-oss", transcript.tokens)
        transcript.said(policy.says(FAMILIES["gpt-oss"].thoughts.format("5, then") + "It is 5.", "<|return|>"))
    assert keeps.heard([user("Sure?")]) and not follows.heard([user("Sure?")])
    assert "Let me add." not in text_of("gpt-oss", follows.tokens)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"mistral"}))
def test_thoughts_are_no_part_of_a_history_that_changes(tokenizers, family):
    """Many templates write empty ones in the last turns alone."""
    assert Renderer(tokenizers[family], tool_parser="none", reasoning_parser="none").note == ""


def test_a_template_that_moves_tools_begins_a_branch_whatever_is_done_with_thoughts(opened):
    """Mistral's writes them in front of the last question."""
    transcript, renderer, policy = opened("mistral", TOOLS)
    assert "a new branch begins" in renderer.note
    transcript.said(policy.says(FAMILIES["mistral"].call, "</s>"))
    assert transcript.heard(results(transcript))
    transcript.said(policy.says(" It is 5.", "</s>"))
    assert not transcript.heard([user("Sure?")])
    without, _, _ = opened("mistral")
    without.said(policy.says(" It is 5.", "</s>"))
    assert without.heard([user("Sure?")])


def test_an_edited_history_is_a_branch(opened):
    transcript, _, policy = opened("qwen2.5")
    said = [policy.says("It is 5.", "<|im_end|>"), policy.says("It is 6.", "<|im_end|>")]
    transcript.said(said[0])
    transcript.open([user("What is 2+4?"), {"role": "assistant", "content": "Er."}, user("Well?")])
    transcript.said(said[1])
    transcript.open([user("Nothing was said to this.")])
    first, second = transcript.samples(Key(0, 0, 3))
    assert [first.key.branch, second.key.branch] == [3, 4]
    assert [list(first.response), list(second.response)] == [list(one.tokens) for one in said]


# -- calls that are wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CALLING)
def test_a_call_that_cannot_be_read_is_text_with_a_note(opened, family):
    transcript, _, policy = opened(family, TOOLS)
    broken = FAMILIES[family].call.partition("add" if family in ("glm", "qwen3.6") else "3")[0]
    turn = transcript.said(policy.says(broken, end_of(family, called=True)))
    assert "tool_calls" not in turn.message and turn.message["content"]
    assert turn.problem
    transcript.heard([user("Sure?")])


def test_a_turn_that_was_cut_off_calls_nothing(opened):
    """Some parsers make a call of the beginning of one."""
    transcript, _, policy = opened("glm", TOOLS)
    turn = transcript.said(policy.says(FAMILIES["glm"].call.partition("3")[0], reason="length"))
    assert "tool_calls" not in turn.message and turn.problem == ""


def test_what_looks_like_no_call_has_no_note(opened):
    transcript, _, policy = opened("qwen3", TOOLS)
    assert transcript.said(policy.says("add 2 and 3 {}", "<|im_end|>")).problem == ""


def test_calls_have_the_same_ids_in_every_run(opened):
    transcripts = [opened("qwen3", TOOLS) for _ in range(2)]
    for transcript, _, policy in transcripts:
        transcript.said(policy.says(f"{FAMILIES['qwen3'].call}\n{FAMILIES['qwen3'].call}", "<|im_end|>"))
        assert transcript.heard(results(transcript, "5", "five"))
    ids = [[call["id"] for call in transcript.messages[1]["tool_calls"]] for transcript, *_ in transcripts]
    assert ids[0] == ids[1] == ["call00000", "call00001"]
    assert np.array_equal(transcripts[0][0].tokens, transcripts[1][0].tokens)


def test_more_calls_than_a_template_can_write_are_told_as_text(opened, text_of):
    """Llama's refuses a turn with two; the policy may make them, and they were tokens anyway."""
    transcript, _, policy = opened("llama3", TOOLS)
    two = "; ".join([FAMILIES["llama3"].call] * 2)
    assert len(transcript.said(policy.says(two, "<|eot_id|>")).message["tool_calls"]) == 2
    assert transcript.heard(results(transcript, "5", "five"))
    transcript.said(policy.says("Five.", "<|eot_id|>"))
    assert transcript.heard([user("Sure?")])


# -- what environments say -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "messages",
    [[{"role": "ghost", "content": "boo"}], ["hello"], [{"content": "no role"}], [{"role": "tool", "content": "5"}]],
)
def test_messages_that_cannot_be_told_end_the_episode(opened, messages):
    transcript, _, policy = opened("mistral")
    transcript.said(policy.says(" Yes.", "</s>"))
    with pytest.raises(EpisodeFailed) as caught:
        transcript.heard(messages)
    assert caught.value.kind == "error"


def test_half_of_a_surrogate_pair_is_no_character(opened, text_of):
    transcript, _, policy = opened("qwen3", message_tokens=50)
    transcript.said(policy.says("Yes.", "<|im_end|>"))
    assert transcript.heard([user("\ud83d")])
    assert "user\n?<|im_end|>" in text_of("qwen3", transcript.tokens)


@pytest.mark.parametrize("text", ["the answer is " * 100, "x" * 10**6, "ä" * 500, " " * 1000])
def test_long_messages_are_cut(opened, text_of, text):
    transcript, renderer, policy = opened("qwen3", message_tokens=40)
    transcript.said(policy.says("Yes.", "<|im_end|>"))
    assert transcript.heard([user("short"), user(text)])
    kept = transcript.messages[-1]["content"]
    assert text.startswith(kept) and len(renderer.encode(kept)) <= 40
    assert kept and transcript.cut == 1
    assert transcript.messages[-2]["content"] == "short"


# -- samples -------------------------------------------------------------------------------------------------------


def test_one_turn_is_todays_sample(opened):
    transcript, _, policy = opened("qwen3")
    prompt = transcript.tokens.copy()
    said = policy.says("It is 5.", "<|im_end|>", "length", read=len(prompt), version=3)
    transcript.said(said)
    (sample,) = transcript.samples(KEY)
    today = Sample.single_turn(KEY, prompt, said.tokens, said.logprobs, 3, "length", said.routing)
    for name in Sample.__slots__:
        assert np.array_equal(getattr(sample, name), getattr(today, name)), name
        assert name == "key" or getattr(sample, name).dtype == getattr(today, name).dtype


def test_a_token_keeps_the_experts_that_sampled_from_it(opened):
    transcript, _, policy = opened("qwen3")
    read = []
    for _ in range(2):
        read.append(len(transcript.tokens))
        transcript.said(policy.says("It is 5.", "<|im_end|>", read=read[-1], version=len(read), splits=False))
        read.append(len(transcript.tokens))
        transcript.heard([user("Sure?")])
    (sample,) = transcript.samples(KEY)
    assert len(sample.routing) == len(sample.tokens) - 1
    assert set(sample.routing[: read[1] - 1, 0]) == {read[0] % 251}
    assert set(sample.routing[read[1] - 1 :, 0]) == {read[2] % 251}
    half = len(sample.response) // 2
    assert sample.versions.tolist() == [1] * half + [3] * half, "and each the weights that it was sampled with"


@pytest.mark.parametrize("later", [0, 3])
def test_experts_that_are_missing_are_an_error(opened, later):
    transcript, _, policy = opened("qwen3")
    transcript.said(policy.says("It is 5.", "<|im_end|>", read=len(transcript.tokens)))
    transcript.heard([user("Sure?")])
    with pytest.raises(RolloutError, match="the engine returned experts"):
        transcript.said(policy.says("Yes.", "<|im_end|>", read=later))


def test_an_answer_that_was_given_up(opened):
    transcript, _, policy = opened("qwen3")
    transcript.said(policy.says("", reason="abort"))
    (sample,) = transcript.samples(KEY)
    assert sample.reason == "abort" and not sample.answers


WORDS = st.text(max_size=20) | st.sampled_from(["<think>\n\n</think>", "</think>", "<tool_call>", "<|im_end|>", "\n"])
STEP = st.tuples(WORDS, st.sampled_from(["", "end", "other"]), st.lists(WORDS, max_size=2))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(family=st.sampled_from(sorted(FAMILIES)), steps=st.lists(STEP, min_size=1, max_size=4), follows=st.booleans())
def test_every_sampled_token_is_trained_once(opened, family, steps, follows):
    transcript, _, policy = opened(family, thinking_history="template" if follows else "keep")
    said = []
    for words, end, heard in steps:
        token = {"": "", "end": end_of(family), "other": FAMILIES[family].ends[-1]}[end]
        said.append(policy.says(words, token))
        before = transcript.tokens
        transcript.said(said[-1])
        assert np.array_equal(transcript.tokens, np.concatenate([before, said[-1].tokens]))
        before = transcript.tokens
        with suppress(EpisodeFailed):  # two turns of the policy in a row are too many for some templates
            if transcript.heard([user(text) for text in heard]):
                assert np.array_equal(transcript.tokens[: len(before)], before)
    samples = transcript.samples(KEY)
    assert np.array_equal(np.concatenate([one.response for one in samples]), np.concatenate([s.tokens for s in said]))
    assert np.array_equal(np.concatenate([one.logprobs for one in samples]), np.concatenate([s.logprobs for s in said]))
    assert sum(len(one.turns) for one in samples) == len(said)
    assert all(REASONS[end] == "stop" for one in samples for _, end in one.turns)


# -- mistakes of people --------------------------------------------------------------------------------------------


def test_a_parser_that_nobody_knows(tokenizers):
    with pytest.raises(ConfigError, match="tool_parser: this vLLM has no parser 'hermess'") as caught:
        Renderer(tokenizers["qwen3"], tool_parser="hermess")
    assert "harmony, " in caught.value.hint and "hermes, " in caught.value.hint
    with pytest.raises(ConfigError, match="reasoning_parser: deepseek_r1 does not work with this model's tokenizer"):
        Renderer(tokenizers["gemma3"], reasoning_parser="deepseek_r1")
