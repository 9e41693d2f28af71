"""Tests of models shared among the processes of torchrun."""
