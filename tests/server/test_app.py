import asyncio
import base64
import gc
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import httpx
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from helpers import serving, smooth, tiny_pipeline
from PIL import Image
from text_net import TextNet

from ditlab import between
from ditlab.backbones import create
from ditlab.cli.serving import listen
from ditlab.conditioning import Conditioner, Text
from ditlab.config.reader import find_recipe
from ditlab.core.io import held
from ditlab.core.types import Condition
from ditlab.core.values import PixelValues
from ditlab.core.version import __version__
from ditlab.diffusion.flow_map import FlowMap
from ditlab.inference.pipeline import Pipeline
from ditlab.server.app import create_app
from ditlab.server.generation import Limits
from ditlab.server.idle import Busy
from ditlab.server.requests import PIXEL, GenerationRequest
from ditlab.server.responses import model_info
from ditlab.server.thumbnails import Thumbnails

KEYS = ", ".join(GenerationRequest.model_fields)


@pytest.fixture
def pipe():
    pipe = smooth(tiny_pipeline())
    pipe.classes = ["ant", "bee", "cow"]
    pipe.config["sample"] = {"sampler": "ab4", "steps": 4, "guidance": 2.0}
    return pipe


@pytest.fixture
def client(pipe):
    with TestClient(create_app({"small": pipe, "other": tiny_pipeline(classes=0)}, Limits(steps=500))) as client:
        yield client


def test_images_that_are_not_finite_are_errors():
    pipe = tiny_pipeline()
    with torch.no_grad():
        pipe.net.final_layer.linear.bias[0] = torch.nan
    with TestClient(create_app({"small": pipe}, Limits())) as client:
        response = client.post("/v1/images/generations", json={"labels": [1], "seeds": 4294967303, "steps": 2})
    assert response.status_code == 503
    assert "the image of seed 4294967303 is not finite from step 1 of 2; its weights" in response.text


def slow(pipe, seconds):
    """The same model, slower."""
    whole = pipe.net.forward
    pipe.net.forward = lambda *given: time.sleep(seconds) or whole(*given)
    return pipe


def decode(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def post(client, **body):
    return client.post("/v1/images/generations", json=body)


def error(response):
    detail = response.json()["error"]
    assert detail["code"] == response.status_code
    assert response.headers["x-content-type-options"] == "nosniff"
    return detail["message"]


def events(text):
    """Kind and data of each server-sent event."""
    for block in text.strip().split("\n\n"):
        kind, data = block.split("\n")
        yield kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))


class TestGeneration:
    def test_images_equal_those_of_the_pipeline_and_have_all_settings(self, client, pipe):
        response = post(client, labels=["bee", 2], seeds=5, steps=6, guidance=1.5)
        data = response.json()["data"]
        expected = pipe(["bee", 2], seeds=[5, 6], num_inference_steps=6, guidance_scale=1.5).images
        for one, image in zip(data, expected, strict=True):
            assert np.abs(np.asarray(decode(one["b64_json"])).astype(int) - np.asarray(image).astype(int)).max() <= 1
        assert data[1]["settings"] == {
            "model": "small", "label": 2, "seed": 6, "steps": 6, "sampler": "ab4", "guidance": 1.5,
            "guidance_interval": [0.0, 1.0], "schedule": "uniform", "size": "8x8",
            "precision": "float32", "model_hash": pipe.identity()["weights_hash"], "version": __version__,
        }  # fmt: skip
        assert json.loads(decode(data[0]["b64_json"]).text["ditlab"]) == data[0]["settings"]

    def test_defaults_are_chosen_and_reported(self, client):
        data = post(client, n=4).json()["data"]
        assert [one["settings"]["label"] for one in data] == [0, 1, 2, 0]
        seeds = [one["settings"]["seed"] for one in data]
        assert seeds == list(range(seeds[0], seeds[0] + 4))
        assert post(client, model="other", n=2).json()["data"][0]["settings"]["label"] is None
        again = post(client, labels=[0, 1, 2, 0], seeds=seeds).json()["data"]
        assert [one["b64_json"] for one in again] != []
        assert decode(again[2]["b64_json"]).tobytes() == decode(data[2]["b64_json"]).tobytes()

    def test_a_stream_has_every_step_and_previews(self, client):
        response = post(client, prompt="cow", seeds=1, steps=8, stream=True, partial_images=2)
        assert response.headers["content-type"].startswith("text/event-stream")
        received = list(events(response.text))
        assert [kind.rpartition(".")[2] for kind, _ in received] == [
            "step", "step", "step", "partial_image", "step", "partial_image", "step", "step", "completed",
        ]  # fmt: skip
        assert [data["step"] for _, data in received] == [1, 2, 3, 4, 5, 6, 7, 8, 8]
        assert received[3][1]["partial_image_index"] == 0
        assert decode(received[3][1]["data"][0]["b64_json"]).size == (8, 8)
        plain = post(client, prompt="cow", seeds=1, steps=8).json()["data"]
        assert received[-1][1]["data"] == plain

    def test_concurrent_requests_get_the_same_images_as_single_ones(self, client):
        bodies = [{"labels": [i % 3], "seeds": i, "steps": 3 + i, "guidance": 1.0 + i / 4} for i in range(8)]
        alone = [post(client, **body).json()["data"][0]["b64_json"] for body in bodies]
        results = [None] * 8

        def ask(i):
            results[i] = post(client, **bodies[i]).json()["data"][0]["b64_json"]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        for one, other in zip(alone, results, strict=True):
            one, other = (np.asarray(decode(each)).astype(int) for each in (one, other))
            assert np.abs(one - other).max() <= 1


