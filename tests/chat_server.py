"""A small OpenAI-compatible server that answers as a test says, and counts what it has answered."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behave = Callable[[int, dict[str, Any]], tuple[int, dict[str, str], Any]]


class FakeChat:
    """`behave(number, body)` gives status, headers and answer of a request: a text is a completion's."""

    def __init__(self, behave: Behave) -> None:
        self.answered = Counter[str]()
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = 0
        self.at_once = 0
        self.lock = threading.Lock()
        self.behave = behave
        self.url = ""


@contextmanager
def fake_chat(behave: Behave) -> Iterator[FakeChat]:
    """A server for as long as the block lasts."""
    fake = FakeChat(behave)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with fake.lock:
                number = len(fake.bodies)
                fake.bodies.append(body)
                fake.headers.append(dict(self.headers))
                fake.at_once += 1
                fake.most_at_once = max(fake.most_at_once, fake.at_once)
            status, headers, answer = fake.behave(number, body)
            with fake.lock:
                fake.at_once -= 1
                if status == 200:
                    fake.answered[json.dumps(body, sort_keys=True)] += 1
            if status == 200 and isinstance(answer, str):
                usage = {"prompt_tokens": 10, "completion_tokens": 5}
                choice = {"message": {"content": answer}, "text": answer, "finish_reason": "stop"}
                answer = {"choices": [choice], "usage": usage}
            content = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that was killed

    server = Server(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
