"""Write a Megatron GPT checkpoint as a Hugging Face directory (Qwen3 or Llama layout)."""

from megatron_sbp import cli
from megatron_sbp.models.export import ExportOptions, export


def main() -> None:
    options = cli.parse(ExportOptions, __doc__)
    manifest = export(options)
    cli.summary(
        f"Hugging Face model: {options.output}",
        manifest.counts | {"time": cli.clock(manifest.seconds)},
    )


if __name__ == "__main__":
    cli.run(main)
