"""Pickles, keys, certificates and hostile servers (docs/security.md)."""

from __future__ import annotations

import http.server
import json
import logging
import os
import pickle
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf.config.schema import ReferenceConfig
from rlhf.config.training import DpoConfig
from rlhf.errors import ConfigError, ModelError, UserError
from rlhf.scoring import remote_judge
from rlhf.scoring.remote_judge import RemoteJudge
from rlhf.training import checkpoints
from rlhf.training.checkpoints import SEAL, find_checkpoint
from tests.stage_runner import make_job, run_here, run_ranks
from tests.tiny import random_pairs, tiny_llama, tiny_reward_model, write_pairs

ROOT = Path(__file__).resolve().parents[2]
ITEM = ([{"role": "user", "content": "q"}], "a")
SECRETS = {
    name: f"planted-{name.lower()}-5b1e"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", remote_judge.API_KEY)
}


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def plant(checkpoint, marker):
    """A checkpoint as DeepSpeed writes it, of one pickle."""
    states = checkpoint / f"global_step{checkpoint.name.rpartition('-')[2]}"
    states.mkdir(parents=True)
    for name in ("mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        (states / name).write_bytes(pickle.dumps(Evil(marker)))
    (checkpoint / "latest").write_text(states.name)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 2}')


def test_a_planted_pickle_never_runs(tmp_path):
    inputs = {
        "model": tiny_llama(tmp_path / "policy"),
        "pairs": write_pairs(tmp_path / "pairs", random_pairs(8)),
    }
    run_here(make_job("reference", ReferenceConfig(), inputs, tmp_path / "reference", max_length=99))
    inputs = {name: tmp_path / name for name in ("policy", "pairs", "reference")}
    out, marker = tmp_path / "out", tmp_path / "executed"
    plant(out / "checkpoint-2", marker)
    plant(out / "checkpoint-4", marker)
    checkpoints._Sealer(out, 2)._seal(out / "checkpoint-4", checkpoints._digests(out / "checkpoint-4"))
    flipped = out / "checkpoint-4" / "global_step4" / "mp_rank_00_model_states.pt"
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"x")
    section = DpoConfig(batch_size=4, max_length=99, gradient_checkpointing=False)
    outcome = run_ranks(make_job("dpo", section, inputs, out, batch_tokens=300))
    assert outcome.counts["steps"] == 4 and not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker))).close()  # the pickles were live ones
    assert marker.exists()


def sealed(out):
    checkpoint = out / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "states.pt").write_text("x")
    checkpoints._Sealer(out, 2)._seal(checkpoint, checkpoints._digests(checkpoint))
    assert find_checkpoint(out) == checkpoint
    return checkpoint


def test_another_users_checkpoint_is_refused(tmp_path, monkeypatch):
    checkpoint = sealed(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: checkpoint.stat().st_uid + 1)
    with pytest.raises(UserError, match=r"checkpoint-2: .*another user's file.*chown.*or delete"):
        find_checkpoint(tmp_path)
    assert (checkpoint / SEAL).exists()


