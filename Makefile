.PHONY: setup quickstart smoke test test-gpu test-parallelism test-faults test-versions test-core016 test-slurm clean

setup:
	@sh tools/bootstrap.sh

# The whole loop on this machine, with a report: quickstart/report/report.html
quickstart: setup
	.venv/bin/python tools/quickstart.py

# The same loop, small
smoke: setup
	.venv/bin/python tools/quickstart.py --smoke --output quickstart-smoke

# All but tests/gpu, also where there is a GPU: these hold for machines without one.
# The tests of slurm/ share one cluster, so they come after the others, one by one.
test: export CUDA_VISIBLE_DEVICES =
test: setup
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile --ignore tests/slurm
	.venv/bin/python -m pytest tests/slurm

# What only a GPU runs; tests that need Transformer Engine, DALI, faiss-gpu or vLLM say so
test-gpu: setup
	.venv/bin/python -m pytest tests/gpu

# Every layout with packed and with unpacked rows; `make test` has every layout once
test-parallelism: setup
	PARALLELISM_LONG=1 .venv/bin/python -m pytest tests/training/test_parallelism.py

# The paired-document dataset on the dataset layer of megatron-core 0.16.1
test-core016: setup
	.venv/bin/python -m pip install --quiet --no-deps --upgrade --target .core016 megatron-core==0.16.1
	PYTHONPATH=.core016 .venv/bin/python -m pytest tests/corpus/test_template.py tests/training/test_pairs_*.py

# Every fault done to every command, and the table of docs/reliability.md made of it
test-faults: setup
	rm -f build/faults.jsonl
	mkdir -p build
	-FAULTS_LONG=1 FAULTS_RESULTS=build/faults.jsonl .venv/bin/python -m pytest \
	    --numprocesses 2 --dist load tests/faults
	.venv/bin/python -m tests.faults.results build/faults.jsonl docs/reliability.md
	FAULTS_LONG=1 .venv/bin/python -m pytest --numprocesses 2 tests/hostile

# The tests on the lowest and on the newest versions of the packages that setup.cfg admits
test-versions: setup
	sh tests/versions.sh lowest
	sh tests/versions.sh newest

# The scripts of slurm/ on a Slurm of three nodes on this machine; needs root, see docs/cluster.md
test-slurm: setup
	SLURM_LONG=1 .venv/bin/python -m pytest tests/slurm

clean:
	rm -rf .venv .uv .core016 build *.egg-info quickstart quickstart-smoke
