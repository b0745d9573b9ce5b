"""Reinforcement learning of language models: token losses and meters on (batch, tokens) tensors.

Everything here is framework-free; `szilard.integrations` plugs it into TRL and verl. The table of
contents is `__init__.pyi`; a module is imported when the first of its names is used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
