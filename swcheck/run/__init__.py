"""One run of pytest or of the ``swcheck`` command: its options, its models, its reports.

``options`` declares the options, ``settings`` holds their checked values, ``limit_overrides`` reads limits that replace
the defaults. ``session`` loads and frees the models; ``baselines`` reads and measures baseline files. ``cost_estimate``
predicts how long a run takes. ``pytest_hooks`` and ``command_line`` are the two entry points, ``reports`` formats
verdicts. Only ``pytest_hooks`` imports pytest at run time.
"""
