"""Hostile clients: other hosts and sites, slow ones, ones that never read, and bodies that cost time or memory."""

import asyncio
import base64
import contextlib
import io
import json
import socket
import struct
import threading
import time
import zlib

import httpx
import pytest
import uvicorn
from fastapi import HTTPException
from fastapi.testclient import TestClient
from helpers import smooth, tiny_pipeline
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from pydantic import ValidationError

from ditlab.cli.serving import listen, server_config
from ditlab.core.errors import InputError
from ditlab.server.app import create_app
from ditlab.server.bodies import TEXT, text_length
from ditlab.server.events import Events
from ditlab.server.generation import Event, Limits
from ditlab.server.hosts import Hosts, hosts_of
from ditlab.server.requests import GenerationRequest, InspectionRequest

KEYS = ", ".join(GenerationRequest.model_fields)

GENERATE = "/v1/images/generations"
JSON = {"content-type": "application/json"}
LONG = f"bytes besides image, mask and given; the limit is {TEXT}"
DEEP = "the body is nested too deeply; no value of a request has more than two levels"
STRING = "Input should be a valid string"
SECONDS = 0.4  # that a client has in these tests
PATIENCE = 10.0  # seconds after which something has hung, even on a busy machine


@pytest.fixture
def pipe():
    pipe = smooth(tiny_pipeline())
    pipe.config["sample"] = {"sampler": "euler", "steps": 2, "guidance": 1.0}
    return pipe


@pytest.fixture
def client(pipe):
    with TestClient(create_app({"small": pipe})) as client:
        yield client


@contextlib.contextmanager
def served(pipe, **limits):
    """The port of a service in a thread, with the connections of `ditlab serve`, and its application."""
    limits = Limits(**({"client_seconds": SECONDS, "steps": 1000} | limits))
    app, listening = create_app({"small": pipe}, limits), listen("127.0.0.1", 0)
    server = uvicorn.Server(server_config(app, limits))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield listening.getsockname()[1], server
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def opened(port, sent=b""):
    """A connection on which these bytes were sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    connection.sendall(sent)
    return connection


def received(connection):
    """All bytes until the service closes the connection."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            content += piece
    return content


def head(body, path=GENERATE):
    """The first part of a request with a body of this length."""
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {body}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def message(response):
    detail = response.json()["error"]
    assert detail["code"] == response.status_code
    return detail["message"]


