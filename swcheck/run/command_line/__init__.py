"""The ``swcheck`` command, for work outside a test run: one module per subcommand.

Each subcommand module has ``add(commands)``, which declares its arguments, and ``run(options)``, which returns the text
to print. ``main`` is the entry point. ``common`` holds what several subcommands share.
"""
