"""The page of a run: what it shows of a finished one, an unfinished one, a damaged one; nothing breaks out."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from rlhf import report
from rlhf.data.shards import read_all_rows
from rlhf.errors import visible
from rlhf.run.plan import Run
from rlhf.view import build_report, kept_report, report_greedy
from rlhf.view.build_report import write_report
from rlhf.view.kept_report import update_report
from rlhf.view.report_library import LIBRARY
from rlhf.view.report_lineage import changed_settings, num_starts, stages_of
from rlhf.view.report_page import script_json, tag
from rlhf.view.report_records import chosen_places, fitted, origins_of, text_of, writing_of
from rlhf.view.run_folder import REPORT, open_run
from scripts.synthetic_run import make_run
from tests.unit.refusals import run_here

OLD_RUN = Path(__file__).resolve().parents[2] / "data" / "old_run.tar.gz"


class Page(HTMLParser):
    """A page as a browser takes it apart: text by element, scripts, and everything that could load."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.scripts, self.texts, self.attributes, self._open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, name, attributes):
        self._open.append(name)
        self.attributes += [(name, *each) for each in attributes]
        if name == "script":
            self.scripts.append("")

    def handle_endtag(self, name):
        while self._open and self._open.pop() != name:
            pass

    def handle_data(self, text):
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += text
        elif self._open and self._open[-1] != "style":
            self.texts.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self):
        return json.loads(self.scripts[0])


def page_of(folder, **settings):
    target = folder / REPORT
    write_report(open_run(str(folder)), target, **settings)
    return Page(target.read_text(encoding="utf-8"))


def test_a_finished_run(made_up):
    page = page_of(made_up)
    run = open_run(str(made_up))
    assert page.data["policies"] == ["π0", "π1", "π2", "π3"]
    assert page.data["judges"] == ["training judge", "second", "gold"]
    best = max(run.rows, key=lambda row: row.mean_score)
    assert page.data["best"] == run.rows.index(best)
    assert f"π{best.iteration} is the best policy: it has the highest mean held-out score" in page.text
    assert f"{best.win_rate:.3f} [{best.win_rate_low:.3f}, {best.win_rate_high:.3f}]" in page.text
    keys = {plot["key"] for plot in page.data["plots"]}
    assert keys >= {
        "wins",
        "wins-previous",
        "scores-score",
        "scores-second",
        "length-score",
        "frontier-score",
        "frontier-second",
        "frontier-gold",
        "disagreement",
        "training-loss",
        "training-rewards_accuracies",
        "training-rewards_margins",
        "training-grad_norm",
        "margins",
        "longer",
        "seconds",
    }
    # A place for each plot, and a plot for each place.
    places = {value for _, key, value in page.attributes if key == "id" and value.startswith("plot-")}
    assert places == {f"plot-{key}" for key in keys}
    assert all(plot["spec"]["description"] for plot in page.data["plots"])
    assert "cannot be shown" not in page.text and "damaged" not in page.text
    for name, artifact in run.artifacts.items():
        assert name in page.text and artifact.digest[:12] in page.text
    assert len(page.data["records"]) == 10 and "All 10 held-out prompts are here" in page.text
    num_pairs = sum(run.artifact(number, "pair").counts["pairs"] for number in (1, 2, 3))
    assert len(page.data["pairs"]) == num_pairs and f"All {num_pairs} training pairs are here" in page.text
    record = page.data["records"][0]
    assert [len(responses) for responses in record["responses"]] == [4, 4, 4, 4]
    assert len(record["responses"][0][0][4]) == 3


def test_the_page_loads_nothing_and_runs_only_its_own_two_scripts(made_up):
    page = page_of(made_up)
    assert len(page.scripts) == 3
    (policy,) = [value for _, key, value in page.attributes if key == "content" and "default-src" in value]
    assert policy.startswith("default-src 'none';") and "unsafe-eval" not in policy
    allowed = re.findall("'sha256-([^']+)'", policy)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.scripts]
    assert allowed == hashes[1:]
    loading = [each for each in page.attributes if each[1] in ("src", "srcset", "data", "action", "poster")]
    links = [value for _, key, value in page.attributes if key == "href"]
    assert loading == [] and all(link.startswith("#") for link in links)
    assert not any(key.startswith("on") for _, key, _ in page.attributes)
    styles = (Path(build_report.__file__).parent / "page" / "report.css").read_text(encoding="utf-8")
    assert "url(" not in styles and "@import" not in styles
    script = (Path(build_report.__file__).parent / "page" / "report.js").read_text(encoding="utf-8")
    for way_in in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"):
        assert way_in not in script


