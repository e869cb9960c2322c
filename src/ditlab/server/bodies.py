"""Reading of request bodies: bounded in size and depth, and parsed in a thread."""

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from ditlab.core.formats import within_floats

FILE = re.compile(rb'"(?:image|mask|mask_image|-?[0-9]{1,4})"\s*:\s*"')
FILES = 3 + 64  # most files of a body: an image, a mask under both of its names, and given frames by their numbers
TEXT = 256 * 2**10  # bytes of a body besides its files, enough for 16 prompts of 2,000 characters in any script


class BoundedRequest(Request):
    """A request whose JSON is parsed in a thread, so that other requests do not wait."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = await asyncio.to_thread(parse, await self.body())
        return self._json


class BoundedRoute(APIRoute):
    """A route that reads its body with `BoundedRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handler(BoundedRequest(request.scope, request.receive))

        return bounded


def parse(body: bytes) -> Any:
    """Parse JSON.

    Raises:
        JSONDecodeError: it is not JSON.
        HTTPException: it is too long or nested too deeply, or has a number of hundreds of digits.
    """
    length = text_length(body)
    if length > TEXT:
        raise HTTPException(413, f"the body has {length} bytes besides image, mask and given; the limit is {TEXT}")
    try:
        return json.loads(body, parse_int=within_floats)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise HTTPException(
            422, "the body is nested too deeply; no value of a request has more than two levels"
        ) from None
    except UnicodeDecodeError:
        raise HTTPException(422, "the body is not JSON: it is not encoded as UTF-8") from None
    except ValueError:  # of `within_floats`, or Python's own limit of digits
        raise HTTPException(422, "the body has a number with too many digits; no value needs more than 16") from None


def text_length(body: bytes) -> int:
    """Bytes of a body besides its files.

    In JSON, the quotation mark at the end of `FILE` starts a string, because quotation marks inside of a string have a
    backslash. So what is not counted is inside of one string, which is fast to parse.
    """
    length, position = len(body), 0
    if length <= TEXT:
        return length
    for _ in range(FILES):
        start = FILE.search(body, position)
        if start is None:
            break
        position = body.find(b'"', start.end()) % (len(body) + 1)  # -1 becomes the end
        length -= position - start.end()
    return length
