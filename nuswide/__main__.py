"""Run the command line by `python -m nuswide`."""

from nuswide.cli import main

main(prog_name="nuswide")
