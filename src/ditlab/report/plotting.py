"""matplotlib, where it is installed."""

from typing import Any

from ditlab.core.errors import InputError


def plotting() -> Any:
    """matplotlib's pyplot, without a screen."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("the curve is drawn with matplotlib; pip install 'ditlab[plots]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
