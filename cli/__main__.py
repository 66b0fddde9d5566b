"""``python -m atlas.cli``."""

from . import main

main()
