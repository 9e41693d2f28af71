"""What a norm adds to its weight is seen from what it answers."""

from __future__ import annotations

import pytest
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNorm

from swcheck.lens.architecture.norm_gain import gain_offset


@pytest.mark.parametrize(
    ("norm", "offset"), [(LlamaRMSNorm, 0), (nn.LayerNorm, 0), (Gemma2RMSNorm, 1), (Qwen3NextRMSNorm, 1)]
)
def test_what_is_added_to_a_weight(norm, offset):
    """Gemma's norms and those like them are stored less 1; a bias is no gain."""
    assert gain_offset(norm(8)) == offset
