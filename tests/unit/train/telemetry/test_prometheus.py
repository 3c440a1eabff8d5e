"""The endpoint for Prometheus: the newest values, read back by its own parser, for whoever has the key."""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.train.telemetry.prometheus import Prometheus


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Prometheus]:
    found = Prometheus("demo", "127.0.0.1", 0, tmp_path / "prometheus_key")
    yield found
    found.close()


def asked(address: str, key: str) -> dict[str, float]:
    with urlopen(Request(address, headers={"Authorization": f"Bearer {key}"}), timeout=20) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert all(sample.labels == {"run": "demo"} for sample in samples)
    return {sample.name: sample.value for sample in samples}


def test_the_newest_values(endpoint: Prometheus, tmp_path: Path) -> None:
    key = (tmp_path / "prometheus_key").read_text().strip()
    assert asked(endpoint.address, key) == {}
    endpoint.log(1, {"reward/mean": 0.25, "loss": 1.0})
    endpoint.log(2, {"reward/mean": 0.5, "loss": float("nan"), "rewards/a-b/mean": 1, "rewards/a_b/mean": 2})
    found = asked(endpoint.address, key)
    assert found["grpo_hpc_reward_mean"] == 0.5 and found["grpo_hpc_step"] == 2
    assert math.isnan(found["grpo_hpc_loss"])
    assert sorted(value for name, value in found.items() if "a_b" in name) == [1, 2], "names that differ in a sign"


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer "}, {"Authorization": "Bearer wrong"}])
def test_nobody_is_answered_without_the_key(endpoint: Prometheus, header: dict[str, str]) -> None:
    endpoint.log(1, {"loss": 1.0})
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(endpoint.address, headers=header), timeout=20)
    assert refused.value.code == 401 and b"loss" not in refused.value.read()


def test_the_key_is_its_owners_and_stays(endpoint: Prometheus, tmp_path: Path) -> None:
    file = tmp_path / "prometheus_key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = file.read_text()
    Prometheus("demo", "127.0.0.1", 0, file).close()
    assert file.read_text() == key


@pytest.mark.parametrize("held", [b"", b"\n", b"short\n", b"\xff" * 32, b"two words in here\n"])
def test_a_file_that_holds_no_key_opens_nothing(tmp_path: Path, held: bytes) -> None:
    file = tmp_path / "prometheus_key"
    file.write_bytes(held)
    with pytest.raises(EnvironmentProblem, match="prometheus_key holds no key"):
        Prometheus("demo", "127.0.0.1", 0, file)


def test_a_port_that_is_taken(endpoint: Prometheus, tmp_path: Path) -> None:
    port = int(endpoint.address.split(":")[2].split("/")[0])
    with pytest.raises(EnvironmentProblem, match=f"logging.prometheus_port: nothing can listen on 127.0.0.1:{port}"):
        Prometheus("other", "127.0.0.1", port, tmp_path / "prometheus_key")
