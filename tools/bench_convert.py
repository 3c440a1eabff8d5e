"""How fast checkpoints are converted, beside ``cp`` of the same bytes on the same disk in the same run.

Makes a random model, then in turn, REPEAT times: ``cp -r`` of its folder, Hugging Face -> Megatron, Megatron ->
Hugging Face. Every output is synced to disk inside its measurement; the page cache is what it is, alike for all. Peak
memory is the sum of each process's own peak. With ``--peer-python`` the same folder is also loaded and saved by
``transformers`` in that interpreter, without any conversion.

    python tools/bench_convert.py --size 8 --report docs/benchmarks/DATE_convert.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from grpo_hpc.checkpoint.naming import layers_and_experts
from grpo_hpc.checkpoint.to_megatron import hf_names
from grpo_hpc.models.families import weight_map
from grpo_hpc.models.families.counting import count_layer
from grpo_hpc.models.families.read_shape import shape_of
from grpo_hpc.models.on_disk.safetensors_file import plan_file

GB = 10**9
# A dense and a mixture-of-experts model with the matrix sizes of published ones; layers are added up to --size.
MODELS = {
    "dense": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "moe": {
        "model_type": "qwen3_moe",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "head_dim": 128,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
}


@dataclass
class Measurement:
    """One task: seconds of each repetition, and the largest peak of resident memory (MiB)."""

    name: str
    seconds: list[float]
    peak: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def make_model(folder: Path, kind: str, size: float) -> int:
    """Write a random bf16 model of about ``size`` GB in shards of 5 GB and return its bytes."""
    import numpy as np

    config = {"max_position_embeddings": 4096, "dtype": "bfloat16", "tie_word_embeddings": False, **MODELS[kind]}
    one = shape_of({**config, "num_hidden_layers": 1})
    layers = max(1, round((size * GB / 2 - 2 * one.vocab * one.hidden) / count_layer(one)))
    config["num_hidden_layers"] = layers
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = [
        (name, "bfloat16", shape)
        for rule in weight_map(shape_of(config))
        for layer, expert in layers_and_experts(rule)
        for name, shape in zip(hf_names(rule, layer, expert), rule.layout.hf_shapes, strict=True)
    ]
    shards: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    for tensor in tensors:
        if sum(int(np.prod(shape)) * 2 for _, _, shape in shards[-1]) > 4.5 * GB:
            shards.append([])
        shards[-1].append(tensor)
    noise = np.random.default_rng(0).integers(0, 1 << 15, 1 << 25, dtype=np.uint16)  # 64 MiB, written again and again
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, positions = plan_file(shard)
        with (folder / file).open("wb") as out:
            out.write(header)
            left = sum(position.nbytes for position in positions)
            while left:
                left -= out.write(memoryview(noise).cast("B")[: min(left, noise.nbytes)])
        places |= {name: file for name, _, _ in shard}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def timed(command: list[str], target: Path) -> tuple[float, int]:
    """Seconds until ``command`` has ended and ``target`` is on disk, and the sum of its processes' peaks (MiB)."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    start, peaks = time.perf_counter(), {}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        for pid in [process.pid, *children(process.pid)]:
            peaks[pid] = max(peaks.get(pid, 0), peak_of(pid))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    for file in target.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    return time.perf_counter() - start, sum(peaks.values())


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def peak_of(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


def run(options: argparse.Namespace) -> tuple[list[Measurement], int]:
    """All measurements, taken in turns so that a noisy neighbour meets all of them."""
    work = Path(options.folder) / "bench_convert"
    shutil.rmtree(work, ignore_errors=True)
    source, megatron, back, copy = (work / name for name in ("model", "megatron", "back", "copy"))
    nbytes = make_model(source, options.model, options.size)
    grpo = [sys.executable, "-W", "ignore", "-m", "grpo_hpc.cli", "checkpoint"]
    limits = ["--workers", str(options.workers), "--max-memory", options.max_memory]
    layout = [word for axis in ("tp", "pp", "ep") for word in (f"--{axis}", str(getattr(options, axis)))]
    tasks: list[tuple[Measurement, list[str], Path]] = [
        (Measurement("cp -r", []), ["cp", "-r", str(source), str(copy)], copy),
        (Measurement("HF -> Megatron", []), [*grpo, "convert", str(source), str(megatron), *layout, *limits], megatron),
        (Measurement("Megatron -> HF", []), [*grpo, "convert", str(megatron), str(back), *limits], back),
    ]
    if options.peer_python:
        script = (
            "import sys, torch; from transformers import AutoModelForCausalLM as A;"
            "A.from_pretrained(sys.argv[1], dtype=torch.bfloat16).save_pretrained(sys.argv[2])"
        )
        peer = [options.peer_python, "-W", "ignore", "-c", script, str(source), str(work / "peer")]
        tasks.append((Measurement("transformers load + save", []), peer, work / "peer"))
    for _ in range(options.repeat):
        for measurement, command, target in tasks:
            seconds, peak = timed(command, target)
            measurement.seconds.append(seconds)
            measurement.peak = max(measurement.peak, peak)
            print(f"{measurement.name}: {seconds:.1f} s, {nbytes / seconds / GB:.2f} GB/s, {peak:,} MiB", flush=True)
    subprocess.run([*grpo, "verify", str(source), str(back), *limits], check=True)
    shutil.rmtree(work)
    return [measurement for measurement, _, _ in tasks], nbytes


def report(options: argparse.Namespace, measurements: list[Measurement], nbytes: int) -> str:
    copy = next(m for m in measurements if m.name == "cp -r").median
    rows = [
        f"| {m.name} | {m.median:.1f} | {min(m.seconds):.1f}-{max(m.seconds):.1f} | {nbytes / m.median / GB:.2f} "
        f"| {copy / m.median:.2f} | {m.peak:,} |"
        for m in measurements
    ]
    lines = [
        f"# Conversion of a {nbytes / GB:.1f} GB {options.model} model",
        "",
        f"Command: `python tools/bench_convert.py {' '.join(sys.argv[1:])}`",
        "",
        f"{os.cpu_count()} cores ({processor()}), {platform.system()} {platform.release()}, Python "
        f"{platform.python_version()}; {options.workers} workers, --max-memory {options.max_memory}, layout "
        f"tp {options.tp} pp {options.pp} ep {options.ep}. Median of {options.repeat}, taken in turns; each includes "
        "the time until the output is on disk.",
        "",
        "| task | s | range | GB/s | of cp | peak MiB |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "Both conversions check what can be checked and write a manifest of digests; after the last one every tensor",
        "of the result was compared with the source, bit by bit.",
    ]
    return "\n".join(lines) + "\n"


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="dense")
    parser.add_argument("--size", type=float, default=8.0, help="GB")
    parser.add_argument("--folder", default="/tmp", help="where the disk is that is measured")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--max-memory", default="4GB")
    for axis in ("tp", "pp", "ep"):
        parser.add_argument(f"--{axis}", type=int, default=1)
    parser.add_argument("--peer-python", help="interpreter with transformers, for a load and save of the same folder")
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    text = report(options, *run(options))
    if options.report:
        options.report.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
