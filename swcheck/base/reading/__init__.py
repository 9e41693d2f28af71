"""Reading files that others wrote: regular files of a bounded size, whose content is held against a schema.

``bounded`` opens files, ``schema`` checks types and ranges, ``text_file`` reads the user's text. What is wrong is a ``SwcheckError``, never an exception of
the parser. Only the standard library.
"""
