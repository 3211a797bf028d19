"""Known steps in place of the models: the same solutions and charges, and less work or none."""

import errno
import os

import pytest
from tiny import (
    GLIMP, NEVER, THR, assert_as_reference, assert_same, by_setting, requests, shared_engine,
    tiny_engine,
)  # fmt: skip

from trim_jax.engine import rows as R
from trim_jax.engine.replay import Replay
from trim_jax.engine.store import StepStore
from trim_jax.errors import CheckpointError, ResultError

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


def rows_of(engine, which, share="all"):
    return [engine._item(request, i) for i, request in enumerate(requests(PROBLEMS, which, share=share))]


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
    files = sorted(folder.iterdir())
    engine.keep_steps()  # there is nothing new
    assert sorted(folder.iterdir()) == files
    read = StepStore(ORIGINS, folder)
    assert len(read) == len(engine.store) > 100
    replayed = Replay(engine.loop).advance(rows_of(engine, KNOWN), read)
    assert not replayed.waiting and len(replayed.finished) > 2 * len(PROBLEMS)


@pytest.mark.parametrize("model", range(3), ids=R.MODELS)
def test_what_another_model_did_is_not_found(engine, folder, model):
    engine.keep_steps()
    origins = [origin + " of another" * (i == model) for i, origin in enumerate(ORIGINS)]
    asked = rows_of(engine, [THR], share="nothing")
    replayed = Replay(engine.loop).advance(asked, StepStore(origins, folder))
    phases = {int(row.phase) for row in replayed.waiting}
    assert phases == {(R.DRAFTING, R.WRITING, R.SCORING)[model]}
    # Thresholds 0 and 1 need one language model alone.
    needed = {R.SMALL: [R.LARGE], R.LARGE: [R.SMALL], R.PRM: [R.SMALL, R.LARGE]}[model]
    writers = [set(row.writer[: row.t].tolist()) for row in replayed.finished]
    assert all(len(each) == 1 for each in writers) and set.union(*writers) == set(needed)


def test_a_damaged_file_is_named(engine, folder, tmp_path):
    whole = next(folder.glob("*.npz")).read_bytes()
    part = tmp_path / "part.npz"
    for damaged in (b"", b"no archive", whole[: len(whole) // 2]):
        part.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"part\.npz.*remove it"):
            StepStore(ORIGINS, tmp_path)


def test_a_full_disk_loses_nothing(engine, folder, tmp_path, monkeypatch):
    store = StepStore(ORIGINS, tmp_path / "new")
    request = requests([0], [THR])[0]
    asked = [engine._item(request, 0)]
    for record in Replay(engine.loop).advance(asked, StepStore(ORIGINS, folder)).finished:
        store.learn(record, len(request.prompt), engine.loop.tables)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(full))
        with pytest.raises(ResultError, match="make room"):
            store.keep()
    assert not list((tmp_path / "new").iterdir())
    store.keep()
    assert len(StepStore(ORIGINS, tmp_path / "new")) == len(store) > 0
    (tmp_path / "file").touch()
    with pytest.raises(ResultError, match="--config.store=FOLDER"):
        StepStore(ORIGINS, tmp_path / "file" / "below")
