"""The OpenAPI document of the server, written from the table of options; a test holds it to the running server."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from editverse_rt.request.options import OPTIONS, Option
from editverse_rt.serve.job import PHASES, STATES
from editverse_rt.serve.result_files import FORMATS
from editverse_rt.serve.settings import ServerSettings

__all__ = ["describe_api"]

Schema = dict[str, Any]
_ALWAYS = (400, 401, 403)
_OF_A_JOB = (*_ALWAYS, 404)
_OF_A_BODY = (*_ALWAYS, 404, 408, 409, 410, 413, 415, 429, 503, 507)
_BINARY: Schema = {"type": "string", "format": "binary"}


def describe_api(settings: ServerSettings) -> Schema:
    """The document, with this server's limits."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "editverse-rt", "version": _version()},
        "paths": {
            **_own_paths(),
            **_job_paths(),
            **_video_paths(),
            **_image_paths(),
        },
        "components": {
            "schemas": _schemas(settings),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "editverse_session"},
            },
        },
        **({"security": [{"key": []}, {"session": []}]} if settings.api_keys is not None else {}),
    }


def _own_paths() -> Schema:
    session = {
        "type": "object",
        "properties": {"key": {"type": "string", "minLength": 1}},
        "required": ["key"],
    }
    status = _object({"status": _text()})
    return {
        "/healthz": {"get": _operation("Whether the process answers", {200: status}, (403,))},
        "/readyz": {"get": _operation("Whether jobs are taken", {200: status, 503: status}, (403,))},
        "/metrics": {"get": _operation("Prometheus", {200: (_text(), "text/plain")}, (401, 403))},
        "/v1/models": {"get": _operation("The bundles", {200: _ref("Models")}, (401, 403))},
        "/session": {
            "get": _operation("Who the session speaks for", {200: _ref("Session")}, (403,)),
            "post": {
                **_operation("Trade a key for a cookie", {200: _ref("Session")}, (*_ALWAYS, 408, 413, 415)),
                **_body({"application/json": {**session, "additionalProperties": False}}),
            },
            "delete": _operation("Log out", {200: _ref("Session")}, (403,)),
        },
    }


def _job_paths() -> Schema:
    job, dry = _ref("Job"), _query("dry_run", {"enum": ["0", "1"]}, "1: check and estimate only")
    variant = _query("variant", {"enum": ["result", "source"]}, "source: the main input as the model saw it")
    download = _query("download", {"enum": ["0", "1"]}, "1: as an attachment")
    key = {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    }
    parts = _ref("JobForm")
    withdrawn = _object(
        {"object": {"const": "submission.cancelled"}, "job": {"anyOf": [job, {"type": "null"}]}}
    )
    return {
        "/v1/jobs": {
            "post": {
                **_operation("Submit a job", {200: _ref("Estimate"), 201: job}, _OF_A_BODY, [dry, key]),
                **_body({"application/json": _ref("JobBody"), "multipart/form-data": parts}),
            },
            "get": _operation("List jobs", {200: _ref("JobList")}, _ALWAYS, _page()),
        },
        "/v1/jobs/cancel": {
            "post": _operation(
                "Cancel the job that a key has made, or keep it from making one",
                {200: withdrawn},
                (*_ALWAYS, 507),
                [{**key, "required": True}],
            )
        },
        "/v1/jobs/{id}": {
            "get": _operation("A job", {200: job}, _OF_A_JOB, [_id()]),
            "delete": _operation("Cancel and delete", {200: _ref("Deleted")}, _OF_A_JOB, [_id()]),
        },
        "/v1/jobs/{id}/cancel": {
            "post": _operation("Cancel, and wait for the device", {200: job}, _OF_A_JOB, [_id()])
        },
        "/v1/jobs/{id}/events": {
            "get": _operation("Server-sent events", {200: (_text(), "text/event-stream")}, _OF_A_JOB, [_id()])
        },
        "/v1/jobs/{id}/recipe": {"get": _operation("The request", {200: _ref("Recipe")}, _OF_A_JOB, [_id()])},
        "/v1/jobs/{id}/content": {"get": _content([_id(), variant, download])},
    }


def _video_paths() -> Schema:
    video, body = (
        _ref("Video"),
        {"multipart/form-data": _ref("VideoForm"), "application/json": _ref("VideoBody")},
    )
    edit = {"multipart/form-data": _ref("VideoEditForm")}
    variant = _query("variant", {"enum": ["video", "source"]}, "source: the main input as the model saw it")
    return {
        "/v1/videos": {
            "post": {**_operation("Create a video", {200: video}, _OF_A_BODY), **_body(body)},
            "get": _operation("List videos", {200: _ref("VideoList")}, _ALWAYS, _page()),
        },
        "/v1/videos/edits": {
            "post": {**_operation("Edit an upload", {200: video}, _OF_A_BODY), **_body(edit)}
        },
        "/v1/videos/{id}": {
            "get": _operation("A video", {200: video}, _OF_A_JOB, [_id()]),
            "delete": _operation("Cancel and delete", {200: _ref("Deleted")}, _OF_A_JOB, [_id()]),
        },
        "/v1/videos/{id}/remix": {
            "post": {
                **_operation("Edit a result", {200: video}, _OF_A_BODY, [_id()]),
                **_body({"application/json": _ref("RemixBody")}),
            }
        },
        "/v1/videos/{id}/content": {"get": _content([_id(), variant])},
    }


