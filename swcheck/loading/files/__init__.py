"""The files of a checkpoint that swcheck reads itself, a typed reader for each: nothing behind it sees unchecked values.

``safetensors_header``, ``config_file``, ``shard_index``. Bad values are ``CheckpointError``.
"""
