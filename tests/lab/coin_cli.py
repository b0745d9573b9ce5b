"""The command line with one more method in the catalogue, whose experiment lies beside this file."""

import sys
from pathlib import Path

from szilard import catalog


class CoinMethod(catalog.Method):
    @property
    def experiment(self) -> str:
        return "coin_experiment"


COIN = CoinMethod(
    slug="coin",
    name="Biased coin",
    family="physics",
    paper="On coins",
    year=1654,
    arxiv=None,
    measures="the entropy of a coin",
    acts="nothing",
    entry_point="szilard._extras:require",
)


def register() -> None:
    """Makes the coin known in this process and in those it spawns."""
    sys.path.insert(0, str(Path(__file__).parent))
    catalog.METHODS = (*catalog.METHODS, COIN)


if __name__ == "__main__":
    register()
    from szilard.cli import main

    main()