class TestHosts:
    @pytest.fixture
    def local(self, pipe):
        """A client of the service as `ditlab serve` starts it on localhost."""
        app = create_app({"small": pipe}, hosts=hosts_of("127.0.0.1", "box", (), ""))
        with TestClient(app, base_url="http://localhost:7860") as client:
            yield client

    @pytest.mark.parametrize(
        "host", ["localhost", "LOCALHOST:7860", "localhost.:80", "127.0.0.1:7860", "[::1]:7860", "10.0.0.7"]
    )
    def test_the_own_name_and_all_addresses_are_allowed(self, local, host):
        assert local.get("/v1/models", headers={"host": host}).status_code == 200

    @pytest.mark.parametrize(
        "host",
        ["evil.example", "localhost.evil.example", "box", "x@localhost", "127.0.0.1.evil.example", "", "[::1", "a b"],
    )
    @pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/v1/runs", "/nothing"])
    def test_other_names_are_rejected_on_every_path(self, local, host, path):
        response = local.get(path, headers={"host": host})
        assert response.status_code == 403
        assert (
            message(response) == f"the service does not have the name {host}; add it to the allowed hosts at the start"
        )

    @pytest.mark.parametrize(
        ("arguments", "hosts"),
        [
            (("127.0.0.1", "box", (), ""), Hosts(("localhost",))),
            (("::1", "box", (), ""), Hosts(("localhost",))),
            (("0.0.0.0", "Box", (), ""), Hosts(("localhost", "box"))),
            (("gpu.example.com", "box", (), ""), Hosts(("localhost", "gpu.example.com", "box"))),
            (("0.0.0.0", "Box.lan", (), ""), Hosts(("localhost", "box.lan", "box"))),
            (("box", "box", (), ""), Hosts(("localhost", "box"))),
            (("0.0.0.0", "box", (), "sesame"), Hosts(("*",), ("*",))),
            (("0.0.0.0", "box", ("Example.com",), "sesame"), Hosts(("localhost", "example.com"), ("example.com",))),
        ],
    )
    def test_names_follow_from_the_address_and_the_token(self, arguments, hosts):
        assert hosts_of(*arguments) == hosts

    @pytest.mark.parametrize("name", ["http://example.com", "example.com:80", "*example.com", "a.*", ""])
    def test_a_name_that_is_none_is_rejected_at_the_start(self, name):
        line = (
            f'"{name}" is not the name of a host; give a name without scheme and port, such as example.com or '
            "*.example.com, or * for all"
        )
        with pytest.raises(InputError) as raised:
            hosts_of("127.0.0.1", "box", (name,), "")
        assert str(raised.value) == line

    def test_names_below_a_name_are_allowed_together(self, pipe):
        app = create_app({"small": pipe}, hosts=hosts_of("127.0.0.1", "box", ("*.example.com",), ""))
        with TestClient(app) as client:
            codes = [
                client.get("/v1/models", headers={"host": host}).status_code
                for host in ("a.example.com", "b.a.example.com:8080", "example.com", "aexample.com", "localhost")
            ]
        assert codes == [200, 200, 403, 403, 200]

    @pytest.mark.parametrize(
        ("headers", "code"),
        [
            ({}, 200),  # programs
            ({"sec-fetch-site": "same-origin"}, 200),
            ({"sec-fetch-site": "none"}, 200),  # an address that the user has typed
            ({"sec-fetch-site": "cross-site"}, 403),
            ({"sec-fetch-site": "same-site"}, 403),  # another port of localhost
            ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
            ({"origin": "http://localhost:7860"}, 200),
            ({"origin": "https://localhost:7860"}, 200),  # a proxy with TLS
            ({"origin": "http://localhost:8888"}, 403),
            ({"origin": "https://evil.example"}, 403),
            ({"origin": "null"}, 403),
            ({"host": "[::1]:7860", "origin": "http://[::1]:7860"}, 200),
            ({"host": "[::1]:7860", "origin": "http://[::1]:8888"}, 403),
            ({"origin": "https://proxy.example", "x-forwarded-host": "proxy.example"}, 403),  # anybody can send it
            ({"sec-fetch-site": "same-origin", "origin": "https://proxy.example"}, 200),  # a proxy that replaces Host
        ],
    )
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_requests_from_other_sites_are_rejected(self, local, method, headers, code):
        path = "/v1/models" if method == "GET" else GENERATE
        response = local.request(method, path, headers=headers, json={} if method == "POST" else None)
        assert response.status_code == code
        if code == 403:
            assert (
                message(response)
                == "requests from pages of other sites are not allowed; open the page of the service itself"
            )

    def test_links_of_other_sites_lead_to_the_page(self, local):
        link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        assert local.get("/", headers=link).status_code == 200
        assert local.post("/", headers=link).status_code == 403
        assert local.get("/", headers=link | {"sec-fetch-mode": "no-cors"}).status_code == 403
        assert local.get("/", headers=link | {"host": "evil.example"}).status_code == 403
        assert local.get("/v1/models").headers["cross-origin-resource-policy"] == "same-origin"

    def test_origins_behind_a_proxy_that_replaces_the_host(self, pipe):
        app = create_app({"small": pipe}, hosts=hosts_of("127.0.0.1", "box", ("ditlab.example",), ""))
        with TestClient(app, base_url="http://127.0.0.1:7860") as client:
            for origin, code in (("http://ditlab.example", 200), ("http://localhost:3000", 403)):
                assert client.post(GENERATE, json={}, headers={"origin": origin}).status_code == code

    @pytest.mark.parametrize(
        "host", ["ditlab.example", "127.0.0.1:7860"]
    )  # a proxy that keeps it, and one that does not
    @pytest.mark.parametrize("path", ["/", "/app.js", "/v1/models"])
    def test_the_page_works_behind_a_proxy(self, pipe, host, path):
        app = create_app({"small": pipe}, hosts=hosts_of("127.0.0.1", "box", ("ditlab.example",), ""))
        headers = {"host": host, "x-forwarded-host": "ditlab.example", "x-forwarded-proto": "https"}
        sent = [{"origin": "https://ditlab.example"}, {"sec-fetch-site": "same-origin"}]
        other = [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}]
        with TestClient(app) as client:
            codes = [client.get(path, headers=headers | each).status_code for each in (*sent, *other)]
            host_code = client.get(path, headers=headers | {"host": "evil.example"}).status_code
        assert (codes, host_code) == ([200, 200, 403, 403], 403)

    def test_a_token_takes_the_place_of_names(self, pipe):
        app = create_app({"small": pipe}, token="sesame", hosts=hosts_of("0.0.0.0", "box", (), "sesame"))
        with TestClient(app, base_url="http://any.example") as client:
            token = {"authorization": "Bearer sesame"}
            assert client.get("/v1/models", headers=token).status_code == 200
            assert client.get("/v1/models", headers=token | {"sec-fetch-site": "cross-site"}).status_code == 403
            assert client.get("/health").status_code == 200

    @pytest.mark.parametrize(
        ("header", "code"),
        [
            ("Bearer sésame", 200),
            ("bearer sésame", 200),
            ("BEARER  sésame ", 200),
            ("sésame", 401),
            ("Basic sésame", 401),
            ("Bearer", 401),
            ("Bearersésame", 401),
            ("Bearer Bearer sésame", 401),
            ("Bearer sésame x", 401),
            ("", 401),
        ],
    )
    def test_the_scheme_of_a_token_is_required_in_any_case(self, pipe, header, code):
        with TestClient(create_app({"small": pipe}, token="sésame")) as client:
            response = client.get("/v1/models", headers={"authorization": header.encode()})
            assert response.status_code == code
            if code == 401:
                assert message(response) == "a token is required: Authorization: Bearer TOKEN"


