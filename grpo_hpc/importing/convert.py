"""Flags whose value takes another form in the run file. Each function is named in the table."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_hpc.config.batch import steps_of_epochs
from grpo_hpc.config.library import model_config
from grpo_hpc.files import read_text
from grpo_hpc.importing.fates import Converter, Fate, Result, Run
from grpo_hpc.importing.source import Given, is_file

_LARGEST = 1e15
_LONGEST_TEXT = 1 << 18  # bytes
_VISION = r"visual\."
_TRUE, _FALSE = {"true", "yes", "t", "y", "1", "on"}, {"false", "no", "f", "n", "0", "off"}
_BUILT_IN = {"accuracy", "format", "react_format", "cosine", "repetition", "soft_overlong", "toolbench", "math"}
_ROWS = re.compile(r"(?P<name>.+?)(?:#(?P<rows>[0-9]{1,12}))?")


def truth(value: Any) -> bool | None:
    """``value`` as ms-swift reads a truth value; None when it is none."""
    text = str(value).strip().lower()
    return True if text in _TRUE else False if text in _FALSE else None


def number(value: Any) -> float | None:
    """``value`` as a number; None when it is none, or one that no run has a use for."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if abs(found) <= _LARGEST else None


def whole(value: Any) -> int | None:
    """``value`` as a whole number; None when it is none."""
    found = number(value)
    return int(found) if found is not None and found.is_integer() else None


# -- model, data, run ------------------------------------------------------------------------------------------------


def model(given: Given, run: Run) -> Result:
    """A hub id becomes the local folder that the model is to be downloaded to."""
    path = given.shown.rstrip("/")
    name = path.rpartition("/")[2]
    config = {"config": name} if model_config(name) else {}
    if not _is_hub_id(path):
        return Result({"path": path, **config}, fate=Fate.RENAMED)
    return Result({"path": f"models/{name}", **config}, f"to download it: hf download {path} --local-dir models/{name}")


