"""PPO for the policies with an actor and a critic, TRIM-Agg and TRIM-Seq (method, section 2).

The losses are pure functions, of steps each by itself or of one solution. An update takes
complete `Episodes` that were played by exactly the weights it starts from, so it works out their
old log-probabilities and values itself, and its first ratio is 1. They may come from the simulator
(`make_train`, one jitted scan) or from the routed engine (`train.tuning`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from trim_jax.errors import ConfigError
from trim_jax.policies import base
from trim_jax.policies.learned import Agg
from trim_jax.train.episodes import Environment, Episodes, jit, play, summarize


@dataclasses.dataclass(frozen=True)
class PpoConfig:
    """How PPO trains; the defaults are the paper's, except for the number of updates.

    Attributes:
      updates: batches played and learned from.
      problems: solutions a batch, for each price.
      epochs: gradient steps on each batch.
      learning_rate: of Adam, falls linearly to 0. weight_decay: L2, inside Adam.
      trace: lambda of GAE. clip: of the ratio and of the value. value: weight of the value loss.
      entropy, last_entropy: weight of the entropy at the first and at the last update.
      norm: largest global norm of a gradient.
      validations: times that the greedy policy is measured; the best weights are kept. Divides
        `updates`.
      validation_problems: solutions of each such measurement, for each price.
    """

    updates: int = 300
    problems: int = 64
    epochs: int = 3
    learning_rate: float = 3e-4
    weight_decay: float = 1e-5
    trace: float = 0.95
    clip: float = 0.2
    value: float = 0.5
    entropy: float = 0.01
    last_entropy: float = 0.001
    norm: float = 0.5
    validations: int = 10
    validation_problems: int = 512

    def __post_init__(self):
        if self.validations < 1 or self.updates % self.validations:
            raise ConfigError(
                f"PPO: updates ({self.updates}) must be a multiple of validations "
                f"({self.validations})"
            )


# ------------------------------------------------------------------------------------------ losses


def gae(reward: jax.Array, value: jax.Array, mask: jax.Array, trace: float) -> jax.Array:
    """Generalised advantages [M] of one solution, undiscounted (arXiv 1506.02438, eq. 16).

    Args:
      reward, value: float32 [M]. mask: bool [M], True up to and including the last step.
      trace: the lambda of the paper.
    """
    value = jnp.where(mask, value, 0.0)
    following = jnp.append(value[1:], 0.0)
    delta = jnp.where(mask, reward + following - value, 0.0)

    def back(later, delta):
        later = delta + trace * later
        return later, later

    return jax.lax.scan(back, jnp.zeros_like(delta[0]), delta, reverse=True)[1]


def actor_loss(log_prob: jax.Array, old: jax.Array, advantage: jax.Array, clip: float) -> jax.Array:
    """Clipped surrogate of one step, to be minimised (arXiv 1707.06347, eq. 7)."""
    ratio = jnp.exp(log_prob - old)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def value_loss(value: jax.Array, old: jax.Array, target: jax.Array, clip: float) -> jax.Array:
    """Squared error of one step, of the value or of it kept within `clip` of `old`: the worse."""
    near = old + jnp.clip(value - old, -clip, clip)
    return jnp.maximum((value - target) ** 2, (near - target) ** 2)


def entropy(logits: jax.Array) -> jax.Array:
    """Entropy [...] in nats of distributions over actions; `logits` [..., 2]."""
    log_prob = jax.nn.log_softmax(logits)
    return -(jnp.exp(log_prob) * log_prob).sum(axis=-1)


def log_prob(logits: jax.Array, action: jax.Array) -> jax.Array:
    """Logarithms [...] of the probabilities of actions [...]; `logits` [..., 2]."""
    each = jax.nn.log_softmax(logits)
    return jnp.where(action == base.REGENERATE, each[..., base.REGENERATE], each[..., base.ACCEPT])


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1)


# ------------------------------------------------------------------------------------------ update

PARTS = 8  # of a batch, for a gradient that leaves out what lies behind the end of solutions


class Lessons(NamedTuple):
    """What a gradient is taken of: as `Episodes` [N, M], or one axis of steps [K].

    Attributes:
      seen: what the policy saw, `policy.seen`.
      action: int32. old, old_value: log-probability of it and value before the update.
      advantage, target: float32. mask: bool.
    """

    seen: Any
    action: jax.Array
    old: jax.Array
    old_value: jax.Array
    advantage: jax.Array
    target: jax.Array
    mask: jax.Array


class Learner(NamedTuple):
    """One network in training: parameters, optimiser, updates so far."""

    params: Any
    opt: Any
    updates: jax.Array


def optimizer(config: PpoConfig) -> optax.GradientTransformation:
    """Adam as in the paper: gradient norm, then L2, then Adam, with a rate that falls to 0."""
    rate = optax.linear_schedule(config.learning_rate, 0.0, config.updates * config.epochs)
    return optax.chain(
        optax.clip_by_global_norm(config.norm),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_adam(eps=1e-5),
        optax.scale_by_learning_rate(rate),
    )


def start(config: PpoConfig, params: Any) -> Learner:
    """Training of one network that begins at `params`."""
    return Learner(params, optimizer(config).init(params), jnp.zeros([], jnp.int32))


def _over_steps(loss: Callable, lessons: Lessons) -> Callable:
    """params -> gradient of `loss`, a sum over steps, as the sum over parts of `lessons` [N, M].

    Live steps are moved to the front and parts without any are not computed: solutions are about
    half as long as the longest, and a part stays in the cache.
    """
    first = jnp.argsort(~lessons.mask.reshape(-1), stable=True)
    size = -(-len(first) // PARTS)
    spare = PARTS * size - len(first)

    def parted(x):
        x = x.reshape(-1, *x.shape[2:])[first]
        return jnp.pad(x, [(0, spare)] + [(0, 0)] * (x.ndim - 1)).reshape(PARTS, size, *x.shape[1:])

    parts = jax.tree.map(parted, lessons)
    count = lessons.mask.sum()

    def gradient(params):
        def add(carry):
            i, total = carry
            part = jax.tree.map(lambda x: x[i], parts)
            return i + 1, jax.tree.map(jnp.add, total, jax.grad(loss)(params, part))

        start = (0, jax.tree.map(jnp.zeros_like, params))
        return jax.lax.while_loop(lambda carry: carry[0] * size < count, add, start)[1]

    return gradient


def update(config: PpoConfig, policy: Any, learner: Learner, episodes: Episodes) -> Learner:
    """One PPO update of one network, on `episodes` [N, M] that it has just played."""
    mask, seen = episodes.mask, policy.seen(episodes)
    old_logits, old_value = policy.evaluate(learner.params, seen)
    old = log_prob(old_logits, episodes.action)
    advantage = jax.vmap(lambda r, v, m: gae(r, v, m, config.trace))(
        episodes.rewards(), old_value, mask
    )
    target = advantage + old_value
    mean = _mean(advantage, mask)
    deviation = jnp.sqrt(_mean((advantage - mean) ** 2, mask))
    advantage = (advantage - mean) / (deviation + 1e-8)
    lessons = Lessons(seen, episodes.action, old, old_value, advantage, target, mask)
    part = learner.updates / config.updates
    bonus = config.entropy + (config.last_entropy - config.entropy) * part

    def loss(params, lessons):  # a sum over steps
        logits, value = policy.evaluate(params, lessons.seen)
        new = log_prob(logits, lessons.action)
        actor = actor_loss(new, lessons.old, lessons.advantage, config.clip)
        critic = value_loss(value, lessons.old_value, lessons.target, config.clip)
        each = actor + config.value * critic - bonus * entropy(logits)
        return jnp.where(lessons.mask, each, 0.0).sum()

    if policy.steps_alone:
        gradient = _over_steps(loss, lessons)
    else:
        gradient = lambda params: jax.grad(loss)(params, lessons)  # noqa: E731
    count = jnp.maximum(mask.sum(), 1)

    def epoch(carry, _):
        params, opt = carry
        grads = jax.tree.map(lambda x: x / count, gradient(params))
        step, opt = optimizer(config).update(grads, opt, params)
        return (optax.apply_updates(params, step), opt), None

    (params, opt), _ = jax.lax.scan(epoch, learner[:2], None, length=config.epochs)
    return Learner(params, opt, learner.updates + 1)


# ---------------------------------------------------------------------------------------- training


class Trained(NamedTuple):
    """Trained weights of the policy, and how its validations went.

    Attributes:
      weights: for `policy.weights`: a leading axis of networks on every leaf.
      validation: `Summary` of arrays [networks, validations]; a network of its own price is judged
        at that price, one for all prices at their mean.
      steps: environment steps for training and for validation, int32 [2].
    """

    weights: Any
    validation: Any
    steps: jax.Array


def make_train(config: PpoConfig, policy: Agg, env: Environment) -> Callable[[jax.Array], Trained]:
    """key -> `Trained`: training in the environment at all prices of `policy.settings`, jitted."""
    worths = jnp.asarray(policy.settings, jnp.float32)
    lanes = worths.reshape(policy.networks, -1)  # [networks, prices of each]
    alone = dataclasses.replace(policy, settings=policy.settings[:1])
    per_block = config.updates // config.validations

    def with_weights(params, explore):
        return dataclasses.replace(
            alone, weights=jax.tree.map(lambda x: x[None], params), explore=explore
        )

    def train_network(key, prices):
        key, first, held_out = jax.random.split(key, 3)
        learner = start(config, policy.init_weights(first))
        best = (learner.params, -jnp.inf)
        batch = jnp.tile(prices, config.problems)
        trial = jnp.tile(prices, config.validation_problems)

        def one_update(learner, key):
            episodes = play(env, with_weights(learner.params, True), key, batch)
            return update(config, policy, learner, episodes), episodes.mask.sum()

        def block(carry, key):
            learner, (kept, score) = carry
            learner, steps = jax.lax.scan(one_update, learner, jax.random.split(key, per_block))
            seen = summarize(play(env, with_weights(learner.params, False), held_out, trial))
            better = seen.objective > score
            kept = jax.tree.map(lambda a, b: jnp.where(better, a, b), learner.params, kept)
            return (learner, (kept, jnp.maximum(score, seen.objective))), (seen, steps.sum())

        keys = jax.random.split(key, config.validations)
        (_, (kept, _)), (seen, steps) = jax.lax.scan(block, (learner, best), keys)
        return kept, seen, jnp.stack([steps.sum(), seen.steps.sum()])

    def train(key):
        keys = jax.random.split(key, policy.networks)
        weights, seen, steps = jax.vmap(train_network)(keys, lanes)
        return Trained(weights, seen, steps.sum(axis=0))

    return jit(train)
