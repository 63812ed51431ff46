"""From a body to a queued job: admission, the worker's check, and the store, in this order for every interface."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import Request

from editverse_rt.files import hash_file
from editverse_rt.serve.dispatcher import Dispatcher
from editverse_rt.serve.gate import owner_of
from editverse_rt.serve.job import Job, StoredInput
from editverse_rt.serve.problems import HttpError, RefusedError, disk_full, too_many_inputs
from editverse_rt.serve.settings import ServerSettings
from editverse_rt.serve.views import estimate_json

__all__ = ["Reference", "Submission", "Submitter", "bad_key", "submission_key"]

_UNKNOWN_WAIT_S = 10.0


@dataclass(frozen=True)
class Reference:
    """An input that is another job's file."""

    job: str
    variant: str = "result"


@dataclass
class Submission:
    """What a body asks for. request: JSON of an edit request without inputs; uploads and references by tag name;
    unnamed: uploads that get the next name of their kind. digest: of the body, for Idempotency-Key.
    """

    request: dict[str, Any]
    view: str = "native"
    model: str | None = None
    format: str | None = None
    deadline_s: float | None = None
    uploads: dict[str, StoredInput] = field(default_factory=dict)
    references: dict[str, Reference] = field(default_factory=dict)
    unnamed: list[StoredInput] = field(default_factory=list)
    unnamed_references: list[Reference] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    digest: str = ""


ReadBody = Callable[[Path], Awaitable[Submission]]


