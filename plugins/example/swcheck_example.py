"""An engine to copy: every matrix of the decoder layers to 8 bits, one scale per tensor."""

from dataclasses import dataclass, replace

from swcheck import engines
from swcheck.errors import EngineError, OptionError
from swcheck.records import Loaded, Scheme


@dataclass(frozen=True)
class Example:
    name: str = "example"

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        if spec != "int8":
            raise EngineError(f"scheme {spec!r} of example", "known: int8", "example:int8")
        if reference is None:
            raise OptionError(f"example:{spec}", "no reference to quantize", "name one with --model")
        import torch  # whatever is heavy is imported here

        base = engines.load(reference, device=device, dtype=dtype)
        with torch.no_grad():
            for name, weight in base.model.named_parameters():
                if ".layers." in name and weight.ndim == 2:
                    step = weight.abs().max() / 127
                    weight.copy_((weight / step).round() * step)
        return replace(base, name=f"example:{spec}", scheme=Scheme("absmax", 8))


ENGINE = Example()
