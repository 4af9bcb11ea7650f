"""What quantization gains in time and size, and what it costs where it gains nothing.

What belongs here: timing a quantized file against a float one (`files`), the float model that a quantized file stands
for (`float_twin`), what single operators cost (`node_times`), and all of it in words (`text`).
"""

from __future__ import annotations

from dfqkit_export.profiling.files import Cost, Profile, profile_file
from dfqkit_export.profiling.float_twin import float_twin
from dfqkit_export.profiling.node_times import NodeTime, node_times
from dfqkit_export.profiling.text import render_profile

__all__ = ["Cost", "NodeTime", "Profile", "float_twin", "node_times", "profile_file", "render_profile"]
