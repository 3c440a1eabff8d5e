"""Whole runs with an environment or an agent in place of single turns, from the command line."""

from __future__ import annotations

from pathlib import Path

from test_training import call, metrics, new_run

from grpo_hpc.observe.completions import read_completions

PLAYMATES = Path(__file__).parent / "playmates.py"
KEYS = {
    "nproc_per_node": 1,
    "train_iters": 2,
    "steps_per_generation": 1,
    "eval": None,
    "save_steps": None,
    "save_total_limit": None,
    "max_completion_length": 24,
    "vllm_max_model_len": 200,
    "reward_funcs": ["environment"],
    "export": False,
    "stop_token_ids": list(range(64)),  # a random model ends few turns itself
}


def played(folder, model, name, **changed):
    done = call("submit", new_run(folder, model, name, **(KEYS | changed)))
    assert done.returncode == 0, done.stdout + done.stderr
    run_dir = folder / "runs" / name
    return run_dir, metrics(run_dir), list(read_completions(run_dir / "completions"))


def test_a_run_with_an_environment_trains_on_all_turns_and_loses_what_fails_alone(tiny, tmp_path):
    keys = {"environment": f"{PLAYMATES}:Letters", "environment_timeout": 1.0, "max_turns": 3}
    run_dir, rows, completions = played(tmp_path, tiny("qwen2"), "letters", **keys, turn_advantage_coef=0.5)
    assert len(completions) == 32
    whole = [row for row in completions if not row["environment_failure"]]
    failed = {row["environment_failure"].partition(":")[0] for row in completions} - {""}
    assert failed == {"error", "killed", "timeout"} and len(whole) == 16
    for row in whole:
        roles = [message["role"] for message in row["turns"]]
        cut = row["finish_reason"] == "length"
        assert cut or roles == ["assistant", "user", "assistant", "user", "assistant"]
        assert row["reward"] == row["rewards"]["environment"] is not None
    for row in completions:
        if row["environment_failure"]:
            assert row["reward"] is None and not row["advantage"] and row["finish_reason"] == "error"
    assert rows[1]["episodes/failed"] + rows[2]["episodes/failed"] == 16
    assert all(row["completions/given_up"] == row["episodes/failed"] for row in rows.values())
    assert all(1 < row["episodes/turns"] <= 3 and row["episodes/environment_s"] > 0 for row in rows.values())
    assert all(row["grad_norm"] > 0 and row["mismatch/logprob_abs_diff"] < 1e-4 for row in rows.values())
    printed = "".join(log.read_text() for log in (run_dir / "environments").iterdir())
    assert "heard" in printed and any("it cannot hear this" in row["environment_failure"] for row in completions)


def test_an_agent_trains_on_what_it_asked(tiny, tmp_path):
    _, rows, completions = played(tmp_path, tiny("qwen2"), "agent", environment=f"{PLAYMATES}:Asker", max_turns=2)
    assert not any(row["environment_failure"] for row in completions)
    for row in completions:
        roles = [message["role"] for message in row["turns"]]
        assert row["finish_reason"] == "length" or roles == ["assistant", "user", "assistant"]
        assert 0 <= row["reward"] <= 1
    assert all(row["grad_norm"] > 0 and row["mismatch/logprob_abs_diff"] < 1e-4 for row in rows.values())


def test_a_tool_that_is_not_called_is_one_turn(tiny, tmp_path):
    tools = tmp_path / "my_tools.py"
    tools.write_text('def f(x: int) -> int:\n    """F."""\n    return x\n')
    done = call("submit", new_run(tmp_path, tiny("qwen2"), "tools", **(KEYS | {"environment": str(tools)})))
    assert done.returncode == 2 and "give no rewards" in done.stderr, done.stdout + done.stderr
    keys = {
        "environment": str(tools),
        "vllm_max_model_len": 512,
        "reward_funcs": [f"{PLAYMATES.parent / 'plugins.py'}:early_letters"],
    }
    _, rows, _ = played(tmp_path, tiny("qwen2"), "tools", **keys)
    assert all(row["episodes/turns"] == 1 for row in rows.values())
