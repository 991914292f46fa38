"""Multi-token prediction (MTP): each position also learns the token after the next, and drafts it.

    model = Transformer(ModelConfig(prediction=MultiToken()))
    ids, accepted = generate_ahead(model, tokenizer.encode("Once"), new_tokens=50)

What the chapter spends: a forward pass reads all weights to answer one question for each position,
which token is next. The idea (DeepSeek-V3, arXiv 2412.19437, §2.2): a small module asks for one
token more. For position i it takes the model's vector hᵢ and the token t that really came next:

    x = W·[norm(embedding of tᵢ₊₁); norm(hᵢ)]          eh_proj: two vectors become one
    h′ᵢ = norm(layer(x)ᵢ)                              a whole layer, of the same kind as the others
    scores for tᵢ₊₂ = head·h′ᵢ                         the head is the model's own, as the embedding

A second module does the same with h′ᵢ and tᵢ₊₂, and so on: module k of D learns tᵢ₊ₖ₊₁. Their mean
cross-entropies, added up and multiplied by λ/D, join the loss while the model trains (eq. 24, 25).
A mean is over all positions, also over those that no such token follows, which add nothing.

* In training, hᵢ must hold what is needed for more than the next token. Afterwards the modules can
  be left out: the model alone gives what it gives with them.
* In generation, the module drafts a token. The next pass looks at that draft, too: if the model
  itself would have written it, one pass has brought two tokens; if not, the draft is thrown away.
  So the text is that of the model alone, only sooner (speculative decoding, 2211.17192).

What the paper leaves open: hᵢ is taken behind the model's last norm, and h′ᵢ behind the module's
own, as in transformers' code for DeepSeek's weights. Of the two halves of x the embedding comes
first, as in these weights; in the paper's eq. 21 it is second.

Shapes: B batch, T positions, C hidden_size, L num_hidden_layers, D num_nextn_predict_layers.
"""

import dataclasses
import math

import torch
from torch import nn

from nanoseek.model import DecoderLayer, KVCache, Part, RMSNorm, rotary_table


@dataclasses.dataclass(frozen=True)
class MultiToken(Part):
    """How many tokens behind the next one are predicted. ValueError when numbers do not fit."""
    num_nextn_predict_layers: int = 1  # D, in Hugging Face's name
    loss_weight: float = 0.3  # λ; V3 took 0.3 for 10T tokens, then 0.1 (§4.2)

    def __post_init__(self):
        depth, weight = self.num_nextn_predict_layers, self.loss_weight
        if type(depth) is not int or depth < 1:
            raise ValueError(f"num_nextn_predict_layers is {depth!r}: it must be a whole number "
                             "above 0; without prediction of more tokens, leave it out")
        if type(weight) not in (int, float) or not 0 <= weight < math.inf:
            raise ValueError(f"loss_weight is {weight!r}: it must be a number of at least 0")

    def build(self, config):
        """Return the modules, which stand behind the model's L layers, as in DeepSeek's files."""
        first = config.num_hidden_layers
        return [PredictionLayer(config, first + k) for k in range(self.num_nextn_predict_layers)]

    def loss(self, model, hidden, inputs, targets, document_ids=None):
        """Return λ/D times the sum of the modules' mean cross-entropies, a scalar; the inputs are
        those of model.loss, with what the head reads: hidden (B, T, C).

        A position counts for module k where its row still holds token tᵢ₊ₖ, in the same document,
        and the target behind that is not below 0. The document's end counts: it is a token, too.
        """
        total = hidden.new_zeros((), dtype=torch.float32)
        for k, module in enumerate(model.model.layers[model.config.num_hidden_layers:], 1):
            if inputs.shape[1] <= k:  # rows too short: no gradient, which is 0 and not None
                total = total + 0.0 * sum(weight.sum() for weight in module.parameters())
                continue
            counts, first = targets[:, k:] >= 0, None  # (B, T - k)
            if document_ids is not None:
                first = document_ids[:, :-k]  # where position i stands, and where tᵢ₊ₖ does
                counts = counts & (first == document_ids[:, k:])
            hidden = ahead(model, module, hidden[:, :inputs.shape[1] - k], inputs[:, k:], first)
            share = counts.sum() / (targets >= 0).sum().clamp(min=1)
            total = total + (model.lm_head.cross_entropy(hidden[counts], targets[:, k:][counts])
                             * share if counts.any() else 0.0 * hidden.sum())
        return self.loss_weight / self.num_nextn_predict_layers * total

    def pull(self, *inputs):
        """Return 0 with the gradient of `loss`: a log of training, and all that compares its rows,
        goes on to tell the nats of the next token alone."""
        value = self.loss(*inputs)
        return value - value.detach()


