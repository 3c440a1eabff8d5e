"""Finds the GRPO command, and the servers it samples from, in shell scripts and YAML files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from grpo_hpc.cluster.sbatch_options import Asked, asked, read_options, script_lines, split_words
from grpo_hpc.config.document import read_yaml
from grpo_hpc.config.plain_yaml import control_character
from grpo_hpc.errors import ConfigError
from grpo_hpc.files import read_text
from grpo_hpc.importing.shell import Command, Word, read_script
from grpo_hpc.redaction import HIDDEN, keep_secret, secret_paths, secrets_in

_LARGEST = 1 << 17  # bytes of a script
_MOST = 1000  # flags and variables; ms-swift knows hundreds
_FLAG = re.compile(r"--?[A-Za-z_]")
_VARIABLES = {
    **dict.fromkeys(("hub_token", "hf_token"), "HF_TOKEN"),
    "swanlab_token": "SWANLAB_API_KEY",
    "wandb_token": "WANDB_API_KEY",
}
_TAKEN = {
    *("nodes", "gres", "gpus", "gpus-per-node", "gpus-per-task", "tres-per-node", "tres-per-task"),
    *("ntasks", "ntasks-per-node"),
    *("job-name", "output", "error", "open-mode"),  # a run has a name and logs of its own
}
_LAUNCHERS = {"nproc_per_node": "NPROC_PER_NODE", "nnodes": "NNODES"}
_RAY_GROUPS = ("train", "rollout", "teacher")


@dataclass(frozen=True)
class Given:
    """A flag, key or variable as it was given.

    Attributes:
        name: without dashes in front, and with ``_`` inside, as in ``micro_batch_size``.
        values: the words after a flag, or the items of a YAML value; ``(True,)`` for a flag without words. Never
            without items: an empty list, like null, is ``(None,)``, which is what ms-swift takes both for.
        open: what only a running shell knows of it, such as ``("$(hostname)",)``.
        place: where it stands, such as ``train.sh:12``.
    """

    name: str
    values: tuple[Any, ...]
    open: tuple[str, ...] = ()
    place: str = ""

    @property
    def secret(self) -> bool:
        """Whether a key, token or password is among its values."""
        return any(secret_paths(list(self.values), name=self.name))

    @property
    def shown(self) -> str:
        """Its words; a secret is shown nowhere."""
        if self.secret:
            return HIDDEN
        return " ".join(str(v).lower() if isinstance(v, bool) else str(v) for v in self.values)


@dataclass
class Source:
    """A GRPO run as ms-swift was told to do it.

    Attributes:
        name: what the run may be called: the script's name.
        flags: of the training command; the last of equal names counts.
        environment: variables set for it.
        servers: the flags of every ``swift rollout`` command.
        notes: what the reader should know of how it was read.
    """

    name: str
    flags: list[Given] = field(default_factory=list)
    environment: list[Given] = field(default_factory=list)
    servers: list[list[Given]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def from_words(words: Sequence[str]) -> Source:
    """The run that a command line describes, with or without ``megatron rlhf`` in front.

    Raises:
        ConfigError: it is not a GRPO command.
    """
    source = Source("imported")
    _require_text(" ".join(words), "the command line")
    _keep_secrets(" ".join(words))
    command = Command({}, tuple(Word(word) for word in words), 1)
    arguments = _after(command.words, "megatron", "rlhf")
    _take_training(source, command if arguments is not None else _with_name(command), "command line", Path())
    _require_grpo(source, "the command line")
    _note_secrets(source)
    return source


def from_files(paths: Sequence[Path]) -> Source:
    """The run that the scripts and YAML files at ``paths`` describe together.

    Raises:
        ConfigError: a file cannot be read, or there is no GRPO command in any of them.
    """
    source = Source(paths[0].stem)
    for path in paths:
        if path.suffix.lower() in (".yaml", ".yml", ".json"):
            source.flags += _from_yaml(path, source)
        else:
            _take_script(source, path)
    _require_grpo(source, ", ".join(map(str, paths)))
    _note_secrets(source)
    return source


def _take_script(source: Source, path: Path) -> None:
    text = _read(path)
    try:
        job = _job_of(text, path, source)
        known = {"SLURM_NNODES": job.nodes, "SLURM_JOB_NUM_NODES": job.nodes, "SLURM_GPUS_ON_NODE": job.gpus}
        given = {name: str(value) for name, value in known.items() if value is not None}
        script = read_script(text, given, str(path.parent))
    except ConfigError as error:
        raise ConfigError(f"{path}, {error.message}") from None
    before = {"NNODES": job.nodes, "NPROC_PER_NODE": job.gpus}
    place = f"{path.name}, #SBATCH"
    source.environment += [Given(n, (str(v),), (), place) for n, v in before.items() if v is not None]
    taken = False
    for command in script.commands:
        place = f"{path.name}:{command.line}"
        if (server := _after(command.words, "swift", "rollout")) is not None:
            source.servers.append(_flags(server, place))
        elif _after(command.words, "megatron", "rlhf") is not None and _kind(command) in ("grpo", None):
            if taken:
                source.notes.append(f"{place}: a second GRPO command; only the first one is imported")
            else:
                _take_training(source, command, place, path.parent)
                taken = True
        elif taken and command.words[0].text.startswith("--"):
            lost = " ".join(word.text for word in command.words)
            source.notes.append(
                f"{place}: the shell never passes '{lost}': the command ended before it, at a comment or a line "
                "without \\ at its end"
            )
        elif _after(command.words, "swift", "rlhf") is not None:
            source.notes.append(f"{place}: 'swift rlhf' is not the Megatron trainer; its flags are not imported")
    source.notes += [
        f"{path.name}: ${name} is set inside an if or a loop; the last value written there was used"
        for name in sorted(script.uncertain)
        if re.search(rf"\$\{{?{name}\b", text) or name in {given.name for given in source.environment}
    ]


def _job_of(text: str, path: Path, source: Source) -> Asked:
    """What the ``#SBATCH`` lines of a script ask for; what belongs into a cluster profile is noted."""
    lines, unread = script_lines(text)
    options = read_options(split_words(lines))
    if others := [f"--{name}" for name in options if name not in _TAKEN]:
        source.notes.append(f"{path.name}, #SBATCH: {', '.join(others)} belong into the cluster profile, if anywhere")
    if unread:
        numbers = ", ".join(map(str, unread))
        source.notes.append(f"{path.name}: #SBATCH behind the first command is not read by sbatch (line {numbers})")
    return asked(options)


