"""The job store beside a model of it in a dictionary, through every order of its methods and restarts."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from editverse_rt.errors import RequestError
from editverse_rt.serve.job import FINISHED, MAX_DEATHS, Job, StoredInput
from editverse_rt.serve.problems import HttpError
from editverse_rt.serve.store import JobStore
from editverse_rt.serve.table import JobTable

KEEP_S = 100.0
MAX_BYTES = 1000
INPUT_BYTES = 50


def make_job(store: JobStore, owner: str = "ann", now: float = 0.0, view: str = "native") -> Job:
    job = store.new_id()
    store.input_folder(job).mkdir()
    (store.input_folder(job) / "video1").write_bytes(b"x" * INPUT_BYTES)
    return Job(
        id=job,
        owner=owner,
        view=view,
        model="nano",
        format="mp4",
        request={"prompt": "é"},
        inputs={"video1": StoredInput("video1", INPUT_BYTES, "0" * 64)},
        estimate={},
        deadline_s=10.0,
        created_at=now,
    )


def write_part(store: JobStore, job: str, run: int, num_bytes: int = 100) -> dict[str, Path]:
    folder = store.output_folder(job)
    folder.mkdir(exist_ok=True)
    part = folder / f"part-{run}.mp4"
    part.write_bytes(b"y" * num_bytes)
    return {"result": part}


class StoreMachine(RuleBasedStateMachine):
    """`model` has the state, runs and deaths of each job; the store must say the same after any restart."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.now = 1000.0
        self.model: dict[str, dict[str, object]] = {}
        self.deleted: set[str] = set()
        self.keys: dict[str, str] = {}
        self.open()

    def open(self) -> None:
        self.store = JobStore(
            self.folder / "data", keep_s=KEEP_S, max_bytes=MAX_BYTES, clock=lambda: self.now
        )

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    def pick(self, data: st.DataObject, *states: str) -> str | None:
        names = sorted(j for j, facts in self.model.items() if not states or facts["state"] in states)
        return data.draw(st.sampled_from(names)) if names else None

    @rule(key=st.sampled_from([None, "a", "b"]), digest=st.sampled_from(["1", "2"]))
    def add(self, key: str | None, digest: str) -> None:
        self.now += 1
        job = make_job(self.store, now=self.now)
        known = None if key is None else self.keys.get(key)
        if known is not None and (known.split("/")[0] in self.deleted or not known.endswith(f"/{digest}")):
            with pytest.raises(HttpError) as caught:
                self.store.add(job, key, digest)
            assert caught.value.status == (410 if known.endswith(f"/{digest}") else 409)
            self.store.discard(job.id)
            return
        added = self.store.add(job, key, digest)
        if known is not None:
            assert added.id == known.split("/")[0]
            assert not self.store.input_folder(job.id).exists()
            return
        assert added.id == job.id
        self.model[job.id] = {"state": "queued", "runs": 0, "deaths": 0, "stop": False}
        if key is not None:
            self.keys[key] = f"{job.id}/{digest}"

    @rule(data=st.data())
    def begin_run(self, data: st.DataObject) -> None:
        job = self.pick(data)
        if job is None:
            return
        begun = self.store.begin(job)
        facts = self.model[job]
        assert (begun is not None) == (facts["state"] == "queued")
        if begun is not None:
            facts.update(state="in_progress", runs=facts["runs"] + 1)  # type: ignore[operator]
            assert begun.runs == facts["runs"]

    @rule(data=st.data(), is_old=st.booleans())
    def finish(self, data: st.DataObject, is_old: bool) -> None:
        job = self.pick(data)
        if job is None:
            return
        facts = self.model[job]
        run = int(facts["runs"]) - is_old  # type: ignore[call-overload]
        done = self.store.finish(job, run, write_part(self.store, job, run), {"type": "video/mp4"})
        assert done == (facts["state"] == "in_progress" and not is_old)
        if done:
            facts["state"] = "completed"

    @rule(data=st.data())
    def finish_deleted(self, data: st.DataObject) -> None:
        if not self.deleted:
            return
        job = data.draw(st.sampled_from(sorted(self.deleted)))
        assert not self.store.finish(job, 1, write_part(self.store, job, 1), {})
        assert self.store.get(job) is None
        assert not self.store.output_folder(job).exists()

    @rule(data=st.data(), is_old=st.booleans())
    def fail(self, data: st.DataObject, is_old: bool) -> None:
        job = self.pick(data)
        if job is None:
            return
        facts = self.model[job]
        done = self.store.fail(job, int(facts["runs"]) - is_old, {"code": "x"})  # type: ignore[call-overload]
        assert done == (facts["state"] == "in_progress" and not is_old)
        if done:
            facts["state"] = "failed"

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = self.pick(data)
        if job is None:
            return
        facts = self.model[job]
        state = self.store.cancel(job)
        if facts["state"] == "queued":
            facts["state"] = "cancelled"
        elif facts["state"] == "in_progress":
            facts["stop"] = True
        assert state == facts["state"]

    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        job = self.pick(data, "in_progress")
        if job is not None:
            assert self.store.end_cancelled(job, self.model[job]["runs"])  # type: ignore[arg-type]
            self.model[job]["state"] = "cancelled"

    @rule(data=st.data(), died=st.booleans())
    def give_back(self, data: st.DataObject, died: bool) -> None:
        job = self.pick(data, "in_progress")
        if job is not None:
            state = self.store.give_back(job, self.model[job]["runs"], died=died)  # type: ignore[arg-type]
            self.expect_back(job, died)
            assert state == self.model[job]["state"]

    def expect_back(self, job: str, died: bool) -> None:
        facts = self.model[job]
        if facts["stop"]:
            facts["state"] = "cancelled"
            return
        facts["deaths"] += died  # type: ignore[operator]
        facts["state"] = "failed" if facts["deaths"] == MAX_DEATHS else "queued"

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        job = self.pick(data)
        if job is not None:
            was = self.model.pop(job)
            assert self.store.delete(job)
            self.deleted.add(job)
            if was["state"] == "in_progress":
                self.store.discard(job)  # as the server does once the process has stopped

    @rule(seconds=st.sampled_from([1.0, 60.0, 101.0]))
    def sweep(self, seconds: float) -> None:
        self.now += seconds
        for job in self.store.sweep():
            assert self.model[job]["state"] in FINISHED
            self.model[job]["state"] = "expired"
        assert all(
            job.finished_at is not None and job.finished_at + KEEP_S > self.now
            for job in map(self.store.get, self.model)
            if job is not None and job.state in FINISHED - {"expired"}
        )

    @precondition(lambda self: self.model)
    @rule()
    def restart(self) -> None:
        """As after a kill: whatever ran has died; a stray file and a stray folder are left."""
        stray = self.store.input_folder("job_stray")
        stray.mkdir(exist_ok=True)
        self.store.close()
        for job, facts in self.model.items():
            if facts["state"] == "in_progress":
                self.expect_back(job, died=True)
        self.open()
        assert not stray.exists()

    @invariant()
    def the_store_says_what_the_model_says(self) -> None:
        if not hasattr(self, "store"):
            return
        for job, facts in self.model.items():
            found = self.store.get(job)
            assert found is not None
            assert (found.state, found.runs, found.deaths) == (
                facts["state"],
                facts["runs"],
                facts["deaths"],
            )
            result = self.store.content_path(found, "result")
            assert (result is not None and result.is_file()) == (facts["state"] == "completed")
            assert self.store.input_path(found, "video1").is_file() == (facts["state"] != "expired")
        assert all(self.store.get(job) is None for job in self.deleted)
        waiting = {job for job, facts in self.model.items() if facts["state"] == "queued"}
        assert {job.id for job in self.store.queued()} == waiting


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_the_folder_is_the_owners_alone_and_has_one_server(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with JobStore(folder):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "jobs.sqlite3").stat().st_mode & 0o777 == 0o600
        with pytest.raises(RequestError, match="another server") as caught:
            JobStore(folder)
        assert caught.value.code == "serve.data"
    with JobStore(folder):
        pass


