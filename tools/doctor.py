"""Show what this machine has for the plugin, and what each missing part falls back to."""

from megatron_sbp import cli, doctor


def main() -> None:
    options = cli.parse(doctor.DoctorOptions, __doc__ or "")
    parts = doctor.examine()
    print(doctor.as_json(parts) if options.json else doctor.show(parts))


if __name__ == "__main__":
    cli.run(main)
