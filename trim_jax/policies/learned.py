"""Learned policies on the features of one step: TRIM-Agg, and the value-based TRIM-Q.

Both have one dial, `worth`: how many tokens of the large model a right answer is worth, 1 / lambda.
An episode returns R - (tokens of the large model) / worth, with R in {0, 1}, undiscounted; more
worth means more spending. Networks are small flax modules; their parameters are `weights`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.errors import ConfigError
from trim_jax.policies import base
from trim_jax.policies.features import Features


def _dense(width: int, scale: float) -> nn.Dense:
    return nn.Dense(width, kernel_init=nn.initializers.orthogonal(scale))


class Mlp(nn.Module):
    """Dense, LayerNorm, tanh; `widths` gives the layers. [..., F] -> [..., widths[-1]]."""

    widths: tuple[int, ...] = (64, 64)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.widths:
            x = jnp.tanh(nn.LayerNorm()(_dense(width, np.sqrt(2))(x)))
        return x


class ActorCritic(nn.Module):
    """[..., F] -> logits of accept and regenerate [..., 2], value [...].

    A common body of 64-64, then a hidden layer of 64 for each of the two heads (method, section 2).
    """

    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        body = Mlp((self.width, self.width))(x)
        logits = _dense(2, 0.01)(Mlp((self.width,))(body))
        value = _dense(1, 1.0)(Mlp((self.width,))(body))
        return logits, value[..., 0]


class Outcome(nn.Module):
    """[..., F] -> for accept and regenerate: logit that the answer will be right, tokens to come.

    Attributes:
      token_unit: the second output is softplus(.) times this many tokens.
    """

    width: int = 64
    token_unit: float = 100.0

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = _dense(4, 0.1)(Mlp((self.width, self.width))(x))
        return out[..., :2], self.token_unit * nn.softplus(out[..., 2:])


@dataclasses.dataclass(frozen=True)
class Priced(base.Policy):
    """Base of the policies whose dial is `worth`.

    Attributes:
      explore: decide as in training, with the help of `Observation.uniform`; otherwise greedily.
    """

    parameter: ClassVar[str] = "worth"
    explore: bool = False

    @property
    def networks(self) -> int:
        """How many there are: one for all settings, unless a class says one for each."""
        return 1

    def __post_init__(self):
        super().__post_init__()
        if not self.settings[0] > 0:
            raise ConfigError(
                f"policy {self.name}: worth must be above 0 tokens, it is {self.settings[0]}"
            )


@dataclasses.dataclass(frozen=True)
class Agg(Priced):
    """TRIM-Agg: an actor on the aggregate features, trained with PPO (method, section 2).

    As in the paper there is one network for each price; they are trained side by side, and every
    leaf of `weights` has a leading axis of networks. With `features.price` one network serves all
    prices, and that axis has length 1. A dial between the settings takes the nearest one's network.
    """

    name: ClassVar[str] = "agg"
    steps_alone: ClassVar[bool] = True  # each is evaluated by itself
    features: Features = Features()
    width: int = 64

    @property
    def networks(self) -> int:
        return 1 if self.features.price else len(self.settings)

    def init_weights(self, key: jax.Array) -> Any:
        """Parameters of one network, without the leading axis."""
        return ActorCritic(self.width).init(key, jnp.zeros([self.features.width]))["params"]

    def seen(self, episodes: Any) -> jax.Array:
        """float32 [N, M, F], what `evaluate` sees of `train.episodes.Episodes`."""
        return episodes.features(self.features)

    def evaluate(self, params: Any, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits [..., 2] and values [...] of one network, of features [..., F]."""
        return ActorCritic(self.width).apply({"params": params}, seen)

    def decide(self, dial, obs, state):
        run = lambda params, x: ActorCritic(self.width).apply({"params": params}, x)  # noqa: E731
        logits, _ = jax.vmap(run, (0, None))(self.weights, self.features.of(obs, dial))
        return choose(own_network(logits, self.settings, dial), obs.uniform, self.explore), state


