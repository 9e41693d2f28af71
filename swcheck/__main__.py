"""Run the ``swcheck`` command: ``python -m swcheck``, and the entry point of the installed one."""

from __future__ import annotations


def main() -> int:
    """Run the command, and return its exit code: 2 where Ctrl-C ends it, from the first import on."""
    try:
        from swcheck.run.command_line.main import main as run

        return run()
    except KeyboardInterrupt:
        from swcheck.base.isolation import forget_interrupt
        from swcheck.base.terminal.visible import tell

        forget_interrupt()
        tell("interrupted")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
