"""The report page: what it says, that it is the same from run to run, and that it works."""

import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import fake_traces
import pytest

from trim_jax.errors import ResultError
from trim_jax.eval import report, viewer
from trim_jax.eval.report import write_report
from trim_jax.eval.summary import summarise
from trim_jax.eval.traces import load_result

# As `trim-jax sweep` writes it: the anchors are the ends of thr.
SWEEP = {n: fake_traces.POLICIES[n] for n in ("thr", "random", "oracle")}
FILES = ("summary.json", "frontier.png", "frontier.svg", "report.html")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = fake_traces.write_result(tmp_path_factory.mktemp("r") / "arith-sweep", range(24),
                                      policies=SWEEP)
    fake_traces.write_result(folder / "validation", range(500, 520), (0,),
                             {n: SWEEP[n] for n in ("thr", "random")}, "validation")
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return write_report([folder], folder, resamples=60)


def payload(page: Path, run: int = 0):
    text = page.read_text(encoding="utf-8")
    packed = re.search(rf'id="traces-{run}">([^<]+)<', text).group(1)
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_writes_all_files_and_the_summary(folder, page):
    assert page == folder / "report.html"
    assert {f for f in FILES if (folder / f).stat().st_size > 1000} == set(FILES)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["name"] == "arith-sweep" and summary["schema_version"] == 3
    direct = summarise(load_result(folder), resamples=60)
    assert summary["policies"]["thr"]["cpt"]["80"]["c"]["value"] == pytest.approx(
        direct["policies"]["thr"]["cpt"]["80"]["c"]["value"], rel=1e-5)
    assert list(summary) == sorted(summary)


def test_files_are_the_same_in_another_process(folder, page, tmp_path):
    """Under another hash seed too, which changes the order of sets."""
    code = ("import sys; from trim_jax.eval.report import write_report; "
            "write_report([sys.argv[1]], sys.argv[2], resamples=60)")
    subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path)], check=True,
                   env={**os.environ, "PYTHONHASHSEED": "77"},
                   cwd=Path(report.__file__).parents[2])
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_page_is_self_contained(page):
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"<link|<img|<iframe|@import|\bsrc=", text)
    urls = set(re.findall(r'https?://[^\s"\'<)]+', text))
    assert urls <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_page_says_what_a_reader_needs(page, folder):
    text = re.sub(r"[ \n]+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.read_text())))
    summary = json.loads((folder / "summary.json").read_text())
    chosen = summary["policies"]["thr"]["operating_point"]
    for words in ("24 problems of arith", f"TRIM-Thr, k = {chosen['value']:g}",
                  "chosen on 20 validation problems",
                  report.percent(chosen["test"]["pgr"]["value"]),
                  "upper bound, sees true labels", "commit", "0123abcd", "Weak-only",
                  "Strong-only", "94.4\u202f%", "decode small", "p = 1"):
        assert words in text, words
    ids = re.findall(r'\bid="([^"]+)"', page.read_text())
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:aria-labelledby|aria-describedby|href)="#?([^"]+)"',
                             page.read_text()):
        assert target in ids


def test_no_setting_is_headlined_without_validation(tmp_path):
    folder = fake_traces.write_result(tmp_path / "r", range(8), (0,), SWEEP)
    text = write_report([folder], tmp_path / "out", resamples=20).read_text()
    assert "No setting is singled out" in text


def test_text_of_problems_and_names_is_escaped(tmp_path):
    name = "<script>alert(1)</script>"
    folder = fake_traces.write_result(tmp_path / "run", range(4), (0,), SWEEP)
    path = folder / "problems.json"
    path.write_text(path.read_text().replace("What is", "</script><b>What is"))
    (folder / "config.json").write_text(json.dumps({"data": {"source": name, "split": "test"}}))
    page = write_report([folder], tmp_path / "out", resamples=20)
    text = page.read_text()
    assert name not in text and html.escape(name) in text
    assert "</script><b>" not in text and "</script><b>" in payload(page)["problems"][0][1]


def test_unlabelled_result_leaves_out_what_needs_labels(tmp_path):
    folder = fake_traces.write_result(tmp_path / "run", range(6), (0,), SWEEP)
    path = folder / "traces.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        for step in row["steps"]:
            step["right"] = step["draft_right"] = step["kind"] = None
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "provenance.json").write_text("{}")
    text = write_report([folder], tmp_path / "out", resamples=20).read_text()
    assert "Accuracy against cost" in text and "By step" in text
    for missing in ("Spent after it was too late", "How reliable", "FLOPs, all three",
                    "By operation"):
        assert missing not in text


