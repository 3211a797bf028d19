"""Predicted against recorded: every policy of a run, with the recorded intervals, and a figure."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from trim_jax.eval import figures, style
from trim_jax.eval.bootstrap import interval, resample
from trim_jax.eval.choice import find_anchor
from trim_jax.eval.names import label_of
from trim_jax.eval.traces import Result, Table, tables
from trim_jax.policies.base import Policy
from trim_jax.policies.learned import Priced
from trim_jax.policies.sequence import Seq
from trim_jax.policies.simple import Always, Oracle, Random, Threshold
from trim_jax.sim.env import Rollout, rollout
from trim_jax.sim.process import Process

# Simulated problems: at most so many, where the standard error of an accuracy is 0.2 points, or so
# many times the recorded solutions, whose intervals are then far wider.
ROWS, TIMES = 50_000, 20
# And in each refit: what they differ by at random, which is known, is taken off their variance.
REFIT_ROWS = 5000
RESAMPLES = 1000
Z95 = 1.96
# Policies with a larger state than this many bytes a row are simulated one setting at a time, on as
# many rows as fit the memory.
LARGE_STATE, MEMORY = 1024, 4 * 10**8


@dataclasses.dataclass(frozen=True)
class Series:
    """One quantity of every setting (S): predicted, recorded, and the recorded 95 % interval.

    `error` is the standard error of the prediction, which comes from no more problems than the
    recorded value; None if it was not asked for. `fitted` is what was recorded on the problems that
    the simulator was fitted to, if this policy ran on them, or None. A perfect simulator would say
    this, and miss the others' intervals as often.
    """

    predicted: np.ndarray
    recorded: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error: np.ndarray | None = None
    fitted: np.ndarray | None = None

    def inside(self, guess: np.ndarray) -> np.ndarray:
        """bool [S]: `guess` is within the recorded interval (to the rounding of floats)."""
        return (guess >= self.low - 1e-6) & (guess <= self.high + 1e-6)

    @property
    def agrees(self) -> np.ndarray:
        """bool [S]: the difference from what was recorded is within its own 95 % interval."""
        off = self.predicted - self.recorded
        recorded = np.where(off > 0, self.high - self.recorded, self.recorded - self.low)
        return np.abs(off) <= np.hypot(recorded, Z95 * self.error) + 1e-6

    def agreement(self, guess: np.ndarray) -> str:
        """Settings at which `guess` is inside, and its mean absolute error."""
        error = np.abs(guess - self.recorded).mean()
        return f"{self.inside(guess).sum()} inside, {100 * error:.2f} points"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One policy: accuracy, and strong tokens as a fraction of strong-only (each by its own)."""

    policy: str
    parameter: str | None
    settings: tuple[float | None, ...]
    accuracy: Series
    share: Series


def known_policies(result: Result) -> dict[str, Policy]:
    """The policies of a run that need no weights, with the settings they were run at."""
    makers = {"thr": Threshold, "random": Random, "oracle": lambda settings: Oracle()}
    return {
        name: makers[name](tuple(spec.settings))
        for name, spec in result.policies.items() if name in makers
    }  # fmt: skip


