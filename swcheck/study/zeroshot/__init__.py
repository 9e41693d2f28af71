"""Zero-shot accuracy: ``harness`` runs lm-evaluation-harness; ``cloze`` and ``last_word`` are tasks without network."""
