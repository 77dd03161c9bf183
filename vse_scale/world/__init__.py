"""The processes of a run: joining them, gathering over them, sharing work out."""
