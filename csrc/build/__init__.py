"""How the C parts are built; used by setup.py and by the C tests' runner."""
