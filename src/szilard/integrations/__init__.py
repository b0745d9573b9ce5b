"""Thin adapters to frameworks that want a class or a registered function of theirs.

`szilard.integrations.trl` has trainers for TRL, `szilard.integrations.verl` registers losses with verl. The
mathematics lies in the method families; nothing is imported here.
"""
