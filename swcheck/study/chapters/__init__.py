"""The studies, one module each, with its ``CHAPTER``; ``study.catalogue`` lists them in the order of the paper."""
