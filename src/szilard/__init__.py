"""Entropy and information, measured exactly and put to work.

*Measures look, methods act, experiments prove.*

- `szilard.measures`: pure functions on tensors and arrays.
- `szilard.decoding`, `szilard.rl`, `szilard.representations`, `szilard.dynamics`, ...: the methods.
- `szilard.catalog`: the map of all methods; `szilard run <method>` shows the paper's claim.
"""

__version__ = "0.1.0"