def own_network(outputs: jax.Array, settings: tuple[float, ...], dial: jax.Array) -> jax.Array:
    """For each row the output of its price's network: [networks, B, ...] -> [B, ...]."""
    if len(outputs) == 1:
        return outputs[0]
    known = jnp.log(jnp.asarray(settings, jnp.float32))
    at = jnp.argmin(jnp.abs(jnp.log(dial)[:, None] - known), axis=1)
    return outputs[at, jnp.arange(len(dial))]


def choose(logits: jax.Array, uniform: jax.Array, explore: bool) -> jax.Array:
    """Actions [B] of logits [B, 2]: the likelier one, or, to explore, a draw."""
    if explore:
        regenerate = uniform < jax.nn.softmax(logits)[:, base.REGENERATE]
    else:
        regenerate = logits[:, base.REGENERATE] > logits[:, base.ACCEPT]
    return jnp.where(regenerate, base.REGENERATE, base.ACCEPT)


@flax.struct.dataclass
class Excursion:
    """The one step of a solution at which TRIM-Q explores, and the action it takes there."""

    step: jax.Array  # int32 [B]
    action: jax.Array  # int32 [B]


@dataclasses.dataclass(frozen=True)
class Q(Priced):
    """TRIM-Q: regenerate iff Q(s, regenerate; worth) > Q(s, accept; worth), one network for all.

    Q(s, a; worth) = P(right | s, a) - E[tokens to come | s, a] / worth, both under the policy
    itself from the next step on. The two are learned by regression to how complete solutions ended
    (`trim_jax.train.q`), so they can be read: is this prefix still worth saving, and at what cost?

    Exploring changes one step of a solution only, chosen before it begins: what follows is greedy,
    so from that step on the outcome is an unbiased sample of what is to be learned.

    Attributes:
      excursions: exploring, the step is drawn from the first so many.
      opposite: exploring, take the other action at that step. The same solution played both ways
        shares all its luck, so that their difference is known much better than either.
    """

    name: ClassVar[str] = "q"
    features: Features = Features(price=True)
    width: int = 64
    token_unit: float = 100.0
    excursions: int = 8
    opposite: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not self.features.price:
            raise ConfigError("policy q: its features must hold the price (Features(price=True))")

    @property
    def network(self) -> Outcome:
        return Outcome(self.width, self.token_unit)

    def init_weights(self, key: jax.Array) -> Any:
        return self.network.init(key, jnp.zeros([self.features.width]))["params"]

    def init(self, rows):
        return Excursion(jnp.full([rows], -1, jnp.int32), jnp.zeros([rows], jnp.int32))

    def gain(self, features: jax.Array, dial: jax.Array) -> jax.Array:
        """Q(regenerate) - Q(accept), [...], of features [..., F] at worth [...]."""
        logits, tokens = self.network.apply({"params": self.weights}, features)
        value = nn.sigmoid(logits) - tokens / dial[..., None]
        return value[..., base.REGENERATE] - value[..., base.ACCEPT]

    def decide(self, dial, obs, state):
        greedy = self.gain(self.features.of(obs, dial), dial) > 0
        action = jnp.where(greedy, base.REGENERATE, base.ACCEPT)
        if not self.explore:
            return action, state
        first = excursion(obs.uniform, self.excursions)
        state = jax.tree.map(lambda new, old: jnp.where(obs.t == 0, new, old), first, state)
        there = (base.ACCEPT + base.REGENERATE) - state.action if self.opposite else state.action
        return jnp.where(obs.t == state.step, there, action), state


def excursion(uniform: jax.Array, steps: int) -> Excursion:
    """Where a solution explores, of the first step's `Observation.uniform` [B]."""
    scaled = uniform * steps
    step = jnp.minimum(scaled.astype(jnp.int32), steps - 1)
    action = jnp.where(scaled - step < 0.5, base.REGENERATE, base.ACCEPT)
    return Excursion(step, action)
