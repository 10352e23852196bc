"""The page of a run in a real browser: headless Chromium, where one is installed.

It is asked by a script of ours that is put behind the page's own; the page's policy is widened by that script's
hash and by nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess

import pytest

from rlhf.view.run_folder import REPORT
from scripts.synthetic_run import make_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: the page is not looked at"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a run with hostile responses, as the loop has made it."""
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    folder = tmp_path_factory.mktemp("run") / "hostile"
    make_run(folder, prompts=12, held_out=10, iterations=2, hostile=True)
    return folder / REPORT


def ask(page, folder, script, *flags, fragment=""):
    """What a script says of the page once it is drawn, and what the browser has complained of."""
    body = (
        "setTimeout(() => { let said; try { said = (() => {" + script + "})(); }"
        " catch (error) { said = 'error: ' + error.message; }"
        " document.documentElement.innerHTML = '';"
        " document.documentElement.setAttribute('data-said', JSON.stringify(said)); }, 3000);"
    )
    digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8")
    assert "script-src &#x27;sha256-" in text
    text = text.replace("script-src ", f"script-src &#x27;sha256-{digest}&#x27; ", 1)
    asked = folder / "asked.html"
    # The last one: the library writes pages of its own.
    before, end, after = text.rpartition("</body>")
    asked.write_text(f"{before}<script>{body}</script>{end}{after}", encoding="utf-8")
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        f"--user-data-dir={folder / 'profile'}",
        *flags,
        "--dump-dom",
        f"file://{asked}{fragment}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    found = re.search(r'data-said="([^"]*)"', done.stdout)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), complaints


LOOK = """
const ids = (selector) => [...document.querySelectorAll(selector)].map((each) => each.id);
return {
  title: document.title,
  plots: ids(".plot"),
  drawn: ids(".plot:has(svg)"),
  labelled: document.querySelectorAll(".plot[role='graphics-document'][aria-label]").length,
  notDrawn: document.querySelector("main").textContent.includes("This plot cannot be drawn"),
  records: ids("#records-list article"),
  pairs: ids("#pairs-list article"),
  strangers: document.querySelectorAll("main img, main iframe, main a[href^='javascript'], main script").length,
  width: document.documentElement.scrollWidth,
  window: window.innerWidth,
  background: getComputedStyle(document.body).backgroundColor,
};
"""


@pytest.mark.parametrize(
    ("flags", "width"),
    [
        (["--window-size=1280,900"], 1280),
        (["--window-size=1280,900", "--blink-settings=preferredColorScheme=0"], 1280),
        (["--window-size=500,844"], 500),
    ],
    ids=["light", "dark", "narrow"],
)
def test_everything_is_drawn_and_nothing_complains(page, tmp_path, flags, width):
    said, complaints = ask(page, tmp_path, LOOK, *flags)
    assert complaints == []
    assert said["title"] == "Report of hostile"
    assert said["plots"] and said["drawn"] == said["plots"] and not said["notDrawn"]
    assert said["labelled"] == len(said["plots"])
    assert len(said["records"]) == 8 and len(said["pairs"]) == 8
    assert said["strangers"] == 0
    assert said["width"] <= said["window"] == width
    assert said["background"] == (
        "rgb(20, 23, 27)" if "preferredColorScheme" in flags[-1] else "rgb(255, 255, 255)"
    )


USE = """
const set = (id, value) => {
  const control = document.getElementById(id);
  if (control.type === "checkbox") control.checked = value;
  else control.value = value;
  control.dispatchEvent(new Event("input", { bubbles: true }));
};
const count = () => parseInt(document.getElementById("records-found").textContent, 10);
const gains = () => [...document.querySelectorAll("#records-list .record-head b")].map(
  (each) => parseFloat(each.textContent.replace("−", "-")));
const said = { all: count(), byGain: gains() };
set("records-sort", "loss");
said.byLoss = gains();
set("records-search", "nothing has this text");
said.none = count();
set("records-search", "owned");
said.owned = count();
said.ownedText = document.querySelector("#records-list").textContent.includes("<script>document.title = 'owned'");
set("records-search", "");
set("records-cut", "cut");
said.cut = count();
set("records-cut", "whole");
said.whole = count();
set("records-cut", "");
set("records-shortest", "100000");
said.long = count();
set("records-shortest", "");
set("records-markdown", true);
said.markdown = document.querySelectorAll("#records-list .prose").length;
said.pictures = document.querySelectorAll("#records-list img, #records-list .prose a").length;
set("records-markdown", false);
set("records-difference", true);
said.difference = document.querySelectorAll("#records-list ins").length;
set("records-difference", false);
document.getElementById("records-on").click();
said.second = document.querySelectorAll("#records-list article").length;
set("pairs-sort", "close");
said.margins = [...document.querySelectorAll("#pairs-list .record-head b")].map((each) => parseFloat(each.textContent));
said.title = document.title;
return said;
"""


def test_records_are_searched_filtered_sorted_and_compared(page, tmp_path):
    said, complaints = ask(page, tmp_path, USE)
    assert complaints == []
    assert said["all"] == 10 and said["none"] == 0 and said["long"] == 0
    assert said["byGain"] == sorted(said["byGain"], reverse=True)
    assert said["byLoss"] == sorted(said["byLoss"])
    assert said["owned"] >= 1 and said["ownedText"] and said["title"] == "Report of hostile"
    assert said["cut"] + said["whole"] == said["all"]
    assert said["markdown"] > 0 and said["pictures"] == 0
    assert said["difference"] > 0 and said["second"] == 2
    assert said["margins"] == sorted(said["margins"])


def test_a_link_leads_to_its_record(page, tmp_path):
    records = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)[1])[
        "records"
    ]
    # The last one by gain stands on the second page of the list.
    script = "return { all: [...document.querySelectorAll('article.named')].map((each) => each.id) };"
    for record in (records[0], records[-1]):
        said, complaints = ask(page, tmp_path, script, fragment=f"#record-{record['id']}")
        assert complaints == [] and said["all"] == [f"record-{record['id']}"]
