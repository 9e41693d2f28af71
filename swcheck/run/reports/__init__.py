"""Formats verdicts: ``summary`` for the end of a run, ``verdict_json`` as JSON; ``margins`` compares them to limits."""
