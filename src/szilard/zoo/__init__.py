"""Small real models and data sets that work offline.

Experiments and tests use them; methods never do. The submodules are `language`, `tasks`, `images`,
`text` and `cache`; importing the package imports none of them.
"""