class TestBodies:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("body", "code", "line"),
        [
            (json.dumps({f"k{i}": 1 for i in range(300_000)}).encode(), 413, f"the body has 4088890 {LONG}"),
            (
                json.dumps({f"k{i}": 1 for i in range(20_000)}).encode(),
                422,
                f'unknown key "k0"; choose from: {KEYS}',
            ),
            (b'{"n": 1, "image": ' + b" " * TEXT + b"1}", 413, f"the body has {TEXT + 20} {LONG}"),
            (b'{"seeds": [' + b"-1," * 80_000 + b"-1]}", 422, "seeds.0: Input should be greater than or equal to 0"),
            (
                b'{"labels": [' + b"[]," * 80_000 + b"[]]}",
                422,
                "labels.0: Input should be a valid integer, or: " + STRING,
            ),
            (b"[" * 100_000, 422, DEEP),
            (b'{"n":' * 50_000, 422, DEEP),
            (
                b'{"n": ' + b"9" * 5000 + b"}",
                422,
                "the body has a number with too many digits; no value needs more than 16",
            ),
            (b'{"prompt": "\xff"}', 422, "the body is not JSON: it is not encoded as UTF-8"),
        ],
        ids=range(9),
    )
    def test_costly_bodies_are_rejected_at_once(self, client, body, code, line):
        started = time.process_time()  # of all threads, the service among them, whatever else the machine does
        response = client.post(GENERATE, content=body, headers=JSON)
        inspection = client.post("/v1/inspect", content=body, headers=JSON)
        assert time.process_time() - started < 2  # the first took 24 s
        assert response.status_code == inspection.status_code == code
        assert message(response) == line

    def test_bodies_are_parsed_in_another_thread_than_the_event_loop(self, client, monkeypatch):
        loops = []

        def recorded(body):
            with contextlib.suppress(RuntimeError):
                loops.append(asyncio.get_running_loop())
            raise HTTPException(422, "recorded")

        monkeypatch.setattr("ditlab.server.bodies.parse", recorded)
        assert [message(client.post(path, json={})) for path in (GENERATE, "/v1/inspect")] == ["recorded"] * 2
        assert loops == []

    @pytest.mark.parametrize("request_type", [GenerationRequest, InspectionRequest])
    @pytest.mark.parametrize(
        ("body", "place"),
        [
            ({"n": 1} | {f"k{i}": 1 for i in range(100)}, ()),  # the message names the key
            ({"labels": [[]] * 100}, ("labels", 0)),
            ({"seeds": [-1] * 100}, ("seeds", 0)),
        ],
    )
    def test_a_check_ends_at_the_first_error(self, request_type, body, place):
        if request_type is InspectionRequest:
            body = {key: value for key, value in body.items() if key != "n"}
        with pytest.raises(ValidationError) as raised:
            request_type.model_validate(body)
        places = [error["loc"][: len(place)] for error in raised.value.errors()]
        assert set(places) <= {place, place[:1]}
        assert len(places) <= 2

    def test_bytes_besides_files_are_counted(self):
        long = b"A" * TEXT
        assert text_length(long) == TEXT
        assert text_length(b'{"image": "' + long + b'"}') == 13
        assert text_length(b'{"mask_image" :\n"' + long + b'", "image": "' + long + b'"}') == 32
        assert text_length(b'{"image": "' + long) == 11
        assert text_length(b'{"prompt": "' + long + b'"}') == TEXT + 14
        assert text_length(b'{"prompt": "\\"image\\": \\"' + long + b'"}') == TEXT + 27
        assert text_length(b"{" + b'"image":"",' * TEXT + b"}") == 11 * TEXT + 2

    def test_an_image_may_be_longer_than_the_text(self, client):
        content = io.BytesIO()
        Image.effect_noise((700, 700), 90).save(content, "PNG")
        body = {"image": base64.b64encode(content.getvalue()).decode(), "seeds": 0}
        assert len(body["image"]) > TEXT
        assert client.post(GENERATE, json=body).status_code == 200

    def test_other_requests_do_not_wait_for_a_large_body(self, pipe):
        body = json.dumps({f"k{i}": 1 for i in range(100_000)}).encode()
        with served(pipe, client_seconds=10.0) as (port, _):
            slowest, codes = 0.0, []

            def send():
                address = f"http://127.0.0.1:{port}{GENERATE}"
                codes.append(httpx.post(address, content=body, headers=JSON).status_code)

            thread = threading.Thread(target=send)
            thread.start()
            with httpx.Client() as client:
                while thread.is_alive():
                    started = time.perf_counter()
                    client.get(f"http://127.0.0.1:{port}/health")
                    slowest = max(slowest, time.perf_counter() - started)
            assert codes == [413]
            assert slowest < 0.5

    def test_large_bodies_in_progress_are_limited_together(self, pipe):
        with served(pipe, body=2 * TEXT, client_seconds=5.0) as (port, _):
            waiting = [opened(port, head(2 * TEXT) + b"{") for _ in range(4)]
            time.sleep(0.1)
            address = f"http://127.0.0.1:{port}{GENERATE}"
            large = httpx.post(address, content=b" " * (TEXT + 1), headers=JSON)
            assert (large.status_code, large.headers["retry-after"]) == (429, "1")
            assert (
                message(large)
                == f"images of {8 * TEXT} bytes are in progress, which is near the limit; try again in 1 s"
            )
            assert httpx.post(address, json={}).status_code == 200
            for connection in waiting:
                connection.close()
            for _ in range(50):
                if httpx.post(address, content=b" " * (TEXT + 1), headers=JSON).status_code == 413:
                    return
                time.sleep(0.02)
            raise AssertionError("bodies of clients that have disconnected still count")


