"""Put plotly.js into the wheel, so that reports need not the Python package plotly, which is 13 times as large."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PlotlyScript(BuildHookInterface):
    """Adds the script of the plotly that is installed where the wheel is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds; an editable installation reads the script from plotly itself."""
        if version == "editable":
            return
        package = find_spec("plotly")
        if package is None or package.origin is None:
            raise RuntimeError("Building the wheel needs plotly, for the script of the report's charts.")
        script = Path(package.origin).parent / "package_data" / "plotly.min.js"
        build_data["force_include"][str(script)] = "manytune/report/templates/plotly.min.js"
