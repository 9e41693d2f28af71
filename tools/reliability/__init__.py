"""How hard swcheck was tried: each module is one attack, run by one command, whose figures it writes in ``docs/reliability.md``."""
