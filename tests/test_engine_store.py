"""Known steps in place of the models: the same solutions and charges, and less work or none."""

import dataclasses
import errno
import io
import os

import jax
import numpy as np
import pytest
from tiny import (
    GLIMP, NEVER, THR, assert_as_reference, assert_same, by_setting, requests, shared_engine,
    tiny_engine,
)  # fmt: skip

from trim_jax import api
from trim_jax.api import load_trio, route, step_store
from trim_jax.engine import rows as R
from trim_jax.engine.engine import Engine, EngineConfig
from trim_jax.engine.replay import Replay
from trim_jax.engine.sampling import Sampling
from trim_jax.engine.store import StepStore
from trim_jax.errors import CheckpointError, ResultError
from trim_jax.policies.simple import Threshold
from trim_jax.tasks.data import load_problems

PROBLEMS = range(12)
ORIGINS = ("small", "large", "prm")
KNOWN = (NEVER, THR, GLIMP)  # the policies whose steps are known first


def worked(engine, asked, **options):
    """Solutions, and the tokens that the models of an engine worked on for them."""
    before = engine.executed.copy()
    found = list(engine.run(asked, **options))
    return by_setting(found), int((engine.executed - before)[:, 1].sum())


@pytest.fixture(scope="module")
def without():
    """Every problem under every policy, and the tokens that it takes."""
    return worked(shared_engine(), requests(PROBLEMS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("steps")


@pytest.fixture(scope="module")
def engine(folder):
    """An engine that has solved all problems with the policies of `KNOWN`, and kept the steps."""
    engine = tiny_engine(store=StepStore(ORIGINS, folder))
    list(engine.run(requests(PROBLEMS, KNOWN)))
    engine.keep_steps()
    return engine


def replayed(engine, which, store, share="all"):
    """Records of finished solutions of all problems, and rows that wait for a model."""
    asked = requests(PROBLEMS, which, share=share)
    rows = [engine._item(request, i) for i, request in enumerate(asked)]
    found = list(Replay(engine.loop).advance(rows, store))
    return [r for r in found if r.phase == R.DONE], [r for r in found if r.phase != R.DONE]


@pytest.mark.parametrize("share", ["all", "settings", "nothing"])
def test_what_is_known_asks_no_model(engine, without, share):
    solutions, _ = without
    got, tokens = worked(engine, requests(PROBLEMS, KNOWN, share=share))
    assert tokens == 0
    assert_same(got, {r: s for r, s in solutions.items() if r.cells[0].policy in KNOWN})
    _, tokens = worked(engine, requests([0], KNOWN, share=share), anew=True)
    assert tokens > 0


def test_where_a_step_is_missing_the_models_go_on_and_the_charge_is_the_same(engine, without):
    solutions, alone = without
    got, tokens = worked(engine, requests(PROBLEMS))
    assert_same(got, solutions)
    assert_as_reference(got)
    assert 0.2 * alone < tokens < 0.9 * alone
    again, tokens = worked(engine, requests(PROBLEMS))
    assert tokens == 0
    assert_same(again, solutions)


def test_a_folder_keeps_steps_for_other_processes(engine, folder):
    engine.keep_steps()
    files = sorted(folder.rglob("*"))
    engine.keep_steps()  # there is nothing new
    assert sorted(folder.rglob("*")) == files
    read = StepStore(ORIGINS, folder)
    assert len(read) == len(engine.store) > 100
    finished, waiting = replayed(engine, KNOWN, read)
    assert not waiting and len(finished) > 2 * len(PROBLEMS)


@pytest.mark.parametrize("model", range(3), ids=R.MODELS)
def test_what_another_model_did_is_not_found(engine, folder, model):
    engine.keep_steps()
    origins = [origin + " of another" * (i == model) for i, origin in enumerate(ORIGINS)]
    finished, waiting = replayed(engine, [THR], StepStore(origins, folder), share="nothing")
    phase = (R.DRAFTING, R.WRITING, R.SCORING)[model]
    assert {int(row.phase) for row in waiting} == {phase}
    # Thresholds 0 and 1 need one language model alone.
    needed = {R.SMALL: {R.LARGE}, R.LARGE: {R.SMALL}, R.PRM: {R.SMALL, R.LARGE}}[model]
    writers = [set(row.writer[: row.t].tolist()) for row in finished]
    assert all(len(each) == 1 for each in writers) and set.union(*writers) == needed


def test_a_model_in_two_roles_writes_as_either(engine, folder):
    """The roles have random streams of their own."""
    store, tables = StepStore(["same", "same", "prm"]), engine.loop.tables
    prompt = len(requests([0])[0].prompt)
    finished, _ = replayed(engine, [THR], StepStore(ORIGINS, folder), share="nothing")
    ends = [r for r in finished if r.item in (0, 6)]  # thresholds 0 and 1 of problem 0
    for record in ends:
        store.learn(record, prompt, tables)
    for record in ends:
        step = store.step(int(record.writer[0]), record.key, record.tokens[:prompt])
        assert step.tokens.tolist() == record.tokens[prompt : record.step_end[0]].tolist()
    assert {int(record.writer[0]) for record in ends} == {R.SMALL, R.LARGE}


def test_a_draft_that_found_no_room_is_not_learned(engine, folder):
    """A record holds so many discarded tokens; what comes after them is cut."""
    request = requests([0], [THR])[0]
    finished, _ = replayed(engine, [THR], StepStore(ORIGINS, folder))
    record = next(r for r in finished if r.item == 0 and (r.draft_cost >= 0).any())
    t = int(np.argmax(record.draft_cost >= 0))
    begin = int(record.step_end[t - 1]) if t else len(request.prompt)
    for room, known in ((int(record.discarded_end[t]), False), (len(record.discarded), True)):
        store = StepStore(ORIGINS)
        cut = record.replace(discarded=record.discarded[:room])
        store.learn(cut, len(request.prompt), engine.loop.tables)
        assert (store.step(R.SMALL, record.key, record.tokens[:begin]) is not None) == known


def test_a_damaged_file_is_named(engine, folder, tmp_path):
    StepStore(ORIGINS, tmp_path)
    (place,) = tmp_path.glob("prm-*")
    whole = next(folder.glob("prm-*/*.npz")).read_bytes()
    an_array = io.BytesIO()
    np.save(an_array, np.zeros(3))
    for damaged in (b"", b"no archive", whole[: len(whole) // 2], an_array.getvalue()):
        (place / "part.npz").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"part\.npz.*remove it"):
            StepStore(ORIGINS, tmp_path)


def test_a_full_disk_loses_nothing(engine, folder, tmp_path, monkeypatch):
    store = StepStore(ORIGINS, tmp_path / "new")
    request = requests([0], [THR])[0]
    for record in replayed(engine, [THR], StepStore(ORIGINS, folder))[0]:
        store.learn(record, len(request.prompt), engine.loop.tables)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(full))
        with pytest.raises(ResultError, match="make room"):
            store.keep()
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
    store.keep()
    assert len(StepStore(ORIGINS, tmp_path / "new")) == len(store) > 0
    (tmp_path / "file").touch()
    with pytest.raises(ResultError, match="--config.store=FOLDER"):
        StepStore(ORIGINS, tmp_path / "file" / "below")


# ---- What the shipped trio's steps depend on ----


def test_a_store_of_a_trio_is_for_its_weights_settings_and_arithmetic(tmp_path):
    trio, engine, sampling = load_trio(), EngineConfig(), Sampling()

    def folders(trio=trio, engine=engine, sampling=sampling):
        """Of which models there were none."""
        before = set(tmp_path.iterdir())
        step_store(tmp_path, trio, engine, sampling)
        new = {path.name.partition("-")[0] for path in set(tmp_path.iterdir()) - before}
        return [model for model in R.MODELS if model in new]

    assert folders() == ["small", "large", "prm"]
    same = dataclasses.replace(engine, slots=8, rows=4, max_steps=5, decode_chunk=3)
    assert folders(engine=same) == []
    for writers in (
        dict(sampling=Sampling(temperature=0.5)), dict(sampling=Sampling(top_k=5)),
        dict(engine=dataclasses.replace(engine, max_context=100)),
        dict(engine=dataclasses.replace(engine, max_step_tokens=20)),
    ):  # fmt: skip
        assert folders(**writers) == ["small", "large"]
    models = [dataclasses.replace(model, dtype="bfloat16") for model in trio.models]
    assert folders(trio=dataclasses.replace(trio, models=tuple(models))) == list(R.MODELS)
    other = dataclasses.replace(trio.tables, is_eos=~trio.tables.is_eos)
    assert folders(trio=dataclasses.replace(trio, tables=other)) == list(R.MODELS)
    swapped = trio.folders | {"small": trio.folders["large"]}
    assert folders(trio=dataclasses.replace(trio, folders=swapped)) == ["small"]
    with jax.default_matmul_precision("bfloat16"):
        assert folders() == list(R.MODELS)


def test_routing_again_with_a_store_asks_no_model(tmp_path, monkeypatch):
    trio, problems = load_trio(), load_problems("arith", "test", 6)
    size = EngineConfig(slots=16, rows=8, max_context=448)
    engines = []
    make = lambda *a, **k: engines.append(Engine(*a, **k)) or engines[-1]  # noqa: E731
    monkeypatch.setattr(api, "Engine", make)
    policy = Threshold((0.2, 0.5, 0.9))
    first = route(problems, policy, trio, engine=size, store=tmp_path)
    # Where new steps cannot be kept, the traces are not lost.
    monkeypatch.setattr(StepStore, "keep", lambda self: (_ for _ in ()).throw(ResultError("full")))
    with pytest.warns(UserWarning, match="full. The traces are complete"):
        again = route(problems, policy, trio, engine=size, store=tmp_path)
    plain = lambda found: [  # noqa: E731
        (t.problem_id, t.settings, t.ledger, [s.text for s in t.steps]) for t in found
    ]
    assert plain(again) == plain(first)
    computed = [int(engine.executed[:, 1].sum()) for engine in engines]
    assert computed[0] > 0 == computed[1] and engines[0].served == 0 < engines[1].served
