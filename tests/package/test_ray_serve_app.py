"""The Ray Serve app of the examples, with a stand-in for Ray, which is not a dependency."""

import asyncio
import base64
import io
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from helpers import tiny_pipeline
from PIL import Image

pytest.importorskip("fastapi", reason="the service needs fastapi")
APP = Path(__file__).parents[2] / "examples" / "ray_serve_app.py"


@pytest.fixture
def app(monkeypatch):
    """The names of the example, and the options of its deployment."""
    options = {}

    def deployment(**given):
        options.update(given)
        return lambda made: made

    ray = ModuleType("ray")
    ray.serve = SimpleNamespace(deployment=deployment)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return SimpleNamespace(**runpy.run_path(str(APP)), options=options)


def ask(replica, body):
    async def read():
        return json.dumps(body).encode()

    response = asyncio.run(replica(SimpleNamespace(body=read)))
    return response.status_code, json.loads(response.body)


def test_a_replica_generates_the_images_of_the_pipeline(app, tmp_path):
    pipe = tiny_pipeline()
    replica = app.Replica(str(pipe.save(tmp_path / "small")), device="cpu")
    status, result = ask(replica, {"prompt": "class 1", "seeds": 7, "steps": 2})
    image = Image.open(io.BytesIO(base64.b64decode(result["data"][0]["b64_json"])))
    assert status == 200
    assert image.tobytes() == replica.service.models["small"]("class 1", seeds=7, steps=2).images[0].tobytes()
    for body, code in (({"prompt": "clas 1"}, 400), ({"n": "4"}, 422), ({"stream": True}, 400)):
        status, result = ask(replica, body)
        assert (status, result["error"]["code"]) == (code, code)
    replica.service.close()


def test_the_router_queues_before_it_rejects(app):
    scaling = app.options["autoscaling_config"]
    assert scaling["min_replicas"] >= 1
    assert scaling["target_ongoing_requests"] < app.options["max_ongoing_requests"] == app.LIMITS.requests
    assert app.options["max_queued_requests"] > 0
