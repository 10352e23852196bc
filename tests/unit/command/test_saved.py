"""A run folder's own settings: who goes on with them, what of them is obeyed, and what is said when they
cannot be read.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import os
import shlex
import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rlhf import iterate
from rlhf.command.foreign import code_in, require_named
from rlhf.command.line import CONFIGS
from rlhf.command.saved import (
    FILE,
    also_saying,
    changed_settings,
    going_on,
    merged,
    other_run,
    read_saved,
    typed_settings,
    write_saved,
)
from rlhf.command.settings import to_config
from rlhf.config import schema, training
from rlhf.config.overrides import override, pasted
from rlhf.config.schema import Config
from rlhf.config.training import OtherJudge
from rlhf.errors import ConfigError, UserError
from rlhf.run import owner
from tests.unit.refusals import Case, cases, refuse, run_here

OWN_RULE = "rlhf.world.tasks:gold"


def settings(**changes):
    """A config that differs from the defaults."""
    cfg = Config(run_dir="run", num_iterations=2)
    cfg.model.path = "/models/mine"
    cfg.dpo.beta = 0.2
    for key, value in changes.items():
        section, _, name = key.replace("__", ".").rpartition(".")
        target = cfg
        for each in filter(None, section.split(".")):
            target = getattr(target, each)
        setattr(target, name, value)
    return cfg


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    write_saved(tmp_path / "run", settings(), "quickstart")
    return tmp_path / "run"


@pytest.fixture
def elses(monkeypatch):
    """Every file of this test belongs to another user from now on."""
    uid = os.geteuid()
    return lambda: monkeypatch.setattr(owner.os, "geteuid", lambda: uid + 1)


def test_what_is_written_is_read(tmp_path):
    cfg = settings(
        model__path="a${b}\\${c}",
        until="dpo",
        take_over="node7:4711",
        generate__vllm_args={"max_num_seqs": 3},
    )
    cfg.reward_model.others = {"one": OtherJudge(rule=OWN_RULE)}
    write_saved(tmp_path, cfg, None)
    saved = read_saved(tmp_path)
    again = to_config(merged(saved, typed_settings([])))
    assert again == dataclasses.replace(cfg, until=None, take_over=None), "both are said anew each time"
    assert saved.experiment is None and saved.not_own is None


def test_the_experiments_name_stays_while_the_run_does(run):
    write_saved(run, settings(), None)
    assert read_saved(run).experiment == "quickstart"
    write_saved(run, settings(model__path="/models/other"), None)
    assert read_saved(run).experiment is None


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["until=reward_model"],
        ["take_over=node7:4711"],
        ["num_iterations=5"],
        ["compute.num_threads=1", "gates.kl=stop", "gates.max_kl=3"],
        ["dpo.batch_tokens=100", "dpo.lora.rank=0"][:1],
        ["reuse=[a,b]", "debug=true", "report_to=[wandb]"],
        ["gates={kl:stop}"],
        ["dpo.save_steps=3", "generate.tensor_parallel_size=1"],
    ],
)
def test_what_no_artifact_depends_on_goes_over_the_runs_own(run, words):
    words = [f"run_dir={run}", *words]
    saved = going_on(words, str(run), Config)
    cfg = to_config(merged(saved, typed_settings(words)))
    assert (cfg.model.path, cfg.dpo.beta, cfg.run_dir) == ("/models/mine", 0.2, str(run))
    for word in words[1:]:
        key, _, value = word.partition("=")
        assert f"{key}={value}".startswith(key)
    if "num_iterations=5" in words:
        assert cfg.num_iterations == 5
    if "gates={kl:stop}" in words:
        assert cfg.gates.kl.value == "stop" and cfg.gates.max_kl == 50


def test_a_run_folder_may_be_named_like_an_interpolation(tmp_path, monkeypatch):
    """What is in its settings is written there, and not in the folder that the interpolation would name."""
    folder = tmp_path / "${oc.env:ELSEWHERE}"
    folder.mkdir()
    write_saved(folder, settings(), None)
    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "elsewhere"))
    seen = []
    monkeypatch.setattr(iterate, "execute", seen.append)
    assert run_here(monkeypatch, f"iterate {override('run_dir', str(folder))}") == 0
    assert [cfg.run_dir for cfg in seen] == [str(folder)]


@pytest.mark.parametrize(
    "words",
    [
        ["dpo.beta=0.2"],
        ["seed=42"],
        ["model.path=/models/mine"],
        ["experiment=quickstart"],
        ["evaluate.gold=my_rules:f"],
        ["model.trust_remote_code=true"],
        ["+evaluate.judges.a=b/c"],
        ["--config-dir=own"],
        ["-m", "seed=1,2"],
        ["~dpo.beta"],
    ],
)
def test_a_command_that_says_what_is_made_is_a_whole_one(run, words):
    assert going_on([f"run_dir={run}", *words], str(run), Config) is None


def test_without_a_folder_there_is_nothing_to_go_on_with(tmp_path):
    assert going_on(["run_dir=new"], str(tmp_path / "new"), Config) is None
    (tmp_path / "empty").mkdir()
    assert going_on(["run_dir=empty"], str(tmp_path / "empty"), Config) is None
    assert going_on([], None, Config) is None


def test_finished_stages_without_settings_are_refused(tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "artifact.json").write_text("{}")
    with pytest.raises(ConfigError, match=rf"holds finished stages \(prompts, …\) but no {FILE}.*\n.*whole"):
        going_on([f"run_dir={tmp_path}"], str(tmp_path), Config)
    assert going_on(["seed=1"], str(tmp_path), Config) is None


def edited(edit):
    """The settings of a run, with their text changed."""

    def make(here):
        (here / "run").mkdir()
        write_saved(here / "run", settings(), None)
        file = here / "run" / FILE
        file.write_bytes(edit(file.read_bytes()))

    return make


def a_pipe(here):
    (here / "run").mkdir()
    os.mkfifo(here / "run" / FILE)


def a_folder(here):
    (here / "run" / FILE).mkdir(parents=True)


def damaged(name, said, edit):
    said = ["run/config.yaml", "cannot be read", "Ways out: put the file back", *said]
    return [
        Case(f"{name} for {tool}", f"{tool} run_dir=run", said, make=edit)
        for tool in ("iterate", "stage dpo")
    ]


@cases(
    *damaged("empty", ["lacks run_dir"], edited(lambda text: b"")),
    *damaged("cut short", ["lacks reference"], edited(lambda text: text[: text.index(b"\nreference:") + 1])),
    *damaged("no YAML", ["line 2"], edited(lambda text: b"a: [\n")),
    *damaged("a list", ["list"], edited(lambda text: b"- 1\n")),
    *damaged("no text", ["utf-8"], edited(lambda text: b"\xff\xfe" + text)),
    *damaged(
        "of a newer version",
        ["dpo.news: no such"],
        edited(lambda t: t.replace(b"\ndpo:", b"\ndpo:\n  news: 1")),
    ),
    *damaged(
        "of another type", ["dpo.beta", "fast"], edited(lambda t: t.replace(b"beta: 0.2", b"beta: fast"))
    ),
    *damaged(
        "a number for a boolean", ["debug=2"], edited(lambda t: t.replace(b"debug: false", b"debug: 2"))
    ),
    *damaged("twice a key", ["duplicate key"], edited(lambda text: text + b"seed: 1\n")),
    *damaged(
        "YAML that runs", ["python/object"], edited(lambda t: t + b"x: !!python/object/apply:os.getpid []\n")
    ),
    *damaged(
        "a variable", ["interpolation"], edited(lambda t: t.replace(b"/models/mine", b"${oc.env:HOME}"))
    ),
    *damaged("a pipe", ["no plain file"], a_pipe),
    *damaged("a folder", ["no plain file"], a_folder),
)
def test_settings_that_cannot_be_read(case, tmp_path, monkeypatch, capsys):
    refuse(case, tmp_path, monkeypatch, capsys)


def test_an_older_file_lacks_what_came_later(run):
    file = run / FILE
    later = ("until:", "take_over:", "special_tokens:", "  columns:")
    lines = [line for line in file.read_text().splitlines() if not line.startswith(later)]
    file.write_text("\n".join(lines))
    assert to_config(merged(read_saved(run), typed_settings([]))) == settings()


def test_the_names_of_several_experiments_are_kept(run):
    write_saved(run, settings(), "quickstart+inpo")
    assert read_saved(run).experiment == "quickstart+inpo"


def test_a_damaged_file_does_not_stand_in_the_way_of_a_whole_command(tmp_path):
    (tmp_path / FILE).write_text("a: [")
    assert going_on([f"run_dir={tmp_path}", "model.path=x"], str(tmp_path), Config) is None
    assert other_run(tmp_path, Config()) == ""


def test_a_refusal_names_the_settings_as_a_person_types_them(run):
    cfg = settings()
    assert changed_settings(run, cfg) == ""
    cfg.prompts.num_per_iteration += 1
    cfg.evaluate.greedy = 7
    cfg.generate.vllm_args = {"seed": None}
    cfg.compute.num_threads = 3  # no artifact depends on it
    cfg.num_iterations += 1
    number = cfg.prompts.num_per_iteration
    assert changed_settings(run, cfg) == (
        f"{run / FILE} differs from this command:\n"
        f"  prompts.num_per_iteration={number - 1} there, {number} in this command\n"
        "  evaluate.greedy=0 there, 7 in this command"
    )
    # Of another run it is said which one it is, and no more.
    cfg.model.path = "another/model"
    assert changed_settings(run, cfg) == "" != other_run(run, cfg)


def test_what_the_folder_holds_is_read_for_an_error_and_not_without_one():
    asked = []

    def note():
        asked.append(True)
        return "RUN holds another run"

    with also_saying(note):
        pass
    assert not asked
    with pytest.raises(ConfigError, match=r"^no such model\nRUN holds another run$"), also_saying(note):
        raise ConfigError("no such model")
    with pytest.raises(ConfigError, match=r"^no such model$"), also_saying(lambda: ""):
        raise ConfigError("no such model")


def test_a_command_of_another_run_is_told_which_one_there_is(run):
    said = other_run(run, Config())
    assert "experiment=quickstart" in said and "model.path=/models/mine there, meta-llama/" in said
    assert "To change a setting of that one, give its whole command with the change." in said
    assert said.endswith(pasted("python", "-m", "rlhf.iterate", f"run_dir={run}"))
    assert other_run(run, settings(dpo__beta=0.3)) == "", "the refusal itself names what else differs"


def test_the_driver_says_so_before_anything_else(run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent)
    assert run_here(monkeypatch, "iterate run_dir=run seed=7 compute.device=cpu") == 2
    said = capsys.readouterr().err
    assert "model.path=/models/mine there" in said and "python -m rlhf.iterate run_dir=" in said


CODE = {
    "reward_model.generative.api_key_variable": "SOME_KEY",
    "reward_model.rule": "my_rules:f",
    "reward_model.on_policy.rule": "my_rules:f",
    "evaluate.gold": "my_rules:f",
    "model.trust_remote_code": True,
    "reward_model.trust_remote_code": True,
    "reward_model.url": "http://127.0.0.1:1",
    "generate.vllm_args": {"logits_processors": ["my_rules:f"]},
    "dpo.trainer_args": {"optim": "x"},
    "sft.trainer_args": {"optim": "x"},
    "reward_model.trainer_args": {"optim": "x"},
    "reward_model.others.one.rule": "my_rules:f",
    "reward_model.others.one.trust_remote_code": True,
}


def with_code(key, value):
    cfg = settings()
    cfg.reward_model.others = {"one": OtherJudge()}
    config = OmegaConf.structured(cfg)
    OmegaConf.update(config, key, value)
    return OmegaConf.to_object(config)


@pytest.mark.parametrize(("key", "value"), CODE.items())
def test_another_users_settings_have_no_code_run(key, value, tmp_path, elses):
    write_saved(tmp_path, with_code(key, value), None)
    merged(read_saved(tmp_path), typed_settings([]))  # their own, they do
    elses()
    saved = read_saved(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        merged(saved, typed_settings([]))
    said = str(refusal.value)
    for part in (
        str(tmp_path),
        "belongs to",
        "uid",
        key.split(".one.")[0],
        "add to the command",
        "chown -R",
        "cp -r",
    ):
        assert part in said
    # The way out that is printed is one.
    words = said.split("add to the command  ")[1].splitlines()[0]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        compose("iterate", shlex.split(words))
    named = typed_settings(shlex.split(words))
    merged(saved, named)
    assert going_on([f"run_dir={tmp_path}", *shlex.split(words)], str(tmp_path), Config) is not None
    with pytest.raises(ConfigError, match="nothing of it was used"):
        merged(saved, typed_settings([f"{key}=null"]))


def test_a_judges_name_may_hold_dots(tmp_path, elses):
    cfg = settings()
    cfg.reward_model.others = {"v1.0": OtherJudge(rule="my_rules:f"), "v2": OtherJudge(rule="my_rules:g")}
    write_saved(tmp_path, cfg, None)
    elses()
    words = ["+reward_model.others={v1.0:{rule:my_rules:f},v2:{rule:my_rules:g}}"]
    with pytest.raises(ConfigError) as refusal:
        merged(read_saved(tmp_path), typed_settings([]))
    assert pasted(*words) in str(refusal.value)
    merged(read_saved(tmp_path), typed_settings(words))
    with pytest.raises(ConfigError, match="my_rules:g"):
        merged(read_saved(tmp_path), typed_settings(["+reward_model.others={v1.0:{rule:my_rules:f}}"]))


SAYS_CODE = ("module:function", "Run Python code", "Passed on to", "Base URL", "Name of the environment")


@pytest.mark.parametrize("module", [schema, training])
def test_every_setting_that_runs_code_says_so(module):
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(node, ast.ClassDef):
            continue
        fields = {item.name: item for item in dataclasses.fields(getattr(module, node.name))}
        for field, doc in itertools.pairwise(node.body):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
                runs_code = any(words in ast.unparse(doc) for words in SAYS_CODE)
                assert fields[field.target.id].metadata.get("code", False) == runs_code, field.target.id


def test_every_such_setting_is_found():
    assert {".".join(names) for names, _ in code_in(with_all_code())} == set(CODE)


def with_all_code():
    cfg = settings()
    cfg.reward_model.others = {"one": OtherJudge()}
    config = OmegaConf.structured(cfg)
    for key, value in CODE.items():
        OmegaConf.update(config, key, value)
    return OmegaConf.to_object(config)


def test_the_packages_own_rules_are_no_strangers(tmp_path, elses):
    write_saved(tmp_path, settings(evaluate__gold=OWN_RULE), None)
    elses()
    merged(read_saved(tmp_path), typed_settings([]))
    for stranger in ("rlhf.world.tasks.x:f", "rlhf.world:f", "rlhf.world.tasks", "os:system"):
        cfg = settings(evaluate__gold=stranger)
        with pytest.raises(ConfigError):
            require_named(cfg, typed_settings([]), tmp_path / FILE, "x")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("given_away", [".", FILE])
def test_root_is_a_user_like_any_other(tmp_path, given_away):
    write_saved(tmp_path, settings(evaluate__gold="my_rules:f"), None)
    os.chown(tmp_path / given_away, 65534, -1)
    assert "(uid 65534), and you are root (uid 0)" in read_saved(tmp_path).not_own
    with pytest.raises(ConfigError, match=r"evaluate\.gold=my_rules:f"):
        merged(read_saved(tmp_path), typed_settings([]))


def test_who_may_write_it_owns_it(tmp_path):
    write_saved(tmp_path, settings(evaluate__gold="my_rules:f"), None)
    tmp_path.chmod(0o755)
    assert read_saved(tmp_path).not_own is None
    for place, mode in ((tmp_path, 0o777), (tmp_path, 0o757), (tmp_path / FILE, 0o666)):
        before = place.stat().st_mode
        place.chmod(mode)
        assert "can be written by everyone" in read_saved(tmp_path).not_own
        place.chmod(before)
    (tmp_path / FILE).chmod(0o664)
    assert read_saved(tmp_path).not_own is None or "its group" in read_saved(tmp_path).not_own


HOSTILE = 'open({marker!r}, "a").write(__name__)\n'


@pytest.mark.parametrize(
    "command", ["iterate", "check", "stage generate", "stage score", "iterate until=sft"]
)
@pytest.mark.parametrize("key", ["reward_model.rule", "evaluate.gold", "reward_model.others.one.rule"])
def test_no_command_imports_a_strangers_rule(command, key, tmp_path, monkeypatch, capsys, elses):
    """A package too: looking for a module in it would import it."""
    marker = tmp_path / "executed"
    (tmp_path / "evil").mkdir()
    for name in ("__init__", "rules"):
        text = HOSTILE.format(marker=str(marker)) + "def f(messages, response): return 1\n"
        (tmp_path / "evil" / f"{name}.py").write_text(text)
    (tmp_path / "run").mkdir()
    write_saved(tmp_path / "run", with_code(key, "evil.rules:f"), None)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    elses()
    assert run_here(monkeypatch, f"{command} run_dir=run") == 2
    said = capsys.readouterr().err
    assert "evil.rules:f" in said and "nothing of it was used" in said
    assert not marker.exists() and "evil" not in sys.modules


def test_a_foreign_model_with_code_is_not_taken_by_reuse(tmp_path, elses):
    artifact = tmp_path / "sft"
    (artifact / "model").mkdir(parents=True)
    (artifact / "model" / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "m.Evil"}}))
    cfg = Config()
    cfg.reward_model.others = {"one": OtherJudge(trust_remote_code=True)}
    owner.require_own_code(artifact, cfg)
    elses()
    owner.require_own_code(artifact, Config())  # its code never runs
    with pytest.raises(
        UserError, match=r"reuse: .*m\.Evil.*belongs to.*Ways out: leave that run out of reuse"
    ):
        owner.require_own_code(artifact, cfg)
    (artifact / "model" / "config.json").write_text("{}")
    owner.require_own_code(artifact, cfg)