class PredictionLayer(DecoderLayer):
    """A layer that looks one token further; its names are those of DeepSeek's files."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        C, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm = RMSNorm(C, eps), RMSNorm(C, eps)
        self.eh_proj = nn.Linear(2 * C, C, bias=False)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(C, eps)})  # shared is the head itself

    def forward(self, hidden, embedded, rotary, mask, cache=None):
        """hidden, embedded (B, T, C) → (B, T, C); the others are as in DecoderLayer."""
        x = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(hidden)), dim=-1))
        x = x.to(hidden.dtype)  # what layers add up stays in fp32 under autocast, as in the model
        return self.shared_head.norm(super().forward(x, rotary, mask, cache))


def ahead(model, module, hidden, next_ids, document_ids=None, cache=None):
    """Return the vectors (B, T, C) with which the head looks one token further than with hidden
    (B, T, C), when next_ids (B, T) come next; document_ids and cache as in Transformer.hidden."""
    T = next_ids.shape[1]
    columns = torch.arange(T, device=next_ids.device) if cache is None else cache.columns(T)
    # Position i keeps its number, though it holds tᵢ₊ₖ: to RoPE only distances matter.
    return model.apply_layer(module, hidden, model.model.embed_tokens(next_ids),
                             rotary_table(model.config, columns[-T:]),
                             model.mask(next_ids, columns, document_ids), cache)


@torch.inference_mode()
def generate_ahead(model, ids, new_tokens=200):
    """Return what greedy decoding writes after ids, a list that ends where the context is full, and
    for each draft whether it was accepted. The ids are those of `generate` at temperature 0, but
    for rounding: two positions at once may round otherwise than one."""
    config, weight = model.config, model.lm_head.weight
    if config.prediction is None:
        raise ValueError("the model has no module to draft with: train it with prediction")
    if config.sliding_window:
        raise ValueError("a sliding window's cache cannot forget a refused draft: use generate")
    if not 0 < len(ids) < config.max_position_embeddings or new_tokens < 0:
        raise ValueError(f"a prompt of {len(ids)} tokens and {new_tokens} more: the prompt must "
                         f"have from 1 to {config.max_position_embeddings - 1}, the rest 0 or more")
    layers, end = config.num_hidden_layers, min(len(ids) + new_tokens,
                                                config.max_position_embeddings)
    # The module's keys and values stand in the same cache, behind those of the model's layers.
    cache = KVCache(dataclasses.replace(config, num_hidden_layers=layers + 1), 1, end,
                    weight.device, weight.dtype)
    row, draft, accepted = list(ids), [], []
    while True:
        # The model reads the ids that it has not seen, and the draft; what does it write itself?
        seen, new = cache.length, row[cache.length:]
        hidden = model.hidden(torch.tensor([new + draft], device=weight.device), cache=cache)
        scores = model.lm_head(hidden[0, len(new) - 1:])
        if not scores.isfinite().all():
            raise ValueError("the model's scores are not finite: its training has diverged")
        written = scores.argmax(dim=-1).tolist()
        accepted += [token == written[0] for token in draft]
        # Where the draft was right, what is written after it is right as well.
        row += written if draft == written[:1] else written[:1]
        if len(row) >= end:
            return row[len(ids):end], accepted
        # The module reads the same positions, without a refused draft, each with its next id.
        cache.length, positions = seen, len(row) - 1 - seen
        next_ids = torch.tensor([row[seen + 1:]], device=weight.device)
        further = ahead(model, model.model.layers[layers], hidden[:, :positions], next_ids,
                        cache=cache)
        cache.length += positions
        draft = model.lm_head(further[:, -1]).argmax(dim=-1).tolist()
