"""What several subcommands share: ``arguments`` and how they load a model, ``layout`` of what is printed."""
