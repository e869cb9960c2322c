"""The API against its own description: requests of all kinds, right and wrong, made by schemathesis."""

from collections import Counter, defaultdict
from contextlib import asynccontextmanager

import pytest
from helpers import smooth, tiny_pipeline

from ditlab.studio.api import create_app
from ditlab.studio.service import Limits

TOKEN = {"Authorization": "Bearer sesame"}
# What a description cannot say, such as which classes there are, is refused with 400.
TAKEN = ["2xx", "400", "401", "404", "429"]
SETTINGS = {
    "headers": TOKEN,
    "max-time": 60,
    "continue-on-failure": True,
    "generation": {"max-examples": 200},
    "checks": {"positive_data_acceptance": {"expected-statuses": TAKEN}},
}


@asynccontextmanager
async def lasting(app):
    """In the place of the life that ends with the client, of which each request here has one."""
    yield


@pytest.fixture
def app():
    pipe = smooth(tiny_pipeline())
    pipe.config["sample"] = {"sampler": "euler", "steps": 2, "guidance": 2.0}
    app = create_app({"small": pipe, "plain": tiny_pipeline(classes=0)}, Limits(pictures=4, steps=8), token="sesame")
    app.router.lifespan_context = lasting
    yield app
    app.state.service.close()


@pytest.mark.slow
def test_answers_are_those_of_the_description(app):
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.engine import from_schema

    config = schemathesis.Config.from_dict(SETTINGS)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config, headers=TOKEN)
    found, answered = set(), defaultdict(Counter)
    for event in from_schema(schema).execute():
        if hasattr(event, "value"):  # an error of the tool's own
            found.add(f"{event.label}: {event.value!r}")
        if not hasattr(event, "recorder"):
            continue
        answered[event.label] += Counter(each.response.status_code for each in event.recorder.interactions.values())
        failures = [check.failure_info for checks in event.recorder.checks.values() for check in checks]
        found |= {f"{event.label}: {each.failure}\n{each.code_sample}" for each in failures if each is not None}
    assert not found, "\n".join(sorted(found))
    described = [f"{method.upper()} {path}" for path, item in app.openapi()["paths"].items() for method in item]
    assert sorted(answered) == sorted(described)
    drawn = answered["POST /v1/images/generations"]
    assert drawn.total() > 100
    assert {200, 400, 401, 422} <= drawn.keys()
