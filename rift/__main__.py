"""`python -m rift`."""

from rift.main import main

main()