class Submitter:
    """Takes requests in. One for a server."""

    def __init__(self, settings: ServerSettings, dispatcher: Dispatcher) -> None:
        self._settings, self._dispatcher, self._store = settings, dispatcher, dispatcher.store
        self._turn = asyncio.Lock()
        self._looking = asyncio.Semaphore(4)

    async def submit(self, request: Request, read_body: ReadBody) -> Job:
        """Queue what a request asks for. read_body: is given the folder for uploads.

        Raises EditVerseError; the job's files are gone then.
        """
        owner, key = owner_of(request), submission_key(request)
        job_id = self._store.new_id()
        try:
            # With a key it may be a repetition, which is answered even where nothing new is taken.
            if key is None:
                await self._check_room(owner)
            await self._check_disk(request)
            submission = await read_body(self._store.input_folder(job_id))
            digest = f"{request.url.path} {submission.digest}"
            if key is not None:
                earlier = await self._dispatcher.do(lambda: self._store.find_replay(owner, key, digest))
                if earlier is not None:
                    self._store.discard(job_id)
                    return earlier
                await self._check_room(owner)
            job, _ = await self._check(job_id, owner, submission)
            async with self._turn:
                await self._check_room(owner)
                added = await self._dispatcher.do(lambda: self._store.add(job, key, digest))
        except BaseException:
            self._store.discard(job_id)
            raise
        if added.id == job_id:
            self._dispatcher.submitted(added)
        return added

    async def estimate(self, request: Request, read_body: ReadBody) -> dict[str, Any]:
        """Check what a request asks for, and say what it would cost; nothing is kept."""
        job_id = self._store.new_id()
        try:
            await self._check_disk(request)
            submission = await read_body(self._store.input_folder(job_id))
            job, answer = await self._check(job_id, owner_of(request), submission)
            return estimate_json(self._dispatcher, answer, job.model, await self._dispatcher.wait_seconds())
        finally:
            self._store.discard(job_id)

    async def _check_room(self, owner: str) -> None:
        """Raises HttpError: 503 where the server is being stopped, 429 where too many jobs wait."""
        settings, dispatcher = self._settings, self._dispatcher
        if dispatcher.is_draining:
            raise self._refuse(
                HttpError(
                    503,
                    "the server is being stopped",
                    hint="try again when it is back",
                    code="serve.draining",
                    retry_after_s=settings.drain_s,
                ),
                "draining",
            )
        if not dispatcher.is_up:
            raise self._refuse(
                HttpError(503, "no worker is up", hint="try again", code="serve.starting", retry_after_s=5),
                "no_worker",
            )
        mine = await dispatcher.do(lambda: self._store.num_waiting(owner))
        all_of_them = len(await dispatcher.do(self._store.queued))
        if mine >= settings.max_queued_per_key or all_of_them >= settings.max_queued:
            whose = "of yours wait" if mine >= settings.max_queued_per_key else "wait"
            wait_s = await dispatcher.wait_seconds()
            slots = max(1, sum(worker.slots for worker in dispatcher.workers))
            a_place_s = _UNKNOWN_WAIT_S if wait_s is None else wait_s / max(1, all_of_them) * slots
            raise self._refuse(
                HttpError(
                    429,
                    f"{mine if mine >= settings.max_queued_per_key else all_of_them} jobs {whose} already",
                    hint="try again after Retry-After seconds, or cancel one",
                    code="queue_full",
                    retry_after_s=max(1.0, min(a_place_s, 600.0)),
                ),
                "queue_full",
            )

    async def _check_disk(self, request: Request) -> None:
        told = request.headers.get("content-length", "0")
        size = int(told) if re.fullmatch(r"\d{1,18}", told) else 0
        body = self._settings.body
        free = shutil.disk_usage(self._store.folder).free
        if size <= body.max_bytes and free - size < body.min_free_bytes:
            raise self._refuse(disk_full(), "disk")

    def _refuse(self, error: HttpError, reason: str) -> HttpError:
        self._dispatcher.meters.rejected_total.labels(reason).inc()
        return error

    async def _check(self, job_id: str, owner: str, asked: Submission) -> tuple[Job, dict[str, Any]]:
        """Have a worker check the request; the job that it makes. Raises EditVerseError."""
        settings = self._settings
        models = [model["id"] for model in self._dispatcher.models]
        model = asked.model or next(iter(models), "")
        if model not in models:
            raise HttpError(
                400, f'"{model[:60]}"', is_value=True, expected=f"one of {', '.join(models)}",
                code="serve.model", field="model",
            )  # fmt: skip
        deadline_s = settings.max_deadline_s if asked.deadline_s is None else asked.deadline_s
        if not 0 < deadline_s <= settings.max_deadline_s:
            raise HttpError(
                400, f"{deadline_s:g}", is_value=True, code="request.option", field="deadline_s",
                expected=f"a number above 0 to {settings.max_deadline_s:g}",
            )  # fmt: skip
        inputs, unnamed, origins = dict(asked.uploads), list(asked.unnamed), {}
        references = [*asked.references.items(), *((None, one) for one in asked.unnamed_references)]
        # Each reference costs a file, so they are counted before the worker does.
        count = len(inputs) + len(unnamed) + len(references)
        if count > settings.limits.max_inputs:
            raise too_many_inputs(count, settings.limits.max_inputs)
        for number, (name, reference) in enumerate(references):
            stored = await self._take_file(job_id, owner, reference, f"from{number + 1}")
            origins[stored.file] = {"job": reference.job, "variant": reference.variant}
            if name is None:
                unnamed.append(stored)
            else:
                inputs[name] = stored
        folder = self._store.input_folder(job_id)
        async with self._looking:
            answer = await self._dispatcher.prepare(
                model,
                asked.request,
                {name: folder / stored.file for name, stored in inputs.items()},
                [folder / stored.file for stored in unnamed],
                asked.format,
                settings.prepare_s,
            )
        if answer["event"] == "refused":
            raise RefusedError(answer["error"])
        by_file = {stored.file: stored for stored in [*inputs.values(), *unnamed]}
        named = {name: by_file[file] for name, file in answer["inputs"].items()}
        job = Job(
            id=job_id,
            owner=owner,
            view=asked.view,
            model=model,
            format=answer["format"],
            request=answer["request"],
            inputs=named,
            estimate=answer["estimate"],
            deadline_s=deadline_s,
            created_at=time.time(),
            extra={
                **asked.extra,
                "inputs_from": {
                    name: origins[stored.file] for name, stored in named.items() if stored.file in origins
                },
            },
        )
        return job, answer

    async def _take_file(self, job_id: str, owner: str, reference: Reference, name: str) -> StoredInput:
        """Link another job's file into the new job's folder, so that it stays when the other job goes."""
        found = await self._dispatcher.do(lambda: self._store.get(reference.job, owner))
        if found is None:
            raise HttpError(
                404, f'there is no job "{reference.job[:60]}"', hint="list them", code="serve.not_found"
            )
        source = self._store.content_path(found, reference.variant)
        if found.state == "expired":
            raise HttpError(
                410, f"the files of job {found.id} have expired", hint="upload it", code="serve.gone"
            )
        if source is None:
            raise HttpError(
                409, f"job {found.id} is {found.state} and has no {reference.variant}",
                expected="a completed job", code="serve.no_content",
            )  # fmt: skip
        target = self._store.input_folder(job_id) / name

        def link() -> StoredInput:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            try:
                os.link(source, target)
            except FileNotFoundError as error:
                raise HttpError(
                    410, f"the files of job {found.id} are gone", hint="upload it", code="serve.gone"
                ) from error
            known = (found.result or {})["sha256"] if reference.variant == "result" else hash_file(target)
            return StoredInput(name, target.stat().st_size, known)

        return await self._dispatcher.do(link)


def submission_key(request: Request) -> str | None:
    """The Idempotency-Key of a request, None where it has none. Raises HttpError (400)."""
    key = request.headers.get("idempotency-key")
    if key is not None and not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        raise bad_key("it has other characters, or too many")
    return key


def bad_key(found: str) -> HttpError:
    return HttpError(
        400,
        found,
        expected="1 to 255 visible ASCII characters",
        code="serve.idempotency",
        field="Idempotency-Key",
    )
