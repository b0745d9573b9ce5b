"""The instruments: pure functions on tensors and arrays, no models, no state.

Nats unless `base=` says otherwise; the last axis is the distribution (time, for series).
The table of contents is `__init__.pyi`; a module is imported when the first of its names is used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
