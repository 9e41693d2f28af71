"""Run the ``swcheck`` command: ``python -m swcheck``."""

from __future__ import annotations

from swcheck.run.command_line.main import main

raise SystemExit(main())