def test_hostile_texts_stay_text(made_up):
    text = page_of(made_up) and (made_up / REPORT).read_text(encoding="utf-8")
    for markup in ("</script><script>document", "<img src=x", "<iframe", "<b>bold"):
        assert markup not in text
    for sign in ("\x1b", "\x07", "\x00", "\r", "\u202e", "\u2028", "\u2029", "\u2066", "\u200b", "\ufeff"):
        assert sign not in text
    texts = [
        response[0]
        for record in Page(text).data["records"]
        for responses in record["responses"]
        for response in responses
    ]
    assert "</script><script>document.title = 'owned'</script>" in texts
    assert any(r"\x1b[31mred\x1b[0m" in each for each in texts)
    assert any(r"left \u202ethgir ot\u202c" in each for each in texts)
    assert "" in texts
    assert any("שלום עולם, مرحبا بالعالم, 世界你好 🎉" in each for each in texts)
    assert len(text) < 1_000_000


def test_a_line_of_a_megabyte_says_how_much_is_missing(made_up):
    page = page_of(made_up)
    responses = [each for record in page.data["records"] for policy in record["responses"] for each in policy]
    (long, *_) = [response for response in responses if response[1]]
    assert len(long[0]) + long[1] == 1_000_000 and set(long[0]) == {"x"}


@pytest.mark.parametrize(
    ("until", "said"),
    [
        ("prompts", "π0 has no finished evaluation here"),
        ("iteration_000/held_out/gold", "The run is at iteration 0 of 2"),
        ("iteration_001/dpo", "The run is at iteration 0 of 2"),
        ("iteration_002/pair", "The run is at iteration 1 of 2"),
    ],
)
def test_an_unfinished_run(tmp_path, until, said):
    make_run(tmp_path / "run", until=until)
    page = page_of(tmp_path / "run")
    assert said in page.text
    assert "cannot be shown" not in page.text
    assert until in page.text


def test_a_stage_that_is_under_way_is_named(made_up):
    (made_up / "iteration_003" / "dpo").rename(made_up / "iteration_003" / ".dpo.partial")
    assert "Begun and not finished: iteration_003/dpo." in page_of(made_up).text


def _flip(path):
    content = bytearray(path.read_bytes())
    content[: len(content) // 2] = b"\xff" * (len(content) // 2)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("stage", "lost"),
    [
        ("iteration_000/held_out/generate", ["π0's held-out responses cannot be shown"]),
        ("iteration_002/held_out/generate", ["π2's held-out responses cannot be shown"]),
        ("iteration_002/held_out/score_second", ["π2's held-out responses cannot be shown"]),
        ("iteration_002/held_out/reference", ["π2's distance to π0 cannot be shown"]),
        ("iteration_001/pair", ["The pairs of iteration 1 as", "cannot be shown"]),
        ("iteration_001/dpo", ["iteration_001/dpo/metrics.jsonl cannot be read"]),
    ],
)
def test_damage_inside_files_is_told_and_the_rest_is_shown(made_up, stage, lost):
    for path in (made_up / stage).glob("*.*"):
        if path.name != "artifact.json":
            _flip(path)
    page = page_of(made_up)
    for each in lost:
        assert each in page.text
    keys = {plot["key"] for plot in page.data["plots"]}
    assert "seconds" in keys
    assert ("margins" in keys) and ("training-loss" in keys) and page.data["pairs"]
    if "iteration_000" not in stage:
        assert "wins" in keys and page.data["records"]


