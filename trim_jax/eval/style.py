"""Colours, markers and dashes: a policy looks the same in every figure.

Colours are told apart with the common forms of colour blindness as far as so many can be; each
family of policies also has its own marker, and variants of one family differ by their dash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trim_jax.eval.names import family_of, is_router

INK, MUTED, GRID, PAPER = "#1f2429", "#5b6570", "#dde1e6", "#ffffff"
BLUE, ORANGE, GREEN, PURPLE, SKY, BRICK = ("#0072b2", "#c25700", "#00795c", "#8a3f77", "#3a87b8",
                                           "#7a4b2a")
SLATE, GOLD, ROSE, OLIVE, INDIGO = "#4d6b80", "#a07800", "#c2416b", "#5d7a00", "#5a4fb0"
FAINT = "#b9c1c9"
WRITER_COLORS = {"small": SLATE, "large": PURPLE}  # as in the page's viewer
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", BLUE: "blue",
             ORANGE: "orange", GREEN: "green", PURPLE: "purple", SKY: "sky", BRICK: "brick",
             SLATE: "slate", GOLD: "gold", ROSE: "rose", OLIVE: "olive", INDIGO: "indigo",
             FAINT: "faint"}  # names of the page's CSS variables


@dataclass(frozen=True)
class Style:
    color: str
    marker: str
    dash: Any


_DASHED = (0, (5, 2))
_VARIANTS = ((0, (4, 1.3)), (0, (1.5, 1)), (0, (6, 1.3, 1.5, 1.3)), (0, (2.5, 1.5)))
_STYLES = {"thr": Style(BLUE, "o", "-"), "agg": Style(BRICK, "D", "-"), "q": Style(PURPLE, "P", "-"),
           "seq": Style(ROSE, "v", "-"), "pomdp": Style(GOLD, "X", "-"),
           "rsd": Style(SKY, "h", "-"), "glimp": Style(OLIVE, "<", "-"),
           "loglik": Style(INDIGO, ">", "-"), "random": Style(ORANGE, "s", _DASHED),
           "oracle": Style(GREEN, "^", _DASHED)}
_ROUTER = Style(SLATE, "H", (0, (2, 1.2)))
_OTHERS = (Style(ROSE, "p", "-"), Style(SKY, "d", "-"), Style(OLIVE, "*", "-"))

RC = {
    "font.family": ["DejaVu Sans"], "font.size": 9.5, "axes.titlesize": 10.5,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED, "axes.linewidth": 0.8, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.8,
    "axes.axisbelow": True, "text.color": INK, "axes.titlecolor": INK, "xtick.color": MUTED,
    "ytick.color": MUTED, "xtick.major.size": 0, "ytick.major.size": 0, "legend.frameon": False,
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "svg.hashsalt": "trim_jax",
    "lines.linewidth": 1.8, "lines.markersize": 5, "figure.dpi": 100,
}  # fmt: skip


def style_of(policy: str, routed: Sequence[str]) -> Style:
    """Colour, marker and dash of a policy among the ``routed`` ones of a run.

    Known families have fixed colours; policies from outside take the spare ones in turn.
    """
    if is_router(policy):
        return _ROUTER
    name, variant = family_of(policy)
    if name not in _STYLES:
        others = sorted({family_of(p)[0] for p in routed} - set(_STYLES))
        base = _OTHERS[others.index(name) % len(_OTHERS)]
    else:
        base = _STYLES[name]
    if not variant:
        return base
    variants = sorted(p for p in routed if family_of(p)[0] == name and family_of(p)[1])
    return Style(base.color, base.marker, _VARIANTS[variants.index(policy) % len(_VARIANTS)])
