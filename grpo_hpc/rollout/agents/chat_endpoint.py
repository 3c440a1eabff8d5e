"""The policy behind OpenAI's chat completions, for the agents of one replica: their key says which episode is theirs.

    GET  /v1/models            one, whose name is "policy"; requests may say any other
    POST /v1/chat/completions  an answer, whole or as server-sent events

Whoever has no key of a running episode gets 401 whatever it asks, and costs little: few bytes, few seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from grpo_hpc.keyed_connection import KeyedConnection
from grpo_hpc.rollout.agents.chat_answer import ChatAnswer
from grpo_hpc.rollout.agents.chat_request import Refusal, read_request
from grpo_hpc.rollout.agents.conversation import Asked, Conversation

MODEL = "policy"
LONGEST_BODY = 8 << 20
"""Bytes of a request, at most."""
MOST_CONNECTIONS = 4096
_KEEP_ALIVE_S = 300  # a client that is busy with a tool in between need not connect anew


class ChatEndpoint:
    """Listens from :meth:`start` to :meth:`close`, both on the event loop that everything here runs on.

    Args:
        text_of: token ids as text, special tokens too.
        decided: by name, what of the sampling the run file says.
        say: tells people something.
        host: address to listen at. Beyond loopback, others of the network may ask, too, who have a key.
    """

    def __init__(
        self,
        text_of: Callable[[Sequence[int]], str],
        decided: Mapping[str, Any],
        say: Callable[[str], None],
        host: str = "127.0.0.1",
    ) -> None:
        self._text_of, self._decided, self._say, self._host = text_of, decided, say, host
        self._conversations: dict[bytes, Conversation] = {}  # by digest of the key, so that no lookup tells of keys
        self._told: set[str] = set()
        routes = [Route("/v1/models", self._models), Route("/v1/chat/completions", self._complete, methods=["POST"])]
        self._answering = Starlette(routes=routes, exception_handlers={404: _nothing, 405: _nothing})
        self._server = uvicorn.Server(_config(self._keyed))
        self._serving: asyncio.Task[None] | None = None
        self.base_url = ""

    async def start(self) -> None:
        """Listen at a free port, which :attr:`base_url` names from now on."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listening = socket.create_server((self._host, 0), family=family, backlog=MOST_CONNECTIONS)
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.base_url = f"http://{host}:{listening.getsockname()[1]}/v1"
        self._serving = asyncio.create_task(self._server.serve([listening]))
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Answer nothing any more."""
        self._server.should_exit = self._server.force_exit = True
        if self._serving is not None:
            await self._serving

    def admit(self, conversation: Conversation) -> str:
        """The key of an episode that begins."""
        key = secrets.token_urlsafe(32)
        self._conversations[_digest(key)] = conversation
        return key

    def dismiss(self, key: str) -> None:
        """End the episode of ``key``: nothing is answered to it any more."""
        self._conversations.pop(_digest(key)).close()

    async def _keyed(self, scope: Any, receive: Any, send: Any) -> None:
        """What is asked with the key of a running episode."""
        kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        conversation = self._conversations.get(_digest(key)) if kind.lower() == "bearer" else None
        if conversation is None:
            return await _refused(Refusal(401, "the key is missing, wrong, or of an episode that has ended"))(
                scope, receive, send
            )
        scope["state"]["connection"].known()
        scope["state"]["conversation"] = conversation
        await self._answering(scope, receive, send)

    async def _models(self, request: Request) -> Response:
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "grpo-hpc"}
        return JSONResponse({"object": "list", "data": [model]})

    async def _complete(self, request: Request) -> Response:
        conversation: Conversation = request.state.conversation
        connection: _Connection = request.state.connection
        connection.asked = None
        try:
            wanted = read_request(await _body(request))
            self._mention(wanted.wishes)
            connection.asked = asked = conversation.ask(wanted, _again(request))
            answer = ChatAnswer(wanted, await asked.answer(), self._text_of)
        except Refusal as refusal:
            return _refused(refusal)
        except ClientDisconnect:
            return Response(status_code=400)  # for nobody
        if wanted.stream:
            return StreamingResponse(answer.events(), media_type="text/event-stream")
        return JSONResponse(answer.whole)

    def _mention(self, wishes: Mapping[str, Any]) -> None:
        """Say once of each what the run decides otherwise."""
        for name, value in wishes.items():
            if name not in self._told and self._decided.get(name) != value:
                self._told.add(name)
                ours = f"with {self._decided[name]}, as the run file says" if name in self._decided else "without it"
                self._say(f"an agent asked for {name} {json.dumps(value)[:100]}: completions are sampled {ours}")


class _Connection(KeyedConnection):
    """One of an agent.

    Attributes:
        asked: what its last request asked for; not wanted any more when the client leaves without an answer.
    """

    asked: Asked | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self.asked is not None and not self.cycle.response_complete:
            self.asked.wanted = False
        super().connection_lost(exc)


def _config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="error",  # headers, where keys are, are in no line of it
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        limit_concurrency=MOST_CONNECTIONS,
    )


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            raise Refusal(413, f"the body has more than {LONGEST_BODY} bytes, the most that is read")
    return bytes(body)


def _again(request: Request) -> bool | None:
    """Whether the client has sent this before and got no answer, if it says so, as OpenAI's libraries do."""
    times = request.headers.get("x-stainless-retry-count")
    return None if times is None else times != "0"


def _refused(refusal: Refusal) -> Response:
    return JSONResponse(refusal.body, refusal.status)


async def _nothing(request: Request, error: Exception) -> Response:
    return _refused(Refusal(404, f"nothing is at {request.method} {request.url.path[:100]}"))


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=32).digest()
