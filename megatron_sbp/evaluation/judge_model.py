"""A judge that is a local Transformers model: the answer is read from its next-token probabilities.

Nothing is sampled and no answer has to be parsed: yes is the answer if the model finds it more
probable than no. How much probability the two have together is kept with every answer: little of it
says that the model does not understand the format.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_sbp.embedding.transformer import Machine
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation.judge import Verdict
from megatron_sbp.manifest import fingerprint

_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
_YES, _NO = (
    [space + word for space in ("", " ") for word in words]
    for words in (("yes", "Yes", "YES"), ("no", "No", "NO"))
)


class ModelJudge:
    """A causal language model in a directory or on the Hugging Face Hub.

    Args:
        name: The directory or the Hub name.
        machine: Where and in which type to compute, by default what the machine does best.

    Raises:
        InputError: If there is no such model.
    """

    def __init__(self, name: str, machine: Machine | None = None):
        self.name = name
        self._directory = _fetch(name)
        self._machine = machine or Machine.resolve()
        self._model: Any = None
        self._tokenizer: Any = None

    def settings(self) -> dict[str, Any]:
        """Name, checksums of what decides the answers, and the type it computes in."""
        files = ["config.json", "tokenizer.json", "chat_template.jinja", "tokenizer_config.json"]
        paths = [self._directory / name for name in files if (self._directory / name).exists()]
        paths += sorted(self._directory.glob("*.safetensors"))
        return {
            "model": self.name if self.name != str(self._directory) else self._directory.name,
            "by": "next-token probabilities",
            "dtype": self._machine.dtype,
            "sha256": {path.name: fingerprint(path)["sha256"] for path in paths},
        }

    def description(self) -> dict[str, Any]:
        """The settings, and where it ran."""
        return self.settings() | {"device": self._machine.device}

    def ask(self, prompts: Sequence[str]) -> Iterator[tuple[int, Verdict]]:
        """Answer every prompt; see ``Judge.ask``."""
        if prompts and self._model is None:
            self._load()
        for place, prompt in enumerate(prompts):
            yield place, self._answer(prompt)

    def _answer(self, prompt: str) -> Verdict:
        import torch

        tokens = self._encode(prompt)
        if len(tokens) >= self._model.config.max_position_embeddings:
            raise InputError(
                f"--judge-model {self.name}: a prompt has {len(tokens)} tokens, the model reads "
                f"{self._model.config.max_position_embeddings}; lower --judge-characters"
            )
        with torch.inference_mode():
            given = torch.tensor([tokens], device=self._model.device)
            logits = self._model(input_ids=given, use_cache=False, logits_to_keep=1).logits[0, -1]
            probabilities = torch.softmax(logits.double(), -1)
            yes, no = (float(probabilities[ids].sum()) for ids in (self._yes, self._no))
        return Verdict(
            yes=None if yes == no else yes > no,
            said=f"yes {yes:.4f}, no {no:.4f}",
            by=self.name,
            probability=yes + no,
        )

    def _encode(self, prompt: str) -> list[int]:
        if self._tokenizer.chat_template is None:
            return self._tokenizer(prompt + "\nAnswer:")["input_ids"]
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=False,  # for templates that know it
        )
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _load(self) -> None:
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[self._machine.dtype]
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(self._directory)
            model = transformers.AutoModelForCausalLM.from_pretrained(self._directory, dtype=dtype)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise _unusable(self.name, error) from None
        self._model = model.to(self._machine.device).eval()
        yes, no = (self._first_tokens(forms) for forms in (_YES, _NO))
        self._yes, self._no = sorted(yes - no), sorted(no - yes)
        if not self._yes or not self._no:
            raise InputError(
                f"--judge-model {self.name}: its tokenizer begins yes and no with the same token; "
                "choose another model"
            )

    def _first_tokens(self, forms: Sequence[str]) -> set[int]:
        encoded = (self._tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms)
        return {tokens[0] for tokens in encoded if tokens}


def _fetch(name: str) -> Path:
    """The directory of a model."""
    directory = Path(name)
    if not directory.is_dir():
        from huggingface_hub import snapshot_download

        try:
            directory = Path(snapshot_download(name, allow_patterns=list(_FILES)))
        except Exception as error:  # of the Hub, of the network, of the file system
            raise _unusable(name, error) from None
    if not (directory / "config.json").is_file():
        raise _unusable(name, "no config.json")
    return directory


def _unusable(name: str, error: object) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(
        f"--judge-model {name}: cannot be loaded as a causal language model ({reason}); give a "
        "Hugging Face directory or Hub name, or --judge-url for a model behind an endpoint"
    )