class TestRejection:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("body", "code", "words"),
        [
            ({"prompt": "bea"}, 400, 'unknown class "bea"; did you mean "bee"'),
            ({"labels": [3]}, 400, "label 3 is out of range"),
            ({"model": "smal"}, 400, 'unknown model "smal"; did you mean "small"'),
            ({"n": 17}, 400, "17 images; give 1 to 16"),
            ({"steps": 501}, 400, "501 steps; give 1 to 500"),
            (
                {"size": "15x16"},
                400,
                "size 15x16; sides must be multiples of 2: give 16x16",
            ),
            ({"size": "512x512"}, 400, "size 512x512 has 65,536 tokens; give one of at most 16,384"),
            ({"sampler": "hune"}, 400, 'did you mean "heun"'),
            ({"schedule": "cosin"}, 400, 'unknown schedule "cosin"; did you mean "cosine"?'),
            ({"schedule": "/etc/passwd"}, 400, 'unknown schedule "/etc/passwd"'),
            ({"preset": "drafd"}, 400, 'unknown preset "drafd"; did you mean "draft"?'),
            ({"eta": 0.5}, 400, "sampler ab4 has no eta"),
            (
                {"labels": [0, True]},
                422,
                "labels.1: Input should be a valid integer, or: Input should be a valid string",
            ),
            ({"labels": [0, 1], "n": 3}, 400, "2 labels for 3 images"),
            ({"seeds": [1, 2], "n": 3}, 400, "2 seeds for 3 images"),
            ({"prompt": 1, "labels": [1]}, 400, "give one of them"),
            ({"guidance_interval": [0.9, 0.1]}, 400, "guidance interval 0.9 to 0.1 is empty"),
            ({"n": "four"}, 422, "n: Input should be a valid integer"),
            ({"stepps": 4}, 422, 'unknown key "stepps"; did you mean "steps"?'),
            ({"size": "large"}, 400, 'size "large"; give WIDTHxHEIGHT, for clips also FRAMESxWIDTHxHEIGHT'),
            ({"size": "8x8\n"}, 400, 'size "8x8\\n"; give WIDTHxHEIGHT, for clips also FRAMESxWIDTHxHEIGHT'),
            ({"seed": -1}, 422, "seeds.0: Input should be greater than or equal to 0"),
            ({"n": "4"}, 422, "n: Input should be a valid integer"),
            ({"stream": "yes"}, 422, "stream: Input should be a valid boolean"),
            ({"prompt": True}, 422, "prompt: Input should be a valid integer, or: Input should be a valid string"),
            ({"sampler": ""}, 422, "sampler is empty; give a text, or leave it out"),
            ({"prompt": ""}, 422, "prompt is empty; give a text, or leave it out"),
            ({"labels": ["bee", ""]}, 422, "labels.1 is empty; give a text, or leave it out"),
            ({"guidance_interval": [-1, 1]}, 422, "guidance_interval.0: Input should be greater than or equal to 0"),
            ({"model": "../../etc/passwd"}, 400, 'unknown model "../../etc/passwd"'),
        ],
    )
    def test_invalid_requests_are_rejected_in_one_line(self, client, body, code, words):
        response = post(client, **body)
        assert response.status_code == code
        assert words in error(response)

    def test_malformed_and_oversized_bodies(self, client):
        broken = client.post("/v1/images/generations", content=b'{"n": 1', headers={"content-type": "application/json"})
        assert broken.status_code == 422
        assert "JSON" in error(broken)
        huge = client.post("/v1/images/generations", content=b" " * 17 * 2**20)
        assert huge.status_code == 413
        assert "the limit is 16777216" in error(huge)
        endless = client.post("/v1/images/generations", content=iter([b"{", b"}"]))
        assert endless.status_code == 411
        assert client.get("/health", headers={"content-length": "9" * 5000}).status_code == 413
        assert client.get("/nothing").status_code == client.post("/nothing").status_code == 404
        assert client.get("/health/").status_code == 404
        assert client.get("/health").json() == {"status": "ok"}

    @pytest.mark.parametrize(
        ("body", "code", "words"),
        [
            (b"[" * 100_000, 422, "the body is nested too deeply"),
            (b'{"seed": ' + b"9" * 5000 + b"}", 422, "the body has a number with too many digits"),
            (b'{"guidance_scale": ' + b"9" * 400 + b"}", 422, "the body has a number with too many digits"),
            (b'{"seed": 9007199254740992}', 422, "seeds.0: Input should be less than 9007199254740992"),
            (b"\xff\xfe", 422, "the body is not JSON: Expecting value at character 0"),
            (b'{"prompt": "\\ud800"}', 422, "unable to parse raw data as a unicode string"),
            (
                b'{"' + b"a" * 100_000 + b'": 1}',
                422,
                f'unknown key "{"a" * 40}"; choose from: {KEYS}',
            ),
            (b'{"guidance": NaN}', 422, "guidance: Input should be a finite number"),
            (
                b'{"guidance_interval": [0, Infinity]}',
                422,
                "guidance_interval.1: Input should be less than or equal to 1",
            ),
            (b"[]", 422, "body: Input should be a valid dictionary"),
            (b"", 422, "body: Field required"),
        ],
    )
    def test_malicious_bodies_are_rejected_in_a_short_line(self, client, body, code, words):
        response = client.post("/v1/images/generations", content=body, headers={"content-type": "application/json"})
        assert response.status_code == code
        assert words in error(response)
        assert len(error(response)) < 500

    @pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
    def test_content_types_of_cross_origin_forms_are_rejected(self, client, kind):
        headers = {} if kind is None else {"content-type": kind}
        response = client.post("/v1/images/generations", content=b'{"n": 1}', headers=headers)
        assert response.status_code == 422
        assert error(response) == "the body must be JSON, with Content-Type: application/json"

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", "/v1/images/generations", {"POST"}),
            ("DELETE", "/v1/models", {"GET"}),
            ("POST", "/health", {"GET"}),
            ("POST", "/", {"GET", "HEAD"}),
            ("PUT", "/app.js", {"GET", "HEAD"}),
        ],
    )
    def test_a_wrong_method_is_rejected_with_the_allowed_ones(self, client, method, path, allowed):
        response = client.request(method, path)
        assert response.status_code == 405
        assert set(response.headers["allow"].split(", ")) == allowed
        assert f"{method} is not allowed for this path; use {response.headers['allow']}" == error(response)

    def test_integers_may_be_written_as_floats(self, client):
        data = post(client, prompt=1.0, n=2.0, seeds=3.0, steps=2.0).json()["data"]
        assert [(one["settings"]["label"], one["settings"]["seed"]) for one in data] == [(1, 3), (1, 4)]

    def test_a_token_is_required_except_for_health_checks(self, pipe):
        with TestClient(create_app({"small": pipe}, token="sesame")) as client:
            for header in ({}, {"authorization": "Bearer sesam"}, {"authorization": "Bearer sésame".encode()}):
                response = client.get("/v1/models", headers=header)
                assert response.status_code == 401
                assert "a token is required" in error(response)
            assert client.get("/v1/models", headers={"authorization": "Bearer sesame"}).status_code == 200
            assert client.get("/health").status_code == client.get("/ready").status_code == 200
            assert client.get("/metrics").status_code == 401
            assert client.get("/openapi.json").status_code == 401

    def test_tokens_are_compared_in_constant_time(self, pipe, monkeypatch):
        compared = []
        monkeypatch.setattr("hmac.compare_digest", lambda *given: compared.append(given) or False)
        with TestClient(create_app({"small": pipe}, token="sesame")) as client:
            assert client.get("/v1/models", headers={"authorization": "Bearer sesame"}).status_code == 401
        assert compared == [(b"sesame", b"sesame")]

    @pytest.mark.parametrize("path", ["/", "/app.js", "/health", "/v1/models", "/v1/thumbnails/0", "/nothing"])
    def test_responses_have_security_headers(self, client, path):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        policy = dict(each.split(" ", 1) for each in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in headers["content-security-policy"]

    def test_requests_above_the_limit_are_rejected(self, pipe):
        with TestClient(create_app({"small": slow(pipe, 0.05)}, Limits(requests=2))) as client:
            responses = []
            threads = [threading.Thread(target=lambda: responses.append(post(client, n=1))) for _ in range(4)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            codes = sorted(response.status_code for response in responses)
            assert codes == [200, 200, 429, 429]
            rejected = next(response for response in responses if response.status_code == 429)
            assert rejected.headers["retry-after"] == "1"
            assert "the limit of 2 requests in progress is reached" in error(rejected)
            assert post(client, n=1).status_code == 200
            assert "ditlab_requests_rejected_total 2.0" in client.get("/metrics").text

    def test_a_generation_that_takes_too_long_ends(self, pipe):
        with TestClient(create_app({"small": slow(pipe, 0.05)}, Limits(seconds=0.2))) as client:
            response = post(client, n=1, steps=100)
            assert response.status_code == 503
            assert "not finished after 0 s; request fewer steps" in error(response)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("path", "more"),
        [
            ("/v1/images/generations", {"stream": False}),
            ("/v1/images/generations", {"stream": True}),
            ("/v1/inspect", {}),
        ],
    )
    def test_a_generation_ends_within_a_step_after_its_client_disconnects(self, pipe, path, more, caplog):
        calls, whole = [], pipe.net.forward
        pipe.net.forward = lambda *given: calls.append(time.sleep(0.05)) or whole(*given)
        app = create_app({"small": pipe})
        body = {"steps": 100, "sampler": "euler"} | more

        async def leave():
            begun, gone = asyncio.Event(), asyncio.Event()

            async def receive():
                if not begun.is_set():
                    begun.set()
                    return {"type": "http.request", "body": json.dumps(body).encode()}
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message):
                pass

            headers = [(b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
            task = asyncio.create_task(app(scope, receive, send))
            while len(calls) < 3:
                await asyncio.sleep(0.001)
            seen = len(calls)
            gone.set()
            await task
            while app.state.service.engines["small"].active:
                await asyncio.sleep(0.001)
            return len(calls) - seen

        assert asyncio.run(leave()) <= 1
        app.state.service.close()
        gc.collect()
        assert caplog.text == ""  # no unhandled exception

    def test_internal_errors_are_shown_in_the_log_only(self, pipe, caplog):
        def broken(*given):
            raise ValueError("secret inside")

        pipe.net.forward = broken
        with TestClient(create_app({"small": pipe})) as client:
            response = post(client, n=1)
            assert response.status_code == 503
            assert error(response) == "the generation failed; see the log of the service"
            assert "ditlab_requests_failed_total 1.0" in client.get("/metrics").text
            assert "ditlab_requests_in_progress 0.0" in client.get("/metrics").text
            assert "secret inside" in caplog.text
            caplog.clear()
            assert client.post("/v1/inspect", json={}).status_code == 503
            assert "secret inside" in caplog.text
            thumbnail = client.get("/v1/thumbnails/0")
            assert thumbnail.status_code == 503
            assert error(thumbnail) == "the generation failed; see the log of the service"

    def test_an_internal_error_outside_of_a_generation_has_the_same_form(self, pipe, monkeypatch):
        app = create_app({"small": pipe})
        monkeypatch.setattr(app.state.service, "find", lambda model: 1 / 0)
        with TestClient(app, raise_server_exceptions=False) as client:
            response = client.get("/v1/classes")
            assert response.status_code == 500
            assert error(response) == "the service failed; see its log"


def text(image):
    content = io.BytesIO()
    image.save(content, format="PNG")
    return base64.b64encode(content.getvalue()).decode()


class TestImageToImage:
    def test_pixels_outside_the_mask_are_kept(self, client, pipe):
        image, mask = Image.new("L", (8, 8), 200), Image.new("L", (8, 8))
        mask.paste(255, (4, 0, 8, 8))
        response = post(client, prompt="bee", n=2, seeds=5, image=text(image), mask=text(mask), resample=3)
        one, other = response.json()["data"]
        assert one["settings"].items() >= {"label": "bee", "seed": 5, "strength": 1.0, "resample": 3}.items()
        kept = np.asarray(decode(one["b64_json"]))
        assert (kept[:, :4] == 200).all()
        expected = pipe("bee", seeds=[5, 6], image=image, mask_image=mask, resample=3).images
        for image, wanted in zip((one, other), expected, strict=True):
            difference = np.asarray(decode(image["b64_json"]), int) - np.asarray(wanted, int)
            assert abs(difference).max() <= 1

    def test_the_reported_steps_follow_from_the_strength(self, client):
        response = post(client, n=1, seeds=1, image=text(Image.new("L", (8, 8))), strength=0.5, stream=True)
        *_, (kind, last) = events(response.text)
        assert kind == "image_generation.completed"
        assert (last["step"], last["steps"]) == (2, 2)

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ({"image": "no base64!"}, "the image is not base64"),
            ({"image": base64.b64encode(b"no image").decode()}, "cannot be read as PNG"),
            ({"image": text(Image.new("1", (5000, 5000)))}, "5000x5000 pixels; give one of at most 16,000,000"),
            ({"strength": 0.5}, "need an image to start from"),
            ({"image": text(Image.new("L", (8, 8))), "mask": text(Image.new("L", (8, 8)))}, "the mask is black"),
        ],
    )
    def test_invalid_images_and_masks_are_rejected(self, client, body, words):
        response = post(client, n=1, **body)
        assert response.status_code == 400
        assert words in error(response)


