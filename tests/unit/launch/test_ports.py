"""Ports for processes that listen some seconds after they were chosen."""

from __future__ import annotations

import socket

import pytest

from rlhf.launch import ports
from rlhf.launch.ports import free_port


@pytest.fixture
def ephemeral(tmp_path, monkeypatch):
    """Sets what the kernel says of its ephemeral range; None: there is no such file."""

    def of(text):
        path = tmp_path / "ip_local_port_range"
        if text is not None:
            path.write_text(text)
        monkeypatch.setattr(ports, "_EPHEMERAL_RANGE", path)

    return of


@pytest.mark.parametrize("text", ["32768\t60999\n", "20000 60999", None, "", "what\n"])
def test_no_outgoing_connection_can_take_it(ephemeral, text):
    ephemeral(text)
    lowest = int(text.split()[0]) if text and text[0].isdigit() else 32_768
    for _ in range(50):
        assert 15_000 <= free_port() < lowest


@pytest.mark.parametrize("text", ["1024 65535", "15050 60999"])
def test_a_kernel_that_gives_nearly_every_port_chooses(ephemeral, text):
    ephemeral(text)
    with socket.socket() as listener:
        listener.bind(("", free_port()))
        listener.listen()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "127.0.0.2"])
def test_a_listener_on_any_address_is_passed_over(monkeypatch, address):
    with socket.socket() as listener:
        listener.bind((address, 0))
        listener.listen()
        taken = listener.getsockname()[1]

        draws = iter([taken, taken, free_port()])

        class Source:
            def randrange(self, low, high):
                return next(draws)

        monkeypatch.setattr(ports.random, "SystemRandom", Source)
        assert free_port() != taken
        assert next(draws, None) is None


def test_two_choices_differ():
    """Both are made before anybody listens: ranks of two runs that start side by side."""
    assert len({free_port() for _ in range(8)}) > 1
