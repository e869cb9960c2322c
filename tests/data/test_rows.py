from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ditlab.core.errors import InputError
from ditlab.data.rows import RowFile, row_file


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal((50, 3, 2)).astype(np.float32)


@pytest.fixture
def rows(values, tmp_path):
    rows = row_file(tmp_path / "rows", values.shape, np.float32)
    rows.write(20, values[20:])
    rows.write(0, values[:20])
    return rows


def test_gives_what_an_array_gives(rows, values):
    assert (len(rows), rows.shape, rows.dtype) == (50, (50, 3, 2), np.float32)
    order = np.array([49, 3, 4, 5, 0, 3])
    for part in (slice(None), slice(7, 19), slice(45, 99), slice(60, 70), slice(0, 50, 7), order, order[:0]):
        assert np.array_equal(rows[part], values[part])
    assert np.array_equal(np.asarray(rows, np.float64), values.astype(np.float64))
    wanted = np.arange(50) % 3 != 1
    some = rows.only(wanted)
    assert some.shape == (33, 3, 2)
    assert np.array_equal(some[5:20], values[wanted][5:20])
    assert np.array_equal(some[order[1:]], values[wanted][order[1:]])


def test_threads_do_not_disturb_each_other(rows, values):
    def read(seed):
        order = np.random.default_rng(seed).integers(0, 50, 30)
        return all(np.array_equal(rows[order], values[order]) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(8)))


def test_can_be_read_when_the_file_was_taken_away(rows, values):
    some = rows.only(np.arange(50) > 10)
    rows.file.unlink()
    del rows
    assert np.array_equal(some[:], values[11:])


def test_existing_rows_are_kept_and_another_length_is_rejected(rows, values):
    again = row_file(rows.file, values.shape, np.float32)
    assert np.array_equal(again[:], values)
    with pytest.raises(InputError, match=r"rows belongs to another run \(1200 bytes, not 1224\); remove it"):
        row_file(rows.file, (51, 3, 2), np.float32)
    part = RowFile(rows.file, (52, 3, 2), np.float32)
    assert np.array_equal(part[:50], values)
    with pytest.raises(InputError, match="rows is truncated; write it again"):
        part[49:51]


def test_a_full_disk_is_found_out_at_once(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*rows: .*; free some space or give another path"):
        row_file(tmp_path / "rows", (10**15, 8), np.uint8)
