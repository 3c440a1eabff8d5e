"""Which of vLLM's parsers reads what a model says: by its chat template, or as the run file says."""

from __future__ import annotations

from dataclasses import dataclass

# what the calls of a family have in its template, and the parser for them; the first that fits is taken
_CALLS = (
    ("<|channel|>", "harmony"),
    ("<arg_key>", "glm45"),
    ("<function=", "qwen3_coder"),
    ("<|tool_call>call:", "gemma4"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("<|tool_call_start|>", "lfm2"),
    ("[TOOL_CALLS]", "mistral"),
    ("<seed:tool_call>", "seed_oss"),
    ("<minimax:tool_call>", "minimax_m2"),
    ("<function_calls>", "olmo3"),
    ("<|tool_call|>", "granite"),
    ("<tool_call>", "hermes"),
    ('{"name": "\' + tool_call.name', "llama3_json"),
    ("<|python_tag|>", "llama3_json"),
)
_DEEPSEEK = "<｜tool▁calls▁begin｜>"  # noqa: RUF001
_THOUGHTS = (
    ("<|channel|>", "harmony"),
    ("<|channel>", "gemma4"),
    ("<seed:think>", "seed_oss"),
    ("[THINK]", "mistral"),
    ("<arg_key>", "glm45"),
    ("<think>", "deepseek_r1"),
)
_SIGNS = (
    *("<tool_call", "<function=", "<|tool_call", "<seed:tool_call>", "<minimax:tool_call>", "<function_calls>"),
    *("[TOOL_CALLS]", "<｜tool▁call", "<|python_tag|>", "to=functions."),  # noqa: RUF001
)
_OTHER_NAMES = {"openai": "harmony", "openai_gptoss": "harmony"}  # what vLLM calls it


@dataclass(frozen=True)
class Choice:
    """Names of parsers; ``none`` for nothing to read."""

    tools: str
    thoughts: str


def choose(
    template: str, tool_parser: str = "auto", reasoning_parser: str = "auto", *, described: bool = False
) -> Choice:
    """The parsers of a model.

    Args:
        template: the model's chat template.
        tool_parser, reasoning_parser: ``auto``, ``none``, or a name that vLLM knows.
        described: whether tools are described to the policy in our words, as the template does not read them.
    """
    tools = _OTHER_NAMES.get(tool_parser, tool_parser)
    if tools == "auto":
        tools = "hermes" if described else _calls(template)
    thoughts = _OTHER_NAMES.get(reasoning_parser, reasoning_parser)
    return Choice(tools, _first(_THOUGHTS, template) if thoughts == "auto" else thoughts)


def _calls(template: str) -> str:
    if _DEEPSEEK in template:
        return "deepseek_v3" if "```json" in template else "deepseek_v31"
    return _first(_CALLS, template)


def _first(table: tuple[tuple[str, str], ...], template: str) -> str:
    return next((name for sign, name in table if sign in template), "none")


def seems_a_call(text: str) -> bool:
    """Whether ``text`` holds what no answer holds that is not meant as a tool call."""
    return text.lstrip().startswith('{"name"') or any(sign in text for sign in _SIGNS)
