"""`trim-jax recorded`: baselines measured on recorded solutions, TRIM-Thr predicted beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from trim_jax import provenance
from trim_jax.errors import ConfigError, DataError
from trim_jax.eval import bootstrap, figures, recorded as report
from trim_jax.eval.bootstrap import estimate
from trim_jax.query import evaluate
from trim_jax.query.outcomes import Outcomes, folds
from trim_jax.query.recorded import PROXY_TOKENIZER, load_pair, proxy_count
from trim_jax.results import ResultFolder
from trim_jax.sim import recorded as sim, solutions
from trim_jax.tasks.grading import extract_boxed

_FILES = ("small", "large", "questions")


def run(config: ConfigDict) -> str:
    """The whole study; each seed of the baselines and each prediction is kept once done.

    Returns:
      The table, which is also printed and written to table.md.

    Raises:
      ConfigError: a field names no file, there are fewer questions than folds, or no seed.
      DataError: a file cannot be used, or the large model is no better than the small one.
      ResultError: the folder cannot be used.
    """
    hashes = _files(config)
    outcomes = load_pair(*(config[name] for name in _FILES), count=proxy_count())
    pair = solutions.read(*(config[name] for name in _FILES), count=proxy_count())
    if len(outcomes) < config.folds:
        raise ConfigError(
            f"--config.folds={config.folds}: {config.small} has {len(outcomes)} questions"
        )
    if not config.seeds:
        raise ConfigError("--config.seeds is empty: give at least one")
    if outcomes.large_correct.mean() <= outcomes.small_correct.mean():
        raise DataError(f"{config.large} is no better than {config.small}: there is no gap to "
                        "recover; swap --config.small and --config.large?")  # fmt: skip
    saved = {**config.to_dict(), **{name: hashes[name]["name"] for name in _FILES}}
    origin = {**provenance.collect({}, config.questions), "data": hashes}
    with ResultFolder.open_or_create(config.out, saved, origin) as folder:
        _compute(config, folder, outcomes, pair)
        summary = _summary(config, folder, outcomes, pair) | {"files": hashes, "provenance": origin}
        folder.write_json("summary.json", summary)
        text = report.table(summary)
        folder.write_file("table.md", text)
        fig = report.figure(summary)
        folder.write_file("frontier.png", figures.to_png(fig))
        folder.write_file("frontier.svg", figures.to_svg(fig))
    print(text)
    return text


def _files(config: ConfigDict) -> dict[str, dict[str, str]]:
    """Name and hash of each file; paths belong to this machine and are not kept."""
    for name in _FILES:
        if not config[name]:
            raise ConfigError(f"--config.{name} is empty: name the file")
        if not Path(config[name]).is_file():
            raise ConfigError(f"--config.{name}={config[name]}: no such file")
    return {name: {"name": Path(config[name]).name, "sha256": provenance.hash_data(config[name])}
            for name in _FILES}  # fmt: skip


# ----------------------------------------------------------------- the parts, each kept once done


def _compute(config: ConfigDict, folder: ResultFolder, outcomes: Outcomes, pair) -> None:
    done = set(folder.done_chunks())
    seeds = len(config.seeds)
    routers = evaluate.baselines()
    fits = len(routers) * config.folds
    refits = config.folds + config.refits
    sizes = [fits] * seeds + [refits] * len(sim.VARIANTS)
    with tqdm(total=sum(sizes), unit=" fits", smoothing=0.02) as bar:
        for i, size in enumerate(sizes):
            if i in done:
                bar.update(size)
                continue
            if i < seeds:
                bar.set_description(f"baselines, seed {config.seeds[i]}")
                key = jax.random.key(config.seeds[i])
                counted = [_Counted(router, bar) for router in routers]
                found = evaluate.cross_validate(outcomes, key, counted, config.folds)
                rows = [_pack(frontier) for frontier in found]
            else:
                variant = sim.VARIANTS[i - seeds]
                bar.set_description(f"predicting, {variant.name}")
                rows = [_predict(config, pair, variant, bar)]
            folder.write_chunk(i, rows)


class _Counted:
    """A router that tells the progress bar of each fit."""

    def __init__(self, router: evaluate.Router, bar: tqdm):
        self._router, self._bar = router, bar

    def fit(self, outcomes: Outcomes, key: jax.Array) -> evaluate.Fitted:
        fitted = self._router.fit(outcomes, key)
        self._bar.update()
        return fitted


def _pack(f: evaluate.QueryFrontier) -> dict[str, Any]:
    """A frontier as JSON: of each question, how many of the shares do not route it."""
    return {"name": f.name, "reads": f.reads, "chosen": f.chosen, "shares": f.shares,
            "kept": (~f.routed[..., 0]).sum(0)}  # fmt: skip


def _unpack(row: dict[str, Any], outcomes: Outcomes) -> evaluate.QueryFrontier:
    shares = tuple(row["shares"])
    # A higher share routes whatever a lower one does.
    routed = (np.arange(len(shares))[:, None] >= np.array(row["kept"]))[..., None]
    return evaluate.frontier_of(row["name"], row["reads"], routed, outcomes, shares, row["chosen"])


def _thresholds(config: ConfigDict) -> tuple[float, ...]:
    return (0.0, *sorted(set(config.thresholds) - {0.0, 1.0}), 1.0)


def _predict(config: ConfigDict, pair, variant: sim.Variant, bar: tqdm) -> dict[str, Any]:
    key = jax.random.key(config.seeds[0])
    splits = folds(len(pair.ids), config.folds, key)  # those of the baselines
    return sim.study(pair, splits, variant, _thresholds(config), key, config.simulated,
                     config.refits, bar)  # fmt: skip


# ------------------------------------------------------------------------------------ the summary


def _read(folder: ResultFolder, index: int) -> list[dict[str, Any]]:
    path = folder.path / "chunks" / f"{index:05d}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _summary(config: ConfigDict, folder: ResultFolder, outcomes: Outcomes, pair) -> dict[str, Any]:
    drawn = bootstrap.resample(len(outcomes), 1, config.bootstrap)
    by_seed = []
    for i in range(len(config.seeds)):
        found = [_unpack(row, outcomes) for row in _read(folder, i)]
        by_seed.append(evaluate.measure(found, outcomes, drawn))
    variants, check = {}, {}
    recorded = {"weak": pair.small.correct.mean(), "strong": pair.large.correct.mean(),
                "steps_small": pair.small.n.mean(), "steps_large": pair.large.n.mean(),
                "strong_tokens": pair.large.tokens.sum(1).mean()}  # fmt: skip
    for i, variant in enumerate(sim.VARIANTS):
        (row,) = _read(folder, len(config.seeds) + i)
        accuracy, tokens, steps = (np.array(row[n]) for n in ("accuracy", "strong_tokens", "steps"))
        drawn_rows = (np.array(row["samples"][n]) for n in ("accuracy", "strong_tokens"))
        variants[variant.name] = {
            "label": variant.label, "thresholds": _thresholds(config),
            "parameters": row["parameters"], **report.curve(accuracy, tokens, *drawn_rows),
        }  # fmt: skip
        ends = (accuracy[0], accuracy[-1], steps[0], steps[-1], tokens[-1])
        check[variant.name] = {n: (r, p) for (n, r), p in zip(recorded.items(), ends)}
    mean = lambda x: estimate(x.mean(), drawn.means(x[None])[:, 0])  # noqa: E731
    return {
        "questions": len(outcomes),
        "anchors": {"weak": mean(outcomes.small_correct), "strong": mean(outcomes.large_correct),
                    "unboxed_small": 1 - outcomes.small_answered.mean(),
                    "unboxed_large": _unboxed(texts[0] for texts in outcomes.large_texts)},
        "tokens": {"tokenizer": PROXY_TOKENIZER, "strong_only": mean(outcomes.strong_tokens)},
        "baselines": by_seed[0], "spread": report.spread(by_seed), "seeds": config.seeds,
        "predicted": {"label": report.PREDICTED, "variants": variants}, "check": check,
        "notes": notes(config),
    }  # fmt: skip


def _unboxed(texts: Iterable[str]) -> float:
    return float(np.mean([extract_boxed(text) is None for text in texts]))


def notes(config: ConfigDict) -> list[str]:
    """What a reader must know of these figures."""
    return [
        "Token counts are a proxy: the records carry none, so the step texts are counted with "
        f"{PROXY_TOKENIZER}. Compare ratios with each other, not with counts made elsewhere.",
        f"Baselines: {config.folds}-fold cross-validation, routers and cuts trained on the other "
        f"folds; intervals from {config.bootstrap} resamples of the questions, with the routers as "
        "they were trained. APGR by seed: other folds and other training luck.",
        "TRIM-Thr is PREDICTED by the simulator, not run. Per fold it is fitted on the other "
        "folds, weighted to the mix of levels in the fold, and pooled. Intervals: the process "
        f"fitted anew to {config.refits} resamples of the questions. They do not cover the "
        "assumptions; compare the variants for those.",
        "The records label no step, and that decides the prediction: the rule puts first errors "
        "where scores are low and so flatters the judge; drawn by likelihood they are early and "
        "mostly unseen by it. The truth may lie anywhere between; only a routed run can tell.",
        "A solution without a boxed answer is wrong.",
    ]
