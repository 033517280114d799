"""`python -m bitel.cli`: the same as `bitel`."""

from bitel.cli.main import main

main()
