"""The registry: model_type of config.json -> the family that implements it.

The only place that knows all families.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from macmoe.config_reader import misspelled, permitted
from macmoe.errors import ConfigError
from macmoe.models.deepseek_v3 import DeepseekV3, DeepseekV3Config
from macmoe.models.gpt_oss import GptOss, GptOssConfig
from macmoe.models.qwen3 import Qwen3, Qwen3Config, usual_head_dim

T = TypeVar("T")
ModelConfig = GptOssConfig | Qwen3Config | DeepseekV3Config
Model = GptOss | Qwen3 | DeepseekV3


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family: its name in chat formats and rule tables, its configuration class, its model class."""

    name: str
    config: type[ModelConfig]
    model: type[Model]

    def build(self, config_data: Mapping[str, Any], file: str = "config.json") -> Model:
        """Build the model with random weights that are not computed until somebody asks for them.

        Raises:
            ConfigError: The configuration does not describe a model of this family.
        """
        return self._sensible(lambda: self.model(cast("Any", self.read(config_data, file))), file)

    def read(self, config_data: Mapping[str, Any], file: str = "config.json") -> ModelConfig:
        """Read the configuration.

        Raises:
            ConfigError: It does not describe a model of this family.
        """
        return self._sensible(lambda: self.config.from_dict(config_data, file), file)

    def _sensible(self, make: Callable[[], T], file: str) -> T:
        try:
            return make()
        except (ArithmeticError, ValueError) as error:
            raise ConfigError(f"{file}: its numbers do not describe a model ({error})") from None
        except TypeError:  # how MLX refuses a size of more than 32 bits
            raise ConfigError(f"{file}: its numbers do not describe a model (one is too large)") from None


_QWEN3 = Family(name="qwen3", config=Qwen3Config, model=Qwen3)

FAMILIES = {
    "gpt_oss": Family(name="gpt_oss", config=GptOssConfig, model=GptOss),
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "deepseek_v3": Family(name="deepseek_v3", config=DeepseekV3Config, model=DeepseekV3),
}

# Other spellings that a family reads -> the hub's, which is what converters and others look for.
RESPELLED = {
    "deepseek_v3": {"num_mtp_layers": "num_nextn_predict_layers", "num_shared_experts": "n_shared_experts"},
}


def family_of(config_data: Mapping[str, Any], file: str = "config.json") -> Family:
    """Return the family of a configuration.

    Raises:
        ConfigError: The model type is missing or not one of the three families.
    """
    model_type = config_data.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(
            f"{file}: model_type {model_type!r} is not supported (supported: {', '.join(FAMILIES)})"
            f"{misspelled(str(model_type), FAMILIES)}"
        )
    return FAMILIES[model_type]


def known_config(
    config_data: Mapping[str, Any], file: str = "config.json", *, allow_unknown_keys: bool = False
) -> dict[str, Any]:
    """Return a configuration that a family reads; unknown keys, where they are allowed, are left out of it.

    Everything that opens a folder comes by here, so that nobody after it meets an unknown key.

    Args:
        config_data: The content of config.json, in the hub's spelling.
        file: What to call it.
        allow_unknown_keys: Warn of unknown keys instead of refusing them.

    Raises:
        ConfigError: It does not describe a model of a supported family.
    """
    family = family_of(config_data, file)
    known = permitted(config_data, file, family.read, allow_unknown_keys=allow_unknown_keys)
    for other, name in RESPELLED.get(family.name, {}).items():
        if known.get(other) is not None:
            known[name] = known.pop(other)
    if family.name == "qwen3" and known.get("head_dim") is None:
        known["head_dim"] = usual_head_dim(known)
    return known
