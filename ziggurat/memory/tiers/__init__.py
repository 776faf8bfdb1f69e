# SPDX-License-Identifier: Apache-2.0
"""Tiers below RAM: files that are read past the page cache, so that what they hold is not kept in memory behind the budget's back."""
