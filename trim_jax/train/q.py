"""TRIM-Q: learns how solutions end, for all prices at once, and acts greedily on it.

Monte-Carlo control rather than bootstrapping. A double-Q target trusts Q at the next step, which
would be right if the features were a state; but score, minimum, length and step do not tell whether
the prefix is right, so a bootstrapped target is biased where outcomes of complete solutions are not.
Solutions are short and the reward comes at their end, so bootstrapping would save little variance.

Two biases of Monte-Carlo control are avoided by how solutions are played (`policies.learned.Q`):
each explores at one step only, drawn in advance, and only steps from there on are learned from. What
follows them is greedy, so no exploration enters the target; and as the step does not depend on how
the solution went, nothing is selected. For the same reason solutions are not relabelled with other
prices: keeping those whose later actions another price would also have taken selects the easy ones.
Prices are spread over the whole range in every batch instead, and the network shares between them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from trim_jax.policies.learned import Q, excursion
from trim_jax.train.episodes import Environment, Episodes, jit, play


@dataclasses.dataclass(frozen=True)
class QConfig:
    """How TRIM-Q trains.

    Attributes:
      iterations: batches played. problems: solutions a batch, over all prices.
      memory: so many of the latest batches are learned from: older ones were played by policies
        that are too different.
      updates: gradient steps an iteration. rows: solutions a gradient step.
      learning_rate: of Adam, falls linearly to 0. norm: largest global norm of a gradient.
      token_weight: weight of the loss of the tokens against that of the right answer.
    """

    iterations: int = 60
    problems: int = 512
    memory: int = 8
    updates: int = 30
    rows: int = 512
    learning_rate: float = 3e-3
    norm: float = 1.0
    token_weight: float = 1.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
    """What is learned from: one row a solution, [..., M]; `features` [..., M, F]."""

    features: jax.Array
    worth: jax.Array
    action: jax.Array
    right: jax.Array
    tokens: jax.Array
    use: jax.Array


def samples(policy: Q, episodes: Episodes) -> Samples:
    """How each step [N, M] ended; `use` is False before the step at which the solution explored."""
    right, tokens = episodes.outcome()
    explored = excursion(episodes.uniform, policy.excursions).step
    worth = jnp.broadcast_to(episodes.worth[..., None], episodes.mask.shape)
    use = episodes.mask & (jnp.arange(episodes.mask.shape[-1]) >= explored[..., None])
    return Samples(
        episodes.features(policy.features), worth, episodes.action, right, tokens, use
    )


def outcome_loss(
    logits: jax.Array, expected: jax.Array, action: jax.Array, right: jax.Array, tokens: jax.Array
) -> jax.Array:
    """Cross-entropy and squared error [2] of one step, for the action that was taken.

    Args:
      logits: [2], of a right answer. expected: [2], tokens to come, in the unit of `tokens`.
      action: a number. right: 1 if the answer was right in the end. tokens: that came.
    """
    surprise = optax.sigmoid_binary_cross_entropy(logits[action], right)
    return jnp.stack([surprise, 0.5 * (expected[action] - tokens) ** 2])


def spread(config: QConfig, low: float, high: float, key: jax.Array) -> jax.Array:
    """Prices [problems] from `low` to `high`, evenly in the logarithm, shifted at random."""
    part = (jnp.arange(config.problems) + jax.random.uniform(key)) / config.problems
    return low * (high / low) ** part


class Learner(NamedTuple):
    """The network in training, and the latest solutions ([memory, N, M] each)."""

    params: Any
    opt: Any
    memory: Samples
    iterations: jax.Array


def optimizer(config: QConfig) -> optax.GradientTransformation:
    rate = optax.linear_schedule(config.learning_rate, 0.0, config.iterations * config.updates)
    return optax.chain(optax.clip_by_global_norm(config.norm), optax.adam(rate))


def start(config: QConfig, policy: Q, key: jax.Array, max_steps: int) -> Learner:
    """A new network, and no solutions yet."""
    params = policy.init_weights(key)
    shape = (config.memory, config.problems, max_steps)
    number, width = jnp.zeros(shape), policy.features.width
    memory = Samples(
        jnp.zeros((*shape, width)), number + 1, number.astype(jnp.int32), number, number, number > 0
    )
    return Learner(params, optimizer(config).init(params), memory, jnp.zeros([], jnp.int32))


def update(
    config: QConfig, policy: Q, learner: Learner, episodes: Episodes, key: jax.Array
) -> Learner:
    """Take in `episodes` [problems, M] of the learner's policy, and learn from the latest batches."""
    at = learner.iterations % config.memory
    memory = jax.tree.map(
        lambda all_, new: all_.at[at].set(new), learner.memory, samples(policy, episodes)
    )
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), memory)
    filled = jnp.minimum(learner.iterations + 1, config.memory) * config.problems

    def loss(params, batch: Samples):
        logits, tokens = policy.network.apply({"params": params}, batch.features)
        # At a low price an error in tokens weighs what it does in Q; at a high one it still counts.
        unit = jnp.minimum(batch.worth, policy.token_unit)
        each = jax.vmap(jax.vmap(outcome_loss))(
            logits, tokens / unit[..., None], batch.action, batch.right, batch.tokens / unit
        )
        total = each[..., 0] + config.token_weight * each[..., 1]
        return jnp.where(batch.use, total, 0.0).sum() / jnp.maximum(batch.use.sum(), 1)

    def one(carry, key):
        params, opt = carry
        rows = jax.random.randint(key, (config.rows,), 0, filled)
        grads = jax.grad(loss)(params, jax.tree.map(lambda x: x[rows], flat))
        step, opt = optimizer(config).update(grads, opt, params)
        return (optax.apply_updates(params, step), opt), None

    carry = (learner.params, learner.opt)
    (params, opt), _ = jax.lax.scan(one, carry, jax.random.split(key, config.updates))
    return Learner(params, opt, memory, learner.iterations + 1)


