# The pipeline, as a chain of files: each is one command, redone only when its input changed.
# GNU make 3.81 (macOS) is enough. `make` alone lists what there is.

PYTHON   ?=
PIP_ARGS ?=
TEXT     ?=
PROMPT   ?=
CLEAN    ?=
FILE     ?=
PRESET   ?= $(if $(TEXT),own,tiny)
SEED     ?= 0
# With your own text: the time that training may take.
MINUTES  ?= 3
STORIES  ?= 52000
# false: everything runs on the plain chapters, without nanoseek/fast.
FAST     ?= true

# A text's name may hold anything, such as a $ or a quote. Taken as it is, never expanded, and handed
# over in the environment, where recipes read it as "$$TEXT", it is a name and no code.
override TEXT := $(value TEXT)
override PROMPT := $(value PROMPT)
override CLEAN := $(value CLEAN)
override MINUTES := $(value MINUTES)
override FILE := $(value FILE)
export PYTHON PIP_ARGS TEXT PROMPT CLEAN MINUTES FILE

# The run's folder stands in targets and recipes, so it must be one plain word.
ifeq ($(origin RUN),undefined)
RUN := $(if $(TEXT),,runs/$(PRESET))
else
override RUN := $(value RUN)
ifneq ($(words $(RUN)),1)
$(error RUN='$(RUN)': name a folder, without spaces)
endif
override RUN := $(strip $(RUN))
REFUSED := $(foreach c,$$ ` ' " \ ; & | < > * ? ! : = %,$(findstring $(c),$(RUN)))
ifneq ($(strip $(REFUSED)),)
$(error RUN='$(RUN)': name a folder without $(strip $(REFUSED)))
endif
endif

ifneq ($(TEXT),)
# 0: sized to the text, as the steps are.
VOCAB ?= 0
TOKENIZER_ARGS ?=
TRAIN_ARGS ?= --minutes="$$MINUTES"
else
VOCAB ?= 4096
# Three Chinese characters or nine letters: longer tokens would be whole phrases, names among them.
TOKENIZER_ARGS ?= --max_token_length 9
# Mostly stories: the documentation is there to show what real text is like. An English story takes
# more tokens than a Chinese one, and with these shares both come about as near their floors.
TRAIN_ARGS ?= --weights stories_en=0.52,stories_zh=0.43,python_docs=0.05
endif

PY := .venv/bin/python
# Large buffers stay with the process: giving them back each step costs about a tenth (glibc).
export MALLOC_MMAP_THRESHOLD_ := 1000000000
export MALLOC_TRIM_THRESHOLD_ := 4000000000
# Threads that wait for each other spin for a moment, then sleep. To sleep at once costs a wake-up in
# each of the many waits of a step, which eats all that a second core gives; to spin for long, the
# default, holds a core that another program could use. (For GNU's OpenMP, which Linux wheels have.)
export GOMP_SPINCOUNT ?= 10000
export PYTHONUNBUFFERED := 1

.PHONY: help setup train-tiny sample test grade tutorials waterfall lab bench clean FORCE
.SECONDARY:

help:
	@echo 'nanoseek: how a DeepSeek-style language model is trained cheaply'
	@echo
	@echo '  make train-tiny              train the bilingual story model: a few minutes'
	@echo '  make train-tiny TEXT=path    the same with your own text: a file, folder, URL, or several'
	@echo '  make sample PROMPT="Once"    let the trained model go on with a text (TEXT= as above)'
	@echo '  make test                    run the tests'
	@echo '  make grade FILE=my_model.py  test your copy of a module, as students are graded'
	@echo '  make tutorials               execute the notebooks into runs/tutorials'
	@echo '  make waterfall QUICK=1       what each trick saves, measured here (else: over half an hour)'
	@echo '  make lab                     open copies of the notebooks in runs/lab'
	@echo '  make bench                   compare with peers; takes minutes'
	@echo '  make setup                   only make .venv and install into it'
	@echo '  make clean                   remove the tiny run (CLEAN=runs: all runs)'
	@echo
	@echo '  FAST=false                   run on the plain chapters, without nanoseek/fast'
	@echo '  PYTHON=python3.12            the Python to use (3.10 or newer)'
	@echo '  PIP_ARGS="…"                 options for pip, such as an index without GPU builds'

setup: .venv/installed

.venv/installed: requirements.txt
	@sh .ci/setup requirements.txt
	@touch $@

.venv/tests-installed: .venv/installed tests/requirements.txt
	@sh .ci/setup tests/requirements.txt
	@touch $@

ifeq ($(RUN),)
# TEXT=path alone: its run has a folder of its own, the file's name with a checksum of its path.
train-tiny sample:
	@name=$$(printf '%s' "$$(basename -- "$$TEXT")" | tr -c 'A-Za-z0-9' '-' | cut -c1-24) && \
	sum=$$(printf '%s' "$$TEXT" | cksum | cut -d' ' -f1) && \
	$(MAKE) --no-print-directory $@ RUN="runs/$$name-$$sum"
else
train-tiny: $(RUN)/report.txt
	@cat $(RUN)/report.txt
	@echo
	@printf '%s is trained. More: make sample %sPROMPT="…"; $(PY) -m nanoseek.cost %s;\n' \
	    '$(RUN)' "$${TEXT:+TEXT=\"$$TEXT\" }" '$(RUN)'
	@echo 'the curve, surprise in colour and all of this, to open in a browser: $(RUN)/report.html'

# One long text is looked at on every call (its path may hold spaces, so it cannot be a
# prerequisite), but raw.jsonl keeps its time when the text has not changed.
# Each stage takes the .lock that stands in the run's folder while it writes. Of a text that is refused
# no folder is left behind, unless another make works there by now.
LOCKED = @mkdir -p $(RUN) && { [ ! -L $(RUN)/.lock ] || rm $(RUN)/.lock; } && : >> $(RUN)/.lock
TIDY = { code=$$?; [ $$code != 2 ] || [ -z "$$TEXT" ] || \
    ! $(PY) -c 'from nanoseek.cli import lock; lock("$(RUN)")' 2> /dev/null || [ -e $(RUN)/clean.jsonl ] || \
    { rm -f $(RUN)/raw.jsonl $(RUN)/.lock; rmdir $(RUN) 2> /dev/null; }; exit $$code; }

ifneq ($(TEXT),)
$(RUN)/raw.jsonl: FORCE .venv/installed
	@case "$$MINUTES" in *[!0-9.]*|*.*.*) false ;; *[1-9]*) ;; *) false ;; esac || \
	    { echo "MINUTES=$$MINUTES: give a number above 0" >&2; exit 2; }
	$(LOCKED)
	@$(PY) -m nanoseek.corpus $@ --text="$$TEXT" || $(TIDY)
FORCE:
else
$(RUN)/raw.jsonl: | .venv/installed
	$(LOCKED)
	@$(PY) -m nanoseek.corpus $@ --stories $(STORIES)
endif

$(RUN)/clean.jsonl: $(RUN)/raw.jsonl
	@$(PY) -m nanoseek.curate $< $@ --fast $(FAST) || $(TIDY)

$(RUN)/tokenizer.json: $(RUN)/clean.jsonl
	@$(PY) -m nanoseek.tokenizer train $< $@ --vocab_size $(VOCAB) --fast $(FAST) $(TOKENIZER_ARGS)

$(RUN)/tokens/manifest.json: $(RUN)/clean.jsonl $(RUN)/tokenizer.json
	@$(PY) -m nanoseek.data $^ $(RUN)/tokens --fast $(FAST)

# --resume goes on where a stopped run was, and starts one where there is none. Other tokens make it
# another run, which begins anew; the same tokens, only written again, do not.
$(RUN)/cost.json: $(RUN)/tokens/manifest.json
	@$(PY) -m nanoseek.train --preset $(PRESET) --out $(RUN) --resume --restart_on_new_data \
	    --seed $(SEED) --fast $(FAST) $(TRAIN_ARGS)

$(RUN)/report.txt: $(RUN)/cost.json
	@$(PY) -m nanoseek.evaluate $(RUN) --samples 2 --page $(RUN)/report.html \
	    --fast $(FAST) > $@.writing
	@mv $@.writing $@

sample: .venv/installed
	@$(PY) -m nanoseek.generate $(RUN) --prompt="$$PROMPT"
endif

.venv/tutorials-installed: .venv/installed tutorials/requirements.txt
	@sh .ci/setup tutorials/requirements.txt
	@touch $@

# Into a scratch folder: the stored notebooks stay as they are.
tutorials: .venv/tutorials-installed
	@$(PY) tutorials/solutions/check.py runs/tutorials
	@echo "tutorials: all notebooks ran to their end; the executed copies are in runs/tutorials"

# LATER=tiny or LATER=10M: DeepSeek's later tricks, for a model of that size.
# Results stay in runs/waterfall, or runs/waterfall-quick: a stopped one goes on where it was.
waterfall: .venv/tutorials-installed
	@$(PY) tutorials/experiments/waterfall.py $(if $(QUICK),--quick) \
	    $(if $(LATER),--later $(or $(filter tiny 10M,$(LATER)),$(error LATER=tiny or LATER=10M)))

# Copies to work in, without outputs; what stands in runs/lab already is left as it is.
lab: .venv/tutorials-installed
	@$(PY) tutorials/blank.py runs/lab
	@cd runs/lab && PYTHONPATH="$(CURDIR):$(CURDIR)/tutorials:$(CURDIR)/tutorials/experiments" \
	    ../../$(PY) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root)

# In two processes, one a core; the same in one: pytest tests
test: .venv/tests-installed
	@$(PY) tests/halves.py

# By the tests of the module whose name the file's name ends with: of model.py for my_model.py.
grade: .venv/tests-installed
	@for test in tests/test_*.py tests/corpus/test_stories.py; do case "$$FILE" in \
	    *"$${test##*test_}") exec $(PY) -m pytest -q $$test --module="$$FILE" ;; esac; done; \
	    echo "make grade FILE=my_model.py: name a copy of a module, whose name its own ends with" >&2; exit 2

.venv/bench-installed: .venv/tests-installed tests/bench/requirements.txt
	@sh .ci/setup tests/bench/requirements.txt
	@touch $@

# Comparisons with peers: ratios in one run. Each file can be run alone.
bench: .venv/bench-installed
	@for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(PY) $$bench || exit 1; done

clean:
	rm -rf -- "$${CLEAN:-runs/tiny}"
