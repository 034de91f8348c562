"""The commands of ``python -m fastreid_rib``."""