def compare(
    process: Process, result: Result, policies: dict[str, Policy] | None = None, seed: int = 0,
    fitted: Result | None = None, refits: Sequence[Process] = (),
) -> list[Comparison]:  # fmt: skip
    """Predicts `policies` of a recorded run, by name; by default those that need no weights.

    Args:
      fitted: the run that `process` was fitted to, for `Series.fitted`.
      refits: processes fitted to resamples of its problems, for `Series.error`.

    Raises:
      ResultError: a run has no strong-only anchor, or cells without a trace.
    """
    policies = known_policies(result) if policies is None else policies
    process = process.trimmed()
    # They have no longer plans: of one shape, they are compiled once.
    refits = [p.trimmed(process.max_steps).replace(history=process.history) for p in refits]
    key = jax.random.key(seed)
    rows = min(ROWS, TIMES * len(result.problems) * len(result.seeds))
    problems = [_problems(process, key, rows)]
    for refit, own in zip(refits, jax.random.split(key, len(refits))):
        problems.append(_problems(refit, own, min(rows, REFIT_ROWS)))
    found, known = tables(result), tables(fitted) if fitted is not None else {}
    drawn = resample(len(result.problems), len(result.seeds), RESAMPLES)
    anchor = _anchor(found)
    means = lambda x: x.mean((1, 2))  # noqa: E731
    share = lambda tokens, full: tokens / full[..., :1]  # noqa: E731
    predictions, out = _predictions(policies, problems), []
    for name in policies:
        table = found[name]
        ((accuracy, tokens), _), *refitted = predictions[name]
        solved = spent = None
        if name in known and known[name].policy.settings == table.policy.settings:
            solved = means(known[name].correct)
            spent = share(means(known[name].strong_tokens), means(_anchor(known)))
        errors = _errors(refitted) if refitted else (None, None)
        of_accuracy = _interval(drawn.means(table.correct))
        of_share = _interval(share(drawn.means(table.strong_tokens), drawn.means(anchor)))
        recorded = share(means(table.strong_tokens), means(anchor))
        out.append(
            Comparison(
                name, table.policy.parameter, table.policy.settings,
                Series(accuracy, means(table.correct), *of_accuracy, errors[0], solved),
                Series(tokens, recorded, *of_share, errors[1], spent),
            )
        )  # fmt: skip
    return out


class _Problems(NamedTuple):
    """Simulated problems, those of `key`, and what the large model alone spends on each."""

    process: Process
    key: jax.Array
    strong: np.ndarray


def _problems(process: Process, key: jax.Array, rows: int) -> _Problems:
    alone = rollout(process, Always(), key, rows).tokens[0]
    return _Problems(process, key, np.asarray(alone, float))


