"""``python -m swcheck`` is the ``swcheck`` command."""

from __future__ import annotations

from swcheck.run.command_line.main import main

raise SystemExit(main())
