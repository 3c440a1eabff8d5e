"""Microseconds that the host takes to start a kernel on the first GPU, printed: python -m tools.bench.host."""

from __future__ import annotations

from statistics import median
from time import perf_counter

ROUNDS, LAUNCHES = 20, 500


def main() -> None:
    import torch

    number = torch.zeros(1, device="cuda")
    rounds = []
    for _ in range(ROUNDS + 3):
        torch.cuda.synchronize()
        started = perf_counter()
        for _ in range(LAUNCHES):
            number.add_(1)
        rounds.append((perf_counter() - started) / LAUNCHES)  # fewer than a queue holds: nothing waits for the GPU
    print(f"{median(rounds[3:]) * 1e6:.2f}")


if __name__ == "__main__":
    main()
