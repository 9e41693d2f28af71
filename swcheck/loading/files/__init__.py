"""The files of a checkpoint that swcheck reads itself, a typed reader for each: nothing behind it sees unchecked values.

``safetensors_header``, ``config_file``, ``shard_index``; for engines ``gguf_header`` and ``adapter_files``. Bad values are ``CheckpointError``.
"""
