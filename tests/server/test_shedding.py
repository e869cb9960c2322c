"""Requests are rejected before the memory is full, but never the only one."""

from queue import SimpleQueue

import pytest
from helpers import smooth, tiny_pipeline

pytest.importorskip("fastapi", reason="the service needs fastapi")

from ditlab.server import service as module
from ditlab.server.generation import Limits
from ditlab.server.requests import GenerationRequest
from ditlab.server.service import Busy, Service


def test_a_request_is_rejected_while_memory_is_short_and_others_are_in_progress(monkeypatch):
    free = {"bytes": 100}
    monkeypatch.setattr(module, "room", lambda device: free["bytes"])
    service, events = Service({"small": smooth(tiny_pipeline())}, Limits(memory=101)), SimpleQueue()
    long, short = (GenerationRequest(labels="class 1", steps=steps) for steps in (200, 2))
    first = service.prepare(long)
    service.start(first, events.put)  # nothing else could free the memory
    events.get()  # its first step
    with pytest.raises(Busy):
        service.start(service.prepare(short), events.put)
    free["bytes"] = 101
    service.start(service.prepare(short), events.put)
    first.stop.set()
    service.close()


def test_memory_that_pytorch_holds_counts_as_free(monkeypatch):
    import torch

    monkeypatch.setattr(module, "free_memory", lambda device: 5)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    assert module.room(torch.device("cuda")) == 25
    assert module.room(torch.device("cpu")) == 5