@pytest.mark.parametrize("what", ["manifest", "config", "summary", "shard"])
def test_damage_that_manifests_tell_of(made_up, what):
    if what == "manifest":
        (made_up / "iteration_002" / "pair" / "artifact.json").write_text("{")
        said = "iteration_002/pair is damaged and left out"
    elif what == "config":
        (made_up / "config.yaml").write_text("a: [")
        said = "There is no config.yaml here that can be read"
    elif what == "summary":
        (made_up / "summary.json").write_text("[]")
        said = "summary.json, which has what gates found, cannot be read"
    else:
        (made_up / "iteration_003/held_out/score/shard_00000.parquet").unlink()
        said = "The run is at iteration 2 of 3"
    page = page_of(made_up)
    assert said in page.text
    assert page.data["records"]


def test_an_old_run(tmp_path):
    with tarfile.open(OLD_RUN) as archive:
        archive.extractall(tmp_path, filter="data")
    (config,) = tmp_path.rglob("config.yaml")
    page = page_of(config.parent)
    assert "cannot be shown" not in page.text
    assert page.data["judges"][0] == "sum of judges" and len(page.data["policies"]) == 3
    assert "judges disagree" in page.text


def test_of_many_records_a_sample_with_the_extremes_is_shown_and_counted(made_up):
    page = page_of(made_up, most=4, seed=1)
    assert "4 of 10 held-out prompts are here: those at both ends of every figure" in page.text
    assert "the rest drawn with seed 1" in page.text
    shown = {record["id"] for record in page.data["records"]}
    (everything,) = [page_of(made_up).data["records"]]

    def gain(record):
        first, last = record["responses"][0], record["responses"][-1]
        return np.mean([each[4][0] for each in last]) - np.mean([each[4][0] for each in first])

    ranked = sorted(everything, key=gain)
    assert {ranked[0]["id"], ranked[-1]["id"]} <= shown


def test_places_are_chosen_by_figures_and_seed():
    figures = [np.array([0.0, 5, NAN, -3, 1, 2] * 20), np.arange(120.0)]
    chosen = chosen_places(figures, 120, 50, seed=3)
    assert chosen == chosen_places(figures, 120, 50, seed=3) != chosen_places(figures, 120, 50, seed=4)
    assert len(chosen) == 50 and chosen == sorted(set(chosen))
    assert {0, 119, 3} <= set(chosen)
    assert chosen_places([], 3, 30, seed=0) == [0, 1, 2]
    assert chosen_places([np.full(4, NAN)], 4, 2, seed=0) == chosen_places([], 4, 2, seed=0)


NAN = np.nan


def test_texts_are_cut_until_they_fit():
    texts = [text_of("é" * 30_000)] * 100

    def as_json(text, cut):
        return {"text": text.cut_to(cut)}

    sample = fitted(texts, as_json, 500_000, total=400)
    assert (len(sample.shown), sample.total, sample.cut) == (100, 400, 2_000)
    assert sample.shown[0]["text"] == ["é" * 2_000, 28_000]
    few = fitted(texts, as_json, 1_000, total=400)
    assert 0 < len(few.shown) < 100 and few.cut == 120


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Hi, 世界!", "Latin"),
        ("你好，世界 ok", "Chinese characters"),
        ("Привет", "Cyrillic"),
        ("مرحبا", "Arabic"),
        ("1 + 1 = ?", "other"),
        ("", "other"),
    ],
)
def test_what_a_prompt_is_written_in(text, name):
    assert writing_of(text) == name


def test_markup_is_escaped_where_text_is_put_into_it():
    assert tag("td", "<b>&", class_='"x') == '<td class="&quot;x">&lt;b&gt;&amp;</td>'
    assert tag("input", type="checkbox", checked=True, disabled=False) == '<input type="checkbox" checked>'
    assert "secret" not in tag("p", "http://user:secret@host/")
    written = script_json(["</script><!--", "\u2028\u2029&"])
    assert not set(written) & set("<>&\u2028\u2029")
    assert json.loads(written) == ["</script><!--", "\u2028\u2029&"]


def test_a_place_of_the_page_is_filled_once(made_up):
    renamed = made_up.rename(made_up.parent / "{{data}}<i>")
    text = page_of(renamed) and (renamed / REPORT).read_text(encoding="utf-8")
    assert "<title>Report of {{data}}&lt;i&gt;</title>" in text


