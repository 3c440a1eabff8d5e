"""A process that calls reward functions for the trainer, so that what they do to themselves stays there.

Started by :mod:`grpo_hpc.rewards.worker_pool` with two pipes. Requests are pickled by the trainer; answers are JSON, so
a reward function cannot make the trainer unpickle anything. Frames begin with their length in four bytes.

Plain functions run in the main thread, one after the other; async ones run concurrently on its event loop.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import json
import os
import pickle
import signal
import struct
import sys
import threading
from functools import partial
from typing import Any, BinaryIO

from grpo_hpc.errors import GrpoHpcError
from grpo_hpc.redaction import redact_output, redacted
from grpo_hpc.rewards.calling import RewardFunction, described, only_score, wanted
from grpo_hpc.rewards.registry import resolve

_PR_SET_PDEATHSIG = 1


def main(requests: int, replies: int) -> None:
    """Serve until the trainer closes its end of the file descriptor ``requests``."""
    redact_output()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    asyncio.run(_serve(os.fdopen(requests, "rb"), os.fdopen(replies, "wb", 0)))


async def _serve(requests: BinaryIO, replies: BinaryIO) -> None:
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()
    reader = threading.Thread(target=_read, args=(requests, loop, queue), daemon=True)
    reader.start()
    names, given, run, timeout = await queue.get()
    try:
        functions = resolve(names, given, run)
    except GrpoHpcError as error:
        told = {"broken": redacted(error.message), "hint": redacted(error.hint)}
        return _send(replies, told | {"kind": type(error).__name__})
    limit = max((getattr(function, "at_once", 0) for function in functions.values()), default=0)
    _send(replies, {"ready": [name for name, function in functions.items() if _is_async(function)], "at_once": limit})
    running: set[asyncio.Task[None]] = set()
    while True:
        number, column, offered = await queue.get()
        task = loop.create_task(_answer(replies, number, column, functions[column], offered, timeout))
        running.add(task)
        task.add_done_callback(running.discard)


def _read(requests: BinaryIO, loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Any]) -> None:
    while True:
        head = requests.read(4)
        if len(head) < 4:
            os._exit(0)  # the trainer is gone; whatever runs in the main thread has nobody to answer to
        request = pickle.loads(requests.read(struct.unpack("!I", head)[0]))
        loop.call_soon_threadsafe(queue.put_nowait, request)


async def _answer(
    replies: BinaryIO, number: int, column: str, function: RewardFunction, offered: dict[str, Any], timeout: float
) -> None:
    answer: dict[str, Any] = {"number": number}
    try:
        returned = function(**wanted(column, function, offered))
        if inspect.isawaitable(returned):
            done, _ = await asyncio.wait({task := asyncio.ensure_future(returned)}, timeout=timeout)
            if not done:
                task.cancel()
                answer |= {"kind": "timeout", "error": f"it took more than {timeout:g} s", "hint": ""}
                return _send(replies, answer)
            returned = task.result()
        answer["score"] = only_score(returned)
    except BaseException as error:  # SystemExit too: it would end the worker, and the fault is the function's
        text, hint = described(error)
        answer |= {"kind": "error", "error": redacted(text), "hint": redacted(hint)}
    _send(replies, answer)


def _send(replies: BinaryIO, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    replies.write(struct.pack("!I", len(data)) + data)


def _is_async(function: RewardFunction) -> bool:
    inner = function.func if isinstance(function, partial) else function
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
