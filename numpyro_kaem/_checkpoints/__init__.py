"""Checkpoints on disk: written whole or not at all, and checked by their bytes.

Each file imports from those above it and from earlier rooms only.

arrays: pytrees of arrays to and from a folder
manifest: what a checkpoint holds, with checksums
store: a folder of checkpoints: save, restore, the newest that is whole
"""
