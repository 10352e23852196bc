"""What listens at a cluster's address is looked at before Ray tries to join it."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import types
from collections.abc import Iterator

import pytest

from rlhf.config.schema import ComputeConfig
from rlhf.errors import ConfigError
from rlhf.launch.cluster import RayCluster, require_ray

SETTINGS = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]) + bytes(6)


@contextlib.contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """The address of a server that answers so to whoever comes, and hangs up; None says nothing and waits."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                if answer is None:
                    over.wait()
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"-ERR unknown command 'PRI'\r\n",
        SETTINGS[:5],
    ],
    ids=["hangs up", "ssh", "http", "redis", "cut"],
)
def test_what_speaks_another_language_is_told_from_ray(answer):
    with listening(answer) as address, pytest.raises(OSError, match="does not speak gRPC"):
        require_ray(address)


def test_what_says_nothing_is_not_waited_for_longer_than_told():
    with listening(None) as address, pytest.raises(OSError, match=r"said nothing for 0\.1 s"):
        require_ray(address, seconds=0.1)


def test_a_server_of_grpc_goes_through():
    with listening(SETTINGS) as address:
        require_ray(address)


def test_with_tls_nothing_is_asked(monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        require_ray(f"127.0.0.1:{server.getsockname()[1]}", seconds=0.1)


def test_where_nobody_listens_it_is_an_error_and_a_name_is_rays_affair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        require_ray(f"127.0.0.1:{port}")
    require_ray("auto")


def test_a_dead_head_of_this_machine_is_refused_at_once(tmp_path, monkeypatch):
    """The file of the last `ray start` outlives what it started."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        dead = f"127.0.0.1:{server.getsockname()[1]}"
    ray = types.SimpleNamespace(is_initialized=lambda: False, init=lambda **settings: pytest.fail("asked"))
    utils = types.SimpleNamespace(read_ray_address=lambda: dead)
    monkeypatch.setattr("rlhf.launch.cluster._imported", lambda: ray)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray._private", types.SimpleNamespace(utils=utils))
    monkeypatch.setitem(sys.modules, "ray._private.utils", utils)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=f"no Ray cluster can be joined at {dead}"):
        RayCluster(ComputeConfig(), tmp_path, "token", print).connect()


def test_local_is_no_cluster():
    with pytest.raises(OSError, match="for this command alone"):
        require_ray("local")


@pytest.mark.parametrize("address", ["ray://head", "ray://head:10001", "http://head:8265"])
def test_the_address_of_a_client_or_of_a_web_page_is_told_from_a_heads(address):
    with pytest.raises(OSError, match="HOST:PORT of the head itself"):
        require_ray(address)


@pytest.mark.parametrize(
    ("error", "is_of_the_token"),
    [
        (ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379"), True),
        (ValueError("Invalid address format: head"), False),
    ],
)
def test_a_head_that_lets_nobody_in_may_want_a_token(tmp_path, monkeypatch, error, is_of_the_token):
    def refuse(**settings):
        raise error

    ray = types.SimpleNamespace(is_initialized=lambda: False, init=refuse)
    monkeypatch.setattr("rlhf.launch.cluster._imported", lambda: ray)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr("rlhf.launch.cluster._address_of_this_machine", lambda: "auto")
    with pytest.raises(ConfigError) as raised:
        RayCluster(ComputeConfig(), tmp_path, "token", print).connect()
    assert ("RAY_AUTH_TOKEN" in str(raised.value)) == is_of_the_token
