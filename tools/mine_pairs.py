"""Mine pairs of related documents from embeddings, on one process or under mpiexec or srun."""

from megatron_sbp import cli
from megatron_sbp.manifest import Manifest
from megatron_sbp.mining.mine import mine
from megatron_sbp.mining.options import MineOptions
from megatron_sbp.ranks import Ranks


def main() -> None:
    with Ranks.open() as ranks:
        options = ranks.together(lambda: cli.parse(MineOptions, __doc__))
        manifest = mine(options, ranks)
        if ranks.rank == 0:
            summarize(options.output, manifest)


def summarize(output: str, manifest: Manifest) -> None:
    counts = manifest.counts
    rows = {
        "pairs": counts["pairs"],
        "documents": counts["documents"],
        "candidates": counts["candidates"],
    }
    for name, count in counts.get("removed", {}).items():
        rows[f"removed: {name.replace('_', ' ')}"] = count
    if not counts["token_filters"]:
        rows["filters on documents"] = "off: no --corpus given"
    search = counts["search"]
    if manifest.options.get("control") == "random":
        rows["control"] = "random neighbours"
    else:
        rows["search"] = ", ".join(f"{name} {value}" for name, value in search.items())
    if recall := counts.get("recall"):
        rows["recall"] = (
            f"{recall['value']:.4f} ({recall['low']:.4f} to {recall['high']:.4f}, 95% confidence, "
            f"{recall['pairs']:,} pairs of {recall['anchors']:,} random anchors)"
        )
    cli.summary(f"pairs: {output}", rows | {"time": cli.clock(manifest.seconds)})


if __name__ == "__main__":
    cli.run(main)