def test_settings_that_differ_from_the_recipe():
    config = {
        "run_dir": "runs/x",
        "dpo": {"beta": 0.05, "learning_rate": 5e-7},
        "reward_model": {"url": "http://me:secret@judge:8000", "others": {"b": {"path": "x"}}},
        "prompts": {"columns": {}},
        "gone": {"a": 1},
    }
    found = {setting.key: (setting.value, setting.usual) for setting in changed_settings(config)}
    assert found["dpo.beta"] == ("0.05", "0.1")
    assert found["reward_model.url"] == ("http://***@judge:8000", "null")
    assert found["gone"] == ('{"a": 1}', None)
    assert set(found) == {"dpo.beta", "reward_model.url", "reward_model.others", "gone"}


def test_stages_name_what_they_were_made_of(made_up):
    stages = {stage.name: stage for stage in stages_of(open_run(str(made_up)))}
    assert "policy iteration_001/dpo/model" in stages["iteration_002/dpo"].made_of
    assert "pairs iteration_002/pair" in stages["iteration_002/dpo"].made_of
    assert "2 earlier policies' scores" in stages["iteration_002/held_out/score"].made_of


def test_how_often_a_run_was_resumed(made_up):
    run = open_run(str(made_up))
    assert num_starts(run) is None
    assert "not known: there is no logs/driver.log here" in page_of(made_up).text
    (made_up / "logs").mkdir()
    lines = [
        f"2026-11-26 17:32:46 {made_up}: 38 stages to do",
        "2026-11-26 17:33:33   ✓ world                             46.8 s",
        f"2026-11-26 18:32:46 {made_up}: 12 stages are finished, 26 to do",
    ]
    (made_up / "logs" / "driver.log").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert num_starts(run) == 2
    assert "resumed once" in page_of(made_up).text


def _loop(folder, said=None):
    run = Run(folder, None, has_worked=True)
    run.say = (said if said is not None else []).append
    return run


def test_the_loop_makes_a_report_anew_when_something_is_new(made_up):
    (made_up / REPORT).unlink()
    update_report(_loop(made_up))
    first = (made_up / REPORT).stat().st_mtime_ns
    update_report(_loop(made_up))
    assert (made_up / REPORT).stat().st_mtime_ns == first
    shutil.rmtree(made_up / "iteration_003" / "export")
    update_report(_loop(made_up))
    assert (made_up / REPORT).stat().st_mtime_ns != first


def test_a_run_goes_on_without_a_report(made_up, monkeypatch):
    said = []
    (made_up / REPORT).unlink()
    monkeypatch.setattr(build_report, "write_report", lambda *_: 1 / 0)
    update_report(_loop(made_up, said))
    assert len(said) == 1
    assert said[0].startswith(
        "  ! no report.html: division by zero. To make it: python -m rlhf.report run_dir="
    )


def test_a_plan_and_a_stage_alone_leave_the_report(made_up):
    (made_up / REPORT).unlink()
    run = _loop(made_up)
    run.planning = True
    update_report(run)
    run.planning, run.only = False, "prompts"
    update_report(run)
    assert not (made_up / REPORT).exists()


def test_the_loop_itself_has_made_one_after_every_iteration(tmp_path):
    make_run(tmp_path / "run", until="iteration_002/generate")
    page = Page((tmp_path / "run" / REPORT).read_text(encoding="utf-8"))
    assert page.data["policies"] == ["π0", "π1"]
    make_run(tmp_path / "run")
    page = Page((tmp_path / "run" / REPORT).read_text(encoding="utf-8"))
    assert page.data["policies"] == ["π0", "π1", "π2"]
    assert "export" in page.text


