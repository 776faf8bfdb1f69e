# SPDX-License-Identifier: Apache-2.0
"""Number formats with scales: from values to bytes and back."""
