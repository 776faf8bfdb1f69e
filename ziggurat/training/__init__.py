# SPDX-License-Identifier: Apache-2.0
"""Training of models as Programs: data, trainer, checkpoints, evaluation and export."""
