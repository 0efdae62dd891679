"""Write a Hugging Face model (Llama or Qwen3 layout) as a checkpoint that Megatron starts from."""

from megatron_sbp import cli
from megatron_sbp.models.import_hf import ARGUMENTS, ImportOptions, import_hf


def main() -> None:
    options = cli.parse(ImportOptions, __doc__)
    manifest = import_hf(options)
    cli.summary(
        f"Megatron checkpoint: {options.output}",
        manifest.counts
        | {"arguments": f"{options.output}/{ARGUMENTS}", "time": cli.clock(manifest.seconds)},
    )


if __name__ == "__main__":
    cli.run(main)