def test_models_that_solve_nothing_still_give_a_page(tmp_path):
    """No gap to recover, and strong-only that writes not one token: all of it is undefined."""
    folder = fake_traces.write_result(tmp_path / "run", [0], (0,), SWEEP)
    path = folder / "traces.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row.update(correct=False, answer=None, finish="eos", steps=[], strong_tokens=0)
        for counts in row["ledger"].values():
            counts.update(dict.fromkeys(counts, 0))
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    shutil.copytree(folder, tmp_path / "v")
    shutil.move(tmp_path / "v", folder / "validation")
    text = write_report([folder], tmp_path / "out", resamples=20).read_text()
    assert "No setting is singled out" in text
    assert not re.search(r"\b(nan|None|inf)\b", text.split("<script")[0])


def test_embedded_traces_are_those_of_the_run(folder, page):
    data = payload(page)
    result = load_result(folder)
    assert len(data["traces"]) == len(result.traces)
    texts = {-1: None, **dict(enumerate(data["texts"]))}
    for packed, trace in zip(data["traces"], result.traces):
        problem, seed, policy, first, end, finish, answer, correct, strong, _, steps = packed
        assert data["problems"][problem][0] == trace.problem_id
        assert data["policies"][policy]["name"] == trace.policy
        assert (first, end) == trace.settings and data["seeds"][seed] == trace.seed
        assert data["finishes"][finish] == trace.finish and texts[answer] == trace.answer
        assert bool(correct) == trace.correct and strong == trace.strong_tokens
        for at, step in zip(steps, trace.steps, strict=True):
            text, action, drafted, score, n, draft, draft_n, right, draft_right, kind, likely = (
                data["steps"][at])
            assert (texts[text], data["actions"][action], drafted, score, n, texts[draft], draft_n,
                    right, draft_right, data["kinds"][kind], likely) == (
                step.text, step.action, step.score_draft, step.score, step.n_tokens, step.draft,
                step.draft_tokens, step.right, step.draft_right, step.kind,
                step.draft_likelihood)


def test_large_runs_embed_a_stated_sample(folder, tmp_path, monkeypatch):
    assert viewer.sample_problems(5, 10) == [0, 1, 2, 3, 4]
    assert viewer.sample_problems(500, 4) == [0, 125, 250, 375]
    assert viewer.sample_problems(450, 200)[:4] == [0, 2, 4, 6]
    monkeypatch.setattr(viewer, "MAX_PROBLEMS", 8)
    page = write_report([folder], tmp_path, resamples=20)
    text = re.sub(r"\s+", " ", page.read_text())
    assert "The page carries 8 of the 24 problems, evenly spaced" in text
    data = payload(page)
    assert [p[0][-2:] for p in data["problems"]] == ["00", "03", "06", "09", "12", "15", "18", "21"]
    cells = sum((end - first) for _, _, _, first, end, *_ in data["traces"])
    assert cells == 8 * 2 * (21 + 21 + 1)


def test_several_runs_are_compared(folder, tmp_path):
    other = fake_traces.write_result(tmp_path / "hard" / "arith-sweep", range(100, 110))
    page = write_report([folder, other], tmp_path / "both", resamples=30)
    text = page.read_text()
    assert "2 runs compared" in text and 'id="run2"' in text and 'id="joint"' in text
    summary = json.loads((tmp_path / "both" / "summary.json").read_text())
    assert [r["name"] for r in summary["runs"]] == ["arith-sweep", "arith-sweep (2)"]
    assert payload(page, 1)["problems"][0][0] == "arith-test-00100"
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_bad_folders_are_one_clear_error(tmp_path):
    with pytest.raises(ResultError, match="no result folder given"):
        write_report([], tmp_path)
    with pytest.raises(ResultError, match="no such result folder"):
        write_report([tmp_path / "absent"], tmp_path)
    folder = fake_traces.write_result(tmp_path / "r", range(2), (0,), SWEEP)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ResultError, match="file"):
        write_report([folder], blocked / "out", resamples=5)


