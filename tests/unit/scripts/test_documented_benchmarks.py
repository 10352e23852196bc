"""The tables of docs/performance.md are those of the last benchmark and of the plan."""

import pytest

from benchmarks import document
from benchmarks.rows import Row

WHEN = {"date": "2026-11-27", "runs": 5, "load": 0.1}
MET = Row("dpo/hh/wall", 2.613, 2.6, "× TRL's best", detail="10.2 s against 26.7 s").as_json() | WHEN
MISSED = Row("start", 7.0, 6, "s", lower_is_better=True, attempts=("one | two", "three")).as_json() | WHEN
FAILED = {"name": "scoring", "reached": None, "bar": None, "met": False, "unit": "", "detail": "Traceback\n…"}
FAILED |= WHEN | {"load": 1.9, "runs": 3}
RESULTS = {
    "machine": {"processor": "X", "cores": 2},
    "rows": [MET, MISSED, FAILED],
}


def test_the_page_has_the_tables_of_today():
    page = document.PAGE.read_text(encoding="utf-8")
    assert page == document.documented(page, document.latest()), "python -m benchmarks.document writes it"


def test_a_table_has_every_row_with_its_bar():
    text = document.measured_table(RESULTS)
    assert "2 cores of X; 2026-11-27, medians of 3 or 5 runs, load 0.1 to 1.9." in text
    assert "| dpo/hh/wall | 2.61 | ≥ 2.6 | yes | × TRL's best | 10.2 s against 26.7 s |" in text
    assert "| start | 7.00 | ≤ 6 | **no** | s |  |" in text
    assert "| scoring | failed | – | **no** |  |  |" in text
    assert "Tried for start: one \\| two; three." in text
    assert "Not measured yet" in document.measured_table(None)


def test_the_recipe_is_planned_on_two_machines():
    lines = document.planned_table().splitlines()
    assert "8 × A100-80: floor" in lines[0] and "8 × H100: floor" in lines[0]
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        f"| {stage}" for stage in (*document._STAGES, "one iteration", "the whole run")
    ]
    hours = [[float(line.split(" | ")[column].rstrip(" |")) for line in lines[2:]] for column in (3, 6)]
    for of_stages in hours:
        assert sum(of_stages[:6]) == pytest.approx(of_stages[6], abs=0.4)
        assert of_stages[7] > 3 * of_stages[6] - 0.4
    assert all(slow >= fast for slow, fast in zip(*hours, strict=True))


def marked(name):
    return f"<!-- {name}: written by python -m benchmarks.document -->\nold\n<!-- {name}: end -->"


def test_nothing_but_the_tables_is_written(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(
        f"# Before\n{marked('measured')}\nbetween\n{marked('planned')}\nafter\n", encoding="utf-8"
    )
    monkeypatch.setattr(document, "PAGE", page)
    monkeypatch.setattr(document, "latest", lambda: RESULTS)
    assert document.main(["--check"]) == 1 and "old" in page.read_text(encoding="utf-8")
    assert document.main([]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Before\n") and text.endswith("end -->\nafter\n") and "old" not in text
    assert "end -->\nbetween\n<!--" in text
    assert document.main(["--check"]) == 0 and document.main([]) == 0
    assert page.read_text(encoding="utf-8") == text
    with pytest.raises(SystemExit):
        document.main(["--other"])
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="has no <!-- measured"):
        document.main([])
