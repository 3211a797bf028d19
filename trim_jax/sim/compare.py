"""Predicted against recorded: every policy of a run, with the recorded intervals, and a figure."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from trim_jax.eval import figures, style
from trim_jax.eval.bootstrap import interval, resample
from trim_jax.eval.choice import find_anchor
from trim_jax.eval.names import label_of
from trim_jax.eval.traces import Result, tables
from trim_jax.policies.base import Policy
from trim_jax.policies.learned import Priced
from trim_jax.policies.simple import Always, Oracle, Random, Threshold
from trim_jax.sim.env import Rollout, rollout
from trim_jax.sim.process import Process

ROWS = 50_000  # simulated problems; the standard error of an accuracy is 0.2 points
RESAMPLES = 1000
# Policies with a larger state than this many bytes a row are simulated one setting at a time, on as
# many rows as fit the memory.
LARGE_STATE, MEMORY = 1024, 10**9


@dataclasses.dataclass(frozen=True)
class Series:
    """One quantity of every setting (S): predicted, recorded, and the recorded 95 % interval."""

    predicted: np.ndarray
    recorded: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        """bool [S]: the prediction is within the interval (to the rounding of floats)."""
        return (self.predicted >= self.low - 1e-6) & (self.predicted <= self.high + 1e-6)

    @property
    def mean_error(self) -> float:
        return float(np.abs(self.predicted - self.recorded).mean())


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
    process: Process, result: Result, policies: dict[str, Policy] | None = None, seed: int = 0
) -> list[Comparison]:
    """Predicts `policies` of a recorded run, by name; by default those that need no weights.

    Raises:
      ResultError: the run has no strong-only anchor, or cells without a trace.
    """
    policies = known_policies(result) if policies is None else policies
    key = jax.random.key(seed)
    strong = float(rollout(process, Always(), key, ROWS).strong_tokens[0])
    found = tables(result)
    drawn = resample(len(result.problems), len(result.seeds), RESAMPLES)
    name, setting = find_anchor(found, "always")
    anchor = found[name].strong_tokens[setting : setting + 1]
    out = []
    for name, policy in policies.items():
        table = found[name]
        simulated = _simulate(process, policy, key)
        share = lambda tokens, full: tokens / full[..., :1]  # noqa: E731
        low, high = _interval(drawn.means(table.correct))
        accuracy = Series(
            np.asarray(simulated.accuracy, float), table.correct.mean((1, 2)), low, high
        )
        low, high = _interval(share(drawn.means(table.strong_tokens), drawn.means(anchor)))
        recorded = share(table.strong_tokens.mean((1, 2)), anchor.mean((1, 2)))
        tokens = np.asarray(simulated.strong_tokens, float) / strong
        out.append(
            Comparison(
                name, table.policy.parameter, table.policy.settings, accuracy,
                Series(tokens, recorded, low, high),
            )
        )  # fmt: skip
    return out


def _simulate(process: Process, policy: Policy, key: jax.Array) -> Rollout:
    state = sum(x.nbytes for x in jax.tree.leaves(policy.init(1)))
    # A network for each setting: all of them would be run for every row.
    apart = isinstance(policy, Priced) and policy.networks > 1
    if state <= LARGE_STATE and not apart:
        return rollout(process, policy, key, ROWS)
    rows = ROWS if state <= LARGE_STATE else min(ROWS, MEMORY // state)
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
    """The comparison in text: settings within their intervals, and mean absolute errors."""
    wide = 2 + max(len(c.policy) for c in comparisons)
    lines = [f"{'policy':<{wide}}{'settings':>9}{'accuracy':>26}{'strong tokens':>26}"]
    for c in comparisons:
        parts = [f"{c.policy:<{wide}}{len(c.settings):>9}"]
        for series, width in ((c.accuracy, 26), (c.share, 26)):
            text = f"{series.inside.sum()} inside, {100 * series.mean_error:.2f} points"
            parts.append(f"{text:>{width}}")
        lines.append("".join(parts))
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
            ax.set_title(textwrap.fill(label_of(c.policy), 28))
            ax.xaxis.set_major_formatter(figures.PERCENT)
            ax.yaxis.set_major_formatter(figures.PERCENT)
            ax.legend(loc="lower right", fontsize=8)
        fig.supxlabel("tokens written by the large model, % of strong-only", fontsize=9.5)
        fig.supylabel("problems solved", fontsize=9.5)
        return figures.laid_out(fig)


def _bars(ax, x: np.ndarray, series: Series, color: str) -> None:
    ax.vlines(x, 100 * series.low, 100 * series.high, color=color, linewidth=1, alpha=0.6)
