"""The examples for many replicas and many GPUs: the files agree with each other, and what is installed runs."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import httpx
import numpy as np
import pytest
from helpers import free_port, posix_only, serving, smooth, tiny_pipeline
from PIL import Image

from ditlab.server.app import create_app

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
GENERATE = "/v1/images/generations"
LONG = {"n": 16, "steps": 250, "sampler": "heun", "stream": True}


@pytest.fixture
def folder(tmp_path):
    smooth(tiny_pipeline()).save(tmp_path / "small")
    return tmp_path / "small"


def ask(address, **options):
    return httpx.post(address + GENERATE, json={"steps": 2} | options, timeout=60)


def dockerfile():
    """The instructions and their arguments."""
    text = re.sub(r"\\\n\s*", "", (EXAMPLES / "Dockerfile").read_text())
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_container_image_is_built_from_existing_files():
    lines = dockerfile()
    copied = [name for word, rest in lines if word == "COPY" for name in rest.split()[:-1]]
    assert {"constraints.txt", "pyproject.toml", "src", "recipes"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    sent = (EXAMPLES / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in copied} <= set(sent)
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = package["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert {"README.md", "hatch_build.py", *package["project"]["license-files"], *included} <= set(copied)
    installed = next(rest for word, rest in lines if word == "RUN" and "'.[" in rest)
    assert re.search(r"'\.\[(\w+)\]'", installed)[1] in package["project"]["optional-dependencies"]
    words = dict(lines)
    assert words["USER"] != "root"
    (path,) = re.findall(r"7860(/\w+)'", words["HEALTHCHECK"])
    assert path in create_app({"small": tiny_pipeline()}).openapi()["paths"]
    assert json.loads(words["ENTRYPOINT"])[:2] == ["ditlab", "serve"]


def test_the_proxy_and_its_replicas_agree():
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"]
    replica, proxy = services["ditlab"], services["proxy"]
    assert replica["deploy"]["replicas"] == 2
    assert ":?" in replica["environment"]["DITLAB_TOKEN"]
    (model,) = replica["volumes"]
    assert model.endswith(f":{replica['command'][0]}:ro")
    assert (EXAMPLES / replica["build"]["context"] / replica["build"]["dockerfile"]).exists()
    assert (EXAMPLES / proxy["volumes"][0].split(":")[0]).exists()
    configured = (EXAMPLES / "nginx.conf").read_text()
    assert f"server ditlab:{dict(dockerfile())['EXPOSE']} " in configured
    assert proxy["ports"] == ["127.0.0.1:8080:8080"]
    assert "listen 8080;" in configured


@contextlib.contextmanager
def proxied(folder, *addresses):
    """The address of nginx in front of the replicas, configured as in the example."""
    port, servers = free_port(), [f"server {address.removeprefix('http://')} max_fails=0;" for address in addresses]
    text = (EXAMPLES / "nginx.conf").read_text()
    text = text.replace("server ditlab:7860 max_fails=0;", "\n".join(servers)).replace("listen 8080", f"listen {port}")
    (folder / "nginx.conf").write_text(text.replace("/tmp/nginx", f"{folder}/nginx"))
    process = subprocess.Popen(["nginx", "-p", folder, "-c", folder / "nginx.conf", "-g", "daemon off;"])
    try:
        for _ in range(100):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def streaming(address):
    """A long generation after its first step."""
    with httpx.stream("POST", address + GENERATE, json=LONG, timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: image_generation.step"
        yield
        lines.close()


def in_progress(address):
    return float(
        re.search(r"^ditlab_requests_in_progress (.*)$", httpx.get(f"{address}/metrics").text, re.MULTILINE)[1]
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
def test_two_replicas_behind_a_proxy_work_as_one_service(folder, tmp_path):
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(serving(folder, "--max-requests=1"))
        mortal = stack.enter_context(contextlib.ExitStack())
        other = mortal.enter_context(serving(folder, "--max-requests=1"))
        address = stack.enter_context(proxied(tmp_path, one, other))
        expected = ask(one, seed=1).json()["data"]

        # The proxy passes a stream on at once, and a client that disconnects ends its request.
        with streaming(address):
            assert in_progress(one) + in_progress(other) == 1
        for _ in range(200):
            if in_progress(one) + in_progress(other) == 0:
                break
            time.sleep(0.05)
        assert in_progress(one) + in_progress(other) == 0

        # The proxy does not know that one replica is busy, and sends rejected requests to the other.
        with streaming(one):
            found = [ask(address, seed=1) for _ in range(4)]
            assert [each.status_code for each in found] == [200] * 4
            assert all(each.json()["data"] == expected for each in found)
            with streaming(other):
                full = ask(address)
                assert full.status_code == 429
                assert full.headers["retry-after"] == "1"

        huge = httpx.post(address + GENERATE, content=b" " * 17 * 2**20, timeout=30)
        assert huge.status_code == huge.json()["error"]["code"] == 413
        mortal.close()
        assert [ask(address, seed=1).status_code for _ in range(4)] == [200] * 4


@posix_only
@pytest.mark.slow
def test_two_workers_of_litserve_generate_the_images_of_the_pipeline(folder, tmp_path):
    pytest.importorskip("litserve")
    address = f"http://127.0.0.1:{(port := free_port())}"
    started = [sys.executable, EXAMPLES / "litserve_app.py", folder, f"--port={port}", "--workers=2"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(started, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            time.sleep(0.1)
        pipe = tiny_pipeline()
        for label in range(3):
            result = ask(address, prompt=f"class {label}", seed=7).json()["data"][0]
            picture = Image.open(io.BytesIO(base64.b64decode(result["b64_json"])))
            plain = smooth(pipe)(label, seeds=7, num_inference_steps=2).images[0]
            assert np.abs(np.asarray(picture).astype(int) - np.asarray(plain).astype(int)).max() <= 1
        for body, code in (({"prompt": "clas 1"}, 400), ({"n": "4"}, 422), ({"stream": True}, 400)):
            assert ask(address, **body).status_code == code
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
