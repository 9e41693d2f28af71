"""A run: what the user asked for, and the models it takes.

``options`` are the spellings, ``settings`` the checked values, ``limit_overrides`` the limits, ``session`` the models.
``pytest_hooks`` and ``command_line`` are the two ways in, ``reports`` what comes out. Only ``pytest_hooks`` knows pytest.
"""
