"""`python -m coe.cli`: the same as the `coe` command."""

from coe.cli import main

main()
