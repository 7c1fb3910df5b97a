"""The comparison of offloop with other Redis clients: ``python -m offloop bench``.

Modules: ``cli`` (arguments and output), ``compare`` (interleaved rounds),
``worker`` (one measurement in a process of its own), ``measure`` (the closed
loop), ``peers`` (one class per client), ``server`` (a private redis-server),
``table`` and ``plot`` (what a person sees), ``demo`` and ``example``.
"""
