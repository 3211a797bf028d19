"""Training on the models' own solutions: after the simulator (fine-tuning), or instead of it.

Each round plays some problems through the engine, at all prices and exploring, with a seed of its
own, and learns from them as PPO (TRIM-Agg, TRIM-Seq) or as TRIM-Q does. After each round the greedy
policy is measured on problems that are never learned from; the weights that did best there are the
result, and those that it began with where no round did better.
"""

from __future__ import annotations

import dataclasses
import json
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from tqdm import tqdm

from trim_jax.config import diff_configs
from trim_jax.errors import CheckpointError, ConfigError
from trim_jax.policies.learned import Priced, Q
from trim_jax.results import atomic_write
from trim_jax.tasks.data import Problem
from trim_jax.train import ppo, q
from trim_jax.train.episodes import Episodes, Summary, jit, summarize
from trim_jax.train.rollouts import Player

# Solutions are dearer than in the simulator: more is learned from each.
PPO_LEARNING = ppo.PpoConfig(epochs=10, learning_rate=3e-4)
Q_LEARNING = q.QConfig(updates=60, learning_rate=1e-4)
SETTINGS, STATE = "tuning.json", "tuning.safetensors"


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """How much is played.

    Attributes:
      rounds: batches played and learned from.
      problems: a round, in order and from the start again after the last; each at every price.
      held_out: the last so many of the problems are for the choice between rounds only.
      seed: of what is drawn; the models' solutions take this seed (held-out problems) and the
        following ones, one a round.
    """

    rounds: int = 8
    problems: int = 200
    held_out: int = 200
    seed: int = 0

    def __post_init__(self):
        for name in ("rounds", "problems", "held_out"):
            if getattr(self, name) < 1:
                raise ConfigError(f"tuning: {name} must be at least 1, it is {getattr(self, name)}")


class Tuned(NamedTuple):
    """What tuning came to.

    Attributes:
      policy: with the weights that did best on held-out problems.
      best_round: after which those were; 0: before the first, no round did better.
      gain, error: return of the best round less that of the start, mean over held-out problems and
        prices, and its standard error over problems. The best of all rounds, so a little high.
      held_out: `Summary` [rounds + 1, settings] of the greedy policy, from the start on.
      steps: environment steps learned from, counted as if every price had run alone.
      solutions: that the models wrote, held-out ones included; prices share them.
      seconds: of all rounds, compilation included, what a killed run has lost excluded; fewer where
        steps were known.
    """

    policy: Priced
    best_round: int
    gain: float
    error: float
    held_out: Summary
    steps: int
    solutions: int
    seconds: float


class Method(NamedTuple):
    """How a family learns from solutions.

    Attributes:
      start: weights -> learner.
      improve: (learner, episodes [ways, settings, N, M] of the policies of `ways`, key) -> learner.
      playing, learned: learner -> weights to play on with, and the best it can give.
    """

    start: Callable[[Any], Any]
    improve: Callable[[Any, Episodes, jax.Array], Any]
    playing: Callable[[Any], Any]
    learned: Callable[[Any], Any]


def ways(policy: Priced) -> tuple[Priced, ...]:
    """The policies that play what it learns from."""
    if isinstance(policy, Q):
        return q.both_ways(policy)
    return (dataclasses.replace(policy, explore=True),)


def by_ppo(learning: ppo.PpoConfig, policy: Priced, rounds: int) -> Method:
    """PPO, one update a round for each network of the policy, on all solutions of its prices."""
    learning = dataclasses.replace(learning, updates=rounds, validations=1)

    def improve(learner, episodes, key):
        del key
        lanes = jax.tree.map(lambda x: x.reshape(policy.networks, -1, *x.shape[3:]), episodes)
        return jax.vmap(lambda *x: ppo.update(learning, policy, *x))(learner, lanes)

    start = jax.vmap(lambda params: ppo.start(learning, params))
    params = lambda learner: learner.params  # noqa: E731
    return Method(jit(start), jit(improve), params, params)


