.PHONY: setup quickstart smoke test clean

setup:
	@sh tools/bootstrap.sh

# The whole loop on this machine, with a report: quickstart/report/report.html
quickstart: setup
	.venv/bin/python tools/quickstart.py

# The same loop, small
smoke: setup
	.venv/bin/python tools/quickstart.py --smoke --output quickstart-smoke

test: setup
	.venv/bin/python -m pytest

clean:
	rm -rf .venv .uv build *.egg-info quickstart quickstart-smoke
