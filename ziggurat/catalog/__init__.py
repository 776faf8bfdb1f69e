# SPDX-License-Identifier: Apache-2.0
"""The systems of the literature: what each one claims, what was found here, and the verdict. Importing this package loads no torch."""
