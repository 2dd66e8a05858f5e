"""Names of the types in which LiteRT holds weights, as plans, reports and ``OFF_LATTICE`` have them."""

from __future__ import annotations

from typing import Final

FLOAT: Final = "FLOAT"
FLOAT16: Final = "FLOAT16"
INT4: Final = "INT4"
INT2: Final = "INT2"
INT8: Final = "INT8"
#: ``INT4`` with a float32 beside each scale, for blocks of negative scale (``targets.litert.storage``).
INT4_SUMS: Final = "INT4+sums"
#: Codes with one scale for each row.
INT2_ROWS: Final = "INT2 per row"
INT4_ROWS: Final = "INT4 per row"
INT8_ROWS: Final = "INT8 per row"