def png(width, height):
    """A PNG file of black RGB pixels, which is small for its size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + 3 * width) * height), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


class TestImages:
    @pytest.mark.parametrize("key", ["image", "mask"])
    @pytest.mark.parametrize(
        ("sides", "line"),
        [
            (
                (1_000_000, 1),
                "the image has 1000000x1 pixels, and would have 8000000x8 when it is resized to cover 8x8; crop it to "
                "at most 16,000,000 pixels in all",
            ),
            (
                (1, 1_000_000),
                "the image has 1x1000000 pixels, and would have 8x8000000 when it is resized to cover 8x8; crop it to "
                "at most 16,000,000 pixels in all",
            ),
            ((4001, 4000), "the image has 4001x4000 pixels; give one of at most 16,000,000 in all"),
        ],
    )
    def test_large_and_narrow_images_are_rejected(self, client, key, sides, line):
        files = {"image": png(8, 8)} | {key: png(*sides)}
        body = {name: base64.b64encode(content).decode() for name, content in files.items()}
        response = client.post(GENERATE, json=body)
        assert response.status_code == 400
        assert message(response) == line

    def test_the_limit_of_pixels_is_set_and_includes_itself(self, pipe):
        with TestClient(create_app({"small": pipe}, Limits(pixels=100))) as client:
            for sides, code in (((10, 10), 200), ((101, 1), 400), ((10, 11), 400)):
                body = {"image": base64.b64encode(png(*sides)).decode()}
                assert client.post(GENERATE, json=body).status_code == code

    def test_narrow_images_are_not_decoded(self, client, monkeypatch):
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: 1 / 0)
        body = {"image": base64.b64encode(png(10_000_000, 1)).decode()}
        assert "would have 80000000x8 when it is resized" in message(client.post(GENERATE, json=body))

    def test_an_image_is_decoded_in_small_pieces(self, client, monkeypatch):
        read, sizes = PngImageFile.load_read, []
        monkeypatch.setattr(PngImageFile, "load_read", lambda image, size: sizes.append(size) or read(image, size))
        body = {"image": base64.b64encode(png(2000, 2000)).decode()}
        assert client.post(GENERATE, json=body).status_code == 200
        assert len(sizes) > 1
        assert max(sizes) <= 4096  # a piece is decoded while all other threads wait, and can be 1,000 times larger

    def test_few_images_are_decoded_at_the_same_time(self, client, monkeypatch):
        active, most, lock = [0], [0], threading.Lock()

        def slow(*given):
            with lock:
                active[0] += 1
                most[0] = max(most[0], active[0])
            time.sleep(0.02)
            with lock:
                active[0] -= 1
            return Image.new("L", (8, 8))

        monkeypatch.setattr("ditlab.server.generation.read_picture", slow)
        body = {"image": base64.b64encode(b"any").decode()}
        threads = [threading.Thread(target=client.post, args=(GENERATE,), kwargs={"json": body}) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert most == [2]


class TestSlowClients:
    @pytest.mark.parametrize(
        ("sent", "status"),
        [
            (b"", b""),
            (b"GET /health HTTP/1.1\r\nHost: loc", b"HTTP/1.1 408 Request Timeout"),
            (head(100), b"HTTP/1.1 408 Request Timeout"),
            (head(100) + b'{"n": ', b"HTTP/1.1 408 Request Timeout"),
            (head(100, "/nothing") + b'{"n": ', b"HTTP/1.1 404 Not Found"),
        ],
    )
    def test_a_request_that_is_not_complete_in_time_ends(self, pipe, caplog, sent, status):
        with served(pipe) as (port, server):
            started = time.perf_counter()  # before the server can begin to count
            with opened(port, sent) as connection:
                content = received(connection)
                assert SECONDS <= time.perf_counter() - started < PATIENCE
                assert content.partition(b"\r\n")[0] == status
                if b"408" in status:
                    line = "the request was not complete after 0.4 s, or too many connections are open"
                    assert json.loads(content.partition(b"\r\n\r\n")[2])["error"]["message"] == line
                while server.server_state.connections and time.perf_counter() - started < PATIENCE:
                    time.sleep(0.02)
                assert not server.server_state.connections
        assert caplog.text == ""

    def test_single_bytes_do_not_extend_the_time(self, pipe):
        with served(pipe) as (port, _), opened(port, head(1000)) as connection:
            started = time.perf_counter()
            with contextlib.suppress(OSError):
                while time.perf_counter() - started < PATIENCE:
                    connection.sendall(b" ")
                    time.sleep(0.02)
            assert time.perf_counter() - started < PATIENCE
            assert received(connection).partition(b"\r\n")[0] == b"HTTP/1.1 408 Request Timeout"

    @pytest.mark.slow
    def test_requests_in_time_share_a_connection_for_long(self, pipe):
        with served(pipe) as (port, server), httpx.Client() as client:
            for _ in range(8):
                assert client.post(f"http://127.0.0.1:{port}{GENERATE}", json={"seeds": 0}).status_code == 200
                assert len(server.server_state.connections) == 1
                time.sleep(SECONDS / 4)

    @pytest.mark.slow
    def test_a_long_generation_is_no_slow_client(self, pipe):
        whole = pipe.net.forward
        pipe.net.forward = lambda *given: time.sleep(0.1) or whole(*given)
        with served(pipe) as (port, _):
            assert httpx.post(f"http://127.0.0.1:{port}{GENERATE}", json={"steps": 10}).status_code == 200

    @pytest.mark.slow
    def test_half_sent_requests_do_not_keep_others_out(self, pipe):
        with served(pipe, connections=20, client_seconds=30.0) as (port, server):
            halves = [opened(port, (head(100) + b"{")[: 30 + 4 * i]) for i in range(60)]
            for _ in range(5):
                assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=PATIENCE).status_code == 200
            assert len(server.server_state.connections) <= 20
            received(halves[0])  # has ended
            for half in halves:
                half.close()

    def test_connections_without_requests_end_after_unfinished_requests(self, pipe):
        with served(pipe, connections=2, client_seconds=30.0) as (port, _), httpx.Client() as client:
            client.get(f"http://127.0.0.1:{port}/health")
            with opened(port, head(100)) as half, opened(port, head(100)) as other:
                received(half)  # has ended
                stream = next(iter(client._transport._pool.connections))
                assert client.get(f"http://127.0.0.1:{port}/health").status_code == 200
                assert next(iter(client._transport._pool.connections)) is stream
                assert not stream.is_closed()
                other.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    other.recv(1)

    def test_a_connection_above_the_limit_is_rejected_if_all_others_work(self, pipe):
        whole = pipe.net.forward
        pipe.net.forward = lambda *given: time.sleep(0.3) or whole(*given)
        body = b'{"steps": 2}'
        with served(pipe, connections=1) as (port, _), opened(port, head(len(body)) + body) as working:
            time.sleep(0.1)
            with opened(port) as other:
                content = received(other)
            assert content.startswith(b"HTTP/1.1 503 ")
            line = "1 connections are open, which is the limit; try again in 1 s"
            assert json.loads(content.partition(b"\r\n\r\n")[2])["error"]["message"] == line
            assert working.recv(100).startswith(b"HTTP/1.1 200 ")

    def test_what_is_not_http_gets_an_error_in_json(self, pipe):
        with served(pipe) as (port, _), opened(port, b"\x16\x03\x01 what\r\n\r\n") as connection:
            content = received(connection)
            assert content.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json")
            assert json.loads(content.partition(b"\r\n\r\n")[2])["error"] == {
                "message": "the request is not valid HTTP", "type": "invalid_request_error", "code": 400,
            }  # fmt: skip

    def test_a_client_that_never_reads_is_disconnected(self, pipe, monkeypatch):
        monkeypatch.setattr("ditlab.server.routes.generated", lambda *given: {"data": "x" * 20_000_000})
        body = b'{"seeds": 0}'
        with served(pipe) as (port, server), socket.socket() as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.connect(("127.0.0.1", port))
            silent.sendall(head(len(body)) + body)
            started = time.perf_counter()
            while not server.server_state.connections or time.perf_counter() - started < SECONDS:
                time.sleep(0.02)
            while server.server_state.connections and time.perf_counter() - started < PATIENCE:
                time.sleep(0.02)
            assert not server.server_state.connections
            assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200

    @pytest.mark.slow
    def test_a_client_that_reads_slowly_but_steadily_gets_everything(self, pipe, monkeypatch):
        monkeypatch.setattr("ditlab.server.routes.generated", lambda *given: {"data": "x" * 8_000_000})
        body = b'{"seeds": 0}'
        with served(pipe) as (port, _), socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            slow.connect(("127.0.0.1", port))
            slow.sendall(head(len(body)) + body)
            count, started = 0, time.perf_counter()
            while count < 8_000_000:
                piece = slow.recv(200_000)
                assert piece, "disconnected"
                count += len(piece)
                if time.perf_counter() - started < 3 * SECONDS:
                    time.sleep(0.02)
            assert time.perf_counter() - started > 2 * SECONDS


class TestEvents:
    def test_old_previews_become_steps_and_the_result_stays(self):
        async def unread():
            events = Events()
            for step in range(1, 41):
                events.put(Event("preview" if step % 2 else "step", step, 40, (b"image",) if step % 2 else ()))
            events.put(Event("done", 40, 40, (b"result",)))
            return [await events.get() for _ in range(len(events.waiting))]

        received = asyncio.run(unread())
        assert [event.step for event in received] == [*range(1, 41), 40]
        assert [event.step for event in received if event.kind == "preview"] == [33, 35, 37, 39]
        assert sum(len(event.images) for event in received[:-1]) == 4
        assert (received[-1].kind, received[-1].images) == ("done", (b"result",))

    def test_events_wait_for_a_reader_and_a_reader_for_events(self):
        async def alternate():
            events = Events()
            reading = asyncio.create_task(events.last())
            await asyncio.sleep(0)
            for kind in ("step", "preview", "error"):
                events.put(Event(kind, message=kind))
                await asyncio.sleep(0)
            return await reading

        assert asyncio.run(alternate()).message == "error"
