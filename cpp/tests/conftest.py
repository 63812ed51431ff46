"""Both hosts with nano, which the tests of their agreement compare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cpp.tests import library as native
from editverse_rt import Pipeline


@pytest.fixture(scope="module")
def host() -> Iterator[Pipeline]:
    with Pipeline.open("nano", "ort-cpu", num_threads=1) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def twin(host: Pipeline) -> Iterator[Any]:
    with native.NativePipeline(host.bundle.root) as pipeline:
        yield pipeline
