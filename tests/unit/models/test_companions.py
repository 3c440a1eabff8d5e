"""What lies beside the weights: a copy of a folder writes chats as its training did."""

from __future__ import annotations

import json

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from grpo_hpc.models.on_disk.companions import companions, template_with_defaults, with_defaults

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if thinks is not defined or thinks %}\n<think>{% endif %}{{ told | tojson if told is defined }}"
)
HOSTILE = ["a \"b\" \\ 'c' %} {{ x }} {% raw %}\n\u20ac \U0001f600", {"k": [1, -2.5, True, None]}, [], {}, None, False]


def written(template: str, **told: object) -> str:
    """As transformers does."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=[{"role": "user", "content": "2+2"}], **told)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"torch_dtype": "float32"}')
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("told", [{"thinks": False}, {"thinks": True}, *({"told": value} for value in HOSTILE)])
def test_an_exported_template_takes_for_told_what_training_told_it(folder, told):
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    exported = with_defaults(companions(folder, "bfloat16"), told)["chat_template.jinja"].decode()
    assert written(exported) == written(TEMPLATE, **told)
    assert written(exported, thinks=False, told=1) == written(TEMPLATE, thinks=False, told=1)  # a caller counts more
    assert template_with_defaults(folder, told) == exported


@pytest.mark.parametrize("several", [False, True])
def test_templates_in_the_tokenizers_configuration_are_told_too(folder, several):
    template = [{"name": "default", "template": TEMPLATE}, {"name": "tools", "template": "t"}] if several else TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "model_max_length": 8}))
    told = {"thinks": False}
    config = json.loads(with_defaults(companions(folder, "bfloat16"), told)["tokenizer_config.json"])
    exported = config["chat_template"][0]["template"] if several else config["chat_template"]
    assert written(exported) == written(TEMPLATE, **told) == written(template_with_defaults(folder, told))
    assert config["model_max_length"] == 8


def test_nothing_told_changes_nothing_and_a_copy_is_of_its_dtype(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("t")
    files = companions(folder, "bfloat16", "hf/")
    assert sorted(files) == ["hf/additional_chat_templates/tools.jinja", "hf/config.json", "hf/tokenizer_config.json"]
    assert json.loads(files["hf/config.json"]) == {"dtype": "bfloat16"}
    assert with_defaults(files, {}) == {}
