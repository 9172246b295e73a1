"""Lets `python -m nuswide` run the command line."""

from nuswide.cli import main

main()
