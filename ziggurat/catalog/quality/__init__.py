# SPDX-License-Identifier: Apache-2.0
"""What a number format costs in quality: perplexity, agreement with a reference, answers that are right."""
