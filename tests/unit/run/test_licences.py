"""Licences as cards name them, and commits that are pinned."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.config.schema import Config
from rlhf.errors import DataError, ModelError
from rlhf.loop.prompt_sets import prompt_paths
from rlhf.run import hub, sources
from rlhf.run.licences import licence_in, licence_of_data, licence_of_model
from rlhf.run.plan import Run
from tests.unit.refusals import model
from tests.unit.run.test_hub import cache, put

__all__ = ["cache"]  # a fixture
CARD = "---\nlicense: {}\n---\n# A model\n"
OTHER = "0123456789" * 4


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (CARD.format("cc-by-nc-4.0"), "cc-by-nc-4.0"),
        (CARD.format("llama3").replace("\n", "\r\n"), "llama3"),
        (CARD.format("other\nlicense_name: gemma-2"), "other: gemma-2"),
        (CARD.format("other\nlicense_name: [1, 2]"), "other"),
        (CARD.format("[mit, apache-2.0]"), "mit, apache-2.0"),
        (CARD.format('"\\e[31mred"'), "\\x1b[31mred"),
        (CARD.format("x" * 100), "x" * 59 + "…"),
        (CARD.format("no"), "unknown"),
        (CARD.format(""), "unknown"),
        (CARD.format("[" * 3000), "unknown"),
        (CARD.format("{a: *b}"), "unknown"),
        ("---\nlicense: mit\n", "unknown"),
        ("---\n- a list\n---\n", "unknown"),
        ("license: mit\n", "unknown"),
        ("", "unknown"),
        (b"---\nlicense: \xe9\n---\n", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_licence_of_a_card(tmp_path: Path, card: str | bytes | None, licence: str) -> None:
    if card is not None:
        (tmp_path / "README.md").write_bytes(card.encode() if isinstance(card, str) else card)
    assert licence_in(tmp_path) == licence
    assert licence_of_model(str(tmp_path), None, "model.path") == licence


def test_the_cache_knows_the_licence_of_what_it_has(cache: Path) -> None:
    folder = put(cache, "model", "some/judge", ["config.json"])
    assert licence_of_model("some/judge", None, "reward_model.path") == "unknown"
    (folder / "README.md").write_text(CARD.format("cc-by-nc-4.0"))
    assert licence_of_model("some/judge", None, "reward_model.path") == "cc-by-nc-4.0"
    assert licence_of_model("some/judge", folder.name, "reward_model.path") == "cc-by-nc-4.0"
    assert licence_of_model("no/judge", None, "reward_model.path") == "unknown"
    data = put(cache, "dataset", "some/prompts", ["data/train.parquet"])
    (data / "README.md").write_text(CARD.format("odc-by"))
    assert licence_of_data("some/prompts:train", "prompts.path") == "odc-by"
    assert licence_of_data("prompts.jsonl", "prompts.path") == "unknown"


def test_the_defaults_are_pinned_and_a_branch_can_be_asked_for(cache: Path) -> None:
    judge = Config().reward_model.path
    commit = hub.PINNED[judge]
    main = put(cache, "model", judge, ["config.json"])
    with pytest.raises(
        ModelError,
        match=rf"pinned to {commit}.* --revision {commit}`.* the branch: reward_model\.revision=main\.",
    ):
        hub.fetch_model(judge, None, "reward_model.path")
    with pytest.raises(ModelError, match=rf"the branch: {judge}@main in place of"):
        hub.fetch_model(judge, None, "evaluate.judges.other")
    assert hub.fetch_model(judge, "main", "reward_model.path") == main
    pinned = main.with_name(commit)
    main.rename(pinned)
    assert hub.fetch_model(judge, None, "reward_model.path") == pinned


def test_each_iteration_of_the_recipe_has_pinned_prompts(cache: Path) -> None:
    cfg = Config()
    for t in range(1, cfg.num_iterations + 1):
        (path,) = prompt_paths(cfg, t)
        commit = hub.PINNED[path]
        main = put(cache, "dataset", path, ["data/train.parquet"])
        with pytest.raises(DataError, match=rf"pinned to {commit}.* the branch: {path}@main"):
            hub.fetch_dataset(path, None, "prompts.path")
        assert hub.fetch_dataset(path, "main", "prompts.path") == main
        main.rename(main.with_name(commit))
        assert hub.fetch_dataset(path, None, "prompts.path").name == commit
    assert all(len(commit) == 40 and int(commit, 16) for commit in hub.PINNED.values())


def test_a_card_is_no_part_of_what_a_model_is(tmp_path: Path) -> None:
    model(tmp_path / "policy")
    run = Run(tmp_path / "run", Config(), planning=True)
    before = sources.model(run, str(tmp_path / "policy"), None, "model.path").digest
    (tmp_path / "policy" / "README.md").write_text(CARD.format("mit"))
    assert sources.model(run, str(tmp_path / "policy"), None, "model.path").digest == before
