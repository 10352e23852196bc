"""The model card, and the export that carries it."""

import json
import os
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from rlhf.config.choices import Engine
from rlhf.config.schema import Config
from rlhf.config.stage_configs import ExportStage
from rlhf.data.shards import write_atomic
from rlhf.loop import card, outcome
from rlhf.loop.figures import Row
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run
from tests.unit.run.test_plan import InProcess


def row(iteration, score):
    return Row(iteration, score, None, None, None, None, 12.0, 0.0, 0.0, None, {})


ROWS = [row(0, -0.5), row(1, 0.75)]
POLICIES = [Artifact(Path("a"), "0" * 64), Artifact(Path("b"), "1" * 64, {"versions": {"torch": "2.13.0"}})]


def config(**prompts):
    cfg = Config(run_dir="/secret/run")
    cfg.prompts.path = "/secret/prompts.jsonl"
    cfg.generate.vllm_args = {"download_dir": "/secret/cache"}
    cfg.reward_model.path = "some/judge"
    return cfg


def facts(cfg=None, rows=ROWS, licences=()):
    return card.facts(cfg or config(), rows, POLICIES[: len(rows)], len(rows) - 1, dict(licences))


def test_the_front_matter_names_the_base_as_the_hub_reads_it():
    _, front, body = card.text(facts(), "bfloat16").split("---\n", 2)
    read = OmegaConf.to_container(OmegaConf.create(front))
    assert (
        read["base_model"] == "meta-llama/Meta-Llama-3-8B-Instruct" and read["library_name"] == "transformers"
    )
    assert "dpo" in read["tags"]
    for part in (
        "π1",
        "+0.750",
        "beta: 0.1",
        "torch 2.13.0",
        "prompts.jsonl",
        "some/judge",
        "0000000000000000",
    ):
        assert part in body


def test_a_local_base_is_named_and_no_path_is_told():
    cfg = config()
    cfg.model.path = "/secret/my-policy"
    text = card.text(facts(cfg), "float32")
    assert "my-policy (π0)" in text and "base_model:" not in text and "secret" not in text


def test_a_distance_that_is_no_kl_is_not_called_so():
    assert "KL is\nk1" in card.text(facts(), "float32") and "distance" not in facts()
    rows = [replace(each, kl=None, log_ratio=0.5) for each in ROWS]
    text = card.text(facts(rows=rows), "float32")
    assert "KL is" not in text and "log π/π0 is the mean" in text and "it is not the KL" in text


def test_given_pairs_are_what_it_was_trained_on():
    cfg = config()
    cfg.prompts.path, cfg.pair.data = None, "/secret/pairs.jsonl"
    assert facts(cfg)["prompts"] == "pairs.jsonl"


def test_licences_are_named_where_one_is_known(tmp_path, monkeypatch):
    cfg = config()
    (tmp_path / "mine").mkdir()
    cfg.model.path, cfg.num_iterations = str(tmp_path / "mine"), 2
    cfg.prompts.path = ["/secret/prompts.jsonl", "some/prompts{iteration}:sub/train"]
    cfg.sft.data = "@world/sft.jsonl"
    cards = {"some/judge": "license: cc-by-nc-4.0", "some/prompts2": "license: [mit, apache-2.0]"}

    def cached(repo, revision, kind):
        if repo not in cards:
            return None
        path = tmp_path / "card.md"
        path.write_text(f"---\n{cards[repo]}\n---\n# A card\n")
        return path

    monkeypatch.setattr("rlhf.run.hub.cached_card", cached)
    told = {
        "mine": "unknown",
        "some/judge": "cc-by-nc-4.0",
        "prompts.jsonl": "unknown",
        "some/prompts1": "unknown",
        "some/prompts2": "mit, apache-2.0",
    }
    assert card.licences(cfg) == told
    assert "made from | mine: unknown; some/judge: cc-by-nc-4.0; " in card.text(
        facts(licences=told), "float32"
    )
    cards.clear()
    # An export that was made before is the same.
    assert card.licences(cfg) == {} and "licences" not in facts(licences={})
    assert "licence" not in card.text(facts(), "float32")


def test_what_only_changes_the_cost_is_not_on_the_card():
    cfg = config()
    cfg.dpo.batch_tokens, cfg.compute.num_threads, cfg.run_dir, cfg.debug = 99, 3, "/elsewhere", True
    cfg.gates.max_kl = 9.0
    assert facts(cfg) == facts()
    cfg.score.engine = Engine.vllm
    assert facts(cfg) != facts()


@pytest.fixture
def trained(tmp_path):
    """A policy folder of a run, in fp32."""
    folder = tmp_path / "run" / "iteration_001" / "dpo" / "model"
    folder.mkdir(parents=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "float32", "hidden_size": 1}))
    return Artifact(folder, "d")


def export(run, trained, told):
    config = ExportStage("float32", told)
    return run.stage("export", "iteration_001/export", config, {"model": trained}).part("model")


def test_an_export_links_the_weights_and_leaves_the_trained_model_alone(tmp_path, trained):
    before = {path.name: path.read_bytes() for path in trained.path.iterdir()}
    made = export(Run(tmp_path / "run", Config(), InProcess()), trained, facts())
    assert os.path.samefile(made.path / "model.safetensors", trained.path / "model.safetensors")
    assert json.loads((made.path / "config.json").read_text()) == {"hidden_size": 1, "dtype": "float32"}
    assert (made.path / "README.md").read_text() == card.text(facts(), "float32")
    assert {path.name: path.read_bytes() for path in trained.path.iterdir()} == before


def test_an_export_is_made_anew_when_its_card_changes(tmp_path, trained):
    launcher = InProcess()
    for told in (facts(), facts(), facts(rows=[*ROWS[:1], row(1, 0.9)])):
        made = export(Run(tmp_path / "run", Config(), launcher), trained, told)
    assert len(launcher.ran) == 2 and "+0.900" in (made.path / "README.md").read_text()


def test_a_killed_export_is_begun_anew(tmp_path, trained):
    partial = tmp_path / "run" / "iteration_001" / ".export.partial" / "model"
    partial.mkdir(parents=True)
    os.link(trained.path / "model.safetensors", partial / "model.safetensors")
    write_atomic(partial / "config.json", b"half")
    made = export(Run(tmp_path / "run", Config(), InProcess()), trained, facts())
    assert sorted(path.name for path in made.path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_the_best_policy_is_exported_and_linked_anew_when_another_is_better(tmp_path, trained, monkeypatch):
    run, outside = tmp_path / "run", Artifact(tmp_path / "given", "g")
    nothing = dict.fromkeys(("candidates", "scores", "gold", "reference")) | {"others": {}}
    policies = enumerate([outside, trained])
    evaluations = [SimpleNamespace(iteration=t, policy=policy, **nothing) for t, policy in policies]
    for scores, target in (
        ((0.0, -1.0), outside.path),  # a model from outside keeps its place and its own card
        ((0.0, 1.0), Path("iteration_001/export/model")),
        ((0.0, 2.0), Path("iteration_001/export/model")),
        ((9.0, 2.0), outside.path),
    ):
        monkeypatch.setattr(
            outcome, "rows_of", lambda _, scores=scores: [row(t, s) for t, s in enumerate(scores)]
        )
        outcome.conclude(Run(run, config(), InProcess()), evaluations, "float32")
        assert Path(os.readlink(run / "best")) == target
    assert "+2.000" in (run / "iteration_001" / "export" / "model" / "README.md").read_text()
