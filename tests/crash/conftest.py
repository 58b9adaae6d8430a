"""The stores that a crash can happen to."""

import pytest

from nexus.lib import native

needs_redb = pytest.mark.skipif(
    native.chosen().module is None, reason="the Rust kernel is not built, or not asked for"
)


@pytest.fixture(scope="module", params=["sqlite", pytest.param("redb", marks=needs_redb)])
def metastore(request: pytest.FixtureRequest) -> str:
    return str(request.param)
