"""Every command of README and docs exists, and takes the settings that it is shown with."""

import re

import pytest
import yaml

from scripts import check_docs

PAGES = check_docs.pages()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "nothing_here"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one(page, folder):
    wrong = [verdict for verdict in check_docs.Checker(folder).check(page) if verdict.wrong]
    assert not wrong, "\n".join(f"{verdict.command.place}: {verdict.wrong}" for verdict in wrong)


def test_pages_with_commands_are_found():
    found = {page.name: len(check_docs.commands_of(page)) for page in PAGES}
    assert found["README.md"] > 10 and found["tutorial.md"] > 8 and found["cookbook.md"] > 10


def test_what_runs_a_tool_names_it():
    for tool, test in check_docs.RUN_BY.items():
        source = (check_docs.ROOT / test).read_text(encoding="utf-8")
        assert re.search(rf"rlhf\.{tool}\b", source), f"{test} does not run rlhf.{tool}"


def verdicts(folder, tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return check_docs.Checker(folder).check(page)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("python -m rlhf.itrate", "there is no tool rlhf.itrate"),
        ("python -m rlhf.iterate dpo.bta=0.1", "did you mean dpo.beta"),
        ("python -m rlhf.iterate dpo.beta=-1", "dpo.beta=-1"),
        ("python -m rlhf.iterate experiment=nowhere", "nowhere"),
        ("python -m rlhf.iterate -m dpo.beta=0.1,abc", "dpo.beta"),
        ("python -m rlhf.iterate \\\n    dpo.beta=0.1 \\\n    dpo.gamma=1", "dpo.gamma"),
        ("python -m rlhf.plan experiment=quickstart hardwear=cpu", "hardwear"),
        ("python -m rlhf.check dpo.bta=1", "dpo.bta"),
        ("python -m rlhf.score reward_model.path=… input=in.jsonl", "output"),
        ("python -m rlhf.pair input=a.jsonl output=b.jsonl pair.strategy=wurst", "pair.strategy"),
        ("python -m rlhf.stage dpoo run_dir=RUN", "there is no stage dpoo"),
        ("python -m rlhf.stage dpo run_dir=RUN dpo.bta=1", "dpo.bta"),
        ("python -m benchmark", "there is no module benchmark"),
        ("python scripts/nothing.py out=x", "there is no scripts/nothing.py"),
        ("python scripts/readability.py --wurst 20", "reads no wurst"),
        ("make quikstart", "no target quikstart"),
        ("make mutate muutants=3", "reads no muutants"),
    ],
)
def test_a_command_that_is_none_is_wrong(command, said, folder, tmp_path):
    (verdict,) = verdicts(folder, tmp_path, f"# Page\n\n```\n{command}\n```\n")
    assert said in verdict.wrong
    assert verdict.command.place == "page.md:4"


def test_a_command_in_a_sentence_is_held_too(folder, tmp_path):
    text = "Say `python -m rlhf.plan …\nhardwear=cpu`, or look at `python -m rlhf.plan` and\n`make lnt`."
    wrong = [verdict.wrong for verdict in verdicts(folder, tmp_path, text)]
    assert "hardwear" in wrong[0] and wrong[1] == "" and "no target lnt" in wrong[2]


def test_what_a_page_prints_is_no_command(folder, tmp_path):
    text = "```\nruns/quickstart: 17 stages are finished\nmake sure it's there\n```\n\n```python\nmake_it()\n```\n"
    assert verdicts(folder, tmp_path, text) == []


@pytest.mark.parametrize(("setting", "is_fine"), [("{beta: 0.2}", True), ("{bta: 0.2}", False)])
def test_an_experiment_that_the_reader_writes_is_composed(setting, is_fine, folder, tmp_path):
    text = (
        f"```yaml\n# configs/experiment/mine.yaml\n# @package _global_\ndpo: {setting}\n```\n\n"
        "```\npython -m rlhf.iterate experiment=mine\n```\n"
    )
    (verdict,) = verdicts(folder, tmp_path, text)
    assert (verdict.wrong == "") == is_fine, verdict.wrong


def test_commands_that_look_are_run_on_the_run_that_is_given():
    words = [
        check_docs._on_run(word, check_docs.ROOT) for word in ("run_dir=RUN", "runs=runs/sweep/*", "x=1")
    ]
    assert words == [f"run_dir={check_docs.ROOT}", f"runs={check_docs.ROOT}", "x=1"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("sbatch --nodes=2 scripts/slurm.sh dpo.bta=0.1", "did you mean dpo.beta"),
        ("sbatch --nodes=2 scripts/slrum.sh dpo.beta=0.1", "submits no scripts/slurm.sh"),
        ("exec python -m rlhf.iterate dpo.bta=0.1", "did you mean dpo.beta"),
    ],
)
def test_a_command_for_a_cluster_is_held_too(command, said, folder, tmp_path):
    (verdict,) = verdicts(folder, tmp_path, f"```\n{command}\n```\n")
    assert said in verdict.wrong


def test_a_command_in_a_clusters_file_is_held_too(folder, tmp_path):
    page = tmp_path / "job.yaml"
    page.write_text(
        "spec:\n  entrypoint: >-\n    python -m rlhf.iterate\n    dpo.bta=0.1 ${x:+run_dir=$x}\nrun: |\n  if true; then\n  fi\n",
        encoding="utf-8",
    )
    (verdict,) = check_docs.Checker(folder).check(page)
    assert "did you mean dpo.beta" in verdict.wrong and verdict.command.place == "job.yaml:2"


def _iterate(name):
    """The text of a file for a cluster, and the settings of its one `rlhf.iterate`."""
    page = check_docs.ROOT / "docs" / "cluster" / name
    (command,) = [command for command in check_docs.commands_of(page) if "rlhf.iterate" in command.words]
    settings = dict(word.split("=", 1) for word in command.words if "=" in word)
    return yaml.safe_load(page.read_text(encoding="utf-8")), settings


def test_clusters_files_have_as_many_nodes_as_their_command_waits_for():
    job, settings = _iterate("rayjob.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    groups = cluster["workerGroupSpecs"]
    assert int(settings["compute.num_nodes"]) == 1 + sum(group["replicas"] for group in groups)
    # Nodes that are not alike, or that see another /shared, are no nodes of one run.
    assert all(group["template"] == cluster["headGroupSpec"]["template"] for group in groups)
    task, settings = _iterate("sky.yaml")
    assert int(settings["compute.num_nodes"]) == task["num_nodes"]
    assert task["envs"]["RUN"].startswith(tuple(task["volumes"]))
