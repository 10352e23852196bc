"""The real command in a sweep, with a second judge; given pairs in place of samples; a data set of the
Hub."""

from __future__ import annotations

import json
import math
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.config.stage_configs import DatasetStage
from rlhf.data.shards import read_rows
from rlhf.errors import DataError
from rlhf.stages import dataset
from tests.commands import digests, loop, quick_loop
from tests.integration.loop.test_loop import world  # noqa: F401 - a fixture
from tests.stage_runner import FakeWorker, Job


@pytest.fixture(scope="module")
def swept(world):  # noqa: F811
    folder, overrides = world
    judge = f"+evaluate.judges.second={folder / 'judge'}"
    code, said = loop(folder / "sweep", *overrides, judge, "-m", "dpo.beta=0.1,0.3")
    assert code == 0, said
    return folder / "sweep", said


def test_each_job_has_a_folder_and_takes_what_a_sibling_made(swept):
    run, said = swept
    assert sorted(path.name for path in run.iterdir()) == ["dpo.beta=0.1", "dpo.beta=0.3"]
    first, second = digests(run / "dpo.beta=0.1"), digests(run / "dpo.beta=0.3")
    for name in (
        "prompts",
        "iteration_001/generate",
        "iteration_001/score",
        "iteration_001/pair",
        "iteration_000/held_out/generate",
    ):
        assert first[name] == second[name]
        assert f"= {name} " in said
        shared = next((run / "dpo.beta=0.1" / name).glob("*.parquet")).name
        assert os.path.samefile(run / "dpo.beta=0.1" / name / shared, run / "dpo.beta=0.3" / name / shared)
    assert first["iteration_001/dpo"] != second["iteration_001/dpo"]
    assert said.count("✓ iteration_001/generate") == 1 and said.count("✓ iteration_001/dpo") == 2


def test_hydra_leaves_nothing_behind(swept):
    run, _ = swept
    assert not [
        p for p in run.parent.rglob("*") if p.name in ("multirun.yaml", "multirun", "outputs", ".hydra")
    ]


def test_the_second_judge_has_its_columns(swept):
    run, said = swept
    row = json.loads((run / "dpo.beta=0.3" / "summary.json").read_text())["iterations"][1]
    assert row["judges"]["second"]["mean_score"] == pytest.approx(row["mean_score"])  # it is the same judge
    assert row["judges"]["second"]["win_rate"] == row["win_rate"]
    assert "second" in said


def test_a_failing_job_is_named_and_the_others_go_on(world, swept):  # noqa: F811
    run, _ = swept
    judge = f"+evaluate.judges.second={world[0] / 'judge'}"
    code, said = loop(run, *world[1], judge, "-m", "dpo.beta=-1,0.1")
    assert code == 2
    assert (
        "error in dpo.beta=-1: dpo.beta=-1" in said and "these jobs of the sweep failed: dpo.beta=-1" in said
    )
    assert f"{run / 'dpo.beta=0.1'}: " in said and "0 to do" in said and "Traceback" not in said


def test_given_pairs_train_without_sampling(world):  # noqa: F811
    folder, overrides = world
    rows = [{"prompt": f"Say {i}", "chosen": f"{i} it is", "rejected": f"no {i}"} for i in range(8)]
    (folder / "pairs.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "chosen": "no 0"}])
    )
    (folder / "held_out.jsonl").write_text("".join(f'{{"prompt": "Tell {i}"}}\n' for i in range(5)))
    prompts = ["prompts.path=null", f"prompts.held_out_path={folder / 'held_out.jsonl'}"]
    code, said = quick_loop(folder / "given", *overrides, *prompts, f"pair.data={folder / 'pairs.jsonl'}")
    assert code == 0, said
    assert "· iteration_001/dpo: 8 pairs / batch 4 × 2 epochs = 4 steps, 1 of them warm-up" in said
    assert "  ⚠ the first of 4 steps has learning rate 0" in said
    names = digests(folder / "given")
    assert "iteration_001/preferences" in names and "iteration_001/generate" not in names
    counts = json.loads((folder / "given" / "iteration_001/preferences/artifact.json").read_text())["counts"]
    assert counts == {"rows": 9, "comparisons": 9, "pairs": 8, "dropped/equal": 1}
    first = json.loads((folder / "given/iteration_001/dpo/metrics.jsonl").read_text().split("\n")[0])
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_split_of_a_hub_data_set_becomes_a_file(tmp_path):
    snapshot, out = tmp_path / "snapshot", tmp_path / "out"
    (snapshot / "data").mkdir(parents=True)
    out.mkdir()
    for split, texts in (("train", ["a", "b"]), ("test", ["c"])):
        table = pa.table({"context_messages": [[{"role": "user", "content": text}] for text in texts]})
        pq.write_table(table, snapshot / "data" / f"{split}-00000-of-00001.parquet")
    config = DatasetStage("some/prompts", "c" * 40, None, "test")
    job = Job("dataset", "data/prompts", config, {"snapshot": str(snapshot)}, str(out), 1)
    assert dataset.run(job, FakeWorker()).counts == {"rows": 1}
    assert [row["context_messages"] for row in read_rows(out / "rows.parquet")] == [
        [{"role": "user", "content": "c"}]
    ]
    assert [path.name for path in out.iterdir()] == ["rows.parquet"]
    config.split = "nothing"
    with pytest.raises(DataError, match=r"some/prompts at cccccccccccc.*split nothing"):
        dataset.run(job, FakeWorker())
