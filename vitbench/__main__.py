"""`python -m vitbench`."""

from vitbench.cli.main import main

main()
