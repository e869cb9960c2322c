"""The API against its OpenAPI description, with valid and invalid requests from schemathesis."""

import shutil
from collections import Counter, defaultdict
from contextlib import asynccontextmanager

import pytest
from helpers import smooth, tiny_pipeline

from ditlab.config.reader import find_recipe
from ditlab.server.app import create_app
from ditlab.server.generation import Limits

TOKEN = {"Authorization": "Bearer sesame"}
# Requests that match the description can still be rejected with 400, for example for an unknown class.
TAKEN = ["2xx", "400", "401", "404", "413", "429"]  # 413: some generated bodies are too long
REJECTED = ["400", "401", "404", "405", "413", "422", "429"]
SETTINGS = {
    "headers": TOKEN,
    "max-time": 120,
    "continue-on-failure": True,
    "generation": {"max-examples": 200},
    "checks": {
        "positive_data_acceptance": {"expected-statuses": TAKEN},
        "negative_data_rejection": {"expected-statuses": REJECTED},
    },
}


@asynccontextmanager
async def lasting(app):
    """Replaces the lifespan, which would close the service after the first request of a test client."""
    yield


@pytest.fixture
def app(tmp_path):
    pipe = smooth(tiny_pipeline(classes=10))  # so that the examples are valid
    pipe.config["sample"] = {"sampler": "euler", "steps": 2, "guidance": 2.0}
    shutil.copy(find_recipe("digits"), tmp_path / "recipe.toml")
    (tmp_path / "metrics.jsonl").write_text('{"images": 10, "loss": 0.5, "loss_by_time": [0.4, null]}\n')
    models = {"demo": pipe, "plain": tiny_pipeline(classes=0)}
    app = create_app(models, Limits(images=4, steps=12), token="sesame", runs={"demo": tmp_path})
    app.router.lifespan_context = lasting
    yield app
    app.state.service.close()


@pytest.mark.slow
def test_responses_match_the_description(app):
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.engine import from_schema

    config = schemathesis.Config.from_dict(SETTINGS)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config, headers=TOKEN)
    found, answered = set(), defaultdict(Counter)
    for event in from_schema(schema).execute():
        if hasattr(event, "value"):  # an error of schemathesis itself
            found.add(f"{event.label}: {event.value!r}")
        if not hasattr(event, "recorder"):
            continue
        answered[event.label] += Counter(each.response.status_code for each in event.recorder.interactions.values())
        failures = [check.failure_info for checks in event.recorder.checks.values() for check in checks]
        found |= {f"{event.label}: {each.failure}\n{each.code_sample}" for each in failures if each is not None}
    assert not found, "\n".join(sorted(found))
    described = [f"{method.upper()} {path}" for path, item in app.openapi()["paths"].items() for method in item]
    assert set(described) <= answered.keys()
    for path in ("/v1/images/generations", "/v1/inspect"):
        assert answered[f"POST {path}"].total() > 100
        assert {200, 400, 401, 422} <= answered[f"POST {path}"].keys()