class TestSettings:
    @pytest.mark.parametrize(
        ("aliases", "fields"),
        [
            ({"num_inference_steps": 3, "guidance_scale": 1.5}, {"steps": 3, "guidance": 1.5}),
            ({"class_labels": ["bee", "cow"], "seed": 7}, {"labels": ["bee", "cow"], "seeds": 7}),
            ({"prompts": ["bee"], "quality": "draft"}, {"labels": "bee", "preset": "draft"}),
            ({"prompt": "bee", "num_images_per_prompt": 2}, {"labels": ["bee", "bee"]}),
            ({"class_labels": [0, 1], "num_images_per_prompt": 2}, {"labels": [0, 0, 1, 1]}),
            ({"label": 2, "steps": None, "num_inference_steps": 2}, {"labels": 2, "steps": 2}),
        ],
    )
    def test_other_names_of_a_setting_are_accepted(self, client, aliases, fields):
        seed = {} if "seed" in aliases else {"seeds": 5}
        data = post(client, **aliases, **seed).json()["data"]
        assert data == post(client, **({"seeds": 5} | fields)).json()["data"]

    @pytest.mark.parametrize(
        ("body", "line"),
        [
            ({"steps": 4, "num_inference_steps": 4}, "steps and num_inference_steps are the same setting"),
            ({"seed": 1, "seeds": [1]}, "seed and seeds are the same setting"),
            ({"labels": [1], "class_labels": [1]}, "labels and class_labels are the same setting"),
            ({"n": 2, "num_images_per_prompt": 2}, "n and num_images_per_prompt are both given"),
        ],
    )
    def test_a_setting_that_is_given_twice_is_rejected(self, client, body, line):
        response = post(client, **body)
        assert response.status_code == 400
        assert error(response).startswith(line)
        assert error(response).endswith("give one of them")

    def test_settings_of_an_image_that_starts_from_an_image(self, client):
        content = io.BytesIO()
        Image.new("L", (8, 8), 90).save(content, "PNG")
        one = post(client, prompt="cow", image=base64.b64encode(content.getvalue()).decode(), strength=0.5).json()[
            "data"
        ][0]
        assert (one["settings"]["strength"], one["settings"]["size"]) == (0.5, "8x8")
        assert len(one["settings"]["image_hash"]) == 16
        assert json.loads(decode(one["b64_json"]).text["ditlab"]) == one["settings"]

    def test_settings_of_a_response_generate_the_same_image(self, client):
        one = post(client, prompt="cow", preset="draft", eta=0.5, sampler="ddim", schedule="cosine").json()["data"][0]
        assert one["settings"].items() >= {
            "sampler": "ddim", "schedule": "cosine", "eta": 0.5, "steps": 5, "preset": "draft",
        }.items()  # fmt: skip
        fixed = ("precision", "model_hash", "version")
        again = post(client, **{key: value for key, value in one["settings"].items() if key not in fixed})
        assert again.json()["data"] == [one]

    def test_blocks_that_cannot_be_left_out(self, client):
        response = post(client, prompt="cow", skip_layers=[0], skip_guidance=3, skip_interval=[0, 0.9])
        assert response.status_code == 400
        assert "has no blocks that can be left out; leave skip_layers out" in response.json()["error"]["message"]

    @pytest.mark.parametrize(
        ("setting", "words"),
        [
            ({"schedule": "cosine"}, {"grid": "cosine"}),
            ({"guidance_channels": 1}, {"guidance_channels": 1}),
            ({"guidance": 2.0, "guidance_rescale": 0.5}, {"guidance_scale": 2.0, "guidance_rescale": 0.5}),
            ({"schedule": "sd3", "shift": 2}, {"schedule": "sd3", "shift": 2}),
            ({"reuse": 2, "steps": 8}, {"reuse": 2, "num_inference_steps": 8}),
            ({"reuse_error": 0.05, "steps": 8}, {"reuse_error": 0.05, "num_inference_steps": 8}),
            ({"eta": 1.0, "sampler": "ddim"}, {"eta": 1.0, "sampler": "ddim"}),
        ],
    )
    def test_each_setting_acts_as_in_python(self, client, pipe, setting, words):
        data = post(client, labels=[0, 1], seeds=3, **setting).json()["data"]
        for one, image in zip(data, pipe([0, 1], seeds=[3, 4], **words).images, strict=True):
            assert np.abs(np.asarray(decode(one["b64_json"])).astype(int) - np.asarray(image).astype(int)).max() <= 1

    def test_defaults_are_those_of_the_model(self, client):
        settings = post(client, model="other", n=1).json()["data"][0]["settings"]
        assert settings["guidance"] == 1.0
        assert "heun" in settings["sampler"]

    def test_the_earlier_path_of_inspection_works(self, client):
        body = {"prompt": "ant", "seed": 3, "num_inference_steps": 2}
        result = client.post("/v1/inside", json=body).json()
        assert result == client.post("/v1/inspect", json=body).json()
        assert result["settings"].items() >= {"model": "small", "label": "ant", "seed": 3, "steps": 2}.items()


