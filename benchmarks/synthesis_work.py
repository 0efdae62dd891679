"""What the benchmark of synthesis generates: options, a model, and prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from benchmarks.packing import make_lengths
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.template import Template
from megatron_sbp.errors import InputError
from megatron_sbp.synthesis import model
from megatron_sbp.synthesis.engine import Request, Sampling
from megatron_sbp.synthesis.prompts import Prompts
from megatron_sbp.synthesis.seeds import Seeds

Name = Literal["generate", "sorted", "hf", "megatron", "vllm"]
# Logits of so large a deviation leave about a hundred of 8,192 tokens in a nucleus of 0.9.
_SPREAD = 3.5


@dataclass(kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    load: str | None = field(default=None, metadata={"metavar": "CKPT"})
    """A tuned synthesizer: what Megatron saved to, or a Hugging Face directory."""
    corpus: list[str] = field(default_factory=list, metadata={"metavar": "PREFIX"})
    """Prefixes of the corpus that seeds are drawn from, with --load."""
    layers: int = 4
    """Layers of the model made without --load."""
    width: int = 256
    """Its hidden width; the feed-forward width is three times that, heads have 64 channels, and two
    heads share keys and values."""
    vocabulary: int = field(default=8192, metadata={"metavar": "IDS"})
    """Its vocabulary."""
    median_prompt: int = field(default=150, metadata={"metavar": "TOKENS"})
    """Median length of a prompt, without --load."""
    mean_length: int = field(default=150, metadata={"metavar": "TOKENS"})
    """Mean length of a document, about, without --load."""
    max_seed_tokens: int = 0
    """Cut prompts to so many tokens of the seed; 0: half of the context."""
    max_new_tokens: int = 0
    """End a document after so many tokens; 0: half of the context."""
    context: int = field(default=1024, metadata={"metavar": "TOKENS"})
    """Context of the model made without --load."""
    contenders: list[Name] = field(default_factory=lambda: list(get_args(Name)))
    """What to measure; what cannot run here says why."""
    documents: int = 384
    """Documents of a turn."""
    batch_size: int = field(default=64, metadata={"metavar": "DOCUMENTS"})
    """Documents at work at a time."""
    repetitions: int = 3
    """Turns of every contender."""
    temperature: float = 1.0
    """Divisor of the logits."""
    top_p: float = 0.9
    """Probability of the tokens that are drawn from."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """What to compute in."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on a CUDA device if there is one."""
    gpu_memory_share: float = field(default=0.3, metadata={"metavar": "SHARE"})
    """The share of a GPU's memory that megatron and vllm may each take."""
    threads: int = 0
    """CPU threads; 0: all cores."""
    seed: int = 0
    """Of prompts, weights and random numbers."""
    output: str | None = field(default=None, metadata={"metavar": "FILE"})
    """Also write everything as JSON."""

    def __post_init__(self) -> None:
        if bool(self.load) != bool(self.corpus):
            raise InputError("give --load and --corpus together, or neither")
        for name in ("layers", "median_prompt", "mean_length", "documents", "batch_size"):
            self._check(name, 1)
        self._check("repetitions", 1)
        self._check("vocabulary", 2)
        if self.width < 128 or self.width % 128:
            raise InputError(f"--width {self.width}: must be a multiple of 128")

    def _check(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least {least}")

    @property
    def sampling(self) -> Sampling:
        """How the next token is drawn."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=0)


@dataclass(kw_only=True, slots=True)
class Work:
    """A model and what it is to continue."""

    directory: Path
    """Hugging Face directory of the model."""
    eod: int
    """Token that ends a document."""
    vocab_size: int
    """Number of token ids."""
    requests: list[Request]
    """All with the same maximum of new tokens."""


def load_work(options: Options, directory: Path) -> Work:
    """The model of --load and seeds from --corpus, as tools/synthesize.py draws them.

    Args:
        options: Of the benchmark.
        directory: Where to export a Megatron checkpoint.
    """
    assert options.load is not None
    corpus = Corpus(options.corpus)
    tokenizer = corpus.tokenizer
    source = model.find(options.load, "hf")
    source.check(tokenizer)
    template = Template.parse(
        "{bos}{d1}{sep}{d2}{eod}",
        "<|sep|>",
        tokenizer.encode_template,
        bos=tokenizer.bos,
        eod=tokenizer.eod,
    )
    prompts = Prompts(
        Seeds(corpus),
        source.context,
        seed=options.seed,
        template=template,
        max_seed_tokens=options.max_seed_tokens,
        max_new_tokens=options.max_new_tokens or source.context // 2,
    )
    return Work(
        directory=source.prepare(tokenizer, directory),
        eod=tokenizer.eod,
        vocab_size=tokenizer.vocab_size,
        requests=[prompts.request(number)[0] for number in range(options.documents)],
    )


def make_work(options: Options, directory: Path) -> Work:
    """A model with random weights, and random prompts.

    Args:
        options: Of the benchmark.
        directory: Where to save the model.
    """
    room = options.max_new_tokens or options.context // 2
    most = min(options.max_seed_tokens or options.context, options.context - room)
    lengths = make_lengths(options.documents, options.median_prompt, 1.1, options.seed)
    random = np.random.default_rng(options.seed)
    eod = options.vocabulary - 1
    requests = [
        Request(
            number=number, prompt=random.integers(eod, size=length), uniforms=random.random(room)
        )
        for number, length in enumerate(lengths.clip(2, most).tolist())
    ]
    _make_model(options, eod, requests).save_pretrained(directory)
    return Work(directory=directory, eod=eod, vocab_size=options.vocabulary, requests=requests)


def _make_model(options: Options, eod: int, requests: Sequence[Request]) -> Any:
    """A Qwen3 model that ends a document with about the same probability at every token.

    The first channel of the residual stream is a constant that only the logit of ``eod`` reads.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(options.seed)
    heads = options.width // 64
    network = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=options.vocabulary,
            hidden_size=options.width,
            intermediate_size=3 * options.width,
            num_hidden_layers=options.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            head_dim=64,
            max_position_embeddings=options.context,
            initializer_range=options.width**-0.5,
            eos_token_id=eod,
            tie_word_embeddings=False,
        )
    ).eval()
    with torch.inference_mode():
        network.model.embed_tokens.weight.normal_()[:, 0] = 1
        for layer in network.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        head = network.lm_head.weight
        head.mul_(_SPREAD)
        head[:, 0] = 0
        head[eod] = 0
        prompts = [torch.from_numpy(request.prompt[None, -64:]) for request in requests[:64]]
        hidden = torch.cat([network.model(prompt).last_hidden_state[0] for prompt in prompts])
        rest = torch.logsumexp(hidden @ head.T / options.temperature, -1)
        # Within the nucleus the share of each of its tokens grows to 1 / top_p of what it was.
        wanted = options.top_p / options.mean_length
        weight = torch.tensor(0.0)
        for _ in range(20):
            share = torch.sigmoid(weight * hidden[:, 0] / options.temperature - rest).mean()
            weight += torch.log(wanted / share) * options.temperature / hidden[:, 0].mean()
        head[eod, 0] = weight
    return network
