"""The server of a folder of runs: what it shows, and whom it refuses."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from grpo_hpc.errors import ConfigError
from grpo_hpc.report.live import shelf
from grpo_hpc.report.live.shelf import Shelf
from grpo_hpc.report.live.web_app import web_app
from grpo_hpc.runs.overview import overview
from grpo_hpc.runs.sweep import FILE
from tests.browser.recordings import record

TOKEN = "t0ken"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a sweep of two points, a folder that is no run, and beside all of it a run of somebody else."""
    base = tmp_path_factory.mktemp("base")
    record(base / "runs", "one", steps=12)
    points = [record(base / "runs" / "sweep", f"s-{k}", steps=4) for k in range(2)]
    entries = [{"run": run.path.name, "values": {"optimizer.lr": k}} for k, run in enumerate(points)]
    (base / "runs" / "sweep" / FILE).write_text(json.dumps({"keys": ["optimizer.lr"], "points": entries}))
    (base / "runs" / "notes").mkdir()
    record(base / "elsewhere", "secret", steps=2)
    return base / "runs"


@pytest.fixture
def client(folder: Path) -> TestClient:
    return TestClient(web_app(Shelf(folder), TOKEN), base_url="http://127.0.0.1:9")


def get(client: TestClient, path: str, **query: object):
    return client.get(f"/{TOKEN}/{path}", params=query)


def test_the_list_has_runs_and_points(client: TestClient, folder: Path) -> None:
    found = get(client, "list").json()
    assert {run["name"]: run["step"] for run in found["runs"]} == {"one": 12, "sweep/s-0": 4, "sweep/s-1": 4}
    assert found["passed_over"] == [[str(folder / "notes"), "no run"]]
    assert "<main></main>" in get(client, "").text


def test_changes_are_those_behind_a_step(client: TestClient) -> None:
    found = get(client, "changes", run=["one", "sweep/s-1"], after=[9, 3]).json()
    assert found["runs"]["one"]["courses"]["reward/mean"]["at"] == [10, 11, 12]
    assert found["runs"]["sweep/s-1"]["courses"]["reward/mean"]["at"] == [4]
    assert found["runs"]["one"]["completions"] == [1, 11]
    assert found["metrics"]["reward/mean"]["group"] == "Reward"
    assert "eval/exact_number/mean" not in found["runs"]["one"]["courses"], "measured before the first step"
    assert "settings" not in found["runs"]["one"], "what does not change is not sent again"


def test_completions_and_logs(client: TestClient, folder: Path) -> None:
    assert len(get(client, "completions", run="one", step=11).json()["rows"]) == 8
    assert get(client, "log", run="one").status_code == 404
    (folder / "one" / "attempt_1" / "rank_0.log").write_text("".join(f"line {k}\n" for k in range(3000)))
    (folder / "one" / "attempt_1" / "rank_1.log").write_text("x" * 1_000_000)
    found = get(client, "log", run="one").json()
    assert found["lines"][-1] == "line 2999" and len(found["lines"]) == 1000
    assert len(get(client, "log", run="one", rank=0, attempt=1).json()["lines"]) == 1000
    assert get(client, "log", run="one", rank="0/../../x").status_code == 404
    assert get(client, "log", run="one", attempt=7).status_code == 404


@pytest.mark.parametrize(
    "name",
    [
        "../elsewhere/secret",
        "sweep/../../elsewhere/secret",
        "..",
        ".",
        "",
        "/",
        "one/",
        "sweep/s-0/attempt_1",
        "one\0",
        "nobody",
        "notes",
        "~",
        "\ud83d",
    ],
)
def test_no_name_leads_out_of_the_folder(client: TestClient, folder: Path, name: str) -> None:
    names = [name, str(folder.parent / "elsewhere" / "secret")]
    for one in names:
        for path in ("runs", "changes", "completions", "log"):
            query = f"?run={quote(one.encode(errors='surrogatepass'))}&step=1"
            assert client.get(f"/{TOKEN}/{path}{query}").status_code == 404


@pytest.mark.parametrize("path", ["/", "/list", "/wrong/list", f"/{TOKEN}x/list", f"//{TOKEN}/list", "/%74oken/list"])
def test_without_the_token_nothing_is_answered(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 403
    assert "token" in answer.text and TOKEN not in answer.text


@pytest.mark.parametrize("path", ["*", "", "http://127.0.0.1/list", "\udcff"])
def test_paths_that_no_client_sends(folder: Path, path: str) -> None:
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": [(b"host", b"localhost")]}
    asyncio.run(web_app(Shelf(folder), TOKEN)(scope, None, send))
    assert said[0]["status"] == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:9", "", "[::1]:9"])
def test_foreign_hosts_are_refused(client: TestClient, host: str) -> None:
    """A page elsewhere whose name leads here sends that name."""
    answer = client.get(f"/{TOKEN}/list", headers={"Host": host})
    assert answer.status_code == 421


def test_a_tunnel_may_have_another_port(client: TestClient) -> None:
    assert client.get(f"/{TOKEN}/list", headers={"Host": "localhost:8123"}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(client: TestClient, method: str) -> None:
    assert client.request(method, f"/{TOKEN}/list").status_code == 405


def test_answers_stay_where_they_are(client: TestClient) -> None:
    headers = get(client, "runs", run="one").headers
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    assert headers["referrer-policy"] == "no-referrer"


def test_odd_numbers_are_refused(client: TestClient) -> None:
    for text in ("x", "1e3", "٣", "9" * 40):
        assert get(client, "completions", run="one", step=text).status_code == 404
        assert get(client, "changes", run="one", after=text).status_code == 404
    assert "1 to 64" in get(client, "runs", run=[f"r{k}" for k in range(65)]).text


def test_a_single_run_and_a_sweep(folder: Path) -> None:
    one = TestClient(web_app(Shelf(folder / "one"), TOKEN), base_url="http://localhost:9")
    assert one.get(f"/{TOKEN}/").url.path == f"/{TOKEN}/runs"
    assert [run["name"] for run in one.get(f"/{TOKEN}/list").json()["runs"]] == ["one"]
    assert one.get(f"/{TOKEN}/runs", params={"run": "sweep/s-0"}).status_code == 404
    sweep = TestClient(web_app(Shelf(folder / "sweep"), TOKEN), base_url="http://localhost:9")
    assert [run["name"] for run in sweep.get(f"/{TOKEN}/list").json()["runs"]] == ["s-0", "s-1"]
    with pytest.raises(ConfigError, match="no folder"):
        Shelf(folder / "none")


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    for name in ("whole", "damaged"):
        record(tmp_path, name, steps=2)
    (tmp_path / "damaged" / "run.yaml").write_text("{")
    client = TestClient(web_app(Shelf(tmp_path), TOKEN), base_url="http://localhost:9")
    assert [run["name"] for run in get(client, "list").json()["runs"]] == ["whole"]
    assert "damaged is left out" in get(client, "runs", run=["damaged", "whole"]).text
    assert get(client, "runs", run="damaged").status_code == 404


def test_many_windows_read_the_disk_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    monkeypatch.setattr(shelf, "overview", lambda path: looked.append(path) or overview(path))
    seen = Shelf(folder)
    assert seen.listing() == seen.listing() and len(looked) == 1
    monkeypatch.setattr(shelf, "FRESH_S", -1.0)
    monkeypatch.setattr(shelf, "FRESH_TIMES", 0.0)
    seen = Shelf(folder)
    assert seen.listing() == seen.listing() and len(looked) == 3
