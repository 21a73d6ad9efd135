"""`python -m wanixfs.cli`: how the program starts itself again, whatever its entry point was."""

from wanixfs.cli.app import main

main()
