"""The vLLM servers of one node, a task on each: ``python -m grpo_hpc.jobs.serving.node_servers PROGRAM... RUN_DIR``.

It starts the servers that the plan puts on this node, each with its GPUs and a port of its own, and writes down where
they listen. It ends with them: when one dies, the others are ended and the step fails; it ends well when the
supervisor says that the servers are not needed any more.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from grpo_hpc.addresses import own_address
from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import sequences_of
from grpo_hpc.files import write_atomically
from grpo_hpc.jobs.checks.node_reports import this_node
from grpo_hpc.jobs.ports import claimed_port
from grpo_hpc.jobs.processes import descendants, end_family, start_family
from grpo_hpc.runs.clearing.segments import SUFFIX, note_segments, remove_segments, segment_files
from grpo_hpc.runs.crash import find_crash
from grpo_hpc.runs.ends import what_happened
from grpo_hpc.runs.rank_log import shorten
from grpo_hpc.runs.run_dir import RunDir

END = "end"
"""File beside the servers' addresses that ends them."""
_POLL_S = 0.5
_SELDOM = 10  # so many polls are between two looks at what costs more
_GRACE_S = 10.0
_PORTS = 1000  # how far from the planned port a free one is looked for


def main(run_dir: RunDir, program: list[str]) -> int:
    """Serve until told to end (0) or until a server ends (1)."""
    # A step is started deaf to TERM. With a handler instead, this process stays so, and the servers are not born deaf.
    signal.signal(signal.SIGTERM, lambda *_: None)
    attempt, cfg = run_dir.latest_attempt(), run_dir.config()
    at = cfg.resources.nodes + int(os.environ["SLURM_PROCID"])
    here = {number: server for number, server in enumerate(run_dir.planned_servers()) if server["node"] == at}
    folder = RunDir.api_key(attempt).parent
    for left in segment_files(run_dir, this_node()):
        remove_segments(left)  # of servers that were killed with their step
    segments = folder / f"{this_node()}{SUFFIX}"
    try:
        with _started(cfg, attempt, program, here) as processes:
            return _watch(attempt, processes, folder / END, segments)
    finally:
        remove_segments(segments)


def _watch(attempt: Path, processes: Mapping[int, subprocess.Popen[bytes]], end: Path, segments: Path) -> int:
    """Until told to end (0), or until a server has ended (1)."""
    polls = 0
    while True:
        if polls % _SELDOM == 0:
            note_segments(segments, descendants())
            for number in processes:
                shorten(RunDir.server_log(attempt, number))
        for number, process in processes.items():
            if (code := process.poll()) is not None:
                print(f"server {number} on {this_node()} ended: {_why(attempt, number, code)}", flush=True)
                return 1
        if end.exists():
            note_segments(segments, descendants())
            return 0
        polls += 1
        time.sleep(_POLL_S)


@contextmanager
def _started(
    cfg: RunConfig, attempt: Path, program: list[str], servers: Mapping[int, dict[str, Any]]
) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    """The processes of ``servers`` by their number in the plan; no process of theirs is left afterwards."""
    address, others = own_address(os.environ["MASTER_ADDR"]), descendants()
    secret = {"VLLM_API_KEY": RunDir.api_key(attempt).read_text()}
    with ExitStack() as stack:
        stack.callback(end_family, others, _GRACE_S)
        processes = {}
        for number, server in servers.items():
            port = stack.enter_context(claimed_port(range(server["port"], min(server["port"] + _PORTS, 65536))))
            command = [sys.executable, *program, "--host", address, "--port", str(port), *options(cfg, number)]
            env = {**os.environ, **secret, **_device(cfg, server["gpus"])}
            processes[number] = start_family(command, env, RunDir.server_log(attempt, number))
            place = {"url": f"http://{address}:{port}", "node": this_node(), "gpus": server["gpus"]}
            write_atomically(attempt / "servers" / f"{number}.json", json.dumps(place) + "\n")
        yield processes


def options(cfg: RunConfig, number: int) -> list[str]:
    """What vLLM's server ``number`` is told besides its address; its key is in its environment."""
    roll = cfg.rollout
    words = ["--model", cfg.model.path, "--dtype", roll.vllm_dtype, "--seed", str(cfg.seed + number)]
    words += ["--tensor-parallel-size", str(roll.vllm_tensor_parallel_size)]
    words += ["--logprobs-mode", "processed_logprobs"]  # of the distribution that is sampled from
    if roll.vllm_max_model_len is not None:
        words += ["--max-model-len", str(roll.vllm_max_model_len)]
    words += ["--max-num-seqs", str(sequences_of(cfg))]
    for name, value in roll.engine_memory(cfg.resources.device).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    if roll.vllm_engine_kwargs:
        words += ["--engine-kwargs", json.dumps(roll.vllm_engine_kwargs)]
    return [*words, "--enforce-eager"] if cfg.resources.device == "cpu" or roll.vllm_enforce_eager else words


def _device(cfg: RunConfig, local: list[int]) -> dict[str, str]:
    """Variables that give one server its GPUs, out of those that Slurm gave to this step."""
    if cfg.resources.device != "cuda":
        return {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # several servers on one node must not take the same cores
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return {"CUDA_VISIBLE_DEVICES": ",".join(given[gpu] if given != [""] else str(gpu) for gpu in local)}


def _why(attempt: Path, number: int, code: int) -> str:
    return what_happened(code, find_crash(RunDir.server_log(attempt, number), []))


if __name__ == "__main__":
    sys.exit(main(RunDir.open(sys.argv[-1]), sys.argv[1:-1]))