def test_a_library_that_is_not_there_is_named(made_up, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(LIBRARY, "_script", "")
    program = tmp_path / "fails.py"
    program.write_text("raise ImportError('no module')")
    monkeypatch.setattr("rlhf.view.report_library._PROGRAM", program)
    with pytest.raises(Exception, match="vl-convert-python"):
        page_of(made_up)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("run_dir={folder}/nowhere", "does not exist. Name the folder of a run"),
        ("run_dir={folder}", "it holds 1 of them: made_up. Name one of those"),
        ("run_dir={folder}/made_up output={folder}/x.txt", "give a name that ends in .html"),
        ("run_dir={folder}/made_up output={folder}/no/x.html", "there is no folder"),
        ("run_dir={folder}/made_up output={folder}/mine.html", "exists and is no report of this program"),
        ("run_dir={folder}/made_up records=0", "must be a positive number"),
        ("run_dir={folder}/made_up seed=-1", "must not be negative"),
    ],
)
def test_bad_input(made_up, monkeypatch, capsys, arguments, said):
    (made_up.parent / "mine.html").write_text("mine")
    command = f"report {arguments.format(folder=made_up.parent)}"
    assert run_here(monkeypatch, command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and "Traceback" not in error
    assert (made_up.parent / "mine.html").read_text() == "mine"


def test_the_command(made_up, monkeypatch, capsys):
    target = made_up.parent / "page.html"
    assert run_here(monkeypatch, f"report run_dir={made_up} output={target} records=3") == 0
    assert capsys.readouterr().out.startswith(f"report  {target} (")
    assert len(Page(target.read_text(encoding="utf-8")).data["records"]) == 3
    assert report.__doc__


def test_records_say_where_their_prompts_come_from(made_up):
    run = open_run(str(made_up))
    origins = origins_of(run)
    assert {origin.source for origin in origins.values()} == {"made-up-a", "made-up-b"}
    write_report(run, made_up / "report.html")
    text = (made_up / "report.html").read_text(encoding="utf-8")
    assert 'id="records-source"' in text and '"source":"made-up-a"' in text.replace('": "', '":"')
    # A run of an earlier version knows nothing of it.
    (made_up / "prompts" / "origins.json").unlink()
    del run.artifacts["prompts"].record["files"]["origins.json"]
    assert origins_of(run) == {}


def test_a_run_in_which_nothing_was_done_does_not_read_itself_for_its_report(made_up, monkeypatch):
    run = _loop(made_up)
    run.has_worked = False
    run.made = dict(open_run(str(made_up)).artifacts)
    (made_up / REPORT).unlink()
    update_report(run)
    assert (made_up / REPORT).exists(), "there was none"
    monkeypatch.setattr(kept_report, "open_run", lambda path: 1 / 0)
    said = []
    run.say = said.append
    update_report(run)
    assert said == []
    future = (made_up / REPORT).stat().st_mtime + 5
    os.utime(made_up / "iteration_003" / "dpo" / "artifact.json", (future, future))
    update_report(run)
    assert "division by zero" in said[0], "a stage is younger than the report: it is looked at"


def test_greedy_answers_stand_side_by_side(tmp_path):
    make_run(tmp_path / "run", held_out=10, greedy=8, hostile=True)
    page = page_of(tmp_path / "run")
    run = open_run(str(tmp_path / "run"))
    assert "8 held-out prompts, answered at temperature 0" in page.text
    assert "are shown." not in page.text
    for iteration in (0, 1, 2):
        for row in read_all_rows(run.artifact(iteration, "held_out/greedy").path):
            start = visible(row["candidates"][0]["text"][:4000])
            assert " ".join(start.split()) in page.text
    assert page.text.count("cut at the token limit") == sum(
        run.artifact(iteration, "held_out/greedy").counts["truncated"] for iteration in (0, 1, 2)
    )
    assert "… and 996,000 more characters" in page.text
    for markup in ("</script><script>document", "<img src=x", "<iframe", "<b>bold"):
        assert markup not in (tmp_path / "run" / REPORT).read_text(encoding="utf-8")


def test_of_many_greedy_answers_some_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(report_greedy, "MOST_SHOWN", 3)
    make_run(tmp_path / "run", held_out=8, greedy=20)
    text = page_of(tmp_path / "run").text
    assert "8 held-out prompts, answered at temperature 0" in text and "The first 3 are shown." in text
    assert text.count("3 prompts, every policy side by side") == 1


def test_who_has_not_been_asked_has_no_greedy_answers(made_up):
    assert "Greedy answers" not in page_of(made_up).text


def test_damaged_greedy_answers_take_nothing_else_with_them(tmp_path):
    make_run(tmp_path / "run", greedy=4)
    (shard,) = (tmp_path / "run" / "iteration_001" / "held_out" / "greedy").glob("*.parquet")
    _flip(shard)
    page = page_of(tmp_path / "run")
    assert "Greedy answers cannot be shown" in page.text
    assert len(page.data["records"]) == 8
