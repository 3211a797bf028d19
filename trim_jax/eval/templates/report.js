"use strict";
// The solution viewer. Its data is embedded; nothing is fetched.

function reportError(message) {
  const box = document.getElementById("errors");
  const line = document.createElement("p");
  line.textContent = message;
  box.append(line);
}
window.addEventListener("error", (event) => reportError(event.message));
window.addEventListener("unhandledrejection", (event) => reportError(String(event.reason)));

async function unpack(element) {
  const packed = Uint8Array.from(atob(element.textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

// Fields of a packed trace and a packed step, in the order in which Python wrote them.
const TRACE = ["problem", "seed", "policy", "first", "end", "finish", "answer", "correct", "strong",
  "used", "steps"];
const STEP = ["text", "action", "scoreDraft", "score", "tokens", "draft", "draftTokens", "right",
  "draftRight", "kind", "draftLikelihood"];
const named = (fields, row) => Object.fromEntries(fields.map((field, i) => [field, row[i]]));

function prepare(run) {
  run.steps = run.steps.map((row) => named(STEP, row));
  run.lookup = new Map();
  for (const row of run.traces) {
    const trace = named(TRACE, row);
    for (let setting = trace.first; setting < trace.end; setting++) {
      run.lookup.set([trace.problem, trace.seed, trace.policy, setting].join(), trace);
    }
  }
  return run;
}

const byId = (id) => document.getElementById(id);
const text = (run, index) => (index < 0 ? null : run.texts[index]);

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function options(select, labels, chosen) {
  select.replaceChildren(...labels.map(([value, label]) => make("option", {value}, label)));
  select.value = String(chosen);
}

class Viewer {
  constructor(runs) {
    this.runs = runs;
    this.state = {run: 0, problem: 0, seed: 0, policy: runs[0].main};
    this.settings = runs.map((run) => run.policies.map((policy) => policy.shown));
    this.wrongOnly = false;
    this.differOnly = false;
    this.readHash();
    this.listen();
    this.render();
  }

  get run() { return this.runs[this.state.run]; }
  get setting() { return this.settings[this.state.run][this.state.policy]; }
  set setting(value) { this.settings[this.state.run][this.state.policy] = value; }

  trace(problem, policy, setting) {
    return this.run.lookup.get([problem, this.state.seed, policy, setting].join());
  }

  // ---- what is shown -------------------------------------------------------------------------

  // At the settings that each policy is set to, not all policies agree on solved or not.
  differs(problem) {
    const routed = this.run.policies.map((p, i) => i).filter(
      (i) => this.run.policies[i].role !== "anchor");
    const compared = routed.length > 1 ? routed : this.run.policies.map((p, i) => i);
    const outcomes = compared.map(
      (i) => this.trace(problem, i, this.settings[this.state.run][i]).correct);
    return new Set(outcomes).size > 1;
  }

  listed() {
    return this.run.problems.map((p, i) => i).filter((i) =>
      (!this.wrongOnly || !this.trace(i, this.state.policy, this.setting).correct)
      && (!this.differOnly || this.differs(i)));
  }

  readHash() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    if (!wanted.has("problem")) return false;
    const find = (list, value, otherwise) => {
      const at = list.findIndex((item) => String(item) === value);
      return at < 0 ? otherwise : at;
    };
    const state = this.state;
    state.run = find(this.runs.map((run) => run.name), wanted.get("run"), state.run);
    state.problem = find(this.run.problems.map((p) => p[0]), wanted.get("problem"), 0);
    state.seed = find(this.run.seeds, wanted.get("seed"), 0);
    state.policy = find(this.run.policies.map((p) => p.name), wanted.get("policy"),
      this.run.main);
    const policy = this.run.policies[state.policy];
    this.setting = find(policy.settings, wanted.get("setting"), this.setting);
    return true;
  }

  writeHash() {
    const policy = this.run.policies[this.state.policy];
    const link = new URLSearchParams();
    if (this.runs.length > 1) link.set("run", this.run.name);
    link.set("problem", this.run.problems[this.state.problem][0]);
    link.set("seed", this.run.seeds[this.state.seed]);
    link.set("policy", policy.name);
    if (policy.settings.length > 1) link.set("setting", policy.settings[this.setting]);
    history.replaceState(null, "", "#" + link);
  }

  update(change) {
    Object.assign(this.state, change);
    this.writeHash();
    this.render();
  }

  // ---- moving about --------------------------------------------------------------------------

  move(by) {
    const list = this.listed();
    if (!list.length) return;
    const after = list.findIndex((i) => i > this.state.problem);
    const here = list.indexOf(this.state.problem);
    let next = here >= 0 ? here + by : by > 0 ? after : (after < 0 ? list.length : after) - 1;
    if (here < 0 && by > 0 && after < 0) next = list.length - 1;
    this.update({problem: list[Math.min(Math.max(next, 0), list.length - 1)]});
  }

  shift(by) {
    const last = this.run.policies[this.state.policy].settings.length - 1;
    this.setting = Math.min(Math.max(this.setting + by, 0), last);
    this.update({});
  }

  // A filter that hides the problem in view moves on to the nearest one that it lets through.
  filter() {
    const list = this.listed();
    if (list.length && !list.includes(this.state.problem)) {
      const after = list.find((i) => i > this.state.problem);
      this.state.problem = after === undefined ? list[list.length - 1] : after;
    }
    this.update({});
  }

  listen() {
    const pick = (id, name) => byId(id).addEventListener("change", (event) =>
      this.update({[name]: Number(event.target.value)}));
    pick("v-problem", "problem");
    pick("v-seed", "seed");
    pick("v-policy", "policy");
    if (byId("v-run")) {
      byId("v-run").addEventListener("change", (event) => {
        const run = Number(event.target.value);
        const id = this.run.problems[this.state.problem][0];
        const same = this.runs[run].problems.findIndex((p) => p[0] === id);
        this.update({run, problem: Math.max(same, 0), seed: 0, policy: this.runs[run].main});
      });
    }
    byId("v-setting").addEventListener("input", (event) => {
      this.setting = Number(event.target.value);
      this.update({});
    });
    byId("v-prev").addEventListener("click", () => this.move(-1));
    byId("v-next").addEventListener("click", () => this.move(1));
    byId("v-wrong").addEventListener("change", (event) => {
      this.wrongOnly = event.target.checked;
      this.filter();
    });
    byId("v-differ").addEventListener("change", (event) => {
      this.differOnly = event.target.checked;
      this.filter();
    });
    document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
    byId("viewer").addEventListener("keydown", (event) => this.onKey(event));
    window.addEventListener("hashchange", () => { if (this.readHash()) this.render(); });
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("select, input")) return; // these have their own keys
    const turn = (name, count) => this.update({[name]: (this.state[name] + 1) % count});
    const actions = {
      ArrowLeft: () => this.move(-1), ArrowRight: () => this.move(1),
      ArrowUp: () => this.shift(1), ArrowDown: () => this.shift(-1),
      s: () => turn("seed", this.run.seeds.length),
      p: () => turn("policy", this.run.policies.length),
    };
    if (!(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
  }

  // ---- drawing -------------------------------------------------------------------------------

  render() {
    const {run, state} = this;
    const policy = run.policies[state.policy];
    const list = this.listed();
    const inView = list.includes(state.problem) ? list : [state.problem, ...list];
    if (byId("v-run")) options(byId("v-run"), this.runs.map((r, i) => [i, r.name]), state.run);
    options(byId("v-problem"), inView.map((i) => [i, run.problems[i][0]]), state.problem);
    options(byId("v-seed"), run.seeds.map((seed, i) => [i, seed]), state.seed);
    options(byId("v-policy"), run.policies.map((p, i) => [i, p.label]), state.policy);
    byId("v-count").textContent = this.wrongOnly || this.differOnly
      ? `${list.length} of ${run.problems.length} problems` : "";
    const slider = byId("v-setting");
    byId("v-setting-label").hidden = policy.settings.length < 2;
    slider.max = policy.settings.length - 1;
    slider.value = this.setting;
    const value = this.settingText(policy, this.setting);
    byId("v-value").textContent = value;
    slider.setAttribute("aria-valuetext", value);
    const trace = this.trace(state.problem, state.policy, this.setting);
    byId("v-body").replaceChildren(...this.body(trace, policy));
  }

  settingText(policy, setting) {
    const value = policy.settings[setting];
    return value === null ? "" : `${policy.parameter} = ${value}`;
  }

  body(trace, policy) {
    const [, question, gold, solution] = this.run.problems[trace.problem];
    const steps = make("ol", {class: "steps"});
    const before = {all: 0, strong: 0, right: true};
    for (const index of trace.steps) {
      const step = this.run.steps[index];
      before.all += step.tokens;
      if (this.run.actions[step.action] !== "accept") before.strong += step.tokens;
      steps.append(this.step(step, policy, before));
      before.right = before.right && step.right !== false;
    }
    const reference = solution ? make("details", {class: "reference"},
      make("summary", {}, "Reference solution"), make("div", {}, solution)) : null;
    return [make("p", {class: "question"}, question), this.matrix(), steps,
      ...this.outcome(trace, policy, gold), reference].filter((part) => part !== null);
  }

  outcome(trace, policy, gold) {
    const {run} = this;
    const answer = text(run, trace.answer);
    const ended = {boxed: "an answer", eos: "the end of the text", steps: "the limit of steps",
      context: "a full context"}[run.finishes[trace.finish]];
    const line = make("p", {class: "outcome"},
      make("span", {class: trace.correct ? "right" : "wrong"}, trace.correct ? "✓ solved" : "✗ not solved"),
      answer === null ? ": no answer" : ": answer ", answer === null ? null : make("b", {}, answer),
      ", gold ", make("b", {}, gold), ". Ended with " + ended + ".");
    const full = this.trace(trace.problem, ...run.strong).strong;
    const same = trace.end - trace.first > 1
      ? ` The same solution at every setting from ${this.settingText(policy, trace.first)} to `
        + `${this.settingText(policy, trace.end - 1)}.` : "";
    const [small, large, prm] = trace.used;
    return [line, make("p", {class: "note"},
      `The large model wrote ${trace.strong} tokens (strong-only: ${full}). Read or written in all: `
      + `small ${small}, large ${large}, PRM ${prm}.` + same)];
  }

  step(step, policy, before) {
    const {run} = this;
    const action = run.actions[step.action];
    const byLarge = action !== "accept";
    const who = {accept: "small", regenerate: "large, rewrote the draft", direct: "large"}[action];
    const item = make("li", {class: "step " + (byLarge ? "large" : "small")});
    item.append(make("div", {class: "head"},
      make("span", {class: "badge"}, who),
      step.kind < 0 ? null : make("span", {}, run.kinds[step.kind]),
      this.mark(step.right, before.right),
      make("span", {}, `${step.tokens} tokens`),
      make("span", {}, `so far ${before.all}, of them strong ${before.strong}`)));
    const threshold = policy.parameter === "k" ? policy.settings[this.setting] : null;
    if (action === "regenerate") {
      item.append(make("div", {class: "line"},
        make("p", {class: "draft"}, make("del", {}, text(run, step.draft)), " ",
          this.mark(step.draftRight, before.right)),
        this.score("discarded", "PRM score of the discarded draft", step.scoreDraft, threshold, true),
        this.score("likelihood", "Likelihood of the discarded draft under the large model",
          step.draftLikelihood, null, true)));
    }
    const score = byLarge ? step.score : step.scoreDraft ?? step.score;
    item.append(make("div", {class: "line"}, make("p", {class: "text"}, text(run, step.text)),
      this.score("score", "PRM score", score, byLarge ? null : threshold, false),
      byLarge ? null : this.score("likelihood", "Likelihood under the large model",
        step.draftLikelihood, null, false)));
    return item;
  }

  mark(right, prefixRight) {
    if (right === null) return null;
    const words = right ? "✓ right" : prefixRight ? "✗ wrong" : "✗ after an error";
    return make("span", {class: right ? "right" : "wrong"}, words);
  }

  score(label, meaning, value, threshold, rejected) {
    if (value === null) return null;
    const description = `${meaning} ${value.toFixed(3)}`
      + (threshold === null ? "" : `, threshold ${threshold}`);
    const bar = make("span", {class: "bar" + (rejected ? " rejected" : ""), role: "img",
      "aria-label": description});
    const fill = make("i");
    fill.style.width = `${100 * value}%`;
    bar.append(fill);
    if (threshold !== null) {
      const tick = make("b", {title: `threshold ${threshold}`});
      tick.style.left = `calc(${100 * threshold}% - 1px)`;
      bar.append(tick);
    }
    return make("div", {class: "score"}, make("span", {}, label), bar,
      make("span", {}, value.toFixed(3)));
  }

  // Solved or not, for every policy and setting of this problem and seed.
  matrix() {
    const {run, state} = this;
    const grid = make("div", {class: "matrix", role: "group",
      "aria-label": "Solved or not, by policy and setting"});
    run.policies.forEach((policy, p) => {
      const cells = make("div", {class: "cells"});
      policy.settings.forEach((_, s) => {
        const trace = this.trace(state.problem, p, s);
        const chosen = p === state.policy && s === this.setting;
        const label = [policy.label, this.settingText(policy, s),
          trace.correct ? "solved" : "not solved", `${trace.strong} strong tokens`];
        const cell = make("button", {type: "button", tabindex: "-1",
          class: trace.correct ? "ok" : "no", "aria-pressed": String(chosen),
          title: label.filter(Boolean).join(", "), "aria-label": label.filter(Boolean).join(", ")},
        trace.correct ? "✓" : "✗");
        cell.addEventListener("click", () => {
          this.settings[state.run][p] = s;
          this.update({policy: p});
          byId("viewer").focus({preventScroll: true});
        });
        cells.append(cell);
      });
      grid.append(make("span", {class: p === state.policy ? "chosen" : null}, policy.label), cells);
    });
    return grid;
  }
}

async function start() {
  const body = byId("v-body");
  if (typeof DecompressionStream === "undefined") {
    body.replaceChildren(make("p", {class: "note"}, "This browser is too old to unpack the "
      + "solutions (it lacks DecompressionStream). The rest of the page is complete."));
    return;
  }
  const packed = [...document.querySelectorAll("script[id^='traces-']")];
  const viewer = new Viewer((await Promise.all(packed.map(unpack))).map(prepare));
  if (location.hash.includes("problem=")) byId("solutions").scrollIntoView({behavior: "instant"});
  document.documentElement.dataset.ready = "true";
  return viewer;
}

start();