def test_another_owner_sees_nothing(tmp_path: Path) -> None:
    with JobStore(tmp_path) as store:
        job = store.add(make_job(store, "ann"))
        assert store.get(job.id, "bob") is None
        assert store.get(job.id, "ann") == job
        assert store.page("bob") == ([], False)


def test_pages_follow_each_other_in_both_orders(tmp_path: Path) -> None:
    with JobStore(tmp_path) as store:
        # Two of each have the same time, so that the id decides.
        ids = [store.add(make_job(store, now=float(i // 2), view="video")).id for i in range(7)]
        for newest_first in (True, False):
            seen: list[str] = []
            more = True
            while more:
                after = seen[-1] if seen else None
                jobs, more = store.page("ann", after=after, limit=2, newest_first=newest_first)
                seen += [job.id for job in jobs]
            assert sorted(seen) == sorted(ids)
            times = [ids.index(job) // 2 for job in seen]
            assert times == sorted(times, reverse=newest_first)
        assert store.page("ann", views=["native"]) == ([], False)


def test_the_oldest_finished_go_first_when_the_disk_is_full(tmp_path: Path) -> None:
    with JobStore(tmp_path, max_bytes=3 * (INPUT_BYTES + 100)) as store:
        jobs = [store.add(make_job(store, now=float(i))).id for i in range(5)]
        for job in jobs[:4]:
            store.begin(job)
            store.finish(job, 1, write_part(store, job, 1), {})
        assert store.sweep() == jobs[:2]
        assert store.num_bytes() <= 3 * (INPUT_BYTES + 100)


def test_a_run_that_is_finished_twice_keeps_its_files(tmp_path: Path) -> None:
    with JobStore(tmp_path) as store:
        job = store.add(make_job(store)).id
        store.begin(job)
        assert store.finish(job, 1, write_part(store, job, 1), {})
        assert not store.finish(job, 1, write_part(store, job, 1), {})
        found = store.get(job)
        assert found is not None
        result = store.content_path(found, "result")
        assert result is not None
        assert result.is_file()


def test_a_table_that_is_none_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite3").write_bytes(b"not a table, and long enough to be looked at" * 10)
    before = (tmp_path / "jobs.sqlite3").read_bytes()
    with pytest.raises(RequestError, match="cannot be read"):
        JobStore(tmp_path)
    assert (tmp_path / "jobs.sqlite3").read_bytes() == before


def test_reading_does_not_wait_for_a_write(tmp_path: Path) -> None:
    """A commit waits for the disk, for seconds where it is busy; a job's state is read meanwhile, as it was before."""
    with JobStore(tmp_path) as store:
        store.add(make_job(store))
        is_writing, may_end = threading.Event(), threading.Event()

        def write() -> None:
            with store._table.transaction():
                store._table.execute("UPDATE jobs SET state = 'cancelled'")
                assert store.counts() == {"cancelled": 1}
                is_writing.set()
                may_end.wait(30)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            assert is_writing.wait(30)
            assert store.counts() == {"queued": 1}
        finally:
            may_end.set()
            writer.join()
        assert store.counts() == {"cancelled": 1}


def test_both_connections_keep_few_pages_in_memory(tmp_path: Path) -> None:
    """By default each keeps 2 MB, so that a server's memory grows over its first thousand jobs."""
    table = JobTable(tmp_path / "jobs.sqlite3")
    kept = [
        connection.execute("PRAGMA cache_size").fetchone()[0] for connection in (table._db, table._reader)
    ]
    table.close()
    assert kept == [-200, -200]  # negative: KiB


VERSION_1 = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, view TEXT NOT NULL, model TEXT NOT NULL, format TEXT NOT NULL,
    request TEXT NOT NULL, inputs TEXT NOT NULL, plan TEXT NOT NULL, deadline_s REAL NOT NULL,
    created_at REAL NOT NULL, state TEXT NOT NULL, runs INTEGER NOT NULL, deaths INTEGER NOT NULL,
    is_cancelling INTEGER NOT NULL, queued_at REAL NOT NULL, started_at REAL, finished_at REAL,
    num_bytes INTEGER NOT NULL, result TEXT, error TEXT, extra TEXT NOT NULL);
INSERT INTO jobs VALUES ('job_a', 'ann', 'native', 'nano', 'png', '{"prompt": "x"}', '{}', '{"width": 64}', 60.0,
    1.0, 'queued', 0, 0, 0, 1.0, NULL, NULL, 0, NULL, NULL, '{}');
PRAGMA user_version = 1;
"""


def test_a_table_that_calls_the_estimate_a_plan_is_taken_over(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as db:
        db.executescript(VERSION_1)
    for _ in range(2):
        with JobStore(tmp_path) as store:
            (job,) = store.queued()
            assert (job.id, job.estimate, job.request) == ("job_a", {"width": 64}, {"prompt": "x"})
    with JobStore(tmp_path) as store:
        assert store.begin("job_a") is not None
        assert store.fail("job_a", 1, {"code": "x"})


@pytest.mark.parametrize("version", [3, -1])
def test_a_table_of_an_unknown_version_is_refused_and_left(tmp_path: Path, version: int) -> None:
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as db:
        db.executescript(VERSION_1)
        db.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(RequestError, match=f"its version is {version}, not 2"):
        JobStore(tmp_path)
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as db:
        assert db.execute("SELECT plan FROM jobs").fetchall() == [('{"width": 64}',)]
