"""After warm-up nothing compiles, and memory does not grow with the number of problems."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import NEVER, POLICIES, THR, of, requests, shared_engine, tiny_engine

from trim_jax.engine.engine import Cells
from trim_jax.errors import ConfigError
from trim_jax.policies.base import ACCEPT, REGENERATE, Policy
from trim_jax.policies.learned import Q
from trim_jax.policies.neighbours import Rsd
from trim_jax.policies.simple import Never, Threshold
from trim_jax.policies.takeover import takeover

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def warm_engine():
    engine = tiny_engine()  # not the shared one, whose program may be long forgotten
    list(engine.run(requests(range(3))))
    return engine


@contextlib.contextmanager
def compilations():
    """Seconds of each compilation that happens inside."""
    seen = []

    def listen(event, duration, **_):
        if event == COMPILED:
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_nothing_compiles_after_warm_up(warm_engine):
    with compilations() as seen:
        for asked in (requests([5]), requests(range(3)), requests(range(20), [THR]), []):
            list(warm_engine.run(asked))
        half = warm_engine.run(requests(range(6)))
        next(half)
        half.close()  # a caller who stops early
        list(warm_engine.run(requests(range(6), [NEVER])))
        assert not seen, f"{len(seen)} programs were compiled"
        jax.jit(lambda x: x + len(seen))(np.float32(1.0))
        assert seen, "the listener hears compilations"


def test_an_equal_engine_compiles_nothing_and_another_one_does(warm_engine):
    want = [solution.steps for solution in warm_engine.run(requests([1]))]
    tables = dataclasses.replace(warm_engine.loop.tables)
    with compilations() as seen:
        again = tiny_engine(tables=tables)
        assert [solution.steps for solution in again.run(requests([1]))] == want
        assert not seen, f"{len(seen)} programs were compiled"
    changed = [
        dict(slots=9), dict(policies=with_thresholds(0.25, 0.75)),
        dict(tables=dataclasses.replace(tables, is_eos=~tables.is_eos)),
    ]  # fmt: skip
    programs = [warm_engine, *(tiny_engine(**change) for change in changed)]
    assert len({engine.machine.run for engine in programs}) == len(programs)


def with_thresholds(*thresholds):
    return tuple(Threshold(thresholds) if i == THR else p for i, p in enumerate(POLICIES))


def test_other_thresholds_compile_nothing_and_are_obeyed(warm_engine):
    halves = with_thresholds(0.0, 0.075, 0.15, 0.225, 0.3, 0.4, 0.5)
    whole, half = {}, {}
    with compilations() as seen:
        for found, engine in zip((whole, half), (warm_engine, tiny_engine(policies=halves))):
            settings = engine.loop.policies[THR].settings
            for solution in of(engine.run(requests(range(8), [THR])), THR):
                for cells in solution.cells:
                    for k in range(cells.lo, cells.hi):
                        steps = [(s.action, s.tokens, s.draft) for s in solution.steps]
                        found[solution.request.problem_id, settings[k]] = steps
        assert not seen, f"{len(seen)} programs were compiled"
    assert {k for _, k in whole.keys() & half.keys()} == {0.0, 0.15, 0.3}
    assert all(whole[key] == half[key] for key in whole.keys() & half.keys())
    assert any(half[f"p{i}", 0.5] != half[f"p{i}", 0.3] for i in range(8))


@dataclasses.dataclass(frozen=True)
class Nearest(Policy):
    """Rsd by that of its settings which is nearest to the dial."""

    def decide(self, dial, obs, state):
        settings = jnp.asarray(self.settings)
        own = settings[jnp.argmin(jnp.abs(dial[:, None] - settings), axis=1)]
        return jnp.where(obs.draft_score < own, REGENERATE, ACCEPT), state


def test_a_wrapped_policy_sees_the_settings_of_the_run():
    programs = set()
    for settings in ((0.2, 0.6), (0.4, 0.8)):
        engine = tiny_engine(policies=(takeover(Nearest(settings)), takeover(Rsd(settings))))
        programs.add(engine.machine.run)
        both = (Cells(0, 0, 2), Cells(1, 0, 2))
        asked = [dataclasses.replace(r, cells=both) for r in requests(range(6), [NEVER])]
        found = list(engine.run(asked))
        ranges = [[{(lo, hi) for p, lo, hi in s.cells if p == i} for i in (0, 1)] for s in found]
        assert len(found) > 6 and all(nearest == rsd for nearest, rsd in ranges)
    assert len(programs) == 1


@dataclasses.dataclass(frozen=True)
class Reads(Policy):
    """A user's policy that would have its settings in the program."""

    settings: tuple[float, ...] = (0.2, 0.4)

    def init(self, rows):
        return jnp.full([rows], self.settings[0])

    def decide(self, dial, obs, state):
        return jnp.where(obs.draft_score < state, ACCEPT, REGENERATE), state


def test_settings_are_not_there_before_the_program_runs():
    with pytest.raises(ConfigError, match="read its settings in `plan` and `decide`, not in"):
        list(tiny_engine(policies=(Reads(),)).run(requests([0], [0])))


@dataclasses.dataclass(frozen=True)
class Asks(Policy):
    """A user's policy that asks a trained one, whose weights nobody exchanges."""

    other: Policy = Never()

    def decide(self, dial, obs, state):
        return self.other.decide(dial, obs, state)


def test_weights_inside_a_policy_are_part_of_the_program():
    trained = [Q((10.0,), weights={"w": np.full(2, value)}) for value in (0.0, 1.0)]
    engines = [tiny_engine(policies=(policy,)) for policy in trained]
    assert engines[0].machine.run is engines[1].machine.run  # traced
    asking = [tiny_engine(policies=(Asks(other=policy),)) for policy in [*trained, trained[0]]]
    assert asking[0].machine.run is not asking[1].machine.run
    assert asking[0].machine.run is asking[2].machine.run
    deep = [tiny_engine(policies=(Asks(other=Asks(other=policy)),)) for policy in trained]
    assert deep[0].machine.run is not deep[1].machine.run


def live_bytes():
    return sum(array.nbytes for array in jax.live_arrays())


def test_memory_does_not_grow_with_the_number_of_problems(warm_engine):
    peaks = []
    for problems in (range(2), range(24)):
        asked = requests(problems)
        peaks.append(max(live_bytes() for _ in warm_engine.run(asked)))
    assert peaks[1] <= peaks[0] + 10_000, peaks


def test_solutions_come_while_requests_are_still_being_read(warm_engine):
    read = []

    def source():
        for request in requests(range(24)):
            read.append(request)
            yield request

    first = warm_engine.run(source())
    next(first)
    assert len(read) < len(requests(range(24))) / 2
    first.close()


def test_caches_are_updated_in_place():
    """No program of the loop copies a whole cache: that costs more than the work itself."""
    machine = shared_engine().machine
    carry = jax.eval_shape(machine.init)
    program = machine.run.lower(machine.params, machine.traced, carry).compile().as_text()
    for cache in jax.tree.leaves(carry.kv):
        shape = f"= f32[{','.join(map(str, cache.shape))}]"
        lines = [line for line in program.splitlines() if shape in line]
        assert lines, "the caches are in the program"
        copies = [line for line in lines if " copy(" in line]
        assert not copies, copies[:3]
