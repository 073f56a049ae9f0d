"""One module per family of architectures; each defines `FAMILY`, and the registry finds it by its being here."""
