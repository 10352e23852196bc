"""Models and data sets of the Hub: from a local cache laid out as the real one, and over a network."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import huggingface_hub.constants
import pytest

from rlhf.config.schema import Config
from rlhf.errors import DataError, ModelError
from rlhf.run import hub, sources
from rlhf.run.plan import Run

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(cache: Path, kind: str, repo: str, files: list[str]) -> Path:
    """Lay out a snapshot as a download would."""
    folder = cache / f"{kind}s--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for name in files:
        (folder / "snapshots" / COMMIT / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / COMMIT / name).write_bytes(b"{}")
        if name.endswith(".safetensors"):  # the header of an empty file
            (folder / "snapshots" / COMMIT / name).write_bytes(b"\x02" + bytes(7) + b"{}")
    return folder / "snapshots" / COMMIT


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/b", hub.DatasetName("a/b", None, None, "train")),
        ("a/b:test", hub.DatasetName("a/b", None, None, "test")),
        ("openai/gsm8k:main/test", hub.DatasetName("openai/gsm8k", None, "main", "test")),
        ("a/b-1.0_x@refs/pr/3:s", hub.DatasetName("a/b-1.0_x", "refs/pr/3", None, "s")),
        (
            "RLHFlow/iterative-prompt-v1-iter1-20K",
            hub.DatasetName("RLHFlow/iterative-prompt-v1-iter1-20K", None, None, "train"),
        ),
        ("data/prompts.jsonl", None),
        ("./a/b", None),
        ("/a/b", None),
        ("a/b/c", None),
        ("prompts.json", None),
    ],
)
def test_names_of_data_sets(text: str, name: hub.DatasetName | None) -> None:
    assert hub.parse_dataset(text) == name


def test_a_cached_model_is_named_by_its_commit(tmp_path: Path, cache: Path) -> None:
    snapshot = put(cache, "model", "some/model", ["config.json", "model.safetensors"])
    model = sources.model(Run(tmp_path / "run", Config()), "some/model", None, "model.path")
    assert model.path == snapshot and model.digest
    assert sources.model(Run(tmp_path / "run", Config()), "some/model", "main", "k").digest == model.digest


def test_a_hub_model_without_safetensors_is_refused(tmp_path: Path, cache: Path) -> None:
    put(cache, "model", "some/model", ["config.json"])
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        sources.model(Run(tmp_path / "run", Config()), "some/model", None, "model.path")


def test_what_cannot_be_fetched_says_what_to_do(tmp_path: Path, cache: Path) -> None:
    run = Run(tmp_path / "run", Config())
    with pytest.raises(ModelError, match=r"hf download no/model --revision v2`.*experiment=quickstart"):
        sources.model(run, "no/model", "v2", "model.path")
    with pytest.raises(DataError, match="hf download --repo-type dataset no/prompts`"):
        sources.data_file(run, "no/prompts:test", "prompts.path")
    with pytest.raises(DataError, match=r"no such file.*owner/name\[@revision\]"):
        sources.data_file(run, "prompts.jsonl", "prompts.path")


SHA = "0123456789" * 4
FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickle",
}
COPIES = (
    "consolidated.safetensors",
    "original/consolidated.00.safetensors",
    "onnx/model.safetensors",
    "checkpoint-500/model.safetensors",
    "checkpoint-500/config.json",
)


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a download of `some/model` needs; `asked` are the paths."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.asked.append(path)
        if path.startswith("/api/") and "/tree/" in path:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": name} for name, data in FILES.items()
            ]
            tree += [{"type": "file", "path": name, "size": 4, "oid": name} for name in COPIES]
            self.answer(json.dumps(tree).encode())
        elif path.startswith("/api/models/some/model"):
            self.answer(json.dumps({"id": "some/model", "sha": SHA, "siblings": []}).encode())
        elif path.startswith(f"/some/model/resolve/{SHA}/"):
            self.answer(FILES[path.rpartition("/")[2]])
        else:
            self.answer(b"", 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, data: bytes, status: int = 200, more: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        told = {"Content-Length": str(len(data)), "ETag": f'"{len(data)}"', "X-Repo-Commit": SHA}
        for name, value in (told | dict(more)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *said: object) -> None:
        pass


@pytest.fixture
def online(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets where the Hub is."""

    def at(url: str) -> None:
        huggingface_hub.close_session()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        files = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)

    monkeypatch.setattr(hub, "_silent_until", 0.0)  # a test before may have found no network
    yield at
    huggingface_hub.close_session()


def test_a_model_comes_over_the_network_without_pickles_and_its_weights_only_when_they_are_wanted(
    online: Callable[[str], None],
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        online(f"http://127.0.0.1:{server.server_port}")
        small = hub.fetch_model("some/model", None, "model.path", weights=False)
        assert small.name == SHA
        assert sorted(path.name for path in small.iterdir()) == ["README.md", "config.json"]
        whole = hub.fetch_model("some/model", None, "model.path")
        assert whole == small and (whole / "model.safetensors").read_bytes() == b"weights"
        assert not any("pytorch_model.bin" in path for path in Hub.asked)
        assert not any(path.endswith(COPIES) for path in Hub.asked), "a second copy of the weights"
        with pytest.raises(ModelError, match="no such model on the Hub"):
            hub.fetch_model("no/model", None, "model.path")
    finally:
        server.shutdown()
        server.server_close()


def test_a_silent_network_is_given_up_and_the_cache_is_used(
    cache: Path, online: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = put(cache, "model", "some/model", ["config.json", "model.safetensors"])
    monkeypatch.setattr(hub, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(hub, "_silent_until", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls and never answers
        online(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert hub.fetch_model("some/model", None, "model.path") == snapshot
        with pytest.raises(ModelError, match="the Hub cannot be reached"):
            hub.fetch_model("no/model", None, "model.path")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("GatedRepoError", "gated.*hf auth login"),
        ("RepositoryNotFoundError", "no such model"),
        ("RevisionNotFoundError", "no such revision"),
    ],
)
def test_answers_of_the_hub_become_messages(monkeypatch: pytest.MonkeyPatch, error: str, words: str) -> None:
    import httpx
    import huggingface_hub.errors

    def refuse(*args: object, **kwargs: object) -> None:
        response = httpx.Response(403, request=httpx.Request("GET", "https://hub"))
        raise getattr(huggingface_hub.errors, error)("no", response=response)

    monkeypatch.setattr(hub, "_is_silent", lambda *asked: False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=words):
        hub.fetch_model("some/model", "v1", "model.path")


def test_a_data_set_becomes_an_artifact_of_the_run(tmp_path: Path, cache: Path) -> None:
    put(cache, "dataset", "some/prompts", ["data/train.parquet"])
    plan = Run(tmp_path / "run", Config(), planning=True)
    file = sources.data_file(plan, "some/prompts", "prompts.path")
    assert file.path == tmp_path / "run" / "data" / "prompts.path" / "rows.parquet"
    assert plan.pending == ["data/prompts.path"]
