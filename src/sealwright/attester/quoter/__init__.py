"""The quoter: measures a workload from outside, starts it hardened and alone, and signs quotes for it.

`launch` is the entrance for callers, `image` measures, `bootstrap` is the first code of the workload.
Nothing is imported here: the workload imports this package too, and carries only what it needs.
"""
