"""Access to matplotlib, which is an optional dependency."""

from typing import Any

from ditlab.core.errors import InputError


def plotting() -> Any:
    """matplotlib's pyplot with a backend that needs no screen.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise InputError("plots need matplotlib; pip install 'ditlab[plots]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
