"""`python -m bitnet` is the `bitnet` command."""

from bitnet.cli.main import main

main()
