"""The multi-token prediction (MTP) head: it predicts the token after the next one."""

import torch
from torch import Tensor, nn
from transformers import Qwen3_5ForConditionalGeneration
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5RMSNorm


class MtpHead(nn.Module):
    """One full-attention layer over pairs (final hidden state of token i, embedding of token i + 1).

    Its output goes through the model's own head and predicts token i + 2. Pairs are at positions 0, 1, 2, ...
    """

    def __init__(self, model: Qwen3_5ForConditionalGeneration) -> None:
        super().__init__()
        config = model.config.text_config
        width, eps = config.hidden_size, config.rms_norm_eps
        self.pre_fc_norm_embedding = Qwen3_5RMSNorm(width, eps=eps)
        self.pre_fc_norm_hidden = Qwen3_5RMSNorm(width, eps=eps)
        self.fc = nn.Linear(2 * width, width, bias=False)
        self.layers = nn.ModuleList([Qwen3_5DecoderLayer(config, config.layer_types.index("full_attention"))])
        self.norm = Qwen3_5RMSNorm(width, eps=eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.initializer_range)

    def join(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """[batch, pairs, hidden] of both kinds -> the layer's input [batch, pairs, hidden]."""
        return self.fc(
            torch.cat([self.pre_fc_norm_embedding(embedded), self.pre_fc_norm_hidden(hidden)], dim=-1)
        )

    def forward(self, model: Qwen3_5ForConditionalGeneration, hidden: Tensor, ids: Tensor) -> Tensor:
        """Final hidden states [batch, T, hidden], ids [batch, T] -> [batch, T - 1, hidden] for the head."""
        language = model.model.language_model
        x = self.join(hidden[:, :-1], language.embed_tokens(ids[:, 1:]))
        positions = torch.arange(x.shape[1]).expand(3, x.shape[0], -1)
        rotary = language.rotary_emb(x, positions)
        for layer in self.layers:
            x = layer(x, position_embeddings=rotary, attention_mask=None)
        return self.norm(x)