def _is_hub_id(path: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", path)) and path[0] not in "./~" and not _exists(path)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # a name that no file can have
        return False


def precision(given: Given, run: Run) -> Result:
    """``bf16``, ``fp16`` and ``torch_dtype`` all speak of the training precision."""
    on = truth(given.values[0])
    names = {"bf16": "bfloat16", "fp16": "float16"}
    if given.name in names:
        if not on and not any(truth(run.value(name)) for name in names):
            return Result({"dtype": "float32"})
        if not on:
            return Result(note="off")
        return Result({"dtype": names[given.name]})
    return Result({"dtype": given.shown})


def dataset(key: str) -> Converter:
    """Data set ids and files become ``key``; one of them, without the number of rows behind ``#``."""

    def convert(given: Given, run: Run) -> Result:
        first = _ROWS.fullmatch(str(given.values[0]))
        if first is None:
            return Result(note="names no data set", fate=Fate.UNSUPPORTED)
        name = first["name"]
        notes = []
        if _is_hub_id(name.partition(":")[0]) and not Path(name).suffix:
            folder = "data/" + name.partition(":")[0].rpartition("/")[2]
            notes.append(f"{name} is on a hub: save it as rows with 'messages' or 'prompt' at {folder}.jsonl")
            name = f"{folder}.jsonl"
        if first["rows"]:
            notes.append(f"all rows are used: make the file hold the {first['rows']} that #{first['rows']} chose")
        if len(given.values) > 1:
            others = " ".join(map(str, given.values[1:]))
            notes.append(f"one file is read: put the rows of {others} into it")
        return Result({key: name}, "; ".join(notes))

    return convert


def system_message(given: Given, run: Run) -> Result:
    """A text, or a file that holds it."""
    file = Path(given.shown)
    if "\n" not in given.shown and is_file(file):
        return _text_of(file)
    if file.suffix == ".txt":
        return Result(note=f"{file} is not here: write its text as data.system", fate=Fate.UNSUPPORTED)
    return Result({"system": given.shown}, fate=Fate.TAKEN)


def _text_of(file: Path) -> Result:
    try:
        text = read_text(file, _LONGEST_TEXT).strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        return Result(note=f"{file} cannot be read: {why}", fate=Fate.UNSUPPORTED)
    return Result({"system": text}, f"the text of {file}")


def thinking(given: Given, run: Run) -> Result:
    """Both values say something: what a chat template does when it is told nothing differs between models."""
    on = truth(given.values[0])
    if on is None:
        return Result(note="is neither true nor false", fate=Fate.UNSUPPORTED)
    return Result({"chat_template_kwargs": {"enable_thinking": on}})


def output_dir(given: Given, run: Run) -> Result:
    """The last part of the path is the run's name, the rest the folder that holds runs."""
    path = Path(given.shown)
    name = run_name(path.name)
    return Result({"output_dir": str(path.parent), "name": name} if str(path.parent) != "." else {"name": name})


def run_name(text: str) -> str:
    """``text`` as a name that a run may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-_") or "imported"


def shuffle(given: Given, run: Run) -> Result:
    """ms-swift shuffles the rows once, and again in every epoch; either makes a new order here."""
    names = ("dataset_shuffle", "train_dataloader_shuffle")
    return Result({"shuffle": any(truth(run.value(name)) is not False for name in names)})


def epochs(given: Given, run: Run) -> Result:
    """Epochs become optimizer steps when the number of rows is known, and stay epochs when it is not."""
    wanted = whole(given.values[0])
    if wanted is None:
        return Result(note="is no whole number", fate=Fate.UNSUPPORTED)
    rows = _rows(run)
    if rows is None:
        return Result({"num_train_epochs": wanted}, "the steps follow from the rows when the run is submitted")
    generations, batch = whole(run.value("num_generations")), whole(run.value("global_batch_size"))
    if not generations or not batch or not wanted:
        return Result(note="num_generations or global_batch_size is no whole number", fate=Fate.UNSUPPORTED)
    steps = steps_of_epochs(wanted, rows, generations, batch)
    return Result({"train_iters": steps}, f"{rows} rows * {generations} completions * {wanted} // {batch}")


def _rows(run: Run) -> int | None:
    """How many rows the data sets have, when that can be seen."""
    given = run.given("dataset")
    counts = [_rows_of(str(value)) for value in given.values] if given else []
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _rows_of(name: str) -> int | None:
    match = _ROWS.fullmatch(name)
    if match is None:
        return None
    if match["rows"]:
        return int(match["rows"])
    file = Path(match["name"])
    if file.suffix != ".jsonl" or not is_file(file):
        return None
    try:
        with file.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    except OSError:
        return None


def steps(given: Given, run: Run) -> Result:
    """Steps count unless epochs are given, which overwrite them."""
    said = run.given("num_train_epochs")
    if said is not None and whole(said.values[0]) is not None:
        return Result(note="num_train_epochs overwrites it", fate=Fate.IGNORED)
    return Result({"train_iters": given.shown}, fate=Fate.TAKEN)


# -- switches ----------------------------------------------------------------------------------------------------------


def only(value: Any, why: str, otherwise: str) -> Converter:
    """A flag with one value that is what happens anyway; any other is not supported."""

    def convert(given: Given, run: Run) -> Result:
        found = truth(given.values[0]) if isinstance(value, bool) else given.shown
        fits = found == value
        return Result(note=why if fits else otherwise, fate=Fate.NO_EFFECT if fits else Fate.UNSUPPORTED)

    return convert


def unless(condition: Callable[[Run], bool], why: str) -> Converter:
    """A flag that is taken as it is, unless ms-swift does not read it in this run."""

    def convert(given: Given, run: Run) -> Result:
        if condition(run):
            return Result(note=why, fate=Fate.IGNORED)
        return Result({given.name: as_given(given)}, fate=Fate.TAKEN)

    return convert


def as_given(given: Given) -> Any:
    """One value, or the list of several."""
    return given.values[0] if len(given.values) == 1 else list(given.values)


def recompute(given: Given, run: Run) -> Result:
    """None is what an absent key means."""
    if given.shown == "none":
        return Result({"recompute_granularity": None})
    return Result({"recompute_granularity": given.shown}, fate=Fate.TAKEN)


def state_precision(given: Given, run: Run) -> Result:
    """Optimizer state in the run file's names of precisions."""
    return Result({given.name: {"fp32": "float32", "bf16": "bfloat16"}.get(given.shown, given.shown)})


def virtual_stages(given: Given, run: Run) -> Result:
    """One chunk of layers per stage is no interleaving."""
    if whole(given.values[0]) == 1:
        return Result(note="1 is no interleaving")
    return Result({"virtual_pipeline_model_parallel_size": given.shown}, fate=Fate.TAKEN)


def sequence_parallel(given: Given, run: Run) -> Result:
    """Needs tensor parallelism to mean anything."""
    if (whole(run.value("tensor_model_parallel_size")) or 1) > 1:
        return Result({"sequence_parallel": given.shown}, fate=Fate.TAKEN)
    return Result(note="with tensor_model_parallel_size 1 there is nothing to cut", fate=Fate.IGNORED)


def timeout(given: Given, run: Run) -> Result:
    """Seconds under its present name, minutes under the old one."""
    said = run.given(given.name)
    if said is not None and said.name == "distributed_timeout_minutes":
        return Result({"distributed_timeout_minutes": given.shown}, fate=Fate.TAKEN)
    seconds = whole(given.values[0])
    if seconds is None:
        return Result(note="is no whole number of seconds", fate=Fate.UNSUPPORTED)
    return Result({"distributed_timeout_minutes": seconds / 60}, f"{seconds} seconds")


def server_nodes(given: Given, run: Run) -> Result:
    """Hosts or URLs of servers become a number of nodes: one per host."""
    hosts = {re.sub(r"^\w+://|:\d+.*$", "", str(value)) for value in given.values}
    note = f"{len(hosts)} host{'s' * (len(hosts) > 1)}; servers have whole nodes of their own here, found when it runs"
    return Result({"vllm_server_nodes": len(hosts)}, note)


def server_port(given: Given, run: Run) -> Result:
    """The first port; further servers of a node count up from it."""
    return Result({"vllm_server_port": str(given.values[0])}, fate=Fate.TAKEN)


def only_with_losses(*losses: str) -> Converter:
    """A flag that ms-swift reads for some loss types only."""

    def convert(given: Given, run: Run) -> Result:
        loss = str(run.value("loss_type"))
        if loss in losses:
            return Result({given.name: given.shown}, fate=Fate.TAKEN)
        return Result(note=f"loss_type {loss} does not read it", fate=Fate.IGNORED)

    return convert


def scale_rewards(given: Given, run: Run) -> Result:
    """Older scripts say true or false."""
    values = {True: "group", False: "none"}
    on = truth(given.values[0])
    return Result({"scale_rewards": given.shown}, fate=Fate.TAKEN) if on is None else Result({given.name: values[on]})


def top_k(given: Given, run: Run) -> Result:
    """0 and -1 both mean all tokens."""
    return Result({"top_k": -1}) if given.shown == "0" else Result({"top_k": given.shown}, fate=Fate.TAKEN)


def warmup_fraction(given: Given, run: Run) -> Result:
    """A share of all steps becomes a number of steps."""
    share, total = number(given.values[0]), _all_steps(run)
    if share == 0:
        return Result(note="no warm-up, as here by default", fate=Fate.NO_EFFECT)
    if share is None or total is None:
        return Result(note="write lr_warmup_iters: the number of steps is not known", fate=Fate.UNSUPPORTED)
    return Result({"lr_warmup_iters": round(share * total)}, f"{share:g} * {total} steps")


def _all_steps(run: Run) -> int | None:
    """Optimizer steps of the whole run, where they can be known; epochs overwrite train_iters."""
    said = run.given("num_train_epochs")
    result = None if said is None else epochs(said, run)
    if result is not None and result.fate is not Fate.UNSUPPORTED:
        return whole(result.values.get("train_iters"))
    return whole(run.value("train_iters"))


def learning_rate(run: Run) -> float:
    """ms-swift's learning rate when none is given."""
    return 1e-5 if run.value("tuner_type") == "full" else 1e-4


def ratio_cap(run: Run) -> Any:
    """Without epsilon_high, ms-swift caps the ratio of cispo at epsilon itself."""
    return number(run.value("epsilon")) if run.value("loss_type") == "cispo" else None


def frozen_tower(run: Run) -> str | None:
    """ms-swift freezes the vision tower of a vision-language model unless it is told otherwise."""
    vision = re.search(r"[-_]?VL\b|[-_]VL[-_]", str(run.value("model"))) is not None
    return _VISION if vision and run.value("tuner_type") == "full" else None


def freeze_vision(given: Given, run: Run) -> Result:
    """The vision tower and what joins it to the language model have one name in Hugging Face folders."""
    if not truth(given.values[0]):
        return Result(note="all parameters are trained unless freeze_parameters_regex says otherwise")
    if run.value("tuner_type") != "full":
        return Result(note="only adapters are trained")
    return Result({"freeze_parameters_regex": _VISION})


def reporters(given: Given, run: Run) -> Result:
    """``none`` is an empty list here."""
    return Result({"report_to": [str(value) for value in given.values if str(value) != "none"]}, fate=Fate.TAKEN)


def of_reporter(name: str) -> Converter:
    """A key of one reporter; it must be among those that the run reports to."""

    def convert(given: Given, run: Run) -> Result:
        chosen = run.given("report_to")
        if chosen is None or name not in map(str, chosen.values):
            return Result(note=f"report_to does not name {name}")
        return Result({given.name: given.shown}, fate=Fate.TAKEN)

    return convert


def offline(given: Given, run: Run) -> Result:
    """The packages' own variables for files without a server."""
    return Result({"report_offline": True} if given.shown in ("offline", "local") else {})


def evaluation_steps(given: Given, run: Run) -> Result:
    """Needs rows to evaluate on."""
    if run.given("val_dataset") is None:
        return Result(note="there is no val_dataset to evaluate on", fate=Fate.IGNORED)
    return Result({"eval_steps": given.shown}, fate=Fate.TAKEN)


def reward_functions(given: Given, run: Run) -> Result:
    """Names of built-in functions stay; a plugin's function is named together with its file."""
    from grpo_hpc.rewards.registry import registered_names

    known = registered_names()
    plugins = run.given("external_plugins")
    path = None if plugins is None else plugins.values[0]
    names, notes = [], []
    for name in map(str, given.values):
        if name in known or ":" in name:
            names.append(name)
        elif path is not None and name not in _BUILT_IN:
            names.append(f"{path}:{name}")
            notes.append(f"{path} must hold a function {name}(completions, **columns)")
        else:
            names.append(name)
            notes.append(f"there is no reward function {name!r} here yet: name your own as path/to/file.py:function")
    return Result({"reward_funcs": names}, "; ".join(notes), None if notes else Fate.TAKEN)


REWARD_PARAMETERS = {
    **{
        f"cosine_{name}_len_value_{of}": ("cosine", f"{name}_len_value_{of}")
        for name in ("min", "max")
        for of in ("wrong", "correct")
    },
    "cosine_max_len": ("cosine", "max_completion_length"),
    "repetition_n_grams": ("repetition", "n_grams"),
    "repetition_max_penalty": ("repetition", "max_penalty"),
    "soft_max_length": ("soft_overlong", "max_completion_length"),
    "soft_cache_length": ("soft_overlong", "soft_cache_length"),
}
"""The reward function that each of these flags is for, and what its parameter is called here."""


def reward_parameter(given: Given, run: Run) -> Result:
    """Parameters of all built-in rewards have one key: each of their flags writes all that were given."""
    chosen = run.given("reward_funcs")
    named = set() if chosen is None else set(map(str, chosen.values))
    function, name = REWARD_PARAMETERS[given.name]
    if function not in named:
        return Result(note=f"reward_funcs does not name {function}", fate=Fate.IGNORED)
    if number(given.values[0]) is None:
        return Result(note="is no number", fate=Fate.UNSUPPORTED)
    found: dict[str, dict[str, float]] = {}
    for flag, (owner, parameter) in REWARD_PARAMETERS.items():
        said = run.given(flag)
        if owner in named and said is not None and (value := number(said.values[0])) is not None:
            found.setdefault(owner, {})[parameter] = int(value) if value.is_integer() else value
    return Result({"reward_params": found}, f"{name} of {function}")


def visible_devices(given: Given, run: Run) -> Result:
    """A list of GPUs is their number, unless the number of processes is given."""
    count = len([device for device in given.shown.split(",") if device.strip()])
    if run.given("NPROC_PER_NODE"):
        return Result(note="NPROC_PER_NODE says how many; set this variable when you submit, to choose which")
    return Result(note=f"lists {count} GPUs, and ms-swift starts one process without NPROC_PER_NODE")