def test_a_link_in_a_checkpoint_is_refused(tmp_path):
    checkpoint = sealed(tmp_path)
    (tmp_path / "elsewhere").write_text("x")
    (checkpoint / "states.pt").unlink()
    (checkpoint / "states.pt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"states\.pt: a link"):
        find_checkpoint(tmp_path)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return str(tiny_reward_model(tmp_path_factory.mktemp("judge") / "judge"))


@contextmanager
def server(answer, tls=None):
    """`answer(handler)` answers every request; the requests' headers are kept."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("content-length") or 0))
            asked.append(dict(self.headers))
            answer(self)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    asked = []
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        httpd.socket = tls.wrap_socket(httpd.socket, server_side=True)
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    httpd.asked, httpd.url = asked, f"http{'s' if tls else ''}://127.0.0.1:{httpd.server_port}"
    try:
        yield httpd
    finally:
        httpd.shutdown()
        httpd.server_close()


def reply(status, body=b"", **headers):
    def answer(handler):
        handler.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def scores(*values):
    return json.dumps({"data": [{"index": i, "probs": [value]} for i, value in enumerate(values)]}).encode()


def test_a_certificate_nobody_signed_is_refused_at_once(judge, tmp_path, capsys):
    request = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=127.0.0.1",
    ]
    request += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    try:
        subprocess.run(request, cwd=tmp_path, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl on this machine to make a certificate with")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with server(reply(200, scores(1.5)), tls) as httpd:
        with pytest.raises(ModelError, match=r"https://127.*certificate.*SSL_CERT_FILE"):
            RemoteJudge(judge, httpd.url, retry_seconds=60)
        assert httpd.asked == []
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
            assert RemoteJudge(judge, httpd.url, retry_seconds=60).score([ITEM]).scores == [1.5]


def test_an_answer_has_a_limit(judge, monkeypatch):
    monkeypatch.setattr(remote_judge, "_LARGEST_ANSWER", 2**20)

    def answer(handler):
        reply(200, b"" if handler.command == "GET" else b" " * 2**21)(handler)

    said = r"/classify answered more than 1 MiB.*reward_model\.url"
    with server(answer) as httpd, pytest.raises(ModelError, match=said):
        RemoteJudge(judge, httpd.url).score([ITEM])


def test_a_redirect_is_not_followed(judge):
    with (
        server(reply(200, scores(1.0))) as other,
        server(reply(307, location=other.url + "/classify")) as httpd,
    ):
        with pytest.raises(ModelError, match="HTTP 307"):
            RemoteJudge(judge, httpd.url).score([ITEM])
        assert other.asked == []


def test_the_key_is_sent_and_never_said(judge, monkeypatch, capsys):
    key = SECRETS[remote_judge.API_KEY]
    monkeypatch.setenv(remote_judge.API_KEY, key + "\n")
    with server(
        lambda handler: reply(401, f"no \x1b[31m{handler.headers['Authorization']}\r\n".encode())(handler)
    ) as httpd:
        with pytest.raises(ModelError, match=r"HTTP 401: no \\x1b\[31mBearer \*\*\*") as refusal:
            RemoteJudge(judge, httpd.url).score([ITEM])
        assert [each["Authorization"] for each in httpd.asked] == [f"Bearer {key}"] * 2
    assert key not in str(refusal.value) + "".join(capsys.readouterr())


def test_a_key_that_is_no_header_is_refused_without_showing_it(judge, monkeypatch):
    monkeypatch.setenv(remote_judge.API_KEY, "hunter\n2")
    with pytest.raises(ConfigError, match=remote_judge.API_KEY) as refusal:
        RemoteJudge(judge, "http://127.0.0.1:1")
    assert "hunter" not in str(refusal.value)


def test_no_key_reaches_a_file_or_the_screen(tmp_path):
    """A run with two finished stages and one that fails with a traceback in its log."""
    tiny_llama(tmp_path / "policy")
    rows = "".join(json.dumps({"prompt": f"<b>\x1b[31m{i}</b>\r"}) + "\n" for i in range(6))
    (tmp_path / "prompts.jsonl").write_text(rows)
    overrides = ["model.path=policy", "prompts.path=prompts.jsonl", "prompts.num_held_out=2", "run_dir=run"]
    overrides += [
        "num_iterations=1",
        "prompts.num_per_iteration=4",
        "reward_model.rule=rlhf.world.tasks:gold",
    ]
    overrides += [
        "compute.preload=false",
        "generate.engine=transformers",
        "dpo.batch_size=2",
        "generate.max_new_tokens=4",
    ]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1", **SECRETS)
    command = [sys.executable, "-m", "rlhf.iterate", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240)
    assert done.returncode == 2 and "not a prompt of the synthetic world" in done.stderr, (
        done.stdout + done.stderr
    )
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"config.yaml", "artifact.json", "driver.log"} <= {path.name for path in files}
    assert any("Traceback" in path.read_text() for path in files if path.suffix == ".log")
    written = b"".join(path.read_bytes() for path in files) + (done.stdout + done.stderr).encode()
    assert not [name for name, secret in SECRETS.items() if secret.encode() in written]
    assert "\x1b" not in done.stdout + done.stderr


def test_damage_is_told_in_the_log(tmp_path, caplog):
    checkpoint = sealed(tmp_path)
    (checkpoint / "states.pt").write_text("y")
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(tmp_path) is None
    assert "states.pt" in caplog.text and not checkpoint.exists()