def _image_paths() -> Schema:
    # 499: the client left, and nobody reads it.
    body = {"application/json": _ref("ImageBody")}
    form = {"multipart/form-data": _ref("ImageForm")}
    more = (*_OF_A_BODY, 500)
    return {
        "/v1/images/generations": {
            "post": {**_operation("Make an image", {200: _ref("Image")}, more), **_body(body)}
        },
        "/v1/images/edits": {
            "post": {**_operation("Edit an image", {200: _ref("Image")}, more), **_body(form)}
        },
    }


def _schemas(settings: ServerSettings) -> Schema:
    options = {option.name: _option(option) for option in OPTIONS}
    texts = {option.name: _option_text(option) for option in OPTIONS}
    prompt = {"prompt": _text()}
    reference = _closed(
        {"job": {**_text(), "minLength": 1}, "variant": {"enum": ["result", "source"]}}, ["job"]
    )
    deadline = {"type": "number", "exclusiveMinimum": 0, "maximum": settings.max_deadline_s}
    common = {"model": {**_text(), "minLength": 1}, "format": {"enum": list(FORMATS)}}
    files = {"^(video|image)[1-9][0-9]*$": _BINARY}
    video = {"model": _text(), "seconds": {"type": "string"}}
    image = {
        "model": _text(),
        "n": {"enum": [1]},
        "response_format": {"enum": ["b64_json"]},
        "output_format": {"enum": ["png", "jpeg", "webp"]},
    }
    number, whole = {"type": "number"}, {"type": "integer"}
    result = {
        "type": _text(), "bytes": whole, "sha256": _text(), "width": whole, "height": whole, "num_frames": whole,
        "fps": number, "seconds": number, "timings": {"type": "object"}, "has_source": {"type": "boolean"},
    }  # fmt: skip
    error = {name: _text() for name in ("code", "field", "found", "expected", "hint", "message", "type")}
    page = {
        "object": {"const": "list"},
        "has_more": {"type": "boolean"},
        "first_id": _maybe(),
        "last_id": _maybe(),
    }
    return {
        "Error": _object({"error": _object({**error, "param": _maybe()})}),
        "EditRequest": _closed(
            {
                **prompt,
                "inputs": {
                    "type": "object",
                    "patternProperties": {"^(video|image)[1-9][0-9]*$": reference},
                    "additionalProperties": False,
                },
                **options,
            },
            ["prompt"],
        ),
        "JobBody": _closed({"request": _ref("EditRequest"), "deadline_s": deadline, **common}, ["request"]),
        "JobForm": {
            **_closed({"request": _text(), "deadline_s": _text(), **common}, ["request"]),
            "patternProperties": files,
        },
        "VideoBody": _closed({**prompt, **video, **options}, ["prompt"]),
        "VideoForm": {
            **_closed({**prompt, **video, **texts, "input_reference": _BINARY}, ["prompt"]),
            "patternProperties": files,
        },
        "VideoEditForm": _closed({**prompt, "model": _text(), **texts, "video": _BINARY}, ["prompt", "video"]),
        "RemixBody": _closed({**prompt, **options}, ["prompt"]),
        "ImageBody": _closed({**prompt, **image, **options}, ["prompt"]),
        "ImageForm": _closed({**prompt, **image, **texts, "image": _BINARY}, ["prompt", "image"]),
        "Job": _object(
            {
                "object": {"const": "job"},
                "id": _text(),
                "model": _text(),
                "state": {"enum": list(STATES)},
                "phase": {"enum": [*PHASES, None]},
                "step": whole,
                "num_steps": whole,
                "window": whole,
                "num_windows": whole,
                "progress": {"type": "number", "minimum": 0, "maximum": 1},
                "queue_position": _maybe("integer"),
                "eta_s": _maybe("number"),
                "is_cancelling": {"type": "boolean"},
                "attempts": whole,
                "created_at": number,
                "started_at": _maybe("number"),
                "finished_at": _maybe("number"),
                "expires_at": _maybe("number"),
                "format": {"enum": list(FORMATS)},
                "request": {"type": "object"},
                "result": {"anyOf": [_object(result), {"type": "null"}]},
                "notices": {"type": "array", "items": _text()},
                "error": {"anyOf": [_object({**error, "param": _maybe()}), {"type": "null"}]},
            }
        ),
        "JobList": _object({**page, "data": {"type": "array", "items": _ref("Job")}}),
        "Recipe": _object({"model": _text(), "format": {"enum": list(FORMATS)}, "request": {"type": "object"}}),
        "Estimate": _object(
            {
                "object": {"const": "estimate"}, "model": _text(), "format": {"enum": list(FORMATS)}, "size": _text(),
                "num_frames": whole, "fps": number, "schedule": _text(), "num_inference_steps": whole,
                "memory_bytes": whole, "flops": number, "seconds": _maybe("number"), "wait_s": _maybe("number"),
                "prompt": _text(),
            }
        ),
        "Video": _object(
            {
                "id": _text(), "object": {"const": "video"}, "model": _text(),
                "status": {"enum": ["queued", "in_progress", "completed", "failed"]},
                "progress": {"type": "integer", "minimum": 0, "maximum": 100}, "created_at": whole,
                "completed_at": _maybe("integer"), "expires_at": _maybe("integer"), "size": _text(),
                "seconds": _text(), "prompt": _text(), "remixed_from_video_id": _maybe(),
                "error": {"anyOf": [_object({"code": _text(), "message": _text()}), {"type": "null"}]},
            }
        ),
        "VideoList": _object({**page, "data": {"type": "array", "items": _ref("Video")}}),
        "Image": _object(
            {
                "created": whole, "output_format": _text(), "size": _text(),
                "data": {"type": "array", "items": _object({"b64_json": _text()})},
            }
        ),
        "Models": _object({"object": {"const": "list"}, "data": {"type": "array", "items": {"type": "object"}}}),
        "Session": _object({"auth": {"enum": ["open", "key"]}, "name": _maybe()}),
        "Deleted": _object({"id": _text(), "object": _text(), "deleted": {"const": True}}),
    }  # fmt: skip