def _take_training(source: Source, command: Command, place: str, folder: Path) -> None:
    source.environment += [Given(n, (w.text,), w.open, place) for n, w in command.environment.items()]
    source.environment += _launcher(command.words, place)
    arguments = _after(command.words, "megatron", "rlhf") or ()
    flags = _flags(arguments, place)
    if arguments and not _FLAG.match(arguments[0].text):  # the file comes first: flags win
        source.flags += _from_yaml(_find(arguments[0].text, folder), source)
        flags = flags[1:] if flags and flags[0].name == arguments[0].text else flags
    source.flags += [flag for flag in flags if flag.name != "config"]
    for config in (flag for flag in flags if flag.name == "config"):  # its pairs come after the flags: the file wins
        source.flags += _from_yaml(_find(config.shown, folder), source)


def _flags(words: Iterable[Word], place: str) -> list[Given]:
    """Words sorted under the flags that they follow; words before the first flag are reported under their own name."""
    found: list[tuple[str, list[Word]]] = []
    for word in words:
        if _FLAG.match(word.text) and word.text.startswith("--"):
            name, equals, value = word.text.partition("=")
            found.append((name[2:].replace("-", "_"), [Word(value, word.open)] if equals else []))
        elif found and not (found[-1][1] and word.open == (word.text,)):  # else it may hold flags of its own
            found[-1][1].append(word)
        else:
            found.append((word.text, [word] if word.open else []))
    return [
        Given(name, tuple(w.text for w in values) or (True,), tuple(part for w in values for part in w.open), place)
        for name, values in found
    ]


def _from_yaml(path: Path, source: Source) -> list[Given]:
    """The keys of ms-swift's YAML form; ``ENV`` goes to the environment, Ray's groups lose their group."""
    _read(path)
    document = read_yaml(path, "ms-swift configuration", "rlhf_type: grpo")
    source.notes += [f"{path.name}: {problem.key} {problem.text}" for problem in document.problems]
    values = dict(document.values)
    if isinstance(environment := values.get("ENV"), dict):
        del values["ENV"]
        source.environment += [Given(str(name), (value,), (), path.name) for name, value in environment.items()]
    found: list[Given] = []
    for group in _RAY_GROUPS:
        if isinstance(inner := values.get(group), dict):
            del values[group]
            found += _ray_group(group, inner, path.name)
    return [*(_yaml_given(name, value, path.name) for name, value in values.items()), *found]


