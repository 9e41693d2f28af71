"""An engine to copy: every matrix of the decoder layers to 8 bits, one scale per tensor."""

from dataclasses import dataclass, replace

from swcheck import EngineRequest, Loaded, Scheme, read_request


@dataclass(frozen=True)
class Example:
    name: str = "example"

    def check(self, spec: str) -> EngineRequest:
        # options=["group"], packages=[("my_package", "my-package>=1")], where there are any
        return read_request(self.name, spec, schemes=["int8"])

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        asked = self.check(spec)
        base = asked.load_reference(reference, self, device=device, dtype=dtype)
        kept = asked.modules_to_skip(base.model)
        import torch  # whatever is heavy is imported here

        with torch.no_grad():
            for name, weight in base.model.named_parameters():
                if ".layers." in name and weight.ndim == 2 and name.removesuffix(".weight") not in kept:
                    step = weight.abs().max() / 127
                    weight.copy_((weight / step).round() * step)
        return replace(base, name=asked.title, scheme=Scheme("absmax", 8))


ENGINE = Example()
