"""`python -m lbcompiler` is `lbc`."""

from lbcompiler.cli import main

main()
