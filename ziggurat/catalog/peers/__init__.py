# SPDX-License-Identifier: Apache-2.0
"""Other engines beside ours, doing the same work on the same random weights: one file per peer, each run in a process of its own."""
