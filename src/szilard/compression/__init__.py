"""Fewer bits for prompts, weights and codes.

The table of contents is `__init__.pyi`; a module is imported when the first of its names is used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