def test_numbers_in_words():
    assert report.percent(0.1234) == "12.3\u202f%" and report.percent(None) == "–"
    assert report.ratio(-0.001) == "+0.00" and report.ratio(-1.5) == "−1.50"
    assert report.big(2.34e9) == "2.34\u202fG" and report.big(12.0) == "12"
    assert report.count(1234.5) == "1,234" and report.count(7.94) == "7.9"
    unreached = {"value": None, "low": 0.5, "high": None, "share_reached": 0.2}
    assert report.estimate(unreached).striptags() == "not reached 50.0 % to not reached"
    never = {"value": None, "low": None, "high": None, "share_reached": 0.0}
    assert report.estimate(never).striptags() == "not reached"
    assert report.estimate({**never, "share_reached": None}).striptags() == "–"
    assert report.estimate({"value": None, "low": None, "high": None}).striptags() == "–"
    exact = {"value": 1.0, "low": 1.0, "high": 1.0}
    assert report.estimate(exact, "score").striptags() == "1.000"
    assert report.flatten({"a": {"b": [1, 2]}, "c": None}) == [("a.b", "1, 2"), ("c", "")]


# ------------------------------------------------------------------------------------ in a browser

BROWSER = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
                if p), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium or Chrome on this machine to open the page in")


def open_page(page: Path, profile: Path, fragment: str = "") -> tuple[str, str]:
    """The document after its scripts have run, and the browser's console."""
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={profile}", "--virtual-time-budget=10000", "--enable-logging=stderr",
         "--dump-dom", page.resolve().as_uri() + fragment],
        capture_output=True, text=True, timeout=300, check=True)
    console = "\n".join(x for x in done.stderr.splitlines() if "CONSOLE" in x)
    return done.stdout, console


def shown(dom: str) -> str:
    """Text of the viewer."""
    body = dom[dom.index('id="v-body"'):dom.index('id="provenance"')]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def errors(dom: str) -> str:
    return re.search(r'<div id="errors"[^>]*>(.*?)</div>', dom, re.S).group(1)


def add_script(page: Path, out: Path, script: str) -> Path:
    """A copy of the page that acts on itself once the viewer is ready, and reports in #probe."""
    wait = """<pre id="probe"></pre><script>
    const say = (x) => { byId("probe").append(JSON.stringify(x) + "\\n"); };
    const key = (k) => byId("viewer").dispatchEvent(
      new KeyboardEvent("keydown", {key: k, bubbles: true, cancelable: true}));
    const change = (id, value) => { const e = byId(id);
      if (e.type === "checkbox") e.checked = value; else e.value = value;
      e.dispatchEvent(new Event(e.type === "range" ? "input" : "change", {bubbles: true})); };
    const timer = setInterval(() => { if (document.documentElement.dataset.ready) {
      clearInterval(timer); act(); } }, 20);
    function act() {""" + script + "}</script></body>"
    text = page.read_text(encoding="utf-8")
    assert text.count("</body>") == 1
    out.write_text(text.replace("</body>", wait), encoding="utf-8")
    return out


def probe(dom: str) -> list:
    lines = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.S).group(1)
    return [json.loads(html.unescape(line)) for line in lines.splitlines()]


@needs_browser
def test_deep_link_decides_what_is_shown(folder, page, tmp_path):
    trace = next(t for t in load_result(folder).traces if t.policy == "thr" and t.seed == 1
                 and not t.correct and {s.action for s in t.steps} == {"accept", "regenerate"})
    value = fake_traces.GRID[trace.settings[0]]
    dom, console = open_page(page, tmp_path / "one", f"#problem={trace.problem_id}&seed=1"
                             f"&policy=thr&setting={value}")
    text = shown(dom)
    assert errors(dom) == "" and console == ""
    position = 0
    for step in trace.steps:  # in order, discarded drafts before what replaced them
        for part in (step.draft, step.text):
            if part is not None:
                position = text.index(part, position) + len(part)
    assert f"✗ not solved : answer {trace.answer} , gold" in text
    assert f"The large model wrote {trace.strong_tokens} tokens" in text
    assert dom.count("<del>") == sum(s.draft is not None for s in trace.steps)
    assert len(re.findall(r'class="step large"', dom)) == sum(
        s.writer == "large" for s in trace.steps)
    assert f"{trace.steps[0].score_draft:.3f}" in text
    assert f"k = {value:g}" in dom

    plain, console = open_page(page, tmp_path / "two")
    assert errors(plain) == "" and console == ""
    assert shown(plain) != text and "arith-test-00000" in plain