def by_q(learning: q.QConfig, policy: Q, config: TuneConfig, steps: int) -> Method:
    """TRIM-Q on pairs of solutions played both ways, those of all rounds so far."""
    pairs = config.problems * len(policy.settings)
    learning = dataclasses.replace(learning, iterations=config.rounds, problems=2 * pairs)

    def improve(learner, episodes, key):
        episodes = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[3:]), episodes)
        return q.update(learning, policy, learner, episodes, key)

    start = lambda params: q.start(learning, policy, params, steps)  # noqa: E731
    playing, learned = (lambda learner: learner.params), (lambda learner: learner.average)
    return Method(jit(start), jit(improve), playing, learned)


def fresh_weights(policy: Any, key: jax.Array) -> Any:
    """`Policy.weights` of a policy that has learned nothing."""
    if isinstance(policy, Q):
        return policy.init_weights(key)
    return jax.vmap(policy.init_weights)(jax.random.split(key, policy.networks))


class _State(NamedTuple):
    """All that goes on from one round to the next. The first `done` rounds are over, where round 0
    only measures the weights at the start."""

    done: jax.Array
    learner: Any
    best: Any
    first: jax.Array  # [held_out], returns at the start, mean over prices
    gain: jax.Array  # [rounds + 1], -inf where not yet measured
    error: jax.Array  # [rounds + 1]
    seen: Summary  # [rounds + 1, settings]
    counts: jax.Array  # float32 [3]: steps, solutions, seconds


def tune(
    policy: Priced,
    learning: ppo.PpoConfig | q.QConfig,
    players: Callable[[Sequence[Priced]], Player],
    problems: Sequence[Problem],
    folder: str | Path,
    config: TuneConfig = TuneConfig(),
) -> Tuned:
    """Train a policy on solutions of the models; resumes where a run in `folder` was killed.

    Args:
      policy: TRIM-Agg, TRIM-Seq or TRIM-Q. Its weights are where it starts; None are fresh ones.
      learning: `PpoConfig` for Agg and Seq, `QConfig` for Q. Its number of updates and its sizes
        of batches and validations are those of `config`.
      players: what plays given policies, `functools.partial(Player, trio, ...)` with keywords.
      problems: of a training split; the last `config.held_out` are held out.
      folder: for the state between rounds.

    Raises:
      ConfigError: too few problems. CheckpointError: `folder` holds another tuning, or is damaged.
      DataError: a prompt that cannot be asked.
    """
    if len(problems) <= config.held_out:
        raise ConfigError(
            f"tuning: held_out ({config.held_out}) leaves none of {len(problems)} problems to learn "
            "from"
        )
    training, held_out = problems[: -config.held_out], problems[-config.held_out :]
    key = jax.random.key(config.seed)
    weights = policy.weights
    if weights is None:
        weights = fresh_weights(policy, jax.random.fold_in(key, config.rounds))
    weights = jax.tree.map(jnp.asarray, weights)
    policy = dataclasses.replace(policy, weights=weights, explore=False)
    exploring = ways(policy)
    player = players((*exploring, policy))
    explorers, greedy = range(len(exploring)), [len(exploring)]
    if isinstance(policy, Q):
        method = by_q(learning, policy, config, player.max_steps)
    else:
        method = by_ppo(learning, policy, config.rounds)
    folder = Path(folder)
    _check_same(folder / SETTINGS, _described(policy, learning, config, problems, player.origin))
    state = _restored(folder / STATE, _blank(method.start(weights), weights, policy, config))
    done = int(state.done)
    with tqdm(total=config.rounds + 1, initial=done, desc=f"tune {policy.full_name}") as bar:
        for at in range(done, config.rounds + 1):
            begun, before, steps = time.perf_counter(), player.solutions, 0
            learner = state.learner
            if at > 0:
                turn = (at - 1) * config.problems + np.arange(config.problems)
                batch = [training[i] for i in turn % len(training)]
                playing = method.playing(learner)
                episodes = player.play(playing, batch, config.seed + at, explorers)
                learner = method.improve(learner, episodes, jax.random.fold_in(key, at))
                steps = int(episodes.mask.sum())
            seen = player.play(method.learned(learner), held_out, config.seed, greedy)
            written = player.solutions - before
            state = _after(state, at, learner, method.learned(learner), seen)
            counts = [steps, written, time.perf_counter() - begun]
            state = state._replace(counts=state.counts + jnp.asarray(counts))
            atomic_write(folder / STATE, [save(_numbered(state))])
            player.keep_steps()  # only now: a round that is played again finds what it found first
            bar.set_postfix_str(f"held out {float(state.gain[at]):+.4f} +- {state.error[at]:.4f}")
            bar.update()
    best_round = int(state.gain.argmax())
    best = dataclasses.replace(policy, weights=jax.tree.map(np.asarray, state.best))
    steps, solutions, seconds = (float(x) for x in state.counts)
    return Tuned(
        best, best_round, float(state.gain[best_round]), float(state.error[best_round]),
        jax.tree.map(np.asarray, state.seen), int(steps), int(solutions), seconds,
    )  # fmt: skip


