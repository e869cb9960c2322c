"""`python -m ditlab`, for launchers that start modules."""

from ditlab.cli import main

main()
