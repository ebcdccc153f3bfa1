# Two commands do everything: `make demo` and `make test`. Both need only python3 (3.11+) with venv.
.PHONY: demo test run lint lock
demo:
	@DEMO_EXIT="$(DEMO_EXIT)" PHOTOS="$(PHOTOS)" PORT="$(PORT)" scripts/demo
test:
	@scripts/test
run:
	@PORT="$(PORT)" scripts/run
lint:
	@scripts/lint
lock:
	@scripts/lock