def _option(option: Option) -> Schema:
    """The schema of an option in JSON."""
    kinds = {"int": "integer", "float": "number", "text": "string", "choice": "string", "size": "string"}
    kind = kinds[option.kind]
    schema: Schema = {"type": [kind, "null"] if option.default is None else kind, "description": option.help}
    for name, limit in (
        ("minimum", option.minimum),
        ("exclusiveMinimum", option.above),
        ("maximum", option.maximum),
    ):
        if limit is not None:
            schema[name] = limit
    if option.choices:
        schema["enum"] = [*option.choices, None]
    if option.kind == "size":
        schema["pattern"] = "^[0-9]{1,6}x[0-9]{1,6}$"
    return schema


def _option_text(option: Option) -> Schema:
    """The same in a form, where all is text."""
    return {"type": "string", "description": option.help}


def _operation(
    summary: str,
    answers: dict[int, Any],
    errors: tuple[int, ...],
    parameters: list[Schema] | None = None,
) -> Schema:
    responses: Schema = {}
    for status, answer in answers.items():
        schema, kind = answer if isinstance(answer, tuple) else (answer, "application/json")
        responses[str(status)] = {"description": summary, "content": {kind: {"schema": schema}}}
    for status in errors:
        responses[str(status)] = _error()
    return {"summary": summary, "responses": responses, **({"parameters": parameters} if parameters else {})}


def _content(parameters: list[Schema]) -> Schema:
    """A file, whole or a Range of it; 409 before it is there, 410 when it has expired."""
    operation = _operation("The file; Range is taken", {}, (*_OF_A_JOB, 409, 410, 416), parameters)
    for status in ("200", "206"):
        operation["responses"][status] = {"description": "The file", "content": {"*/*": {"schema": _BINARY}}}
    return operation


def _error() -> Schema:
    return {
        "description": "The error: what was found, what was expected, what to do",
        "content": {"application/json": {"schema": _ref("Error")}},
    }


def _body(contents: dict[str, Schema]) -> Schema:
    return {
        "requestBody": {
            "required": True,
            "content": {kind: {"schema": schema} for kind, schema in contents.items()},
        }
    }


def _page() -> list[Schema]:
    return [
        _query("after", _text(), "the last job of the page before"),
        _query("limit", {"type": "integer", "minimum": 1, "maximum": 100}, "how many"),
        _query("order", {"enum": ["asc", "desc"]}, "oldest or newest first"),
    ]


def _query(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _id() -> Schema:
    return {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _object(properties: Schema) -> Schema:
    """An object of an answer: all of these are there."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _closed(properties: Schema, required: list[str]) -> Schema:
    """An object of a request: no other field is taken."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _text() -> Schema:
    return {"type": "string"}


def _maybe(kind: str = "string") -> Schema:
    return {"type": [kind, "null"]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _version() -> str:
    try:
        return version("editverse-rt")
    except PackageNotFoundError:
        return "0"
