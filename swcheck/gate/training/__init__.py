"""Super weights while a model trains: ``watch`` reads them, ``trainer_callback`` does so for a trainer of transformers."""
