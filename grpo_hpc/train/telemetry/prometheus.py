"""An endpoint for Prometheus: the newest value of every metric, for whoever has the run's key."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.files import write_atomically
from grpo_hpc.observe.metrics import lookup
from grpo_hpc.redaction import keep_secret
from grpo_hpc.rollout.keyed_http import KeyedServer

PATH = "/metrics"
_A_KEY = re.compile(r"[!-~]{16,}")


class Prometheus:
    """Answers ``GET /metrics`` with ``Authorization: Bearer KEY`` until it is closed; a sink of metrics.

    Args:
        run: its name, a label of every value.
        key_file: of the key; made, readable by its owner alone, unless it is there.

    Attributes:
        address: what to ask.

    Raises:
        EnvironmentProblem: nothing can listen there, or the file holds no key.
    """

    def __init__(self, run: str, host: str, port: int, key_file: Path) -> None:
        self._run, self._registry = run, CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self._taken: set[str] = set()
        try:
            self._server = KeyedServer(host, port, _key(key_file), {PATH: self._text}, {})
        except OSError as error:
            raise EnvironmentProblem(
                f"logging.prometheus_port: nothing can listen on {host}:{port}: {error.strerror}",
                "Give another port; another run on this node may have it.",
            ) from None
        self.address = f"http://{host}:{self._server.server_port}{PATH}"
        self._server.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in {**metrics, "step": step}.items():
            self._gauge(name).labels(self._run).set(value)

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: it has numbers alone."""

    def picture(self, step: int, name: str, pixels: np.ndarray, caption: str) -> None:
        """Nothing."""

    def rewind(self, step: int) -> None:
        """Nothing: what was asked for is kept by those who asked."""

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _gauge(self, name: str) -> Gauge:
        if name not in self._gauges:
            known = lookup(name)
            plain = "grpo_hpc_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)
            meaning = f"{known.meaning} ({known.unit})" if known and known.unit else known.meaning if known else name
            plain += f"_{len(self._taken)}" if plain in self._taken else ""  # of two names that differ in a sign
            self._taken.add(plain)
            self._gauges[name] = Gauge(plain, meaning, ["run"], registry=self._registry)
        return self._gauges[name]

    def _text(self) -> str:
        return generate_latest(self._registry).decode()


def _key(file: Path) -> str:
    if not file.exists():
        write_atomically(file, secrets.token_urlsafe(24) + "\n", private=True)
    key = file.read_text(errors="replace").strip()
    if not _A_KEY.fullmatch(key):  # an empty one would open the endpoint to everybody
        raise EnvironmentProblem(
            f"logging.prometheus_port: {file} holds no key, which has 16 characters of ASCII at least and no blanks",
            "Remove the file: a new one is made.",
        )
    return keep_secret(key)
