"""The run-time type checker of the tests."""

from beartype import BeartypeConf, beartype

# An int is a float to every type checker (PEP 484's numeric tower), so it is one here too.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