class Colors(Conditioner):
    """A condition of another kind than class labels."""

    what = "color"

    def __init__(self):
        self.config = {"kind": "color"}

    def values(self, given):
        return Condition(label=torch.tensor([3 if value is None else len(value) % 3 for value in given]))

    def null(self, count):
        return Condition(label=torch.full((count,), 3))


class TestConditions:
    def test_a_text_prompt_for_classes_is_rejected_in_one_line(self, client):
        response = post(client, prompt="a red fox in the snow")
        assert response.status_code == 400
        assert error(response) == (
            'text prompt "a red fox in the snow" for a class-conditional model; its classes are ant, bee, cow'
        )

    def test_a_condition_of_another_kind_takes_prompts(self, pipe):
        pipe.conditioner = Colors()
        with TestClient(create_app({"colors": pipe})) as client:
            (model,) = client.get("/v1/models").json()["data"]
            assert (model["condition"], model["classes"]) == ("color", 0)
            data = post(client, labels=["dark red", "pale blue"], seeds=1).json()["data"]
            assert [one["settings"]["label"] for one in data] == ["dark red", "pale blue"]
            assert post(client, n=2).json()["data"][1]["settings"]["label"] is None
            response = client.get("/v1/classes")
            assert response.status_code == 400
            assert error(response) == "model colors has no class labels; describe the image with prompt"


