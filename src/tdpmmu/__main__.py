"""``python -m tdpmmu`` is ``tdpmmu``."""

from tdpmmu.cli.entry import main

main()