def _predicted(problems: _Problems, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and share of strong tokens, float [2, S], and their variances as means of rows."""
    process, key, strong = problems
    simulated = _simulate(process, policy, key, len(strong))
    correct, tokens = np.asarray(simulated.correct, float), np.asarray(simulated.tokens, float)
    # The first of these problems where a policy's state is large.
    strong = strong[: tokens.shape[1]]
    share = tokens.mean(axis=1) / strong.mean()
    residual = (tokens - share[:, None] * strong) / strong.mean()
    variances = [x.var(axis=1) / x.shape[1] for x in (correct, residual)]
    return np.stack([correct.mean(axis=1), share]), np.stack(variances)


def _predictions(
    policies: dict[str, Policy], problems: Sequence[_Problems]
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """`_predicted` of each policy on each of `problems`, with a progress bar."""
    out = {name: [] for name in policies}
    with tqdm(total=len(policies) * len(problems), desc="simulated", unit=" rollouts") as bar:
        for name, policy in policies.items():
            bar.set_postfix_str(name)
            for own in problems:
                out[name].append(_predicted(own, policy))
                bar.update()
    return out


def _errors(refits: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Standard errors [2, S] of a prediction, of what `_predicted` says of each refit."""
    found, by_chance = (np.stack(x) for x in zip(*refits))
    return np.sqrt(np.maximum(found.var(axis=0, ddof=1) - by_chance.mean(axis=0), 0))


def _anchor(found: dict[str, Table]) -> np.ndarray:
    """Strong tokens [1, problems, seeds] of the large model alone."""
    name, setting = find_anchor(found, "always")
    return found[name].strong_tokens[setting : setting + 1]


def _simulate(process: Process, policy: Policy, key: jax.Array, rows: int) -> Rollout:
    if isinstance(policy, Seq):  # keys and values of no more steps than there are
        policy = dataclasses.replace(policy, max_steps=process.max_steps)
    state = sum(x.nbytes for x in jax.tree.leaves(policy.init(1)))
    # A network for each setting: all of them would be run for every row.
    apart = isinstance(policy, Priced) and policy.networks > 1
    if state <= LARGE_STATE and not apart:
        return rollout(process, policy, key, rows)
    rows = rows if state <= LARGE_STATE else min(rows, MEMORY // state)
    each = []
    for i, dial in enumerate(policy.settings):
        one = _of_network(policy, i) if apart else policy
        each.append(rollout(process, one, key, rows, (dial,)))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *each)


def _of_network(policy: Priced, i: int) -> Priced:
    """The policy with its i-th network only, which then decides at any dial."""
    weights = jax.tree.map(lambda x: x[i : i + 1], policy.weights)
    # The same settings for all of them: only then does one compilation serve them.
    return dataclasses.replace(policy, settings=policy.settings[:1], weights=weights)


def _interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = interval(samples)
    return found.low, found.high


def table_of(comparisons: Sequence[Comparison]) -> str:
    """The comparison in text: settings within their intervals, and mean absolute errors.

    Of the prediction, and of what was recorded on the problems that it was fitted to. With standard
    errors of the predictions, also how many agree with what was recorded (`Series.agrees`).
    """
    wide, column = 2 + max(len(c.policy) for c in comparisons), 38
    heads = [f"{quantity}, {guess}" for quantity in ("accuracy", "strong tokens")
             for guess in ("predicted", "fitted to")]  # fmt: skip
    lines = [f"{'policy':<{wide}}{'settings':>9}" + "".join(f"{head:>{column}}" for head in heads)]
    for c in comparisons:
        cells = []
        for series in (c.accuracy, c.share):
            agree = "" if series.error is None else f"{series.agrees.sum()} agree, "
            cells += [agree + series.agreement(series.predicted),
                      "-" if series.fitted is None else series.agreement(series.fitted)]  # fmt: skip
        own = "".join(f"{cell:>{column}}" for cell in cells)
        lines.append(f"{c.policy:<{wide}}{len(c.settings):>9}{own}")
    return "\n".join(lines)


def figure(comparisons: Sequence[Comparison]) -> Figure:
    """The frontier of each policy in a panel of its own: recorded (markers, 95 %) and predicted."""
    columns = min(4, len(comparisons))
    lines = -(-len(comparisons) // columns)
    names = [c.policy for c in comparisons]
    with rc_context(style.RC):
        fig, axes = figures.new_figure(
            3.1 * columns, 2.7 * lines, nrows=lines, ncols=columns, squeeze=False
        )
        for ax in axes.flat[len(comparisons):]:
            ax.set_visible(False)
        for ax, c in zip(axes.flat, comparisons):
            look = style.style_of(c.policy, names)
            x = 100 * c.share.recorded
            _bars(ax, x, c.accuracy, look.color)
            ax.plot(x, 100 * c.accuracy.recorded, linestyle="none", marker=look.marker,
                    color=look.color, markerfacecolor=style.PAPER, label="recorded")  # fmt: skip
            ax.plot(100 * c.share.predicted, 100 * c.accuracy.predicted, color=style.INK,
                    linestyle="-" if len(x) > 1 else "none", marker="x", markersize=4, linewidth=1,
                    label="predicted")  # fmt: skip
            one = len(x) == 1
            _band(ax.vlines if one else ax.fill_between, c.share.predicted, c.accuracy)
            _band(ax.hlines if one else ax.fill_betweenx, c.accuracy.predicted, c.share)
            ax.set_title(textwrap.fill(label_of(c.policy), 28))
            ax.xaxis.set_major_locator(MaxNLocator(5))
            ax.xaxis.set_major_formatter(figures.PERCENT)
            ax.yaxis.set_major_formatter(figures.PERCENT)
            ax.legend(loc="lower right", fontsize=8)
        fig.supxlabel("tokens written by the large model, % of strong-only", fontsize=9.5)
        fig.supylabel("problems solved", fontsize=9.5)
        return figures.laid_out(fig)


def _band(draw: Callable, at: np.ndarray, series: Series) -> None:
    """The 95 % intervals of predictions, along what is predicted of the other quantity, `at`."""
    if series.error is not None:
        low, high = (series.predicted + side * Z95 * series.error for side in (-1, 1))
        draw(100 * at, 100 * low, 100 * high, color=style.INK, alpha=0.12 if len(at) > 1 else 0.5)


def _bars(ax, x: np.ndarray, series: Series, color: str) -> None:
    ax.vlines(x, 100 * series.low, 100 * series.high, color=color, linewidth=1, alpha=0.6)
