import sys

import pytest

from ditlab.cli import main


@pytest.fixture
def ditlab(monkeypatch, capfd):
    """Run the command line in this process; returns (standard output, standard error)."""

    def run(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["ditlab", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            sys.exit(main())
        assert (end.value.code or 0) == code
        return capfd.readouterr()

    return run
