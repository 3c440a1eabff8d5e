"""From a job to the text of its script: pure, no files, no clock, no environment.

The script is one bash file for all executors. Without an argument it supervises an attempt (that is what sbatch
starts); with the name of a step it runs that step, inside the allocation, one task per node.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from grpo_hpc.cluster.profile import Profile
from grpo_hpc.config.site_paths import node_word
from grpo_hpc.jobs.bash import Bash, line, word
from grpo_hpc.jobs.runtimes import HAND_IN_ALL, INSIDE, LEFT_OUTSIDE, UNSET, Box, Wrapping, wrap
from grpo_hpc.redaction import SECRET_NAMES
from grpo_hpc.shipped import shipped

# What a container must be told beside the variables that the script sets.
_HANDED_IN = (
    *("MASTER_ADDR", "MASTER_PORT", "GRPO_HPC_ATTEMPT", "CUDA_VISIBLE_DEVICES"),
    *("SLURM_JOB_ID", "SLURM_NODEID", "SLURM_PROCID", "SLURMD_NODENAME"),
)

# on a full disk it would be a file without a word, as a person makes it
_ASK_TO_STOP = """trap '[ -e "$0/stop" ] || echo signalled > "$0/stop" || rm -f "$0/stop"' TERM USR2"""
_AWAIT = "while kill -0 $! 2>/dev/null; do wait $!; done; wait $!; code=$?"  # a signal ends one wait

# What a rank with a GPU computes on the CPU is small, and many threads wait for each other longer than they work.
GPU_RANK_THREADS = 8
_RUN_DIR = Bash('"$0"')  # of the shell that a step runs in


@dataclass(frozen=True)
class Step:
    """One thing that is started on a range of nodes.

    Attributes:
        name: function of the script, such as ``train``.
        program: what Python starts, and its arguments but the run directory, which comes last.
        nodes: how many of the job's nodes take part, and from which one on.
        ranks: processes on each under torchrun; otherwise one process has the GPUs of all of them.
        torchrun: the program is started by torchrun, on every rank; such a step begins at the first node.
        before: what Python runs first, once on each node; when it fails, ``program`` is not started.
        obeys: TERM or USR2 to the step ask the run to stop; other steps are deaf to them.
    """

    name: str
    program: tuple[str, ...]
    nodes: int
    ranks: int
    first_node: int = 0
    torchrun: bool = True
    before: tuple[str, ...] = ()
    obeys: bool = False


@dataclass(frozen=True)
class Job:
    """Everything that a script says.

    Attributes:
        name: name of the run.
        run_dir: its directory, absolute.
        device: ``cpu`` or ``cuda``.
        profile: the cluster, complete.
        steps: what can be started; all of them lie within ``nodes``.
        nodes: nodes of the allocation.
        python: interpreter of the supervisor, which runs outside of any container.
        binds: absolute paths that the steps read or write.
        links: what links in them lead to, as in :class:`~grpo_hpc.jobs.runtimes.Box`.
        secret_names: variables of the secrets file; their values never come near this module.
    """

    name: str
    run_dir: str
    device: str
    profile: Profile
    steps: tuple[Step, ...]
    nodes: int
    python: str
    binds: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    secret_names: tuple[str, ...] = field(default=())


def render(job: Job) -> str:
    """The script of ``job``.

    Raises:
        ConfigError: the runtime cannot take one of the paths.
    """
    template = _environment().get_template("job.sh.j2")
    box = _box(job)
    wrapping = wrap(job.profile.runtime, box)
    return template.render(
        job=job,
        profile=job.profile,
        options=sbatch_options(job) if job.profile.executor == "slurm" else [],
        variables=_variables(job),
        left_outside=_left_outside(job.profile),
        inside=INSIDE if box else "",
        steps=[*((step.name, _step_words(job, step, wrapping)) for step in job.steps), *_clean(job, wrapping)],
    )


def sbatch_options(job: Job) -> list[str]:
    """Options of sbatch, one each, for lines of #SBATCH: what needs quotes there, a profile does not let in."""
    profile, ranks = job.profile, max(step.ranks for step in job.steps)
    options = [f"--job-name={job.name}", f"--nodes={job.nodes}", "--ntasks-per-node=1"]
    for key in ("account", "partition", "qos", "constraint"):
        if (value := getattr(profile, key)) is not None:
            options.append(f"--{key}={value}")
    if job.device == "cuda":
        options += gpu_request(profile, ranks)
    if profile.cpus_per_node is not None:
        options.append(f"--cpus-per-task={profile.cpus_per_node}")
    if profile.memory is not None:
        options.append(f"--mem={profile.memory}")
    if profile.exclusive:
        options.append("--exclusive")
    if profile.time_limit is not None:
        options += [f"--time={profile.time_limit}", f"--signal=B:USR2@{profile.save_before_s}"]
    options.append("--requeue" if profile.requeue else "--no-requeue")
    # relative to the run directory, where sbatch is called; a log per start, also of a requeued one
    options += ["--output=slurm-%j.log", "--open-mode=append"]
    return [*options, *profile.options]


