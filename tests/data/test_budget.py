import threading

import pytest

from ditlab.data.budget import PixelBudget


def test_images_wait_for_room():
    budget, inside, most = PixelBudget(100), [], []

    def decode(pixels):
        with budget.taken(pixels):
            inside.append(pixels)
            most.append(sum(inside))
            inside.remove(pixels)

    threads = [threading.Thread(target=decode, args=(pixels,)) for pixels in [60, 50, 40, 1000, 30] * 20]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 100
    assert max(total for total in most if total < 1000) <= 100
    assert max(most) == 1000  # alone
    assert budget.used == 0


def test_an_error_leaves_room():
    budget = PixelBudget(100)
    for _ in range(3):
        with pytest.raises(KeyError), budget.taken(80):
            raise KeyError
    assert budget.used == 0
