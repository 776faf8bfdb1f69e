# SPDX-License-Identifier: Apache-2.0
"""The command line: one file per verb, loaded when its verb is called. Importing this package loads nothing else."""