def gpu_request(profile: Profile, ranks: int) -> list[str]:
    """How this site is asked for ``ranks`` GPUs on each node."""
    kind = f"{profile.gpu_type}:" if profile.gpu_type else ""
    asked = {"gpus-per-node": f"--gpus-per-node={kind}{ranks}", "gres": f"--gres=gpu:{kind}{ranks}"}
    return [asked[profile.gres]] if profile.gres in asked else []


def _variables(job: Job) -> list[tuple[str, str]]:
    """Names and values of the variables that every process gets."""
    profile, ranks = job.profile, max(step.ranks for step in job.steps)
    cores = profile.cpus_per_node or "$(nproc)"
    most = GPU_RANK_THREADS if job.device == "cuda" else cores
    values = {
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": Bash(f'"${{OMP_NUM_THREADS:-$(threads {cores} {ranks} {most})}}"'),
    }
    if job.device == "cuda":
        values["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"  # Megatron's overlap of communication counts on it
    if profile.executor != "local":
        values |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # compute nodes seldom reach the internet
    if profile.network_interface:
        values |= _network(profile.network_interface)
    if profile.scratch:
        values["TMPDIR"] = Bash(node_word(profile.scratch, UNSET))
    if secrets := dict.fromkeys([*job.secret_names, *profile.inherit]):
        values[SECRET_NAMES] = " ".join(secrets)
    values |= {name: Bash(node_word(value)) for name, value in profile.environment.items()}
    if profile.runtime != "none":
        values |= {"PYTHONNOUSERSITE": "1", "GRPO_HPC_HOME": values.pop("HOME", _home(job))}
    return list(values.items())


def _network(interface: str) -> dict[str, str]:
    """NCCL knows ``=`` (this very name) and ``^`` (all but these); Gloo knows names alone."""
    gloo = {} if interface.startswith("^") else {"GLOO_SOCKET_IFNAME": interface.removeprefix("=")}
    return {"NCCL_SOCKET_IFNAME": interface, **gloo}


def _home(job: Job) -> str:
    """The home of the processes in a container, where compiled kernels are kept."""
    if folder := job.profile.cache or job.profile.scratch:
        return Bash(f'{node_word(folder, UNSET)}/grpo-hpc-"$UID"')
    return f"{job.run_dir}/.cache/home"


def _left_outside(profile: Profile) -> list[str]:
    """Variables of the shell that would enter the container, and that nobody has asked for."""
    asked = {*profile.environment, *profile.inherit}
    return [name for name in LEFT_OUTSIDE if profile.runtime in HAND_IN_ALL and name not in asked]


def _box(job: Job) -> Box | None:
    profile = job.profile
    if profile.image is None:
        return None
    names = [*_HANDED_IN, *(name for name, _ in _variables(job)), *profile.inherit, *job.secret_names]
    binds = dict.fromkeys([job.run_dir, *job.binds, *profile.binds])
    of_nodes = dict.fromkeys(path for path in (profile.scratch, profile.cache) if path and path not in binds)
    return Box(
        profile.image,
        job.run_dir,
        tuple(binds),
        tuple(dict.fromkeys(names)),
        job.device == "cuda",
        links=job.links,
        node_binds=tuple(of_nodes),
    )


def _step_words(job: Job, step: Step, wrapping: Wrapping) -> list[str]:
    """The words of one step: srun, container, torchrun; one list element is one line of the script."""
    lines = [line(*_srun(job, step), *wrapping.srun)] if job.profile.executor != "local" else []
    lines += [line(*wrapping.prefix)] if wrapping.prefix else []
    return [*lines, _processes(job, step)]


def _clean(job: Job, wrapping: Wrapping) -> list[tuple[str, list[str]]]:
    """The function that removes what containers a killed step has left on the nodes, where that can be."""
    if not wrapping.clean or job.profile.executor == "local":
        return []
    srun = f"srun --nodes={job.nodes} --ntasks={job.nodes} --ntasks-per-node=1 --overlap --mpi=none --export=ALL"
    return [("clean", [srun, line("bash", "-c", wrapping.clean)])]


def _srun(job: Job, step: Step) -> list[str]:
    words = ["srun", f"--nodes={step.nodes}", f"--ntasks={step.nodes}", "--ntasks-per-node=1"]
    if step.nodes < job.nodes:
        words.append(f"--relative={step.first_node}")
    if job.profile.cpus_per_node is not None:
        words.append(f"--cpus-per-task={job.profile.cpus_per_node}")
    if job.device == "cuda":
        words += gpu_request(job.profile, step.ranks)
    # --overlap: the supervisor of submitit is a step itself; --mpi=none: ranks are torchrun's business;
    # --export=ALL: a site may have another default, and the step would find no program
    return [*words, "--kill-on-bad-exit=1", "--overlap", "--mpi=none", "--export=ALL"]


def _processes(job: Job, step: Step) -> str:
    """What runs on each node, in its container."""
    python = job.profile.python or (job.python if job.profile.runtime == "none" else "python3")
    words = [python]
    if step.torchrun:
        words += ["-m", "torch.distributed.run", *_rendezvous(job, step), f"--nproc-per-node={step.ranks}"]
    body = line("exec", *words, *step.program, _RUN_DIR)
    if step.before:
        body = Bash(f"{line(python, *step.before, _RUN_DIR)} && {body}")
    if job.profile.executor != "local":
        body = _obeying(body) if step.obeys else _deaf(body)
    inside = [] if job.profile.runtime == "none" else [Bash('"$inside"')]
    return line("bash", "-c", word(*inside, str(body)), job.run_dir)


def _deaf(body: Bash) -> Bash:
    """A program that does not die of what Slurm signals to every process of a step.

    The second at its end is for what did not even start: srun, told to end the step, drops what it has not read.
    """
    return Bash(f'trap "" TERM USR2; shopt -s execfail; {body}; code=$?; sleep 1; exit $code')


def _obeying(body: Bash) -> Bash:
    """The same, beside a shell that asks the run to stop: Slurm may signal the first process of a step alone."""
    quiet = f'(trap "" TERM USR2; {body})'
    return Bash(f"{_ASK_TO_STOP}; {quiet} & {_AWAIT}; [ $code = 0 ] || sleep 1; exit $code")


def _rendezvous(job: Job, step: Step) -> list[str]:
    if job.profile.executor == "local":
        return ["--standalone"]
    where = ('--node-rank="$SLURM_NODEID"', '--master-addr="$MASTER_ADDR"', '--master-port="$MASTER_PORT"')
    return [f"--nnodes={step.nodes}", *map(Bash, where), "--signals-to-handle=SIGINT"]


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(shipped("slurm") / "templates")
    environment = Environment(loader=folder, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.keep_trailing_newline = True
    environment.filters["word"] = word
    return environment