def _after(state: _State, at: int, learner: Any, weights: Any, played: Episodes) -> _State:
    """The state after round `at`, whose `weights` have `played` [1, settings, held_out, M]."""
    played = jax.tree.map(lambda x: x[0], played)
    returns = played.rewards().sum(axis=-1).mean(axis=0)
    first = returns if at == 0 else state.first
    gained = returns - first
    put = lambda all_, new: all_.at[at].set(new)  # noqa: E731
    return state._replace(
        done=jnp.int32(at + 1),
        learner=learner,
        best=weights if gained.mean() > state.gain.max() else state.best,
        first=first,
        gain=put(state.gain, gained.mean()),
        error=put(state.error, gained.std() / np.sqrt(len(gained))),
        seen=jax.tree.map(put, state.seen, summarize(played)),
    )


# ------------------------------------------------------------------------------- between two runs


def _blank(learner: Any, weights: Any, policy: Priced, config: TuneConfig) -> _State:
    """Before the first round."""
    rounds, settings = config.rounds + 1, len(policy.settings)
    number = jnp.zeros([rounds, settings])
    seen = Summary(number, number, number, number.astype(jnp.int32))
    return _State(
        done=jnp.int32(0), learner=learner, best=weights, first=jnp.zeros([config.held_out]),
        gain=jnp.full([rounds], -jnp.inf), error=jnp.zeros([rounds]), seen=seen,
        counts=jnp.zeros([3]),
    )  # fmt: skip


def _numbered(state: _State) -> dict[str, np.ndarray]:
    """The arrays of a state, by their place in it."""
    leaves = jax.tree.leaves(state)
    return {f"{i:04d}": np.array(leaf, order="C") for i, leaf in enumerate(leaves)}


def _restored(path: Path, blank: _State) -> _State:
    """The state that an earlier run has saved, or `blank` where there is none.

    Raises:
      CheckpointError: the file is damaged.
    """
    if not path.exists():
        return blank
    want = _numbered(blank)
    try:
        saved = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        advice = "remove it to start again"
        raise CheckpointError(f"{path}: cannot be read: {error}; {advice}") from error
    shapes = lambda arrays: {name: (x.shape, x.dtype) for name, x in arrays.items()}  # noqa: E731
    if shapes(saved) != shapes(want):
        raise CheckpointError(f"{path}: the state of another tuning; remove it to start again")
    arrays = [jnp.asarray(saved[name]) for name in sorted(want)]
    return jax.tree.unflatten(jax.tree.structure(blank), arrays)


def _described(
    policy: Priced, learning: Any, config: TuneConfig, problems: Sequence[Problem], origin: str
) -> dict[str, Any]:
    """What makes a tuning what it is, for JSON."""
    digest = lambda pieces: zlib.crc32(b"".join(pieces))  # noqa: E731
    leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(policy.weights)]
    return {
        "policy": repr(policy), "start": digest(leaves), "solutions": origin,
        "learning": {"kind": type(learning).__name__, **dataclasses.asdict(learning)},
        "tuning": dataclasses.asdict(config),
        "problems": digest(f"{p.id}\n{p.problem}\n".encode() for p in problems),
    }  # fmt: skip


def _check_same(path: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder of other settings; write them where there are none."""
    if path.exists():
        differing = diff_configs(settings, json.loads(path.read_text()))
        if differing:
            raise CheckpointError(
                f"{path.parent} holds another tuning:\n  " + "\n  ".join(differing)
                + "\nchoose another folder or remove it"
            )  # fmt: skip
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, [json.dumps(settings, indent=2, sort_keys=True).encode() + b"\n"])
