"""Verdicts for people and programs: ``summary`` is the table at the end of a run, ``verdict_json`` the JSON file."""
