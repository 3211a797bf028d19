"""TRIM-Q: learns how solutions end, for all prices at once, and acts greedily on it.

Monte-Carlo control rather than bootstrapping. A double-Q target trusts Q at the next step, which
would be right if the features were a state; but score, minimum, length and step do not tell whether
the prefix is right, so such a target is biased where outcomes of complete solutions are not.
Solutions are short and the reward comes at their end, so bootstrapping would save little variance.

Two biases of Monte-Carlo control are avoided by how solutions are played (`policies.learned.Q`):
each explores at one step only, drawn in advance, and only steps from there on are learned from.
What follows them is greedy, so no exploration enters the target; and as the step does not depend
on how the solution went, nothing is selected. For the same reason solutions are not relabelled with other
prices: keeping those whose later actions another price would also have taken selects the easy ones.
Prices are spread over the whole range in every batch instead, and the network shares between them.

Every problem is played twice with the same luck, with both actions at the step that explores. A
rewrite often repeats the draft, or makes no difference to the end, so the difference of the two
returns is far less noisy than either: it has a loss of its own (`gain_loss`), on what is decided.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from trim_jax.policies import base
from trim_jax.policies.learned import Q, excursion
from trim_jax.train.episodes import Environment, Episodes, jit, play


@dataclasses.dataclass(frozen=True)
class QConfig:
    """How TRIM-Q trains.

    Attributes:
      iterations: batches played. problems: solutions a batch, over all prices; an even number, as
        each problem is played both ways.
      memory: so many of the latest batches are learned from. Outcomes under an older policy are a
        little biased, but more of them cost less noise: keeping all 120 measured best.
      updates: gradient steps an iteration. rows: pairs a gradient step.
      learning_rate: of Adam, falls linearly to 0. norm: largest global norm of a gradient.
      token_weight, gain_weight: weights of the losses of the tokens to come and of the difference
        between both ways, against the loss of the right answer.
    """

    iterations: int = 120
    problems: int = 512
    memory: int = 120
    updates: int = 30
    rows: int = 128
    learning_rate: float = 3e-3
    norm: float = 1.0
    token_weight: float = 1.0
    gain_weight: float = 20.0


class Samples(NamedTuple):
    """What is learned from: P problems, each played both ways (axis 2), [..., P, 2, M].

    Attributes:
      features: [..., F]. worth: tokens per right answer. action: the one taken.
      right: 1 if the answer was right in the end. tokens: of the large model from this step on.
      use: False before the step that the solution explored at, and after its end.
      fork: True at that step, the same in both ways.
    """

    features: jax.Array
    worth: jax.Array
    action: jax.Array
    right: jax.Array
    tokens: jax.Array
    use: jax.Array
    fork: jax.Array


def samples(policy: Q, episodes: Episodes) -> Samples:
    """How each step ended, of `Episodes` [2, P, M]: played both ways (`both_ways`)."""
    episodes = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), episodes)
    right, tokens = episodes.outcome()
    steps = jnp.arange(episodes.mask.shape[-1])
    explored = excursion(episodes.uniform, policy.excursions).step[..., None]
    worth = jnp.broadcast_to(episodes.worth[..., None], episodes.mask.shape)
    use = episodes.mask & (steps >= explored)
    return Samples(
        episodes.features(policy.features), worth, episodes.action, right, tokens, use,
        use & (steps == explored),
    )  # fmt: skip


def both_ways(policy: Q) -> tuple[Q, Q]:
    """The two policies of a pair: the same excursion, with the one action and with the other."""
    return tuple(dataclasses.replace(policy, explore=True, opposite=o) for o in (False, True))


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


def gain_loss(value: jax.Array, action: jax.Array, gained: jax.Array) -> jax.Array:
    """Squared error of Q(regenerate) - Q(accept) at the step where a solution was played both ways.

    Args:
      value: [2, 2], by way, of both actions (the features are the same both ways).
      action: [2], taken in each way. gained: [2], what the solution returned from here on.
    """
    predicted = value[0, base.REGENERATE] - value[0, base.ACCEPT]
    sign = jnp.where(action[0] == base.REGENERATE, 1.0, -1.0)
    return (predicted - sign * (gained[0] - gained[1])) ** 2


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def spread(config: QConfig, low: float, high: float, key: jax.Array) -> jax.Array:
    """Prices [problems / 2] from `low` to `high`, evenly in the logarithm, shifted at random."""
    n = config.problems // 2
    part = (jnp.arange(n) + jax.random.uniform(key)) / n
    return low * (high / low) ** part


class Learner(NamedTuple):
    """The network in training, its average at the end, the latest solutions [memory, P, 2, M]."""

    params: Any
    average: Any
    opt: Any
    memory: Samples
    iterations: jax.Array


def optimizer(config: QConfig) -> optax.GradientTransformation:
    rate = optax.linear_schedule(config.learning_rate, 0.0, config.iterations * config.updates)
    return optax.chain(optax.clip_by_global_norm(config.norm), optax.adam(rate))


def start(config: QConfig, policy: Q, params: Any, max_steps: int) -> Learner:
    """Training that begins at `params`, and no solutions yet."""
    size = min(config.memory, config.iterations)
    shape = (size, config.problems // 2, 2, max_steps)
    number, no = jnp.zeros(shape), jnp.zeros(shape, bool)
    features = jnp.zeros((*shape, policy.features.width))
    memory = Samples(features, number + 1, number.astype(jnp.int32), number, number, no, no)
    opt = optimizer(config).init(params)
    return Learner(params, params, opt, memory, jnp.zeros([], jnp.int32))


def update(
    config: QConfig, policy: Q, learner: Learner, episodes: Episodes, key: jax.Array
) -> Learner:
    """Take in `episodes` [2, problems / 2, M], played `both_ways` with the learner's weights, and
    learn from the latest batches."""
    size = len(learner.memory.use)
    at = learner.iterations % size
    memory = jax.tree.map(
        lambda all_, new: all_.at[at].set(new), learner.memory, samples(policy, episodes)
    )
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), memory)
    filled = jnp.minimum(learner.iterations + 1, size) * memory.use.shape[1]

    def loss(params, batch: Samples):
        logits, expected = policy.network.apply({"params": params}, batch.features)
        # At a low price an error in tokens weighs what it does in Q; at a high one it still counts.
        unit = jnp.minimum(batch.worth, policy.token_unit)
        each = jax.vmap(jax.vmap(jax.vmap(outcome_loss)))(
            logits, expected / unit[..., None], batch.action, batch.right, batch.tokens / unit
        )
        outcomes = _mean(each[..., 0] + config.token_weight * each[..., 1], batch.use)
        value = nn.sigmoid(logits) - expected / batch.worth[..., None]
        gained = batch.right - batch.tokens / batch.worth
        gains = jax.vmap(jax.vmap(gain_loss, 1))(value, batch.action, gained)
        return outcomes + config.gain_weight * _mean(gains, batch.fork[:, 0])

    def one(carry, key):
        params, opt = carry
        rows = jax.random.randint(key, (config.rows,), 0, filled)
        grads = jax.grad(loss)(params, jax.tree.map(lambda x: x[rows], flat))
        step, opt = optimizer(config).update(grads, opt, params)
        return (optax.apply_updates(params, step), opt), None

    carry = (learner.params, learner.opt)
    (params, opt), _ = jax.lax.scan(one, carry, jax.random.split(key, config.updates))
    # The mean of the weights after each iteration of the last quarter: less noise, the same cost.
    late = learner.iterations - (config.iterations - 1 - config.iterations // 4)
    part = 1 / jnp.maximum(late, 1)
    average = jax.tree.map(lambda mean, new: mean + part * (new - mean), learner.average, params)
    return Learner(params, average, opt, memory, learner.iterations + 1)


class Trained(NamedTuple):
    """Weights for `Q.weights`, after each iteration the mean tokens and accuracy of the solutions
    played (explored steps included), and the environment steps taken."""

    weights: Any
    accuracy: jax.Array
    strong_tokens: jax.Array
    steps: jax.Array


def make_train(config: QConfig, policy: Q, env: Environment) -> Callable[[jax.Array], Trained]:
    """key -> `Trained`: one training for all prices in the range of `policy.settings`, jitted."""
    # A little beyond the range, so that its ends have neighbours on both sides too.
    low, high = policy.settings[0] / 2, policy.settings[-1] * 2

    def one_iteration(learner, key):
        prices, problems, batches = jax.random.split(key, 3)
        playing = dataclasses.replace(policy, weights=learner.params)
        worth = spread(config, low, high, prices)
        pair = [play(env, way, problems, worth) for way in both_ways(playing)]
        episodes = jax.tree.map(lambda *x: jnp.stack(x), *pair)
        right, tokens = (x[..., 0].mean() for x in episodes.outcome())
        learner = update(config, policy, learner, episodes, batches)
        return learner, (right, tokens, episodes.mask.sum())

    def train(key):
        first, key = jax.random.split(key)
        learner = start(config, policy, policy.init_weights(first), env.max_steps)
        keys = jax.random.split(key, config.iterations)
        learner, (right, tokens, steps) = jax.lax.scan(one_iteration, learner, keys)
        return Trained(learner.average, right, tokens, steps.sum())

    return jit(train)
