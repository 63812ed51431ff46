"""The OpenAPI document is true: the server is called with what it allows and what it does not."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from live_server import LiveServer
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from editverse_rt.serve.app import make_app
from editverse_rt.serve.auth import Keys
from editverse_rt.serve.dispatcher import Dispatcher
from editverse_rt.serve.logs import Log
from editverse_rt.serve.meters import Meters
from editverse_rt.serve.openapi import describe_api
from editverse_rt.serve.settings import ServerSettings
from editverse_rt.serve.store import JobStore

CHECKS = [
    content_type_conformance,
    negative_data_rejection,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
]
MAX_EXAMPLES = 5


@pytest.fixture(scope="session")
def api(server: LiveServer) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


OPERATIONS = [
    (path, method)
    for path, operations in describe_api(ServerSettings(data=Path()))["paths"].items()
    for method in operations
    # Events of a job end with the job; they are tested with one.
    if not path.endswith("/events")
]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_answers_are_as_the_document_says(
    api: schemathesis.BaseSchema, path: str, method: str, mode: GenerationMode, client: httpx.Client
) -> None:
    @given(case=api[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=MAX_EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    def call(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS, timeout=60)

    try:
        call()
    except Unsatisfiable:
        # A GET without parameters has nothing that could be wrong.
        assert mode is GenerationMode.NEGATIVE


def test_every_route_is_in_the_document(tmp_path: Path) -> None:
    settings = ServerSettings(data=tmp_path)
    with JobStore(tmp_path) as store:
        app = make_app(settings, Dispatcher(store, [], Log(None), Meters()), Keys(None))
    listed = {
        (path, method.upper())
        for path, operations in describe_api(settings)["paths"].items()
        for method in operations
    }
    real = {
        (route.path, method)
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert listed == real - {("/", "GET"), ("/openapi.json", "GET")}
