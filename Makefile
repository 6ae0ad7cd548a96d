# One verb for each thing that people do; `make help` lists them. ENV picks an inventory: make deploy ENV=production
SHELL := /bin/bash
.DEFAULT_GOAL := help
ENV ?= local
# Nothing at all would mean every inventory at once.
ifeq ($(and $(filter-out common,$(ENV)),$(wildcard inventories/$(ENV)/.)),)
$(error ENV="$(ENV)" names no inventory. There are: $(filter-out common,$(notdir $(patsubst %/,%,$(wildcard inventories/*/)))))
endif
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
unexport PYTHONDONTWRITEBYTECODE
PLAYBOOK := ansible-playbook -i inventories/$(ENV) $(ARGS)
# Verbs that make or remove hosts touch this machine only, whatever ENV says.
LOCAL := ansible-playbook -i inventories/local $(ARGS)

.PHONY: help bootstrap up down purge site deploy rollback smoke load-test status backup restore rebuild upgrade rotate-secrets operators preflight test test-all lint unit dag-test scenario lock

help: ## List the verbs
	@awk -F ':.*## ' '/^[a-z_-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

bootstrap: ## Make this machine ready: Debian packages, Python, the locked venv
	@.ci/bootstrap

up: bootstrap ## Local hosts, the whole platform on them, and the proof that it works
	@$(LOCAL) playbooks/test_hosts.yml
	@$(LOCAL) playbooks/site.yml
	@printf 'Airflow is at http://scheduler-1:8080 - user admin, password in .local/local/secrets/airflow_admin_password\n'

down: bootstrap ## Remove the local hosts and all that `up` made, but for the image and the package cache
	@$(LOCAL) playbooks/test_hosts.yml -e test_host_state=absent

purge: bootstrap ## `down`, and the image and the package cache as well
	@$(LOCAL) playbooks/test_hosts.yml -e test_host_state=purged

site: bootstrap ## Deploy the platform on the hosts of ENV and prove that it works
	@$(PLAYBOOK) playbooks/site.yml

preflight: bootstrap ## Check the inventory and its hosts; change nothing
	@$(PLAYBOOK) playbooks/preflight.yml

deploy: bootstrap ## Release dags/ and plugins/ of this tree, or of a git revision: make deploy REF=v1.2
	@$(PLAYBOOK) playbooks/deploy.yml $(if $(REF),-e release_ref=$(REF))

rollback: bootstrap ## Go back to the release before, or to a named one: make rollback RELEASE=3f2a9c01d7be
	@$(PLAYBOOK) playbooks/rollback_release.yml $(if $(RELEASE),-e release_id=$(RELEASE))

smoke: bootstrap ## Prove that the platform transforms records
	@$(PLAYBOOK) playbooks/smoke.yml

load-test: bootstrap ## Measure what runs cost, into docs/baselines.md (about 10 minutes)
	@$(PLAYBOOK) playbooks/load_test.yml

status: bootstrap ## Show what runs where
	@$(PLAYBOOK) playbooks/status.yml

backup: bootstrap ## Back the databases up now, beside the nightly backups
	@$(PLAYBOOK) playbooks/backup.yml

restore: bootstrap ## Put the databases back and prove it: make restore [TARGET_TIME=2026-01-31T13:45:00Z]
	@$(PLAYBOOK) $(if $(TARGET_TIME),-e restore_target_time=$(TARGET_TIME)) playbooks/restore.yml

rebuild: bootstrap ## Blank hosts to a proven platform with the data of its backup: make rebuild ENV=staging
	@.ci/rebuild inventories/$(ENV) playbooks/rebuild.yml $(if $(OVER),-e restore_over=$(OVER)) \
	  $(if $(FROM_SCRATCH),-e rebuild_from_scratch=$(FROM_SCRATCH)) $(ARGS)

upgrade: bootstrap ## Take Airflow to the version of this repository's lock, or back by itself: ARGS=--check first
	@$(PLAYBOOK) playbooks/upgrade.yml

rotate-secrets: bootstrap ## Take new secrets of the inventory into use; each former one is tried and refused
	@$(PLAYBOOK) playbooks/rotate_secrets.yml

operators: bootstrap ## List the operators and their parameters, from their code
	@python -m plugins.operators $(ARGS)

test: bootstrap ## All of it: lint, unit tests, the default scenario on real systemd hosts
	@.ci/stages lint unit scenario

SCENARIOS := $(patsubst molecule/%/molecule.yml,%,$(wildcard molecule/*/molecule.yml))
test-all: bootstrap ## Lint, unit tests, and every scenario, one after the other: restore, topologies … (hours)
	@.ci/stages lint unit $(SCENARIOS:%=scenario-%)

lint: bootstrap ## Formats, types and the production profile of ansible-lint
	ruff check .
	ruff format --check .
	mypy
	yamllint --strict .
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	check-jsonschema --builtin-schema vendor.gitlab-ci --data-transform gitlab-ci .gitlab-ci.yml
	ansible-lint

unit: bootstrap ## Unit tests (each against real parts where there are any)
	pytest --numprocesses auto --dist worksteal $(ARGS)

dag-test: bootstrap ## One DAG on this machine, against the local platform: make dag-test DAG=user_transformation
	@python tests/dags/run_dag.py $(DAG) $(ARGS)

SCENARIO ?= default
scenario: bootstrap ## One Molecule scenario: make scenario SCENARIO=default
	molecule test --scenario-name $(SCENARIO) $(ARGS)

scenario-%: bootstrap
	molecule test --scenario-name $* $(ARGS)

lock: bootstrap ## Resolve all Python packages anew, for the controller and the hosts
	.local/uv/bin/uv lock $(ARGS)
	$(call export_group,host,roles/host)
	$(call export_group,airflow,roles/airflow)
	$(call export_group,transformation-service,roles/transformation_service)

define export_group
.local/uv/bin/uv export --quiet --frozen --only-group $(1) --no-emit-project --no-header --no-annotate -o $(2)/files/requirements.txt
endef
