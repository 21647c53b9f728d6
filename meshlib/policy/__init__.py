"""Decisions: one term of the field per file, each with its policy (frozen), its kernel (plain Python) and its filter.

Kernels take `now` and `rng` as arguments and never wait. Shared state is changed only under the lock of its owner.
"""
