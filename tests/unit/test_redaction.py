"""Secrets: which names and values are some, and texts that do not hold them however they are written."""

from __future__ import annotations

import json
import subprocess
import sys
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc import redaction
from grpo_hpc.redaction import SECRET_NAMES, holds_secret, looks_secret, redacted, secret_paths


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.setattr(redaction, "_kept", set())


@pytest.mark.parametrize(
    "name",
    [
        *("WANDB_API_KEY", "HF_TOKEN", "hf_token", "SLURM_JWT", "DB_PWD", "GH_PAT", "SSH_PASSPHRASE", "DATABASE_DSN"),
        *("apiKey", "api-key", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "SESSION_COOKIE", "JUDGE_KEY", "password"),
        *("swanlab_secret", "swanlab_webhook_url", "hub_token", "OPENAI_API_KEY_2", "NETRC_CREDENTIALS", "api_keys"),
    ],
)
def test_names_that_look_secret(name):
    assert looks_secret(name) and holds_secret(name, "k-0123456789")


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "PWD", "OLDPWD", "TOKENIZERS_PARALLELISM", "max_tokens", "SSH_AUTH_SOCK", "api_key_env", "keyboard"),
        *("api_key_file", "answer_key", "key", "eos_token", "STOP_TOKEN", "monkey", "compass", "HF_TOKEN_PATH"),
    ],
)
def test_names_that_do_not(name):
    assert not holds_secret(name, "k-0123456789")


def test_switches_and_references_are_no_secrets():
    assert not any(holds_secret("HF_HUB_DISABLE_IMPLICIT_TOKEN", value) for value in ("1", "true", "", "$HF_TOKEN", 5))
    assert holds_secret("http_proxy", "http://me:pa55word@proxy:3128")
    assert not holds_secret("http_proxy", "http://proxy:3128") and not holds_secret("x", "http://$ME:$PASS@proxy")


def test_paths_of_secrets_in_nested_values():
    values = {"judge": {"api_key": "k-0123456789", "max_tokens": 5}, "a": [{"url": "ftp://u:pass@h"}, {"pwd": "x y"}]}
    values |= {"tokens": {"a": "b"}, "credentials": {"user": "me"}, "api_keys": ["one"]}
    assert list(secret_paths(values)) == ["judge.api_key", "a.0.url", "a.1.pwd", "credentials.user", "api_keys.0"]


FORMS = (
    str,
    str.strip,
    repr,
    ascii,
    json.dumps,
    lambda text: repr(text.encode()),
    quote,
    quote_plus,
    lambda text: quote(text, safe=""),
    lambda text: quote(text, safe="").lower(),
    lambda text: f"u={quote(text)}&v=1",
)


@pytest.mark.parametrize("end", ["", " ", "\t", "\r", "\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("key", ["k-0123456789", "a/b+c=d&e%f", "q\"u'o\\te", "schlüssel-1"])
def test_no_form_of_a_known_secret_stays(key, end, monkeypatch):
    monkeypatch.setenv("JUDGE", key + end)
    monkeypatch.setenv(SECRET_NAMES, "OTHER JUDGE")
    for form in FORMS:
        for text in (form(key), form(key + end)):
            assert redacted(f"Illegal header: {text}!").count("(secret)") == 1
            assert key not in redacted(f"<{text}>") and text.strip() not in redacted(f"<{text}>")


@given(st.text(min_size=redaction.SHORTEST).filter(lambda text: len(text.strip()) >= redaction.SHORTEST))
def test_no_secret_of_any_characters_stays(key):
    redaction._kept.clear()
    redaction.keep_secret(key)
    for form in (str, repr, json.dumps):
        assert key.strip() not in redacted(f"before {form(key)} after")


def test_what_nobody_has_named(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "t-0123456789")
    monkeypatch.setenv("CACHE_URL", "redis://me:pa55word@host:1/0")
    monkeypatch.setenv("OTHER_TOKEN", "false")
    assert redacted("t-0123456789 is false, pa55word") == "(secret) is false, (secret)"
    assert redacted("GET http://me:other1@host/x with Bearer abcdefgh1234") == (
        "GET http://(secret)@host/x with Bearer (secret)"
    )


def test_the_output_of_a_process_is_redacted_to_its_last_traceback():
    program = (
        "import os, sys, threading\nfrom grpo_hpc.redaction import redact_output\nredact_output()\n"
        "key = os.environ['JUDGE_KEY']\nprint('out', key)\nos.write(2, b'raw ')\n"
        "def fail():\n    raise ValueError(f'Illegal header value {key.encode()!r}')\n"
        "thread = threading.Thread(target=fail)\nthread.start()\nthread.join()\nfail()\n"
    )
    env = {"JUDGE_KEY": "k-0123456789\n", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "out (secret)\n\n" and done.returncode == 1
    assert done.stderr.count("Illegal header value b'(secret)") == 2 and "0123456789" not in done.stderr


@pytest.mark.parametrize("part", [":", "://a:", "\n", "a=", "--a ", '"a" : ', "Bearer ", "k", "x://k:k@ "])
def test_no_text_takes_long(part):
    """A pattern that tries every place anew would need hours here."""
    text = part * (500_000 // len(part))
    redacted(text)
    assert len(list(redaction.secrets_in(text))) <= len(text)
