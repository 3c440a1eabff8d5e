"""From a run directory to a finished run: what every rank does under torchrun."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

from megatron.core import parallel_state as mpu

from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import schedule
from grpo_hpc.control import Control
from grpo_hpc.data.prompts import PromptSet, open_prompts
from grpo_hpc.data.tokenizer import Tokenizer
from grpo_hpc.errors import EXIT_USER_ERROR, GrpoHpcError, RunTaken, ServersLost
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.models.policy_model import PolicyModel
from grpo_hpc.observe.completions import CompletionLog
from grpo_hpc.observe.events import EventLog
from grpo_hpc.observe.reporters import Report, open_reporters, plan_figures
from grpo_hpc.observe.sinks import MetricSinks
from grpo_hpc.redaction import keep_secret
from grpo_hpc.rollout.agents.agent_player import AgentEpisodes
from grpo_hpc.rollout.chat.rendering import Renderer
from grpo_hpc.rollout.collect import Collector
from grpo_hpc.rollout.engine import ColocateEngine, Engine
from grpo_hpc.rollout.environments.environment_pool import EnvironmentPool, start_environments
from grpo_hpc.rollout.episodes import EnvironmentEpisodes, Player, SingleTurns
from grpo_hpc.rollout.exchange import Exchange
from grpo_hpc.rollout.residency import Residency
from grpo_hpc.rollout.scoring import Scorer, start_rewards
from grpo_hpc.rollout.server_engine import ServerEngine
from grpo_hpc.runs.attempt_hold import Hold
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.train import checkpoints
from grpo_hpc.train.checkpoints import TrainerState
from grpo_hpc.train.colocation import Colocation
from grpo_hpc.train.loop import Parts, Trainer
from grpo_hpc.train.megatron.distributed_checkpoint import DistributedCheckpoint
from grpo_hpc.train.megatron.parallel import init_model_parallel, packing_of, place_of
from grpo_hpc.train.megatron.pipeline import forward_scores
from grpo_hpc.train.megatron.platform import Platform, make_platform
from grpo_hpc.train.megatron.trained_policy import TrainedPolicy, copy_of
from grpo_hpc.train.replay import freely_routed
from grpo_hpc.train.rollout_files import read_rollout
from grpo_hpc.train.rollout_source import RolloutSource
from grpo_hpc.train.scorer import Scores
from grpo_hpc.train.step import Step
from grpo_hpc.train.step_metrics import Reporter
from grpo_hpc.train.telemetry.prometheus import Prometheus
from grpo_hpc.train.telemetry.step_profile import StepProfile
from grpo_hpc.train.watch import PhaseClock, StopRequest


def main(run_dir: RunDir) -> int:
    """Train what ``run_dir`` describes, from its newest complete checkpoint if there is one.

    Returns:
        the exit code: 0 when the run ended or was stopped on request, 2 when a person has to mend something, 1 when
        servers were lost.
    """
    rank = int(os.environ["RANK"])
    events = EventLog(run_dir.events)
    try:
        _train(run_dir, events if rank == 0 else None)
    except RunTaken as error:  # the files of events are another's, too
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    except GrpoHpcError as error:
        # any rank may be the one that knows, so each writes for itself; appending a line is atomic
        events.error(type(error).__name__, error.message, error.hint)
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1 if isinstance(error, ServersLost) else EXIT_USER_ERROR  # nobody has to mend anything
    return 0


def _train(run_dir: RunDir, events: EventLog | None) -> None:
    cfg = run_dir.config()
    platform = make_platform(cfg.resources.device)
    platform.init_distributed(cfg.resources.distributed_timeout_minutes)
    trainer = _assemble(run_dir, cfg, platform, events)
    try:
        complete = trainer.run()
    except ServersLost:  # on all ranks, between two steps
        if trainer.state.step:
            trainer.save()
        raise
    saved = trainer.save() if cfg.checkpoint.save_last or not complete else None
    if not complete:
        if events:
            events.stopped(trainer.state.step)
        trainer.close()
        return
    if cfg.checkpoint.export:
        trainer.export(run_dir.export)
    if events:
        events.finished({"lines": _closing_lines(run_dir, cfg, saved)})
    trainer.close()


def _assemble(run_dir: RunDir, cfg: RunConfig, platform: Platform, events: EventLog | None) -> Trainer:
    clock, plan = PhaseClock(platform, events), schedule(cfg)
    with clock.phase("start"):
        reporter = _reporter(run_dir, cfg, events)  # first: a package or a key that is missing is known at once
        # ranks wait here for the one whose rollout ends last, perhaps because a limit struck it
        limit = cfg.rollout.rollout_timeout_minutes + cfg.resources.distributed_timeout_minutes
        control = Control(timedelta(minutes=limit))
        stop = StopRequest(run_dir.stop, control, Hold.here(run_dir) if control.first else None)
        init_model_parallel(cfg, platform)
        scores = control.rank % cfg.rollout.ranks_of_engine == 0  # for its replica
        runner = start_rewards(cfg) if scores else None
        pool = start_environments(cfg, run_dir.environment_log(control.rank)) if scores else None
        tokenizer = Tokenizer(cfg.model.path, cfg.data.chat_template_kwargs, cfg.model.trust_remote_code)
        train_set = _prompts(cfg.data.train, cfg, run_dir, tokenizer, control)  # before a model: rows may be wrong
        eval_set = _prompts(cfg.data.eval, cfg, run_dir, tokenizer, control) if cfg.data.eval else None
        policy = TrainedPolicy(cfg, platform, control, clock.progress)
        second = cfg.algorithm.beta > 0 and policy.adapters is None  # else it is the policy without adapters
        reference = copy_of(policy.chunks, cfg, platform) if second else None  # before a checkpoint moves the policy
        contents = DistributedCheckpoint(
            policy, platform, reference if cfg.algorithm.sync_ref_model else None, cfg.checkpoint.reshardable
        )
        exchange, place = Exchange(control, mpu.get_data_parallel_rank()), place_of(control)
        ref_scores = _reference_scores(cfg, policy, reference, platform)
        step = Step(cfg, plan, platform, policy, ref_scores, packing_of(cfg), exchange, control, place, clock)
        newest = checkpoints.newest_whole(run_dir.checkpoints, control, partial(_say, events))
        state = TrainerState()
        if newest:
            left = partial(read_rollout, exchange=exchange, deal=step.dealing.deal, place=place)
            state = checkpoints.load(newest, contents, control, left)
        r = cfg.rollout
        residency = Residency(r.sleep_level, r.offload_model, r.offload_optimizer)
        colocation = Colocation(residency, platform, policy, reference or (), clock)
        replayed = policy.chunks[0].shape.moe_layers if cfg.moe.router_replay_mode == "R3" else ()
        engine = _engine(run_dir, cfg, platform, control, replayed)
        colocation.attach(engine)
        longest = engine.max_model_len - cfg.rollout.max_completion_length
        reporter.rewind(state.step)
        player = _player(cfg, tokenizer, pool, engine.max_model_len)
        scorer = Scorer(cfg.rewards, tokenizer, runner) if runner else None
        collector = Collector(cfg, engine, player, scorer, control, stop.heard)
        prompts = _fitting(train_set, cfg, longest, events)
        parts = Parts(
            policy=policy,
            reference=reference,
            contents=contents,
            engine=engine,
            colocation=colocation,
            collector=collector,
            tokenizer=tokenizer,
            source=RolloutSource(cfg, plan, collector, prompts, clock),
            step=step,
            eval_prompts=eval_set and _fitting(eval_set, cfg, longest, events),
            control=control,
            place=place,
            clock=clock,
            stop=stop,
            reporter=reporter,
            profile=StepProfile(run_dir.profile, cfg.logging.profile_steps, cfg.logging.profile_ranks, control.rank),
        )
        if events and newest:
            events.message(f"resumed from {newest.name}: {state.step} of {cfg.batch.steps} steps are done")
    clock.take()
    return Trainer(cfg, plan, platform, parts, state, run_dir.checkpoints)


def _say(events: EventLog | None, text: str) -> None:
    """Into the events, where this rank writes them, and into its log."""
    print(text, file=sys.stderr, flush=True)
    if events:
        events.message(text)


def _reference_scores(
    cfg: RunConfig, policy: TrainedPolicy, reference: list[PolicyModel] | None, platform: Platform
) -> Scores | None:
    """How the reference model scores micro-batches; None without a KL term."""
    if not cfg.algorithm.beta:
        return None
    if reference is None:
        return policy.base_scores
    return lambda batches: forward_scores(reference, freely_routed(batches), platform)


def _engine(run_dir: RunDir, cfg: RunConfig, platform: Platform, control: Control, replayed: Sequence[int]) -> Engine:
    if cfg.rollout.vllm_mode == "colocate":
        return ColocateEngine(cfg, platform, replayed)
    attempt = run_dir.latest_attempt()
    servers = json.loads(RunDir.servers_file(attempt).read_text())["servers"]
    urls = [server["url"] for server in servers]
    return ServerEngine(cfg, platform, urls, keep_secret(RunDir.api_key(attempt).read_text()), control)


def _player(cfg: RunConfig, tokenizer: Tokenizer, pool: EnvironmentPool | None, context: int) -> Player:
    """What plays episodes; on ranks that play none it is asked for nothing."""
    r = cfg.rollout
    if pool is None:
        return SingleTurns(r.max_completion_length)
    renderer = Renderer(
        tokenizer,
        thinking_history=r.thinking_history,
        tool_parser=r.tool_parser,
        reasoning_parser=r.reasoning_parser,
        message_tokens=r.max_observation_tokens,
        vocabulary=read_shape(cfg.model.path).vocab,
    )
    if renderer.note:
        print(renderer.note, file=sys.stderr, flush=True)
    episodes = AgentEpisodes if pool.start() == "agent" else EnvironmentEpisodes
    return episodes(r, pool, renderer, context)


def _prompts(path: str, cfg: RunConfig, run_dir: RunDir, tokenizer: Tokenizer, control: Control) -> PromptSet:
    """The data set at ``path``, tokenised by the first rank, or by one of each node where the cache may be its own."""
    own = os.environ.get("GRPO_HPC_CACHE")
    prompts = open_prompts(
        path,
        tokenizer,
        Path(own).expanduser() / "prompts" if own else run_dir.prompts,
        system=cfg.data.system,
        builds=os.environ["LOCAL_RANK" if own else "RANK"] == "0",
        gather=partial(control.gather, what=f"the rank that reads {path}"),
    )
    prompts.require_vocabulary(read_shape(cfg.model.path).vocab)
    return prompts


def _fitting(prompts: PromptSet, cfg: RunConfig, longest: int, events: EventLog | None) -> PromptSet:
    limit = min(longest, cfg.data.max_length or longest)
    fitting = prompts.fitting(limit)
    if events and (dropped := len(prompts) - len(fitting)):
        events.message(
            f"{prompts.source}: {dropped} prompts have more than {limit} tokens and are left out, {len(fitting)} remain"
        )
    return fitting


def _reporter(run_dir: RunDir, cfg: RunConfig, events: EventLog | None) -> Reporter:
    if events is None:
        return Reporter()
    wanted = cfg.logging
    report = Report(
        run_dir.path,
        {**cfg.model_dump(mode="json"), "plan": plan_figures(json.loads(run_dir.plan_file.read_text()))},
        {"wandb": wanted.wandb_project, "swanlab": wanted.swanlab_project},
        {"wandb": wanted.wandb_exp_name or cfg.name, "swanlab": wanted.swanlab_exp_name or cfg.name},
        wanted.report_offline,
    )
    reporters = open_reporters(wanted.report_to, report)
    if wanted.prometheus_port is not None:
        key = run_dir.path / "prometheus_key"
        endpoint = Prometheus(cfg.name, wanted.prometheus_host, wanted.prometheus_port, key)
        events.message(f"Prometheus may ask {endpoint.address} with the key in {key}")
        reporters.append(endpoint)
    sinks = MetricSinks(run_dir.metrics, reporters, events.message)
    log = CompletionLog(run_dir.completions) if cfg.logging.log_completions else None
    return Reporter(events, sinks, log)


def _closing_lines(run_dir: RunDir, cfg: RunConfig, saved: Path | None) -> list[str]:
    lines = [f"checkpoint  {saved}"] if saved else []
    if cfg.checkpoint.export and cfg.tuner.tuner_type == "lora":
        told = json.dumps(cfg.data.chat_template_kwargs) if cfg.data.chat_template_kwargs else ""
        serving = f" --default-chat-template-kwargs {shlex.quote(told)}" if told else ""  # the template is the base's
        lines += [
            f"adapters    {run_dir.export}",
            f"  serve it  vllm serve {cfg.model.path} --enable-lora --max-lora-rank {cfg.tuner.lora_rank} "
            f"--lora-modules {cfg.name}={run_dir.export}{serving}",
            f"  load it   peft.AutoPeftModelForCausalLM.from_pretrained({str(run_dir.export)!r})",
        ]
    elif cfg.checkpoint.export:
        lines += [
            f"export      {run_dir.export}",
            f"  serve it  vllm serve {run_dir.export}",
            f"  load it   transformers.AutoModelForCausalLM.from_pretrained({str(run_dir.export)!r})",
        ]
    lines += [f"metrics     {run_dir.metrics}", f"completions {run_dir.completions}"]
    lines.append(f"  page      grpo-hpc report {shlex.quote(str(run_dir.path))} -o {cfg.name}.html")
    if "tensorboard" in cfg.logging.report_to:
        lines.append(f"  curves    tensorboard --logdir {run_dir.tensorboard}")
    return lines
