"""Requests that cannot be carried out are refused in a moment, before anything is looked at."""

from __future__ import annotations

import os

import pytest

from rlhf.command.line import CONFIGS
from rlhf.command.settings import misread, to_config, typed_values
from rlhf.config.schema import Config
from tests.unit.refusals import Case, cases, prepare, refuse, run_for_real, run_here

ANSWERED = [{"prompt": "q", "responses": ["a"]}]
RULE = "reward_model.rule=rlhf.world.tasks:gold"


def loop(folder):
    (folder / "around").symlink_to("again")
    (folder / "again").symlink_to("around")


def config_folder(text):
    return {"own/experiment/mine.yaml": "# @package _global_\n" + text}


@cases(
    Case("wrong type", "iterate dpo.num_epochs=two", ["'two'", "num_epochs", "Integer"]),
    Case("number for a list", "iterate generate.temperatures=1", ["temperatures", "1"]),
    Case("list for a number", "iterate dpo.beta=[0.1]", ["dpo.beta", "'list'"]),
    Case("section for a number", "iterate dpo={beta:{a:1}}", ["dpo.beta", "Float"]),
    Case("mapping among texts", "iterate reuse=[{a:b}]", ["reuse=[", "{'a': 'b'} is no text"]),
    Case("list among texts", "iterate dpo.lora.target_modules=[[a]]", ["target_modules", "['a'] is no text"]),
    Case(
        "a judge of the others' shape for the evaluation",
        "iterate +evaluate.judges={x:{path:a/b}}",
        ["evaluate.judges=", "{'path': 'a/b'} is no text"],
    ),
    Case("unknown key", "iterate dpo.betta=0.1", ["dpo.betta: no such setting", "did you mean dpo.beta?"]),
    Case(
        "unknown key added",
        "iterate +dpo.betta=0.1",
        ["dpo.betta: no such setting", "did you mean dpo.beta?"],
    ),
    Case("key without its section", "iterate beta=0.1", ["beta: no such setting", "did you mean dpo.beta?"]),
    Case(
        "new in a mapping",
        "iterate generate.vllm_args.seed=1",
        ["not there yet", "+generate.vllm_args.seed=…"],
    ),
    Case(
        "no mapping", "iterate prompts.columns=evidence", ["prompts.columns=evidence", "{context: evidence}"]
    ),
    Case("no part", "iterate prompts.columns={note:a}", ["prompts.columns={note: a}", "question, context"]),
    Case("no column", "iterate sft.columns={context:3}", ["sft.columns={context: 3}", "name a column"]),
    Case("unknown section", "iterate ppo.beta=0.1", ["ppo: no such setting", "docs/configuration.md"]),
    Case("unknown experiment", "iterate experiment=misspelt", ["experiment/misspelt", "quickstart"]),
    Case("unknown choice", "iterate dpo.loss=dpoo", ["dpoo", "sigmoid"]),
    Case("no override", "iterate dpo.beta=[1", ["dpo.beta=[1", "no viable"]),
    Case("null for a number", "iterate dpo.beta=null", ["dpo.beta", "not Optional"]),
    Case("interpolation to nowhere", "iterate dpo.beta=${nowhere}", ["nowhere", "not found"]),
    Case("out of range", "iterate generate.top_p=1.5", ["generate.top_p=1.5", "(0, 1]"]),
    Case("negative", "iterate dpo.weight_decay=-1", ["dpo.weight_decay=-1", "must not be negative"]),
    Case("NaN", "iterate dpo.beta=nan", ["dpo.beta=nan", "positive number"]),
    Case("infinite", "iterate generate.temperatures=[inf]", ["[inf]", "the paper has [1.0,0.7]"]),
    Case("seed of 40 bits", "iterate seed=1099511627776", ["seed=1099511627776", "4294967295"]),
    Case("warm-up in steps", "iterate dpo.warmup_ratio=100", ["dpo.warmup_ratio=100", "share of the steps"]),
    Case("negative ranks", "iterate compute.num_training_ranks=-1", ["num_training_ranks=-1", "null"]),
    Case("negative GPUs", "iterate compute.num_gpus=-1", ["compute.num_gpus=-1", "null"]),
    Case("empty world", "iterate world.enabled=true world.base_steps=0", ["world.base_steps=0", "positive"]),
    Case("number for a boolean", "iterate sft.packing=2", ["sft.packing=2", "true or false"]),
    Case("negative for a boolean", "iterate sft.packing=-1", ["sft.packing=-1", "true or false"]),
    Case("quoted for a boolean", "iterate sft.packing='7'", ["sft.packing=7", "true or false"]),
    Case("word for a boolean", "iterate debug=maybe", ["debug=maybe", "valid bool"]),
    Case("boolean for a whole number", "iterate dpo.num_epochs=true", ["num_epochs=true", "Integer"]),
    Case("boolean for a number", "iterate gates.max_kl=true", ["gates.max_kl=true", "Float"]),
    Case("boolean for numbers", "iterate generate.temperatures=[true]", ["temperatures", "Float"]),
    Case("boolean for an action", "iterate gates.kl=false", ["gates.kl", "ignore, warn, stop"]),
    Case("boolean for text", "iterate model.revision=true", ["model.revision=True", 'revision="…"']),
    Case("rounded text", "iterate run_dir=2.50", ["run_dir=2.5", 'run_dir="…"']),
    Case("commit of digits", "iterate model.revision=1234e5", ["model.revision=123400000.0", "quotes"]),
    Case("number in a list of text", "iterate reuse=[a,1e3]", ["reuse=['a', 1000.0]", "quotes"]),
    Case(
        "number in a mapping of text",
        "iterate +evaluate.judges.a=1e3",
        ["evaluate.judges={'a': 1000.0}", "quotes"],
    ),
    Case(
        "boolean of a tool",
        "pair input=a output=o.jsonl compute.preload=3",
        ["compute.preload=3", "true or false"],
    ),
    Case("boolean of a stage", "stage dpo run_dir=r debug=3", ["debug=3", "true"], {"r/config.yaml": ""}),
    Case(
        "booleans in a file",
        "iterate --config-dir=own experiment=mine",
        ["experiment/mine: sft.packing=2", "experiment/mine: model.revision=100000.0", "quotes"],
        config_folder("sft: {packing: 2}\nmodel: {revision: 1e5}\n"),
    ),
    Case("share of gates", "iterate gates.min_accuracy=1.5", ["gates.min_accuracy=1.5", "[0, 1]"]),
    Case(
        "shares of gates",
        "iterate gates.max_truncated=20 gates.max_same_candidates=-0.1",
        ["gates.max_truncated=20", "gates.max_same_candidates=-0.1", "[0, 1]"],
    ),
    Case(
        "limits of gates that are no number",
        "iterate gates.max_kl=nan gates.max_fall=inf gates.max_length_growth=-1 gates.max_grad_growth=nan",
        ["max_kl=nan", "max_fall=inf", "max_length_growth=-1", "max_grad_growth=nan", "finite"],
    ),
    Case(
        "until nowhere in a stage",
        "stage dpo run_dir=r until=sft",
        ["until=sft", "Leave it out"],
        {"r/config.yaml": ""},
    ),
    Case(
        "stage with two values",
        "stage dpo run_dir=r seed=1,2",
        ["seed=1,2", "one value"],
        {"r/config.yaml": ""},
    ),
    Case("path that needs quotes", "iterate run_dir=a(b", ["run_dir=a(b", "'run_dir=\"a(b\"'"]),
    Case("path with an =", "iterate model.path=/x/a=b", ["model.path=/x/a=b", "'model.path=\"/x/a=b\"'"]),
    Case(
        "T = 0 with n > 1",
        "iterate generate.temperatures=[0]",
        ["temperature 0", "n=8", "Use a temperature above"],
    ),
    Case("T = 0 in part", "iterate generate.temperatures=[0,1]", ["the 4 responses", "fewer responses"]),
    Case(
        "T = 0 twice",
        "iterate generate.n=2 generate.temperatures=[0,0]",
        ["the 2 responses", "fewer responses"],
    ),
    Case("greedy by top_k", "iterate generate.top_k=1", ["generate.top_k=1", "n=8", "generate.top_k=0"]),
    Case(
        "T = 0 in the evaluation",
        "iterate evaluate.temperature=0",
        ["evaluate.temperature=0.0 with evaluate.n=4", "Set evaluate.n=1"],
    ),
    Case(
        "nearly 0 in the evaluation",
        "iterate evaluate.temperature=1e-6 evaluate.n=2",
        ["evaluate.temperature=1e-06 with evaluate.n=2", "Set evaluate.n=1"],
    ),
    Case(
        "greedy evaluation of given pairs",
        "iterate pair.data=p.jsonl num_iterations=1 generate.n=1 generate.temperatures=[1] generate.top_k=1",
        ["evaluate.n=4 with generate.top_k=1", "Set evaluate.n=1"],
    ),
    Case("no prompts", "iterate prompts.path=null", ["prompts.path=null", "must be a path"]),
    Case(
        "nothing to evaluate on",
        "iterate pair.data=p.jsonl num_iterations=1 prompts.path=null",
        ["prompts.path=null with prompts.held_out_path=null", "Set prompts.held_out_path"],
    ),
    Case("one response", "iterate generate.n=1 generate.temperatures=[1]", ["generate.n=1", "Use 2 or more"]),
    Case("uneven n", "iterate generate.n=7", ["generate.n=7", "multiple of 2"]),
    Case(
        "DPO's settings for RAFT",
        "iterate experiment=[quickstart,raft] dpo.learning_rate=1e-3 dpo.lora={dropout:0.1}",
        [
            "dpo.learning_rate=0.001 with method=raft",
            "Set raft.learning_rate",
            "dpo.lora={dropout:0.1}",
            "Leave it out",
        ],
    ),
    Case(
        "RAFT's settings for DPO",
        "check model.path=m raft.num_epochs=2",
        ["raft.num_epochs=2 with method=dpo", "Set dpo.num_epochs in its place, or method=raft"],
    ),
    Case("more than fp32 holds", "iterate dpo.length_alpha=1e39", ["dpo.length_alpha=1e+39", "fp32", "1e9"]),
    Case("less than fp32 holds", "iterate dpo.beta=1e-300", ["dpo.beta=1e-300", "fp32", "1e-9"]),
    Case("all wrong at once", "iterate dpo.beta=0 generate.n=0", ["dpo.beta=0", "generate.n=0"]),
    Case(
        "rule and data",
        f"iterate {RULE} reward_model.data=a.jsonl",
        ["reward_model.data=a", "only one of them"],
    ),
    Case(
        "smoothed hinge", "iterate dpo.loss=hinge dpo.label_smoothing=0.1", ["dpo.loss=hinge", "Set it to 0"]
    ),
    Case(
        "judge named ../x",
        "iterate +evaluate.judges={../x:a/b}",
        ["evaluate.judges.../x", "becomes a folder"],
    ),
    Case(
        "judge named with a slash",
        "iterate +evaluate.judges={a/b:c/d}",
        ["evaluate.judges.a/b", "letters, digits"],
    ),
    Case(
        "part outside of the run",
        "iterate world.enabled=true model.path=@world/../../etc reward_model.rule=json:dumps "
        "prompts.path=@world/p",
        ["model.path=@world/../../etc", "'..'"],
    ),
    Case(
        "part of nothing",
        "iterate model.path=@nothing/model " + RULE,
        ["model.path=@nothing/model", "makes 'nothing'", "Name"],
    ),
    Case(
        "rule that is no module",
        "score input=a.jsonl output=o.jsonl reward_model.rule=no.such:f",
        ["reward_model.rule=no.such:f", "PYTHONPATH"],
        {"a.jsonl": ANSWERED},
    ),
    Case(
        "rule of a built-in",
        "score input=a.jsonl output=o.jsonl reward_model.rule=sys:exit",
        ["sys:exit", "module:function"],
        {"a.jsonl": ANSWERED},
    ),
    Case(
        "relative rule",
        "score input=a.jsonl output=o.jsonl reward_model.rule=.tasks:gold",
        [".tasks:gold", "module:function"],
        {"a.jsonl": ANSWERED},
    ),
    Case(
        "engine's code switch",
        "iterate +generate.vllm_args={trust_remote_code:true}",
        ["trust_remote_code", "not here"],
    ),
    Case("engine's pickles", "iterate +generate.vllm_args.load_format=pt", ["load_format", "safetensors"]),
    Case(
        "url with a password",
        "iterate reward_model.url=https://me:hunter2@host",
        ["***", "RLHF_JUDGE_API_KEY"],
    ),
    Case(
        "url of a file",
        "iterate reward_model.url=file:///etc/passwd",
        ["file:///etc/passwd", "http://127.0.0.1"],
    ),
    Case(
        "run_dir is a file",
        "iterate run_dir=there compute.device=cpu",
        ["run_dir", "/there", "File exists"],
        {"there": ""},
    ),
    Case(
        "run_dir below a file",
        "iterate run_dir=there/run compute.device=cpu",
        ["/there/run", "Not a dir"],
        {"there": ""},
    ),
    Case(
        "run_dir in a loop",
        "iterate run_dir=around/run compute.device=cpu",
        ["run_dir=around/run:", "leads nowhere"],
        make=loop,
    ),
    Case("run_dir is empty", "iterate run_dir= compute.device=cpu", ["run_dir=: is empty", "run_dir=."]),
    Case(
        "run_dir too long",
        "iterate run_dir=" + "x" * 300 + " compute.device=cpu",
        ["run_dir=xxx", "too long"],
    ),
    Case(
        "home of nobody",
        "iterate run_dir='~nobody_here/run' compute.device=cpu",
        ["run_dir=~nobody_here", "home"],
    ),
    Case("no output", "pair input=a.jsonl", ["output=", "missing", "Add it"]),
    Case("output of another kind", "pair input=a.jsonl output=o.csv", ["o.csv", ".jsonl; name"]),
    Case("output exists", "pair input=a.jsonl output=a.jsonl", ["exists already", "rm "], {"a.jsonl": "x"}),
    Case(
        "output below a file",
        "pair input=a.jsonl output=a.jsonl/o.jsonl",
        ["a.jsonl/", "another"],
        {"a.jsonl": "x"},
    ),
    Case(
        "output in a loop", "pair input=a.jsonl output=around/o.jsonl", ["output=around", "loop"], make=loop
    ),
    Case(
        "experiment of the wrong form",
        "iterate --config-dir=own experiment=mine",
        ["experiment/mine", "DpoConfig"],
        config_folder("dpo: [1]\n"),
    ),
    Case(
        "experiment that is no YAML",
        "iterate --config-dir=own experiment=mine",
        ["mine.yaml", "line 3"],
        config_folder("dpo: {a: [\n"),
    ),
    Case(
        "experiment with an unknown key",
        "iterate --config-dir=own experiment=mine",
        ["experiment/mine", "dpo.betta: no such setting", "did you mean dpo.beta?"],
        config_folder("dpo:\n  betta: 1\n"),
    ),
    Case("config folder missing", "iterate --config-dir=nowhere", ["nowhere", "not found"]),
    Case("sweep of a tool", "pair -m input=a,b output=o.jsonl", ["sweeps (-m)", "once per output file"]),
    Case("stage without a run", "stage dpo run_dir=nowhere", ["run_dir=nowhere", "begin the run with"]),
    Case("stage with half an argument", "stage dpo run_dir", ["key=value", "usage"]),
    Case(
        "stage of iteration ²",
        "stage dpo run_dir=r iteration=²",
        ["iteration=²", "whole number"],
        {"r/config.yaml": ""},
    ),
    Case(
        "stage of a broken config",
        "stage dpo run_dir=r",
        ["config.yaml", "line 2"],
        {"r/config.yaml": "a: [\n"},
    ),
    Case(
        "stage of a config with a new key",
        "stage dpo run_dir=r",
        ["nonsense: no such setting", "docs/configuration.md"],
        {"r/config.yaml": "nonsense: 1\n"},
    ),
)
def test_refused(case, tmp_path, monkeypatch, capsys):
    refuse(case, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    "command", ["iterate dpo.beta=0", "pair input=a.jsonl output=o.jsonl", "stage dpo run_dir=a"]
)
def test_the_real_command_ends_with_2_and_no_traceback(tmp_path, command):
    done = run_for_real(tmp_path, command)
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: ")
        and "Traceback" not in done.stderr + done.stdout
    )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_debug_shows_where_it_was_raised_and_no_password(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, "iterate reward_model.url=https://me:hunter2@host debug=true") == 2
    said = capsys.readouterr().err
    assert "Traceback" in said and "RLHF_JUDGE_API_KEY" in said and "hunter2" not in said


def test_a_rate_that_yaml_takes_for_text_is_a_number(tmp_path, monkeypatch, capsys):
    prepare(Case("", "", [], config_folder("dpo: {learning_rate: 5e-7}\ngenerate: {n: 0}\n")), tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, "iterate --config-dir=own experiment=mine") == 2
    assert "learning_rate" not in capsys.readouterr().err


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir(mode=0o500)
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, "iterate compute.device=cpu run_dir=run") == 2
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "value"),
    [("yes", True), ("off", False), ("1", True), ("0", False), ("True", True), ("'on'", True)],
)
def test_what_people_write_for_a_boolean(word, value):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        assert to_config(compose("iterate", [f"debug={word}"])).debug is value
    assert list(misread(typed_values([f"debug={word}"]), Config())) == []


@pytest.mark.parametrize("word", ["run_dir=2.5", "run_dir=2024", "model.revision=007", "prompts.path=1e3"])
def test_text_that_comes_out_as_it_was_written_is_fine(word):
    assert list(misread(typed_values([word]), Config())) == []
