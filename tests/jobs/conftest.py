"""Fixtures of whole jobs."""

import pytest

from tests.jobs.bench import Bench


@pytest.fixture
def on_s3(bucket: str) -> Bench:
    return Bench(bucket)
