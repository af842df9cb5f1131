"""Artifacts on disk: text, embeddings, lists and scores, with manifests, atomic writes and one writer per directory.

Import from the modules (`gplfast.store.corpus`, `gplfast.store.manifest`, …); nothing heavy is imported here.
"""