def _ray_group(group: str, values: dict[str, Any], place: str) -> list[Given]:
    own = {name for name in values if name == "gpus" or group == "teacher"}
    return [
        _yaml_given(f"{group}_{name}" if name in own else name, value, f"{place}, {group}")
        for name, value in values.items()
    ]


def _yaml_given(name: Any, value: Any, place: str) -> Given:
    items = (tuple(value) or (None,)) if isinstance(value, list) else (value,)
    return Given(str(name).replace("-", "_"), items, (), place)


def _launcher(words: Sequence[Word], place: str) -> list[Given]:
    """Process counts given to ``torchrun`` in front of the command."""
    texts = [word.text for word in words]
    if not any(Path(text).name == "torchrun" or text == "torch.distributed.run" for text in texts):
        return []
    named = ((_LAUNCHERS.get(given.name), given) for given in _flags(words, place))
    return [Given(name, given.values[:1], given.open, place) for name, given in named if name is not None]


def _after(words: Sequence[Word], program: str, verb: str) -> tuple[Word, ...] | None:
    """The words after ``program verb`` or after the Python file behind it; None when that is not in ``words``."""
    for number, word in enumerate(words):
        text = word.text
        if text.rpartition("/")[2] == program and number + 1 < len(words) and words[number + 1].text == verb:
            return tuple(words[number + 2 :])
        module = text.replace("/", ".").removesuffix(".py")
        if module.endswith(f"cli._megatron.{verb}" if program == "megatron" else f"swift.cli.{verb}"):
            return tuple(words[number + 1 :])
    return None


def _with_name(command: Command) -> Command:
    return Command(command.environment, (Word("megatron"), Word("rlhf"), *command.words), command.line)


def _kind(command: Command) -> str | None:
    arguments = _after(command.words, "megatron", "rlhf") or ()
    return next((flag.shown for flag in reversed(_flags(arguments, "")) if flag.name == "rlhf_type"), None)


def _require_grpo(source: Source, where: str) -> None:
    count = len(source.flags) + len(source.environment) + sum(map(len, source.servers))
    if count > _MOST:
        raise ConfigError(f"{where}: {count:,} flags and variables are more than {_MOST:,}")
    if not source.flags:
        other = next((note for note in source.notes if "swift rlhf" in note), "")
        raise ConfigError(f"{where}: there is no `megatron rlhf --rlhf_type grpo` command", other)
    kind = next((flag.shown for flag in reversed(source.flags) if flag.name == "rlhf_type"), None)
    if kind != "grpo":
        got = "rlhf_type is not given" if kind is None else f"rlhf_type is {kind}"
        raise ConfigError(f"{where}: {got}; only `megatron rlhf --rlhf_type grpo` can be imported")


def _find(name: str, folder: Path) -> Path:
    """A file that a script names: beside the script, or where we are."""
    return next((path for path in (folder / name, Path(name)) if is_file(path)), Path(name))


def is_file(path: Path) -> bool:
    """Whether there is a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _read(path: Path) -> str:
    try:
        text = read_text(path, _LARGEST)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {getattr(error, 'strerror', None) or error}") from None
    _require_text(text, str(path))
    _keep_secrets(text)
    return text


def _require_text(text: str, where: str) -> None:
    if found := control_character(text):
        raise ConfigError(f"{where} holds the control character {found}: it is not a text")


def _keep_secrets(text: str) -> None:
    for value in secrets_in(text):
        keep_secret(value)


def _note_secrets(source: Source) -> None:
    """Say where the secrets belong that were given, as they are left out."""
    everything = chain(source.environment, source.flags, *source.servers)
    found = [given for given in everything if given.secret]
    for given in found:
        for value in given.values:
            keep_secret(str(value))
    if names := dict.fromkeys(given.name for given in found):
        known = [f"{name} as {_VARIABLES[name]}" if name in _VARIABLES else name for name in names]
        source.notes.append(
            f"secrets are left out: {', '.join(known)}. Put NAME=value lines into a file that only you can read, and "
            "name it as `secrets` in the cluster profile"
        )
