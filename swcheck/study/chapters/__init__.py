"""The studies, a module each, with a ``CHAPTER``; ``study.catalogue`` lists them in the order of the paper."""
