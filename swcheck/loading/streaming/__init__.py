"""Models larger than memory: their weights stay maps of their files, and each is given back when it was used.

``free_memory`` says what fits, ``streamable`` which checkpoints can be streamed, ``pager`` does it, ``mapped_pages``
talks to the operating system.
"""