def test_interpolation_between_classes_and_seeds(client, pipe):
    data = post(client, prompt=0, to_label="cow", n=3, seeds=4, to_seed=9).json()["data"]
    assert [one["settings"]["seed"]["weight"] for one in data] == [0, 0.5, 1]
    expected = pipe(between(0, 2, 3), seeds=between(4, 9, 3)).images
    for one, wanted in zip(data, expected, strict=True):
        assert abs(np.asarray(decode(one["b64_json"]), int) - np.asarray(wanted, int)).max() <= 1
    alone = post(client, prompt=0, to_label=2, n=3, seeds=4).json()["data"]
    assert {one["settings"]["seed"] for one in alone} == {4}
    rejected = post(client, prompt=0, to_label="bea", n=3)
    assert rejected.status_code == 400
    assert 'did you mean "bee"' in error(rejected)


def test_an_animation_shows_the_trajectory(client):
    data = post(client, n=2, seeds=1, steps=6, animation=True).json()["data"]
    with decode(data[0]["animation_b64"]) as animation:
        assert animation.format == "GIF"
        assert animation.n_frames == 7
        assert animation.size == (256, 256)
    assert "animation_b64" not in post(client, n=1).json()["data"][0]


class TestInspection:
    def test_all_steps_and_blocks_are_reported(self, client, pipe):
        result = client.post("/v1/inspect", json={"prompt": "ant", "seed": 3, "steps": 5}).json()
        assert [round(step["t"], 3) for step in result["steps"]] == [0.8, 0.6, 0.4, 0.2, 0]
        blocks = len(pipe.net.blocks)
        assert [len(row) for row in result["changes"]] == [blocks] * 4
        assert all(0 < value < 10 for row in result["changes"] for value in row)
        assert (result["attentions"], result["attention"]) == (len(pipe.net.blocks), None)

    def test_weights_of_an_attention_are_reported(self, client):
        body = {"prompt": "ant", "seed": 3, "steps": 5, "step": 2, "attention": 1}
        result = client.post("/v1/inspect", json=body).json()
        assert len(result["steps"]) == 3
        height, width = (result["attention"][side] for side in ("height", "width"))
        weights = np.frombuffer(base64.b64decode(result["attention"]["weights"]), np.uint8)
        rows = weights.reshape(height * width, height * width)
        assert (height, width) == (4, 4)
        assert (rows.max(1) == 255).all()

    @pytest.mark.parametrize(
        ("body", "line"),
        [
            ({"step": 2, "attention": 9}, "attention 9 does not exist; there are 2, from 0 to 1"),
            ({"step": 4}, "step 4 does not exist; there are 4, from 0 to 3"),
        ],
    )
    def test_a_step_or_attention_that_does_not_exist_is_rejected(self, client, body, line):
        response = client.post("/v1/inspect", json={"seed": 1, "steps": 4} | body)
        assert response.status_code == 400
        assert error(response) == line

    @pytest.mark.parametrize("body", [{"labels": [0, 1]}, {"seeds": [0, 1]}])
    def test_one_image_is_inspected(self, client, body):
        response = client.post("/v1/inspect", json=body)
        assert response.status_code == 422
        assert "List should have at most 1 item" in error(response)

    def test_an_invalid_inspection_is_rejected(self, client):
        response = client.post("/v1/inspect", json={"prompt": "bea"})
        assert response.status_code == 400
        assert "bee" in error(response)


def test_progress_of_training_runs(pipe, tmp_path, monkeypatch):
    run = tmp_path / "mine"
    (run / "previews").mkdir(parents=True)
    (run / "recipe.toml").write_text((find_recipe("digits")).read_text())
    lines = [
        {"images": i, "loss": 1 / i, "images_per_second": 10.0, "loss_by_time": [0.5, None, 1.0]} for i in (10, 20)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"images": 3')
    with TestClient(create_app({"small": pipe}, runs={"mine": run})) as client:
        assert client.get("/v1/runs").json() == {"runs": ["mine"]}
        progress = client.get("/v1/runs/mine").json()
        assert (progress["state"], progress["seconds_left"]) == ("stopped", None)
        assert 0 <= progress["seconds_since_entry"] < 600
        with monkeypatch.context() as patch:
            patch.setattr("ditlab.report.run.in_use", lambda folder: None)  # a file system without locks
            progress = client.get("/v1/runs/mine").json()
            assert (progress["state"], progress["seconds_left"]) == ("unknown", None)
        with held(run):
            progress = client.get("/v1/runs/mine").json()
        assert (progress["state"], progress["images"], progress["preview"]) == ("running", 20, None)
        assert progress["seconds_left"] == (progress["total"] - 20) / 10
        assert progress["curves"]["loss"] == [[10, 0.1], [20, 0.05]]
        assert progress["loss_by_time"] == [[0.5 / 3, 0.5], [2.5 / 3, 1.0]]
        assert client.get("/v1/runs/mine/preview").status_code == 404
        Image.new("L", (4, 4), 7).save(run / "previews" / "000000000020.png")
        assert client.get("/v1/runs/mine").json()["preview"] == 20
        assert Image.open(io.BytesIO(client.get("/v1/runs/mine/preview").content)).getpixel((0, 0)) == 7
        assert client.get("/v1/runs/..%2Fother").status_code in (400, 404)
        unknown = client.get("/v1/runs/mino")
        assert unknown.status_code == 400
        assert 'did you mean "mine"' in error(unknown)
        wrong = {
            "images": 30,
            "loss": float("nan"),
            "images_per_second": float("inf"),
            "loss_by_time": [float("nan"), 1.0],
        }
        with (run / "metrics.jsonl").open("a") as file:
            file.write("\n" + json.dumps(wrong) + "\n")
        with held(run):
            progress = client.get("/v1/runs/mine").json()
        assert (progress["images"], progress["seconds_left"]) == (30, None)
        assert progress["curves"]["loss"] == [[10, 0.1], [20, 0.05]]
        assert progress["loss_by_time"] == [[0.75, 1.0]]
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"images": progress["total"], "loss": 0.1}) + "\n")
        assert client.get("/v1/runs/mine").json()["state"] == "stopped"  # without its last checkpoint
        (run / "checkpoints" / f"{progress['total']:012d}").mkdir(parents=True)
        assert client.get("/v1/runs/mine").json()["state"] == "finished"
        os.rename(run, tmp_path / "gone")
        for path in ("", "/preview"):
            gone = client.get(f"/v1/runs/mine{path}")
            assert gone.status_code == 404
            assert str(tmp_path) not in error(gone)


