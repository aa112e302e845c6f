"""A temporary model repository, made from the shipped models by changing what a test is about."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

INFLIGHT, ITERATIVE = "smollm2", "smollm2_iterative"
"""The shipped models: the same weights under either driver."""


class Repository:
    """Models in `folder`; each starts as a copy of a shipped one, as a user would copy it."""

    def __init__(self, folder: Path, shipped: Path, weights: Path):
        self.folder, self.shipped, self.weights = folder, shipped, weights
        folder.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        name: str,
        base: str = "smollm2",
        parameters: Mapping[str, str | None] | None = None,
        weights: Path | bytes | None = None,
        edit: Callable[[ModelConfig, Path], None] | None = None,
    ) -> str:
        """Adds a model and returns its name.

        `parameters` replaces keys of the config (None removes one), `weights` is a file to link, or bytes to write,
        in place of the demo model (a path that does not exist leaves a dangling link), and `edit` may change anything
        else in the config or the model's folder.
        """
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.shipped / base, folder)
        config_file = folder / "config.pbtxt"
        config = _read(config_file)
        if name != base:
            config.name = name
        for key, value in (parameters or {}).items():
            if value is None:
                config.parameters.pop(key, None)
            else:
                config.parameters[key].string_value = value
        if edit:
            edit(config, folder)
        version = folder / "1"
        version.mkdir(exist_ok=True)
        target = version / config.parameters["model"].string_value
        target.unlink(missing_ok=True)
        if isinstance(weights, bytes):
            target.write_bytes(weights)
        else:
            target.symlink_to(weights or self.weights)
        if name != base or parameters or edit:
            config_file.write_text(text_format.MessageToString(config))
        return name

    def rewrite(self, name: str, edit: Callable[[ModelConfig], None]):
        """Changes the config of a model and nothing else: its files stay where they are."""
        config_file = self.folder / name / "config.pbtxt"
        config = _read(config_file)
        edit(config)
        config_file.write_text(text_format.MessageToString(config))


def _read(config_file: Path) -> ModelConfig:
    return text_format.Parse(config_file.read_text(), ModelConfig())
