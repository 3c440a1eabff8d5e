"""The secrets file: what it may hold, and that its values are in no text afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_hpc import redaction
from grpo_hpc.cluster.secrets import read_secrets
from grpo_hpc.errors import ConfigError, EnvironmentProblem


def written(folder: Path, data: bytes, mode: int = 0o600) -> Path:
    path = folder / "secrets"
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_blanks_and_line_ends_belong_to_no_value(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(redaction, "_kept", set())
    found = read_secrets(written(tmp_path, b'# mine\n\nA=key-0123456 \r\nB = it\'s $(b) "x"=\t\nC=\n'))
    assert found == {"A": "key-0123456", "B": 'it\'s $(b) "x"=', "C": ""}
    assert redaction.redacted("no key-0123456 here") == "no (secret) here"


@pytest.mark.parametrize("line", [b"hush-0123456", b"1A=hush-0123456", b"A B=hush-0123456", b"A=hush-01\x0023456"])
def test_a_line_that_is_none_is_named_and_not_shown(line: bytes, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2 is not NAME=VALUE") as caught:
        read_secrets(written(tmp_path, b"A=b\n" + line))
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(("data", "mode", "said"), [(b"A=b", 0o640, "chmod 600"), (b"A=\xff\xfe", 0o600, "not UTF-8")])
def test_a_file_that_cannot_be_one(data: bytes, mode: int, said: str, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=said):
        read_secrets(written(tmp_path, data, mode))