def test_models_and_classes_are_listed(client):
    first, second = client.get("/v1/models").json()["data"]
    assert (first["id"], first["size"], first["classes"], first["steps"]) == ("small", "8x8", 3, 4)
    assert first == model_info(client.app.state.service, "small")  # the schema drops nothing
    assert second["id"] == "other"
    assert client.get("/v1/classes").json() == {"model": "small", "classes": ["ant", "bee", "cow"], "labels": [0, 1, 2]}
    assert client.get("/v1/classes", params={"model": "other"}).json()["classes"] == []
    assert client.get("/v1/classes", params={"model": "x"}).status_code == 400


def test_class_names_that_are_numbers(pipe):
    pipe.classes = ["1", "2", "3"]
    with TestClient(create_app({"small": pipe})) as client:
        listed = client.get("/v1/classes").json()
        assert listed == {"model": "small", "classes": ["1", "2", "3"], "labels": ["1", "2", "3"]}
        expected = pipe(["1", "2"], seeds=5, output_type="np").images
        for labels in ([1, 2], ["1", "2"], ["index:0", "index:1"]):
            data = post(client, labels=labels, seeds=[5, 5]).json()["data"]
            assert [image["settings"]["label"] for image in data] == labels
            for image, array in zip(data, expected, strict=True):
                assert np.array_equal(np.asarray(decode(image["b64_json"])), (255 * array[..., 0]).round())
        assert error(post(client, prompt=0)).endswith('give index:0 for the class "1"')
        first = client.get("/v1/thumbnails/0").content
        named = post(client, prompt="1", seeds=0, preset="draft").json()["data"][0]["b64_json"]
        assert Image.open(io.BytesIO(first)).tobytes() == decode(named).tobytes()
        in_turn = post(client, n=3, seeds=0).json()["data"]
        assert [image["settings"]["label"] for image in in_turn] == ["1", "2", "3"]
        assert error(client.get("/v1/thumbnails/3")) == (
            "label index:3 is out of range; this model has the indices 0 to 2"
        )


def test_examples_of_a_flow_map_have_its_own_settings():
    objective = FlowMap(guidance=(1.5, 1.5))
    pipe = tiny_pipeline(objective=objective, inputs=objective.inputs)
    pipe.config["sample"] = {"sampler": "map", "steps": 1, "guidance": 1.5}
    with TestClient(create_app({"small": pipe}, Limits())) as client:
        shown = client.get("/v1/thumbnails/1").content
        data = post(client, prompt="index:1", seeds=0).json()["data"][0]
        assert Image.open(io.BytesIO(shown)).tobytes() == decode(data["b64_json"]).tobytes()
        assert data["settings"]["guidance"] == 1.5
        assert "this model cannot start from an image" in error(post(client, prompt="index:1", image=PIXEL))


def test_examples_of_models_without_classes(pipe):
    torch.manual_seed(0)
    conditioner = Text.for_data(None, {"captions": ["red", "blue"]})
    net = create("text_net:TextNet", size=8, channels=3, learn_variance=False, **conditioner.network_options())
    config = {"prompts": ["red", "blue"], "sample": {"sampler": "euler", "steps": 2}}
    text = Pipeline(net, pipe.objective, conditioner=conditioner, config=config)
    with TestClient(create_app({"plain": tiny_pipeline(classes=0), "text": text})) as client:
        for model, number, request in (("plain", 3, {"seeds": 3}), ("text", 1, {"prompt": "blue", "seeds": 0})):
            shown = client.get(f"/v1/thumbnails/{number}", params={"model": model}).content
            asked = post(client, model=model, preset="draft", **request).json()["data"][0]["b64_json"]
            assert Image.open(io.BytesIO(shown)).tobytes() == decode(asked).tobytes()
        response = client.get("/v1/thumbnails/2", params={"model": "text"})
        assert (response.status_code, error(response)) == (400, "no example 2; this model has the examples 0 to 1")


class TestThumbnails:
    def test_they_wait_until_no_request_is_in_progress(self, pipe):
        with TestClient(create_app({"small": pipe})) as client, ThreadPoolExecutor() as pool:
            service, calls = client.app.state.service, []
            service.engines["small"].on_call = lambda rows, seconds: calls.append(rows)
            service.idle.begin()
            waiting = [pool.submit(client.get, f"/v1/thumbnails/{number}") for number in (0, 1, 0)]
            wait(waiting, 0.3)
            assert (any(future.done() for future in waiting), calls) == (False, [])
            service.idle.end()
            responses = [future.result(20) for future in waiting]
            assert [response.status_code for response in responses] == [200, 200, 200]
            assert responses[0].content == responses[2].content != responses[1].content
            assert len(calls) == 2 * 6  # steps of the preset draft: the second request for 0 took what was kept
            service.idle.begin()
            assert client.get("/v1/thumbnails/1").content == responses[1].content
            service.idle.end()

    def test_a_request_comes_first_and_the_thumbnail_follows(self, pipe):
        begun, forward = threading.Event(), pipe.net.forward

        def slow(*given, **named):
            begun.set()
            time.sleep(0.02)
            return forward(*given, **named)

        pipe.net.forward = slow
        with TestClient(create_app({"small": pipe})) as client, ThreadPoolExecutor() as pool:
            waiting = pool.submit(client.get, "/v1/thumbnails/0")
            assert begun.wait(10)
            assert post(client, n=1).status_code == 200
            thumbnail = waiting.result(20)
            assert thumbnail.status_code == 200
            pipe.net.forward = forward
            asked = post(client, prompt=0, seeds=0, preset="draft").json()["data"][0]["b64_json"]
            assert Image.open(io.BytesIO(thumbnail.content)).tobytes() == decode(asked).tobytes()
            metrics = client.get("/metrics").text
            assert "ditlab_requests_in_progress 0.0" in metrics
            assert "ditlab_requests_canceled_total 0.0" in metrics

    def test_few_wait_and_not_for_ever(self, pipe):
        with TestClient(create_app({"small": pipe}, Limits(requests=2, seconds=1))) as client:
            service = client.app.state.service
            service.idle.begin()
            waiting = [service.thumbnail("small", number) for number in (0, 1)]
            response = client.get("/v1/thumbnails/2")
            assert (response.status_code, error(response)) == (429, "too many thumbnails wait; try again in 1 s")
            assert response.headers["retry-after"] == "1"
            message = "thumbnails are generated while nothing else is in progress; try again in 1 s"
            with pytest.raises(Busy, match=message):
                waiting[0].result(20)
            with pytest.raises(Busy, match=message):
                waiting[1].result(20)
            service.idle.end()
            assert client.get("/v1/thumbnails/2").status_code == 200

    def test_the_service_ends_while_some_wait(self, pipe):
        with TestClient(create_app({"small": pipe})) as client:
            client.app.state.service.idle.begin()
            waiting = [client.app.state.service.thumbnail("small", number) for number in (0, 1)]
        with pytest.raises(Busy):
            waiting[0].result(0)
        assert waiting[1].cancelled()

    def test_the_oldest_is_dropped(self, monkeypatch):
        monkeypatch.setattr("ditlab.server.thumbnails.KEPT", 2)
        generated = []
        thumbnails = Thumbnails(lambda name, seconds: generated.append(name[1]) or b"%d" % name[1], 4, 10)
        contents = [thumbnails.request(("small", number)).result(10) for number in (0, 1, 2, 2, 1, 0)]
        assert (contents, generated) == ([b"0", b"1", b"2", b"2", b"1", b"0"], [0, 1, 2, 0])
        thumbnails.close()


