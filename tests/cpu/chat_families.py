"""Tokenizers with the chat templates of model families, made for tests.

Templates are the published ones, as the package trl carries them (its licence, Apache 2.0, lies beside them); one in
the style of Mistral is written here. The vocabulary is one for all: bytes, some merges, and the tokens that a family
adds for its template.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

MISTRAL = """{{- bos_token }}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for m in messages %}
{%- if m.role == 'user' %}
{%- if tools and m == users[-1] %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{{- '[INST] ' + m.content + '[/INST]' }}
{%- elif m.tool_calls is defined and m.tool_calls %}
{{- '[TOOL_CALLS] [' }}
{%- for call in m.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('the id of a call has nine characters') }}{% endif %}
{{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
{{- ', "id": "' + call.id + '"}' + (']' + eos_token if loop.last else ', ') }}
{%- endfor %}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}
{%- elif m.role == 'tool' %}
{{- '[TOOL_RESULTS] {"content": ' + m.content | tojson + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- else %}{{ raise_exception('no role ' + m.role) }}{% endif %}
{%- endfor %}"""


@dataclass(frozen=True)
class Family:
    """What a family adds to a vocabulary.

    Attributes:
        template: file in the package trl; nothing for what is written here.
        special: tokens that a text for people does not show.
        others: tokens that it shows.
        ends: ``eos_token_id`` of its generation_config.json, as tokens.
        call: how the policy calls ``add`` with 2 and 3; nothing where its template knows no calls.
        begins: what it says in front of an answer without thoughts.
        thoughts: and with them; nothing where its template knows none.
    """

    template: str
    special: tuple[str, ...]
    ends: tuple[str, ...]
    others: tuple[str, ...] = ()
    call: str = ""
    begins: str = ""
    thoughts: str = ""


_TOOLS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_JSON_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
_LLAMA = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
)
_MISTRAL = ("INST", "AVAILABLE_TOOLS", "TOOL_CALLS", "TOOL_RESULTS")
_DEEPSEEK = ("User", "Assistant", "tool▁sep")
_DEEPSEEK += tuple(f"tool▁{what}▁{end}" for what in ("calls", "call", "outputs", "output") for end in ("begin", "end"))
_HARMONY = ("startoftext", "endoftext", "return", "constrain", "channel", "start", "end", "message", "call")
_DEEPSEEK_CALL = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
_DEEPSEEK_CALL += '{"a": 2, "b": 3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'

FAMILIES = {
    "qwen2.5": Family("qwen2_5", _CHATML, ("<|im_end|>", "<|endoftext|>"), _TOOLS[:2], _JSON_CALL),
    "qwen3": Family(
        "qwen3", _CHATML, ("<|im_end|>", "<|endoftext|>"), _TOOLS, _JSON_CALL, thoughts="<think>\n{}\n</think>\n\n"
    ),
    "qwen3.6": Family(
        "qwen3_6",
        _CHATML,
        ("<|im_end|>", "<|endoftext|>"),
        _TOOLS,
        "\n</think>\n\n<tool_call>\n<function=add>\n<parameter=a>\n2\n</parameter>\n<parameter=b>\n3\n</parameter>\n"
        "</function>\n</tool_call>",
        "\n</think>\n\n",
        "{}\n</think>\n\n",
    ),
    "llama3": Family(
        "llama3_1",
        (*_LLAMA, "<|python_tag|>"),
        ("<|eot_id|>", "<|eom_id|>"),
        call='{"name": "add", "parameters": {"a": 2, "b": 3}}',
    ),
    "mistral": Family(
        "",
        ("<s>", "</s>", *(f"[{slash}{name}]" for name in _MISTRAL for slash in ("", "/"))),
        ("</s>",),
        call='[TOOL_CALLS] [{"name": "add", "arguments": {"a": 2, "b": 3}}]',
        begins=" ",
    ),
    "glm": Family(
        "glm4moe",
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        ("<|endoftext|>", "<|user|>", "<|observation|>"),
        (*_TOOLS, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        "\n<think></think>\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>2</arg_value>\n<arg_key>b</arg_key>\n"
        "<arg_value>3</arg_value>\n</tool_call>",
        "\n<think></think>\n",
        "\n<think>{}</think>\n",
    ),
    "deepseek": Family(
        "deepseekv3",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        ("<｜end▁of▁sentence｜>",),
        (*(f"<｜{name}｜>" for name in _DEEPSEEK), "<think>", "</think>"),
        "</think>\n\n" + _DEEPSEEK_CALL,
        "</think>\n\n",
        "{}\n</think>\n\n",
    ),
    "gpt-oss": Family(
        "gptoss",
        tuple(f"<|{name}|>" for name in _HARMONY),
        ("<|return|>", "<|endoftext|>"),
        call=' to=functions.add<|channel|>commentary json<|message|>{"a": 2, "b": 3}',
        begins="<|channel|>final<|message|>",
        thoughts="<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "gemma3": Family("gemma3", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), ("<end_of_turn>",)),
}


def save_family(path: Path, family: str) -> Path:
    """A folder with a tokenizer of ``family`` and its generation_config.json, without a model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    own = FAMILIES[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(
        ["the answer is a sum of two numbers, user assistant tool", '{"name": "add"'], trainer
    )
    tokenizer.add_special_tokens([*own.special])
    tokenizer.add_tokens([*own.others])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=own.special[0], eos_token=own.ends[0])
    fast.chat_template = template(own)
    fast.save_pretrained(path)
    ends = [fast.convert_tokens_to_ids(end) for end in own.ends]
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return path


def template(family: Family) -> str:
    if not family.template:
        return MISTRAL
    (folder,) = find_spec("trl").submodule_search_locations
    return (Path(folder) / "chat_templates" / f"{family.template}.jinja").read_text()
