"""The contract between device and server: messages, topics, blobs, bundles and tokens.

Imports nothing else of this project, so that either side, or a third one, can be written against it.
"""

# coverage: every branch
