"""`python -m qtask` is the same as `qtask`."""

from qtask.cli.main import main

main()
