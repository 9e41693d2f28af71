"""What all studies share: ``setup`` (model, text, seed), ``record`` (measurements), ``chapter`` (one study), pictures."""