def test_the_openapi_description_is_complete_and_has_examples(pipe):
    with TestClient(create_app({"small": pipe}, token="sesame")) as client:
        document = client.get("/openapi.json", headers={"authorization": "Bearer sesame"}).json()
    schemas = document["components"]["schemas"]
    assert schemas["GenerationRequest"]["examples"][0]["prompt"] == "3"
    operations = {path: operation for path, item in document["paths"].items() for operation in item.values()}
    assert {path for path, operation in operations.items() if "security" not in operation} == {"/health", "/ready"}
    assert operations["/v1/images/generations"]["responses"].keys() == {
        "200", "400", "401", "403", "411", "413", "422", "429", "503",
    }  # fmt: skip
    for operation in operations.values():
        assert operation["description"]
        for code, response in operation["responses"].items():
            for kind, content in response["content"].items():
                if code == "200" and kind == "application/json":
                    assert has_examples(content["schema"]["$ref"].rpartition("/")[2], schemas)
                elif kind != "image/png":
                    assert content["example"]


def has_examples(name, schemas):
    """Whether a schema has an example, or each of its properties has one."""
    form = schemas[name]
    parts = form["properties"].values()
    return "examples" in form or all("examples" in part or part.get("type") == "array" for part in parts)


def test_metrics(client):
    post(client, n=3, steps=2, guidance=1.0, sampler="euler")
    for _ in range(50):  # the last call is counted after the response
        text = client.get("/metrics").text
        if 'ditlab_batch_rows_bucket{le="4.0"} 2.0' in text:
            break
        time.sleep(0.02)
    assert 'ditlab_batch_rows_bucket{le="4.0"} 2.0' in text
    assert "ditlab_images_total 3.0" in text
    assert "ditlab_requests_in_progress 0.0" in text


class TestProcess:
    @pytest.fixture
    def served(self, pipe, tmp_path):
        """The address of a service in a separate process."""
        pipe.save(tmp_path / "small")
        with serving(tmp_path / "small") as address:
            yield address, tmp_path

    @pytest.mark.slow
    def test_requests_of_disconnected_clients_end(self, served):
        address, folder = served
        long = {"n": 4, "steps": 250, "sampler": "heun", "stream": True}
        for _ in range(3):
            with httpx.stream("POST", f"{address}/v1/images/generations", json=long) as response:
                next(response.iter_lines())
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/images/generations", json=long | {"stream": False}, timeout=0.3)
        for _ in range(100):
            text = httpx.get(f"{address}/metrics").text
            if "ditlab_requests_in_progress 0.0" in text:
                break
            time.sleep(0.05)
        assert "ditlab_requests_in_progress 0.0" in text
        assert "ditlab_requests_canceled_total 4.0" in text
        huge = httpx.post(f"{address}/v1/images/generations", content=b" " * 50 * 2**20, timeout=30)
        assert huge.status_code == 413
        # The folder may disappear, because the model is in memory.
        os.rename(folder / "small", folder / "gone")
        assert httpx.post(f"{address}/v1/images/generations", json={"n": 1}, timeout=30).status_code == 200
        busy = subprocess.run(
            [sys.executable, "-m", "ditlab", "serve", str(folder / "gone"), f"--port={address.rpartition(':')[2]}"],
            capture_output=True,
            text=True,
        )
        assert busy.returncode == 2
        assert "Address already in use" in busy.stderr
        assert busy.stderr.count("\n") == 1

    @pytest.fixture
    def start(self, pipe, tmp_path, monkeypatch):
        """Runs the command in this process without serving; returns its address and application."""
        from ditlab.cli import main

        pipe.save(tmp_path / "small")
        started = {}

        def run(server, sockets):
            started.update(address=sockets[0].getsockname()[0], app=server.config.app)
            sockets[0].close()

        monkeypatch.setattr("uvicorn.Server.run", run)

        def start(*options):
            monkeypatch.setattr(sys, "argv", ["ditlab", "serve", str(tmp_path / "small"), "--port=0", *options])
            main()
            return started

        return start

    def test_responses_are_sent_at_once(self):
        with listen("127.0.0.1", 0) as listening:
            assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
    def test_a_public_address_needs_a_token(self, start, host, capsys):
        with pytest.raises(SystemExit) as ended:
            start("--host", host)
        assert ended.value.code == 2
        assert f"other machines can connect to --host {host}; add --token" in capsys.readouterr().err

    def test_the_service_listens_on_localhost_by_default(self, start, monkeypatch):
        started = start()
        assert started["address"] == "127.0.0.1"
        with TestClient(started["app"]) as client:
            assert client.get("/v1/models").status_code == 403  # the name of this client's service is testserver
            assert client.get("/v1/models", headers={"host": "localhost:7860"}).status_code == 200
        named = start("--allowed-hosts", "testserver", "*.example.com")["app"]
        with TestClient(named) as client:
            hosts = ("testserver", "a.example.com", "localhost", "example.com")
            codes = [client.get("/v1/models", headers={"host": host}).status_code for host in hosts]
            assert codes == [200, 200, 200, 403]
        by_option = start("--host=0.0.0.0", "--token=sesame")["app"]
        monkeypatch.setenv("DITLAB_TOKEN", "sesame")
        by_environment = start("--host=0.0.0.0")["app"]
        monkeypatch.delenv("DITLAB_TOKEN")
        for app in (by_option, by_environment):
            with TestClient(app) as client:
                assert client.get("/v1/models").status_code == 401
                bearer = {"authorization": "Bearer sesame"}
                assert client.get("/v1/models", headers=bearer).status_code == 200
        assert start("--host=0.0.0.0", "--open-to-all")["address"] == "0.0.0.0"

    def test_limits_are_options_and_their_earlier_names_are_noted(self, start, capsys):
        names = ("images", "steps", "seconds", "requests", "rows")
        others = start("--max-pixels=7", "--max-connections=8", "--client-seconds=9")["app"].state.service.limits
        assert (others.pixels, others.connections, others.client_seconds) == (7, 8, 9.0)
        limits = start(*(f"--max-{name}={i}" for i, name in enumerate(names, start=2)))["app"].state.service.limits
        assert [getattr(limits, name) for name in names] == [2, 3, 4.0, 5, 6]
        assert "now" not in capsys.readouterr().err
        earlier = ("pictures", "steps", "seconds", "drawings", "rows")
        same = start(*(f"--{name}={i}" for i, name in enumerate(earlier, start=2)))["app"].state.service.limits
        assert same == limits
        notes = capsys.readouterr().err
        for old, new in zip(earlier, names, strict=True):
            assert notes.count(f"--{old} is now --max-{new}; the old name will be removed\n") == 1


