"""Conditions and batches: sliced, joined and moved as one."""

import pytest
import torch

from ditlab.core.types import Batch, Condition, Trace


def text(count, start=0):
    rows = torch.arange(start, start + count)
    return Condition(
        tokens=rows.float()[:, None, None].expand(-1, 3, 2),
        mask=rows[:, None] > torch.arange(3),
        pooled=rows.float()[:, None],
    )


def test_rows_are_taken_from_every_part():
    condition = text(5)[torch.tensor([4, 0])]
    assert len(condition) == 2
    assert condition.tokens[:, 0, 0].tolist() == [4, 0]
    assert condition.mask.tolist() == [[True, True, True], [False, False, False]]
    assert condition.pooled.tolist() == [[4], [0]]
    assert condition.label is None
    assert len(Condition()) == 0


def test_joined_conditions_follow_one_another():
    joined = text(2).joined(text(1, start=7))
    assert joined.pooled.flatten().tolist() == [0, 1, 7]
    with pytest.raises(ValueError, match="different kinds"):
        text(1).joined(Condition(label=torch.tensor([1])))


def test_only_floating_point_parts_change_their_precision():
    moved = text(2).to("cpu", torch.bfloat16)
    assert (moved.tokens.dtype, moved.mask.dtype) == (torch.bfloat16, torch.bool)
    assert Condition(label=torch.tensor([1])).to("cpu", torch.bfloat16).label.dtype is torch.int64


def test_rows_between_two_conditions_join_those_that_are_not():
    one, other = Condition(label=torch.tensor([1, 2])), Condition(label=torch.tensor([5, 6]))
    between = Condition(label=one.label, other=other, weight=torch.tensor([0.25, 0.0]))
    joined = Condition(label=torch.tensor([9])).joined(between)
    assert joined.label.tolist() == [9, 1, 2]
    assert joined.other.label.tolist() == [9, 5, 6]
    assert joined.weight.tolist() == [0, 0.25, 0]
    part = joined[1:]
    assert (part.label.tolist(), part.other.label.tolist(), part.weight.tolist()) == ([1, 2], [5, 6], [0.25, 0])
    with pytest.raises(ValueError, match="rows between two conditions"):
        between.where(torch.tensor([True, False]), between)


def test_rows_are_replaced_where_asked():
    replaced = text(3).where(torch.tensor([False, True, False]), text(3, start=10))
    assert replaced.pooled.flatten().tolist() == [0, 11, 2]
    assert replaced.tokens[:, 2, 1].tolist() == [0, 11, 2]


def test_a_batch_is_sliced_with_all_that_belongs_to_it():
    batch = Batch(torch.arange(4), Condition(label=torch.arange(4) * 10), {"rate": torch.arange(4) * 100})
    part = batch[1:3]
    assert (len(part), part.x.tolist(), part.labels.tolist()) == (2, [1, 2], [10, 20])
    assert part.extra["rate"].tolist() == [100, 200]
    assert batch.to("meta").extra["rate"].is_meta
    assert batch.to("meta").condition.label.is_meta
    with pytest.raises(ValueError, match="no class labels in a batch with tokens, mask, pooled"):
        Batch(torch.zeros(2), text(2)).labels  # noqa: B018 - it is read for its error


def test_a_trace_keeps_what_was_asked_for():
    trace = Trace(taps=["blocks.1"])
    for i in range(3):
        trace.tap(f"blocks.{i}", torch.tensor(i))
    trace.loss("balance", torch.tensor([1.0]))
    trace.loss("balance", torch.tensor([0.5]))
    assert trace.taps == {"blocks.1": torch.tensor(1)}
    assert trace.losses == {"balance": torch.tensor([1.5])}
