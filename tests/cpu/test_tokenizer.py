"""The model's own tokenizer: many rows at once are what each row is alone, and what decides about tokens is known."""

from __future__ import annotations

import json
import shutil

import pytest

from grpo_hpc.data.prompts import open_prompts
from grpo_hpc.data.rows import Row
from grpo_hpc.data.tokenizer import Tokenizer, _bytes_of
from grpo_hpc.errors import ConfigError

CHATS = [[{"role": "user", "content": text}] for text in ("a", "", "ä😀\n" * 50, "<|eos|> as text")]
REFUSING = "{% for m in messages %}{{ raise_exception('no ' ~ m['role']) }}{% endfor %}"


@pytest.fixture
def folder(tiny, tmp_path):
    """A model folder of the test's own."""
    return shutil.copytree(tiny("llama"), tmp_path / "model")


def with_template(folder, text):
    (folder / "chat_template.jinja").write_text(text)
    return Tokenizer(str(folder))


def test_a_set_holds_what_transformers_gives_for_each_row(folder, tmp_path):
    from transformers import AutoTokenizer

    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    prompts = open_prompts(tmp_path / "a.jsonl", Tokenizer(str(folder)), tmp_path / "cache")
    own = AutoTokenizer.from_pretrained(folder)
    for number, chat in enumerate(CHATS):
        wanted = own.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert prompts.tokens(number).tolist() == wanted
        assert Tokenizer(str(folder)).encode(Row("x", chat, {})) == wanted
    assert Tokenizer(str(folder)).decode(prompts.tokens(2).tolist()).startswith("user: ä😀\nä😀")


def test_another_template_or_tokenizer_has_another_digest(folder):
    first = Tokenizer(str(folder)).digest
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert Tokenizer(str(folder)).digest == first
    template = (folder / "chat_template.jinja").read_text()
    second = with_template(folder, template + " ").digest
    assert with_template(folder, template).digest == first != second
    vocabulary = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(vocabulary + "\n")
    assert Tokenizer(str(folder)).digest not in (first, second)


def test_a_template_that_refuses_a_chat_says_why(folder):
    with pytest.raises(ConfigError, match="refused by the model's chat template: TemplateError: no user"):
        with_template(folder, REFUSING).text(Row("x", CHATS[0], {}))


def test_a_folder_without_a_template(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="has no chat template"):
        Tokenizer(str(folder))


OPTIONS = """{%- if enable_thinking is defined and not enable_thinking %}quiet {% endif %}
{%- for tool in tools or [] %}[{{ tool.name }}]{% endfor %}{{ messages[0].content }}"""


def test_what_the_template_is_told_beside_the_messages(folder):
    with_template(folder, OPTIONS)
    loud, quiet = Tokenizer(str(folder)), Tokenizer(str(folder), {"enable_thinking": False})
    row, own = Row("x", CHATS[0], {}), Row("x", CHATS[0], {}, {"enable_thinking": True, "tools": [{"name": "f"}]})
    assert (loud.text(row), quiet.text(row)) == ("a", "quiet a")
    assert (loud.text(own), quiet.text(own)) == ("[f]a", "[f]a"), "the row's own word counts"
    assert loud.digest != quiet.digest


def test_what_the_template_does_not_read_is_refused(folder):
    with_template(folder, OPTIONS)
    with pytest.raises(ConfigError, match="does not read 'thinking'") as caught:
        Tokenizer(str(folder), {"thinking": False})
    assert "It asks for: enable_thinking." in caught.value.hint
    with pytest.raises(ConfigError, match="has 'tools', which the model's chat template does not read"):
        with_template(folder, "{{ messages[0].content }}").text(Row("x", CHATS[0], {}, {"tools": [{"name": "f"}]}))


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
BEGUN = CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n{{ begun }}{% endif %}"
# the last turn of the assistant with empty thoughts, as several families write it
EMPTY_THOUGHTS = BEGUN.replace(
    "{{ m.content }}", "{{ '<think>\n\n</think>\n\n' if m.role == 'assistant' }}{{ m.content }}"
)
NO_ANSWERS = "{% for m in messages if m.role == 'assistant' %}{{ raise_exception('no') }}{% endfor %}" + BEGUN
DEEPSEEK = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
DEEPSEEK += "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"


@pytest.mark.parametrize(
    ("template", "begun", "opening"),
    [
        (BEGUN, "", ""),
        (BEGUN, "<think>\n", "<think>\n"),
        (BEGUN, "Let me see: ", "Let me see: "),
        (EMPTY_THOUGHTS, "", ""),
        (EMPTY_THOUGHTS, "<think>\n", "<think>\n"),
        (EMPTY_THOUGHTS, "<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n"),
        (NO_ANSWERS, "", ""),
        (NO_ANSWERS, "<think>\n", "<think>\n"),
        (DEEPSEEK, "", "<think>\n"),
        (CHATML, "", ""),
    ],
)
def test_what_the_template_itself_begins_the_answer_with(folder, template, begun, opening):
    made = with_template(folder, template.replace("{{ begun }}", begun))
    assert made.opening(Row("x", CHATS[0], {})) == opening


def test_turns_before_the_last_change_nothing_about_what_is_begun(folder):
    chat = [*CHATS[0], {"role": "assistant", "content": "<think>b</think>c"}, *CHATS[1]]
    made = with_template(folder, EMPTY_THOUGHTS.replace("{{ begun }}", "<think>\n"))
    assert made.opening(Row("x", chat, {})) == "<think>\n"


def test_rewards_see_what_the_prompt_began(folder):
    from grpo_hpc.rewards.texts import format_reward, react_format

    opening = with_template(folder, BEGUN.replace("{{ begun }}", "<think>\n")).opening(Row("x", CHATS[0], {}))
    written = "a</think>\n<answer>b</answer>", "a</think>Action: b\nAction Input: c"
    assert format_reward([opening + written[0]]) == react_format([opening + written[1]]) == [1.0]
    assert format_reward([written[0]]) == react_format([written[1]]) == [0.0]


OWN = """
from transformers import PreTrainedTokenizerFast


class OwnTokenizer(PreTrainedTokenizerFast):
    marked = True
"""


def test_a_tokenizer_that_is_a_program_runs_when_it_is_trusted(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = {"auto_map": {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}, "tokenizer_class": "OwnTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | named))
    (folder / "tokenization_own.py").write_text(OWN)
    with pytest.raises(ConfigError, match=r"a program of its own: tokenization_own\.OwnTokenizer") as error:
        Tokenizer(str(folder))
    assert "model.trust_remote_code: true" in error.value.hint
    trusted = Tokenizer(str(folder), trust_remote_code=True)
    assert trusted._tokenizer.marked and trusted.decode([104, 105])
    before = trusted.digest
    (folder / "tokenization_own.py").write_text(OWN + "\n")
    assert Tokenizer(str(folder), trust_remote_code=True).digest != before, "its code decides about tokens, too"


def test_tokens_have_as_many_bytes_as_their_text(folder):
    tokenizer = Tokenizer(str(folder))
    for text in ("a\n", "ä😀 x", "", "<|eos|> as text"):
        tokens = tokenizer._tokenizer(text, add_special_tokens=True)["input_ids"]
        assert int(tokenizer.byte_lengths[tokens].sum()) == len(tokenizer.decode(tokens).encode())


def test_tokens_of_sentencepiece_have_marks_for_spaces():
    written = {"▁the": 4, "ing": 3, "<0x0A>": 1, "▁ä": 3, "<s>": 3}
    assert {token: _bytes_of(token, of_bytes=False) for token in written} == written
