#!/usr/bin/env bash
# Installs Chromium and its driver, which the report's tests need, from the system's packages.
# If that is impossible, it prints a message and exits with 0: only the tests that need a browser then fail.
set -euo pipefail
if command -v chromium chromedriver > /dev/null && [ "$(command -v chromium chromedriver | wc -l)" = 2 ]; then
  exit 0
fi
echo "Installing Chromium and its driver for the report's tests"
as_root=""
if [ "$(id -u)" != 0 ]; then
  as_root="sudo -n"
fi
if ! { command -v apt-get > /dev/null && $as_root apt-get update -qq \
    && $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver > /dev/null; }; then
  echo "This needs apt-get and root. Install chromium and chromedriver in another way, or the report's tests will fail." >&2
fi
