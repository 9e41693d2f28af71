"""An engine to copy: every matrix of the decoder layers to 8 bits, one scale per tensor."""

from dataclasses import dataclass, replace

from swcheck.records import Loaded, Scheme
from swcheck.request import Request, read


@dataclass(frozen=True)
class Example:
    name: str = "example"

    def check(self, spec: str) -> Request:
        return read(self.name, spec, schemes=["int8"])  # options=["group"], packages=[("my_package", "my-package>=1")]

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        asked = self.check(spec)
        base = asked.base(reference, self, device=device, dtype=dtype)
        kept = asked.kept(base.model)
        import torch  # whatever is heavy is imported here

        with torch.no_grad():
            for name, weight in base.model.named_parameters():
                if ".layers." in name and weight.ndim == 2 and name.removesuffix(".weight") not in kept:
                    step = weight.abs().max() / 127
                    weight.copy_((weight / step).round() * step)
        return replace(base, name=asked.title, scheme=Scheme("absmax", 8))


ENGINE = Example()
