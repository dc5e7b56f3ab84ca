"""The artifact folder: its manifest, its weights file, and the names and sizes that follow from them."""
