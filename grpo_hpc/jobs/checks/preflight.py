"""What can be found wrong before anything starts, without importing torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_hpc.cluster.profile import Profile
from grpo_hpc.config import RunConfig
from grpo_hpc.errors import CheckpointError, ConfigError, EnvironmentProblem
from grpo_hpc.files import require_no_pointer, with_home
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.models.on_disk.model_folder import check_model, read_model, weight_files
from grpo_hpc.rollout.engine_arguments import unknown_arguments

if TYPE_CHECKING:
    from grpo_hpc.rollout.environments.found_in_file import Kind

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_PACKAGES = {"torch": "torch", "megatron.core": "megatron-core", "vllm": "vllm", "transformers": "transformers"}


def preflight(cfg: RunConfig, profile: Profile) -> None:
    """Check what can be seen from here before a run is started with ``profile``; touches no file.

    Raises:
        ConfigError: data rows or reward names are wrong, or a column that a reward needs is in no row.
        EnvironmentProblem: the model folder or a package is missing.
        CheckpointError: the weights are not those that the model's configuration describes.
    """
    from grpo_hpc.data.rows import count_rows
    from grpo_hpc.rewards.columns import require_columns
    from grpo_hpc.rewards.registry import check_names, needed_columns

    check_model_folder(Path(cfg.model.path))
    _check_image(profile)
    check_names(cfg.rewards.called, cfg.rewards.reward_params)
    needed = needed_columns(cfg.rewards.called, cfg.rewards.reward_params)
    kind = _check_environment(cfg)
    for file in filter(None, (cfg.data.train, cfg.data.eval)):
        counts = count_rows(file)
        require_columns(needed, file, counts.rows, counts.filled)
        if kind == "tools" and counts.with_tools:
            raise ConfigError(
                f"rows of {file} have a column 'tools', and the policy is told of the functions of rollout.environment "
                "alone",
                "Take the column out, or write a class whose start names the tools: docs/environments.md.",
            )
    if profile.executor == "local" and profile.runtime == "none":  # elsewhere the nodes have them, or the image
        _check_packages(cfg)
        if problem := unknown_arguments(cfg.rollout.vllm_engine_kwargs):
            raise ConfigError(problem)


def _check_environment(cfg: RunConfig) -> Kind | None:
    """What it is, by the text of its file; each node imports it before a model is loaded."""
    from grpo_hpc.rollout.environments.found_in_file import check_environment, require_rewards

    if cfg.rollout.environment is None:
        return None
    kind = check_environment(cfg.rollout.environment)
    require_rewards(kind, cfg.rewards.of_environment, turns=cfg.algorithm.turn_advantage_coef > 0)
    return kind


def check_model_folder(folder: Path) -> None:
    """Check that ``folder`` is a complete Hugging Face model, by the heads of its files.

    Raises:
        EnvironmentProblem: names everything that is missing.
        CheckpointError: a file is not whole, or the tensors are not those that the configuration describes.
    """
    if not folder.is_dir():
        raise EnvironmentProblem(
            f"the model folder {folder} does not exist",
            "model.path must be a local Hugging Face folder with config.json, model*.safetensors and a tokenizer. "
            "One of the hub's is fetched first, where there is a network: hf download OWNER/NAME --local-dir FOLDER",
        )
    missing: list[str] = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not weight_files(folder):
        missing.append("weights (model*.safetensors)")
    found = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    if not found:
        missing.append(f"a tokenizer ({' or '.join(_TOKENIZER_FILES)})")
    if missing:
        raise EnvironmentProblem(
            f"the model folder {folder} lacks {', '.join(missing)}",
            "Save the model there with save_pretrained(), model and tokenizer both.",
        )
    for file in found:
        with file.open("rb") as handle:
            require_no_pointer(file, handle.read(64), CheckpointError)
    check_model(folder, read_model(folder), read_shape(folder), text_only=True)


def _check_image(profile: Profile) -> None:
    image = profile.image
    if image and profile.runtime == "apptainer" and "://" not in image and not with_home(image).exists():
        raise EnvironmentProblem(
            f"the image {image} does not exist", "Build one with `grpo-hpc image build`, or set cluster.image."
        )


def _check_packages(cfg: RunConfig) -> None:
    missing = [name for module, name in _PACKAGES.items() if not _installed(module)]
    if missing:
        extra = "cpu" if cfg.resources.device == "cpu" else "gpu"
        raise EnvironmentProblem(
            f"training needs packages that are not installed: {', '.join(missing)}",
            f"Install them with `pip install 'grpo-hpc[{extra}]'`.",
        )
    for name in cfg.logging.report_to:
        if not _installed(name):
            raise EnvironmentProblem(
                f"logging.report_to names {name}, which is not installed", f"Install it with: pip install {name}"
            )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False
