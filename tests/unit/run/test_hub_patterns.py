"""Which files are fetched of the Hub, and how long its silence is remembered."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from httpx2 import ConnectError, ReadTimeout

from rlhf.run import hub


@pytest.fixture
def asked(monkeypatch):
    """What is asked for: patterns of files, and those left out."""
    calls = []

    def snapshot(repo, revision, key, kind, patterns, error_type, ignored=None):
        calls.append((kind, patterns, ignored))
        return Path("snapshot")

    monkeypatch.setattr(hub, "_snapshot", snapshot)
    return calls


@pytest.mark.parametrize("weights", [True, False])
def test_weights_are_fetched_only_when_they_are_wanted(asked, weights):
    hub.fetch_model("o/m", None, "model.path", weights)
    ((kind, patterns, ignored),) = asked
    assert kind == "model" and ("*.safetensors" in patterns) == weights and "*.json" in patterns and ignored
    assert "*.safetensors" in hub.MODEL_FILES and not any(name.endswith((".bin", ".pt")) for name in patterns)


@pytest.mark.parametrize("rows", [True, False])
def test_rows_are_fetched_only_when_they_are_wanted(asked, rows):
    hub.fetch_dataset("o/d", None, "sft.data", rows)
    ((kind, patterns, ignored),) = asked
    assert kind == "dataset" and ("*.parquet" in patterns) == rows and "README.md" in patterns and not ignored


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("o/d", ("o/d", None, None, "train")),
        ("o/d@v1:test", ("o/d", "v1", None, "test")),
        ("o/d:sub/test", ("o/d", None, "sub", "test")),
        ("o/d.jsonl", None),
        ("o/d.JSON", None),
        ("d", None),
        ("a/b/c", None),
        ("./a", None),
    ],
)
def test_names_of_data_sets(text, parts):
    found = hub.parse_dataset(text)
    assert (found and (found.repo, found.revision, found.subset, found.split)) == parts


@pytest.mark.parametrize(
    ("error", "is_silent"),
    [(None, False), (ReadTimeout("t"), True), (ConnectError("c"), True), (OSError("o"), False)],
)
def test_only_silence_counts_as_silence(monkeypatch, error, is_silent):
    questions = []

    class Api:
        def repo_info(self, repo, revision, repo_type, timeout):
            questions.append(timeout)
            if error is not None:
                raise error

    now = [100.0]
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    slept = []
    monkeypatch.setattr(hub, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=slept.append))
    monkeypatch.setattr(hub, "_silent_until", 0.0)
    assert hub._is_silent("o/m", None, "model") == is_silent
    # A connection that did not come about is tried once more.
    asked = 2 if isinstance(error, ConnectError) else 1
    assert questions == [hub.SILENCE_SECONDS] * asked
    assert bool(slept) == isinstance(error, ConnectError)
    # Others need not wait through theirs, for a while.
    for later, num_questions in (
        (0.0, asked),
        (hub.SILENCE_KEPT_SECONDS - 0.1, asked),
        (hub.SILENCE_KEPT_SECONDS, 2 * asked),
    ):
        now[0] = 100.0 + later
        assert hub._is_silent("o/m", None, "model") == is_silent
        assert not is_silent or len(questions) == num_questions