@needs_browser
def test_viewer_answers_to_keys_filters_and_clicks(folder, page, tmp_path):
    acting = add_script(page, tmp_path / "act.html", """
      const where = () => [byId("v-problem").selectedOptions[0].textContent,
        byId("v-seed").selectedOptions[0].textContent,
        byId("v-policy").selectedOptions[0].textContent,
        byId("v-value").textContent, decodeURIComponent(location.hash)];
      const listed = () => [...byId("v-problem").options].map((o) => o.textContent);
      say(where());
      key("ArrowRight"); key("ArrowRight"); key("ArrowLeft"); say(where());
      key("s"); key("ArrowDown"); say(where());
      key("p"); say(where());
      change("v-policy", "0"); change("v-setting", "3"); say(where());
      change("v-wrong", true);
      say(listed()); say(byId("v-count").textContent);
      change("v-wrong", false);
      change("v-problem", "23"); change("v-differ", true); say(where()[0]);
      say(listed());
      change("v-differ", false);
      document.querySelectorAll(".matrix button")[20].click(); say(where());
      say(document.querySelectorAll('.matrix button[aria-pressed="true"]').length);
      location.hash = "#problem=arith-test-00007&seed=0&policy=random&setting=0.5";
      setTimeout(() => say(where()), 50);
    """)
    dom, console = open_page(acting, tmp_path / "profile")
    assert errors(dom) == "" and console == ""
    (start, keys, seed, policy, slider, wrong, count, moved, differ, cell, pressed,
     linked) = probe(dom)

    result = load_result(folder)
    summary = json.loads((folder / "summary.json").read_text())
    chosen = summary["policies"]["thr"]["shown"]["setting"]
    k = [f"{value:g}" for value in fake_traces.GRID]
    assert start == ["arith-test-00000", "0", "TRIM-Thr", f"k = {k[chosen]}", ""]
    assert keys[0] == "arith-test-00001"
    assert keys[4] == f"#problem=arith-test-00001&seed=0&policy=thr&setting={k[chosen]}"
    assert seed[1] == "1" and seed[3] == f"k = {k[chosen - 1]}"
    assert policy[2] == "Random"
    assert slider[2:4] == ["TRIM-Thr", "k = 0.15"]

    def outcome(name, setting):
        return {t.problem_id: t.correct for t in result.traces if t.policy == name and t.seed == 1
                and t.settings[0] <= setting < t.settings[1]}

    thr, oracle = outcome("thr", 3), outcome("oracle", 0)
    random = outcome("random", summary["policies"]["random"]["shown"]["setting"])
    assert wrong == [p for p in thr if not thr[p]] and 0 < len(wrong) < 24
    assert count == f"{len(wrong)} of 24 problems"
    assert differ == [p for p in thr if len({thr[p], random[p], oracle[p]}) > 1]
    assert "arith-test-00023" not in differ and moved == differ[-1]
    assert cell[2:4] == ["TRIM-Thr", "k = 1"] and pressed == 1
    assert linked[:4] == ["arith-test-00007", "0", "Random", "p = 0.5"]


@needs_browser
def test_viewer_switches_between_runs(folder, tmp_path):
    other = fake_traces.write_result(tmp_path / "hard", range(100, 104), (0,))
    page = write_report([folder, other], tmp_path / "both", resamples=20)
    acting = add_script(page, tmp_path / "act.html", """
      change("v-run", "1"); say(byId("v-problem").selectedOptions[0].textContent);
      say(decodeURIComponent(location.hash)); key("ArrowRight"); key("ArrowRight");
      key("ArrowRight"); key("ArrowRight"); say(byId("v-problem").selectedOptions[0].textContent);
    """)
    dom, console = open_page(acting, tmp_path / "profile")
    assert errors(dom) == "" and console == ""
    first, link, last = probe(dom)
    assert first == "arith-test-00100" and link.startswith("#run=hard&problem=arith-test-00100")
    assert last == "arith-test-00103"


@needs_browser
def test_page_reports_script_errors_where_this_test_looks(page, tmp_path):
    """The absence of errors above means something only if an error would be seen."""
    dom, console = open_page(add_script(page, tmp_path / "bad.html", "undefinedFunction();"),
                             tmp_path / "profile")
    assert "undefinedFunction" in errors(dom) and "undefinedFunction" in console