class Trained(NamedTuple):
    """Weights for `Q.weights`, after each iteration the mean tokens and accuracy of the solutions
    played (explored steps included), and the environment steps taken."""

    weights: Any
    accuracy: jax.Array
    strong_tokens: jax.Array
    steps: jax.Array


def make_train(config: QConfig, policy: Q, env: Environment) -> Callable[[jax.Array], Trained]:
    """key -> `Trained`: one training for all prices from the first to the last of `policy.settings`."""
    low, high = policy.settings[0], policy.settings[-1]

    def one_iteration(learner, key):
        prices, problems, batches = jax.random.split(key, 3)
        playing = dataclasses.replace(policy, weights=learner.params, explore=True)
        episodes = play(env, playing, problems, spread(config, low, high, prices))
        right, tokens = (x[:, 0].mean() for x in episodes.outcome())
        learner = update(config, policy, learner, episodes, batches)
        return learner, (right, tokens, episodes.mask.sum())

    def train(key):
        first, key = jax.random.split(key)
        learner = start(config, policy, first, env.max_steps)
        keys = jax.random.split(key, config.iterations)
        learner, (right, tokens, steps) = jax.lax.scan(one_iteration, learner, keys)
        return Trained(learner.params, right, tokens, steps.sum())

    return jit(train)


def fit(
    config: QConfig,
    policy: Q,
    rollout: Callable[[Any, int], Episodes],
    key: jax.Array,
) -> Trained:
    """The same training on solutions from elsewhere: the routed engine, or a recording of it.

    Args:
      rollout: (weights, number of the iteration) -> `Episodes` [problems, M], played by `policy`
        with these weights and `explore=True`, at prices over the whole range.
    """
    improve = jit(lambda *x: update(config, policy, *x))
    first, key = jax.random.split(key)
    learner, seen = None, []
    params = policy.init_weights(first)
    for i, batches in enumerate(jax.random.split(key, config.iterations)):
        episodes = rollout(params, i)
        if learner is None:
            learner = start(config, policy, first, episodes.mask.shape[-1])
        learner = improve(learner, episodes, batches)
        params = learner.params
        right, tokens = (x[:, 0].mean() for x in episodes.outcome())
        seen.append((right, tokens, episodes.mask.sum()))
    right, tokens, steps = (jnp.stack(x) for x in zip(*seen))
    return Trained(params, right, tokens, steps.sum())
