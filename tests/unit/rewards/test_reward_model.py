"""The classifier against transformers itself, through the pool and in a plugin of the page."""

from __future__ import annotations

import asyncio
import functools
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from grpo_hpc.errors import ConfigError, EnvironmentProblem  # noqa: E402
from grpo_hpc.rewards.classifier import Classifier  # noqa: E402
from grpo_hpc.rewards.registry import check_names, resolve  # noqa: E402
from grpo_hpc.rewards.runner import RewardRunner  # noqa: E402
from grpo_hpc.rewards.worker_pool import Task  # noqa: E402

PAGE = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text()
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<eos>{% endfor %}"
PROMPT = [{"role": "user", "content": "2 + 2"}]
TEXTS = ["4", "it is four, or " * 20, "", "5 <eos>", "4"]


def save_model(folder, *, pad="<pad>", template=TEMPLATE, labels=1):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {word: n for n, word in enumerate([*letters, "<eos>", "<pad>"])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token=pad)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config = transformers.Qwen2Config(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_labels=labels,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = transformers.Qwen2ForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight, std=2.0)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "rm")


@functools.cache
def loaded(folder):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder), model


def own(folder, text, label=0, max_length=4096):
    """The output as transformers gives it for one chat alone, without padding."""
    tokenizer, model = loaded(folder)
    chat = tokenizer.apply_chat_template([*PROMPT, {"role": "assistant", "content": text}], tokenize=False)
    ids = tokenizer(chat, add_special_tokens=False)["input_ids"][-max_length:]
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, label].item()


def chats(texts):
    return [[*PROMPT, {"role": "assistant", "content": text}] for text in texts]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_batch_size_gives_what_transformers_gives(folder, batch_size):
    expected = [own(folder, text) for text in TEXTS]
    assert max(expected) - min(expected) > 0.1
    scores = Classifier(path=folder, batch_size=batch_size).scores(chats(TEXTS))
    assert scores == pytest.approx(expected, abs=1e-5)


def test_without_a_padding_token_with_labels_and_too_long(tmp_path):
    folder = save_model(tmp_path / "rm", pad=None, labels=3)
    scores = Classifier(path=folder, label=2, max_length=20).scores(chats(TEXTS))
    assert scores == pytest.approx([own(folder, text, 2, 20) for text in TEXTS], abs=1e-5)
    low = Classifier(path=folder, label=2, max_length=20, dtype="bfloat16").scores(chats(TEXTS))
    assert low != scores and low == pytest.approx(scores, abs=0.1)
    with pytest.raises(ConfigError, match="has 3 outputs, and label is 3"):
        Classifier(path=folder, label=3)


def test_models_that_cannot_be_used(tmp_path):
    with pytest.raises(ConfigError, match="has no chat template"):
        Classifier(path=save_model(tmp_path / "rm", template=None))
    with pytest.raises(EnvironmentProblem, match=r"lacks config\.json"):
        check_names(["good=reward_model"], {"good": {"path": str(tmp_path / "absent")}})
    with pytest.raises(ConfigError, match="Did you mean batch_size"):
        check_names(["reward_model"], {"reward_model": {"path": "x", "batchsize": 1}})


COUNTING = """
import os
from pathlib import Path

class Counting:
    def __init__(self, *, path: str, at_once: int = 3):
        self.folder, self.at_once = Path(path), at_once
        (self.folder / f"made-{os.getpid()}").touch()

    def __call__(self, completions, answer, completion_ids):
        with (self.folder / "batches").open("a") as file:
            file.write(f"{len(completions)}\\n")
        if "bad" in completions:
            raise ValueError("a bad completion")
        if "die" in completions:
            os._exit(1)
        return [float(text == right) + len(ids) for text, right, ids in zip(completions, answer, completion_ids)]
"""


def test_plugins_in_processes_of_their_own(folder, tmp_path):
    name, text = re.search(r"```python\n# (my_models\.py)\n(.*?)```", PAGE, re.DOTALL).groups()
    (tmp_path / name).write_text(text)
    (tmp_path / "counting.py").write_text(COUNTING)
    names = [f"taste={tmp_path}/my_models.py:AgreesWithAnswer", f"{tmp_path}/counting.py:Counting", "exact_number"]
    given = {"taste": {"path": folder, "penalty": 2.0}, "Counting": {"path": str(tmp_path)}}
    offered = {"prompts": [PROMPT], "answer": ["4"], "completion_ids": [[7]]}

    def tasks(column, *texts):
        return [Task(column, offered | {"completions": [text]}) for text in texts]

    pools = RewardRunner(names, given, {}, timeout=30.0)
    counted = ["4", "bad", "5", "4", "4", "4", "4"]
    try:
        pools.start()
        outcomes = pools.run([*tasks("taste", *TEXTS), *tasks("Counting", *counted), *tasks("exact_number", "4", "5")])
        died = pools.run(tasks("Counting", "die"))
        again = pools.run([*tasks("Counting", "4"), *tasks("exact_number", "4", "5", "4")])
    finally:
        pools.close()
    punished = [own(folder, text) - 2.0 * ("4" not in text) for text in TEXTS]
    assert [o.score for o in outcomes[:5]] == pytest.approx(punished, abs=1e-5)
    assert [o.score for o in outcomes[5:]] == [2.0, None, 1.0, 2.0, 2.0, 2.0, 2.0, 1.0, 0.0]
    assert outcomes[6].text == "ValueError: a bad completion"
    assert died[0].failure == "killed" and [o.score for o in again] == [2.0, 1.0, 0.0, 1.0]
    assert len(list(tmp_path.glob("made-*"))) == 2  # one process, and the one after it died
    assert max(map(int, (tmp_path / "batches").read_text().split())) == 3


def test_the_registered_model_gathers_completions(folder):
    reward = resolve(["helpful=reward_model"], {"helpful": {"path": folder, "batch_size": 2}})["helpful"]

    async def everything():
        return await asyncio.gather(*(reward(assistant_turns=[text], prompts=[PROMPT]) for text in TEXTS))

    assert [score for [score] in asyncio.run(everything())] == pytest.approx(
        [own(folder, text) for text in TEXTS], abs=1e-5
    )
