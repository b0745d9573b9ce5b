"""Methods that act while text is being generated: logits processors for `generate`, and the rules
they apply as plain functions on tensors and arrays.

The table of contents is `__init__.pyi`; a module is imported when the first of its names is used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
