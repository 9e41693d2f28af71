"""Measures a streamed subject with few readings of its file: ``together`` runs what needs all layers in one."""
