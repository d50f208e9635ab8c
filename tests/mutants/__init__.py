"""Seeded bugs, each of which the battery must catch: ``make mutants``.

A mutant is one replacement in the source of one module, made in memory while that module is imported. Its text must be
found there exactly once: when the code has changed, the mutant is to be changed too, and says so.

    catalogue.py    the mutants, and what must catch each
    loading.py      a module with its replacement
    __main__.py     all of them, or some: the table, and exit code 1 if one survives
"""