class TestValues:
    @pytest.fixture
    def thirteen(self):
        pipe = tiny_pipeline(channels=13)
        pipe.config["sample"] = {"sampler": "euler", "steps": 2, "guidance": 1.0}
        pipe.values = PixelValues("uint16", (0.0,), (4095.0,), shown=(4, 3, 2))
        return pipe

    def test_a_model_of_13_channels_is_served(self, thirteen):
        with TestClient(create_app({"bands": thirteen}, Limits())) as client:
            (about,) = client.get("/v1/models").json()["data"]
            assert about["images"] == "13 channels of uint16, 0..4095; PNG files show channels 4, 3, 2"
            data = post(client, labels=[0, 1], seeds=[0, 1], numbers=True, animation=True).json()["data"]
            samples = thirteen([0, 1], seeds=[0, 1], output_type="native").images
            for item, expected in zip(data, samples, strict=True):
                array = np.load(io.BytesIO(base64.b64decode(item["npy_b64"])))
                assert array.dtype == np.uint16
                assert np.abs(array.astype(int) - expected).max() <= 1
                shown = np.asarray(decode(item["b64_json"])).astype(float)
                assert np.abs(shown - expected[..., [3, 2, 1]] * (255 / 4095)).max() <= 0.6
                assert decode(item["animation_b64"]).size == (256, 256)
            assert "npy_b64" not in post(client, labels=0, seeds=0).json()["data"][0]
            assert Image.open(io.BytesIO(client.get("/v1/thumbnails/0").content)).mode == "RGB"
            assert len(client.post("/v1/inspect", json={"labels": 0, "seeds": 0}).json()["steps"]) == 2
            line = "this model generates 13 channels of uint16, 0..4095, and images to start from are gray or RGB"
            assert line in error(post(client, labels=0, image=PIXEL))


class TestText:
    @pytest.fixture
    def text_client(self, pipe):
        torch.manual_seed(0)
        conditioner = Text.for_data(None, {"captions": ["a red apple", "a blue apple"]})
        net = TextNet((8, 8), 3, **conditioner.network_options()).eval()
        net.config = {"name": "text_net:TextNet"}
        config = {"prompts": ["a red apple"], "sample": {"guidance": 2.0, "steps": 2, "sampler": "euler"}}
        text = Pipeline(net, pipe.objective, conditioner=conditioner, config=config)
        with TestClient(create_app({"text": text, "classes": pipe})) as client:
            client.pipe = text
            yield client

    def test_prompts_and_negative_prompts(self, text_client):
        model, classes = text_client.get("/v1/models").json()["data"]
        assert (model["condition"], model["classes"], model["prompts"]) == ("text", 0, ["a red apple"])
        assert classes["prompts"] == []
        data = post(text_client, prompts=["a red apple", "blue"], negative_prompt="apple", seeds=[3, 4]).json()["data"]
        settings = data[1]["settings"]
        assert (settings["prompt"], settings["negative_prompt"]) == ("blue", "apple")
        assert "label" not in settings
        expected = text_client.pipe(["a red apple", "blue"], seeds=[3, 4], negative_prompt="apple").images
        for one, wanted in zip(data, expected, strict=True):
            assert abs(np.asarray(decode(one["b64_json"]), int) - np.asarray(wanted, int)).max() <= 1
        assert post(text_client, n=2).json()["data"][1]["settings"]["prompt"] == "a red apple"  # of the training data
        between = post(text_client, prompt="red", to_prompt="blue", n=3, seeds=0).json()["data"]
        assert [one["settings"]["prompt"]["weight"] if i == 1 else 0 for i, one in enumerate(between)] == [0, 0.5, 0]

    def test_what_a_long_prompt_loses_is_in_the_settings(self, text_client):
        settings = post(text_client, prompt="a red apple a blue apple").json()["data"][0]["settings"]
        assert settings["left_out"] == "a blue apple"
        assert "left_out" not in post(text_client, prompt="a red apple").json()["data"][0]["settings"]
        body = {"prompt": "red", "negative_prompt": "a red apple a blue apple", "guidance": 2}
        assert post(text_client, **body).json()["data"][0]["settings"]["negative_left_out"] == "a blue apple"

    def test_wrong_prompts_are_one_line(self, text_client):
        for body, line in (
            ({"prompt": "a green apple"}, 'unknown word "green" in "a green apple"; this model was '
             "trained on 4 words"),
            ({"prompt": "red", "negative_prompt": "blue", "guidance": 1},
             "negative_prompt has no effect at guidance 1, which disables guidance; set guidance above 1"),
            ({"prompt": 3}, 'prompt 3 is no text; give a text, such as "a red apple"'),
            ({"prompt": " "}, "a prompt is empty; give a text, or None for no prompt"),
            ({"model": "classes", "prompt": "ant", "negative_prompt": "x", "guidance": 2},
             'negative_prompt "x" for a model that reads no text; leave it out'),
        ):  # fmt: skip
            response = post(text_client, **body)
            assert (response.status_code, error(response)) == (400, line)
