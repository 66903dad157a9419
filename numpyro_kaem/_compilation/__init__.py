"""Compiled programs that serve every later call.

Each file imports from those above it and from earlier rooms only.

options: the compiler's options for programs that run once, or in loops
interrupts: Ctrl-C between the parts of a run
fingerprint: when two functions, closures or modules are the same program
programs: `jax.jit` by value: a second model of the same structure compiles nothing
entry_points: functions that users call one by one, compiled for all grids
"""
