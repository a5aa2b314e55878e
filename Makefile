# The two commands of the README are `make run` and `make test`; the rest is for work on Kiln itself.
.PHONY: run test cluster cluster-down test-cluster soak fuzz bench openapi sqlx

run: ## Set up what is missing, start `kiln dev`, run the sample build, serve until Ctrl-C
	@scripts/run.sh

test: ## Format, lints, unit tests, Postgres tests, API tests, local-runner builds
	@scripts/test.sh

cluster: ## Bring up a real two-node Kubernetes with registry, git server and builder images
	@scripts/cluster/up.sh

cluster-down: ## Stop it; what was built stays cached
	@scripts/cluster/down.sh

test-cluster: ## Run tests/cluster against it
	@scripts/test-cluster.sh

soak: ## Run the property tests with many cases that were never tried before
	@scripts/soak.sh

fuzz: ## Throw bytes at all that reads what comes from outside, a minute each
	@scripts/fuzz.sh

bench: ## Measure, beside the ceilings
	@scripts/bench.sh

openapi: ## Regenerate openapi/openapi.json
	@scripts/openapi.sh

sqlx: ## Regenerate the offline query data in .sqlx
	@scripts/sqlx.sh
