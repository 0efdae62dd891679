"""An HTTP server that answers like an OpenAI endpoint, by a rule."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Rule = Callable[[str], str]


class Endpoint(ThreadingHTTPServer):
    """Answers prompts by a rule, after the troubles that it was given.

    Args:
        rule: Prompt -> what the model says.
        troubles: What the first requests get instead: (status, headers, body), or None for a
            connection that is closed without an answer.
    """

    daemon_threads = True

    def __init__(
        self, rule: Rule, troubles: list[tuple[int, dict[str, str], str] | None] | None = None
    ):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rule, self.troubles = rule, list(troubles or [])
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.keys.append(self.headers["Authorization"])
        if self.server.troubles:
            trouble = self.server.troubles.pop(0)
            if trouble is not None:
                self._reply(*trouble)
            return
        self.server.requests.append(body)
        if self.path != "/v1/chat/completions":
            self._reply(404, {}, "no such path")
            return
        (message,) = body["messages"]
        said = {"role": "assistant", "content": self.server.rule(message["content"])}
        reply = {"model": f"{body['model']}-2026-11", "choices": [{"index": 0, "message": said}]}
        self._reply(200, {"Content-Type": "application/json"}, json.dumps(reply))

    def _reply(self, status: int, headers: dict[str, str], body: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body.encode()))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serving(
    rule: Rule, troubles: list[tuple[int, dict[str, str], str] | None] | None = None
) -> Iterator[Endpoint]:
    server = Endpoint(rule, troubles)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
