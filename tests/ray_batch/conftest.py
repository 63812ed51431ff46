"""A Ray cluster of two nodes on this machine.

Ray is imported within: pytest reads this file wherever it looks for tests, with or without Ray.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """The cluster alone, for programs that connect by themselves."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def cluster(nodes: Cluster) -> Iterator[Cluster]:
    """The cluster, with this process connected to it."""
    import ray

    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
