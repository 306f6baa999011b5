/* The table of keys. Order matters: the rows of one section stand together, and conf_format and the
 * help print them in this order. */
#include "conf/schema.h"

#include <string.h>

#define TOP(field) .at = offsetof(struct conf, field)
#define TOP_LIST(field)                                                                            \
    .kind = CONF_KIND_LIST, .at = offsetof(struct conf, field),                                    \
    .count_at = offsetof(struct conf, field##_count)
#define RANGE(lo, hi) .min = (lo), .max = (hi)
#define SIZE_LIMIT 0x1p60 /* 1 EiB: nothing real is larger, and sums cannot overflow */

const struct conf_key conf_top_keys[] = {
    /* server */
    {.name = "server.host",
     .kind = CONF_KIND_TEXT,
     TOP(server_host),
     .default_text = "127.0.0.1",
     .help = "Address to listen on. Any but a loopback address needs server.api_keys."},
    {.name = "server.port",
     .kind = CONF_KIND_UINT16,
     TOP(server_port),
     RANGE(0, 65535),
     .default_text = "8080",
     .help = "TCP port; 0 takes a free one and prints it."},
    {.name = "server.admin_port",
     .kind = CONF_KIND_UINT16,
     TOP(server_admin_port),
     RANGE(0, 65535),
     .default_text = "0",
     .help = "TCP port of 127.0.0.1 for /admin; 0 = none. The socket admin.sock in the store "
             "always answers."},
    {.name = "server.api_keys",
     TOP_LIST(server_api_keys),
     .default_text = "",
     .secret = true,
     .help = "Keys that clients send as `Authorization: Bearer KEY`; none = no key is asked for."},
    {.name = "server.cors_origins",
     TOP_LIST(server_cors_origins),
     .default_text = "",
     .help = "Origins whose web pages may call the API, or `*`; none = no CORS headers."},
    {.name = "server.unix_socket",
     .kind = CONF_KIND_PATH,
     TOP(server_unix_socket),
     .default_text = "",
     .help = "Path of a UNIX socket to listen on as well; empty = none."},
    {.name = "server.max_body",
     .kind = CONF_KIND_BYTES,
     TOP(server_max_body_bytes),
     RANGE(1024, 0x1p30),
     .default_text = "8MiB",
     .help = "Largest request body; a larger one is refused with 413."},
    {.name = "server.drain_s",
     .kind = CONF_KIND_NUMBER,
     TOP(server_drain_s),
     RANGE(0, 3600),
     .default_text = "30",
     .help = "Seconds that running requests may take to finish after SIGTERM."},
    /* store */
    {.name = "store.path",
     .kind = CONF_KIND_PATH,
     TOP(store_path),
     .default_text = "$XDG_DATA_HOME/switchyard/store",
     .help = "Directory of the expert store. Without XDG_DATA_HOME it is below ~/.local/share, "
             "without a home below /var/lib."},
    /* tiers */
    {.name = "tiers.hbm",
     .kind = CONF_KIND_BYTES,
     TOP(tiers_hbm_bytes),
     RANGE(0, SIZE_LIMIT),
     .default_text = "0",
     .help = "Memory that kernels read: resident experts and KV pages, a hard limit; 0 = the "
             "smaller of half the usable memory and what all experts need."},
    {.name = "tiers.ddr",
     .kind = CONF_KIND_BYTES,
     TOP(tiers_ddr_bytes),
     RANGE(0, SIZE_LIMIT),
     .default_text = "0",
     .help = "Second memory pool behind hbm for demoted experts; only worth it where it is other "
             "memory; 0 = none."},
    {.name = "tiers.nvme",
     .kind = CONF_KIND_BYTES,
     TOP(tiers_nvme_bytes),
     RANGE(0, SIZE_LIMIT),
     .default_text = "0",
     .help = "Most bytes the store may take on disk; 0 = no limit."},
    {.name = "tiers.policy",
     .kind = CONF_KIND_TEXT,
     TOP(tiers_policy),
     .choices = "lru|gdsf",
     .default_text = "gdsf",
     .help = "What is evicted first: lru = used longest ago, gdsf = cheapest to bring back per "
             "byte and use."},
    {.name = "tiers.loader",
     .kind = CONF_KIND_CHOICE,
     TOP(tiers_loader),
     .choices = "auto|io_uring|pread|buffered",
     .default_text = "auto",
     .help = "How segments are read from the store; auto probes io_uring, then direct reads, then "
             "buffered ones."},
    {.name = "tiers.verify",
     .kind = CONF_KIND_CHOICE,
     TOP(tiers_verify),
     .choices = "always|first|never",
     .default_text = "first",
     .help = "When a loaded segment is checked against its hash."},
    /* rdu */
    {.name = "rdu.sockets",
     .kind = CONF_KIND_UINT32,
     TOP(rdu_sockets),
     RANGE(1, 16),
     .default_text = "8",
     .help = "Emulated sockets of the node; any number gives the same bits."},
    {.name = "rdu.threads",
     .kind = CONF_KIND_UINT32,
     TOP(rdu_threads),
     RANGE(0, 1024),
     .default_text = "0",
     .help = "Threads that play the sockets; 0 = as many as affinity and cgroup allow."},
    {.name = "rdu.exec",
     .kind = CONF_KIND_CHOICE,
     TOP(rdu_exec),
     .choices = "interp|unfused|fused|native",
     .default_text = "fused",
     .help = "Execution level: interpreted, one launch per operator, fused kernels, or compiled. "
             "All give the same bits."},
    {.name = "rdu.numerics",
     .kind = CONF_KIND_CHOICE,
     TOP(rdu_numerics),
     .choices = "int8|f32",
     .default_text = "int8",
     .help = "Activations in matrix products: rounded to 8 bits (fast) or 32-bit floats."},
    {.name = "rdu.chip",
     .kind = CONF_KIND_TEXT,
     TOP(rdu_chip),
     .default_text = "sn40l",
     .help = "Chip description behind node time: a name in conf/chips, or the path of a file."},
    {.name = "rdu.compiler",
     .kind = CONF_KIND_TEXT,
     TOP(rdu_compiler),
     .default_text = "cc",
     .help = "C compiler of `rdu.exec: native`; empty = never compile."},
    {.name = "rdu.cache",
     .kind = CONF_KIND_PATH,
     TOP(rdu_cache),
     .default_text = "",
     .help = "Directory of compiled objects; empty = below the user's cache directory."},
    /* kv */
    {.name = "kv.type",
     .kind = CONF_KIND_CHOICE,
     TOP(kv_type),
     .choices = "f16|q8_0|f32",
     .default_text = "f16",
     .help = "Element type of the KV cache."},
    {.name = "kv.page_tokens",
     .kind = CONF_KIND_UINT32,
     TOP(kv_page_tokens),
     RANGE(32, 1024),
     .default_text = "32",
     .help = "Tokens per KV page, a multiple of 32."},
    {.name = "kv.spill",
     .kind = CONF_KIND_BYTES,
     TOP(kv_spill_bytes),
     RANGE(0, SIZE_LIMIT),
     .default_text = "1GiB",
     .help = "File of the store for KV pages of idle conversations, emptied at start; 0 = "
             "none."},
    /* sched */
    {.name = "sched.max_sequences",
     .kind = CONF_KIND_UINT32,
     TOP(sched_max_sequences),
     RANGE(1, CONF_SEQUENCES_MAX),
     .default_text = "32",
     .help = "Sequences that run at once; others queue."},
    {.name = "sched.max_queue",
     .kind = CONF_KIND_UINT32,
     TOP(sched_max_queue),
     RANGE(1, 65536),
     .default_text = "256",
     .help = "Requests that may wait; more are refused with 503."},
    {.name = "sched.max_defer_ms",
     .kind = CONF_KIND_UINT32,
     TOP(sched_max_defer_ms),
     RANGE(0, 600000),
     .default_text = "500",
     .help = "Longest time in ms that a request waits because others share an expert."},
    {.name = "sched.prefill_chunk",
     .kind = CONF_KIND_UINT32,
     TOP(sched_prefill_chunk),
     RANGE(1, 8192),
     .default_text = "256",
     .help = "Most prompt tokens per step; fewer while others wait for their next token."},
    {.name = "sched.draft_tokens",
     .kind = CONF_KIND_UINT32,
     TOP(sched_draft_tokens),
     RANGE(0, 8),
     .default_text = "4",
     .help = "Tokens guessed ahead from the text so far while few sequences run; 0 = never."},
    /* router */
    {.name = "router.head",
     .kind = CONF_KIND_PATH,
     TOP(router_head),
     .default_text = "",
     .help = "File of the trained routing head; empty = the store's."},
    {.name = "router.encoder",
     .kind = CONF_KIND_PATH,
     TOP(router_encoder),
     .default_text = "",
     .help = "Sentence encoder of the head's second stage and of /v1/embeddings: a folder with "
             "config.json and model.safetensors, or a GGUF file; empty = none."},
    {.name = "router.generalist",
     .kind = CONF_KIND_TEXT,
     TOP(router_generalist),
     .default_text = "",
     .help = "Expert that answers when the router is not sure; empty = the first full expert."},
    {.name = "router.stages",
     TOP_LIST(router_stages),
     .choices = "ngram|encoder|llm",
     .default_text = "ngram, encoder",
     .help = "Stages asked in turn until one is sure; none = always the generalist."},
    {.name = "router.lambda",
     .kind = CONF_KIND_NUMBER,
     TOP(router_lambda),
     RANGE(0, 1e6),
     .default_text = "0",
     .help = "Confidence given up per second of loading and queueing; 0 = choose by text alone."},
    {.name = "router.margin",
     .kind = CONF_KIND_NUMBER,
     TOP(router_margin),
     RANGE(0, 1),
     .default_text = "0.1",
     .help = "Experts within this confidence of the best may win on cost."},
    {.name = "router.policy",
     .kind = CONF_KIND_TEXT,
     TOP(router_policy),
     .default_text = "",
     .help = "Expression that chooses among experts within the margin; empty = the built-in one."},
    {.name = "router.rules",
     .kind = CONF_KIND_PATH,
     TOP(router_rules),
     .default_text = "",
     .help = "JSON file of rules that pin or forbid experts before any score; empty = none."},
    {.name = "router.log",
     .kind = CONF_KIND_PATH,
     TOP(router_log),
     .default_text = "",
     .help = "File that gets every decision as a line of JSON, for route replay; empty = none."},
    /* log */
    {.name = "log.level",
     .kind = CONF_KIND_TEXT,
     TOP(log_level),
     .choices = "error|warn|info|debug",
     .default_text = "info",
     .help = "Least important message that is logged."},
    {.name = "log.requests",
     .kind = CONF_KIND_BOOL,
     TOP(log_requests),
     .default_text = "true",
     .help = "One JSON line per finished request with its account."},
};
const size_t conf_top_keys_count = BASE_COUNT(conf_top_keys);
_Static_assert(BASE_COUNT(conf_top_keys) < CONF_KEYS_MAX, "raise CONF_KEYS_MAX");

#define EXPERT(field) .at = offsetof(struct conf_expert, field)

const struct conf_key conf_expert_keys[] = {
    {.name = "name",
     .kind = CONF_KIND_TEXT,
     EXPERT(name),
     .default_text = "",
     .help = "What clients send as `model`. Alone it names an expert that the store already has."},
    {.name = "aliases",
     .kind = CONF_KIND_LIST,
     EXPERT(aliases),
     .count_at = offsetof(struct conf_expert, aliases_count),
     .default_text = "",
     .help = "Other names for it."},
    {.name = "keys",
     .kind = CONF_KIND_LIST,
     EXPERT(keys),
     .count_at = offsetof(struct conf_expert, keys_count),
     .default_text = "",
     .secret = true,
     .help = "Those of server.api_keys that may use it; none = all of them."},
    {.name = "model",
     .kind = CONF_KIND_PATH,
     EXPERT(model),
     .default_text = "",
     .help = "GGUF file to import on first use."},
    {.name = "base",
     .kind = CONF_KIND_TEXT,
     EXPERT(base),
     .default_text = "",
     .help = "Expert whose weights it shares; that expert is listed here too."},
    {.name = "adapter",
     .kind = CONF_KIND_PATH,
     EXPERT(adapter),
     .default_text = "",
     .help = "GGUF LoRA file to put on the base."},
    {.name = "scale",
     .kind = CONF_KIND_NUMBER,
     EXPERT(scale),
     RANGE(-100, 100),
     .default_text = "1",
     .help = "Strength of the adapter; 1 = as trained."},
    {.name = "description",
     .kind = CONF_KIND_TEXT,
     EXPERT(description),
     .default_text = "",
     .help = "What it is good at, shown to people and routers."},
    {.name = "label",
     .kind = CONF_KIND_TEXT,
     EXPERT(label),
     .default_text = "",
     .help = "Label of the routing head that it answers; empty = its name. Several may share one."},
    {.name = "examples",
     .kind = CONF_KIND_LIST,
     EXPERT(examples),
     .count_at = offsetof(struct conf_expert, examples_count),
     .default_text = "",
     .help = "Prompts for it, when the head does not know it: five are enough; needs router.encoder."},
    {.name = "system",
     .kind = CONF_KIND_TEXT,
     EXPERT(system),
     .default_text = "",
     .help = "System prompt put first when the client sends none."},
    {.name = "template",
     .kind = CONF_KIND_PATH,
     EXPERT(template_file),
     .default_text = "",
     .help = "Jinja chat template that replaces the model's own."},
    {.name = "defaults.temperature",
     .kind = CONF_KIND_NUMBER,
     EXPERT(defaults.temperature),
     RANGE(0, 2),
     .default_text = "",
     .help = "Temperature when the client sends none."},
    {.name = "defaults.top_p",
     .kind = CONF_KIND_NUMBER,
     EXPERT(defaults.top_p),
     RANGE(0, 1),
     .default_text = "",
     .help = "Nucleus sampling when the client sends none."},
    {.name = "defaults.min_p",
     .kind = CONF_KIND_NUMBER,
     EXPERT(defaults.min_p),
     RANGE(0, 1),
     .default_text = "",
     .help = "Least probability relative to the best token."},
    {.name = "defaults.repetition_penalty",
     .kind = CONF_KIND_NUMBER,
     EXPERT(defaults.repetition_penalty),
     RANGE(0.01, 100),
     .default_text = "",
     .help = "Penalty on tokens that occurred; 1 = none."},
    {.name = "defaults.top_k",
     .kind = CONF_KIND_INT64,
     EXPERT(defaults.top_k),
     RANGE(0, 1e6),
     .default_text = "",
     .help = "Most probable tokens to choose from; 0 = all."},
    {.name = "defaults.max_tokens",
     .kind = CONF_KIND_INT64,
     EXPERT(defaults.max_tokens),
     RANGE(1, 1e7),
     .default_text = "",
     .help = "Longest answer when the client sends no limit."},
    {.name = "defaults.seed",
     .kind = CONF_KIND_INT64,
     EXPERT(defaults.seed),
     RANGE(0, 0x1p53),
     .default_text = "",
     .help = "Seed when the client sends none."},
    {.name = "context",
     .kind = CONF_KIND_UINT32,
     EXPERT(context),
     RANGE(0, 16777216),
     .default_text = "0",
     .help = "Longest prompt and answer in tokens; 0 = the model's own."},
    {.name = "hold",
     .kind = CONF_KIND_BOOL,
     EXPERT(hold),
     .default_text = "false",
     .help = "Never evict it from hbm."},
    {.name = "ttl_s",
     .kind = CONF_KIND_NUMBER,
     EXPERT(ttl_s),
     RANGE(0, 1e9),
     .default_text = "0",
     .help = "Seconds after its last use at which it leaves hbm; 0 = when room is needed."},
    {.name = "priority",
     .kind = CONF_KIND_INT32,
     EXPERT(priority),
     RANGE(-1000, 1000),
     .default_text = "0",
     .help = "Requests for a higher priority run first."},
};
const size_t conf_expert_keys_count = BASE_COUNT(conf_expert_keys);
_Static_assert(BASE_COUNT(conf_expert_keys) < CONF_KEYS_MAX, "raise CONF_KEYS_MAX");

/* ---- finding ---- */

const struct conf_key *conf_key_find(const struct conf_key *keys, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(keys[i].name, name) == 0)
            return &keys[i];
    }
    return NULL;
}

bool conf_key_is_section(const struct conf_key *keys, size_t count, const char *name)
{
    size_t len = strlen(name);
    for (size_t i = 0; i < count; i++) {
        if (strncmp(keys[i].name, name, len) == 0 && keys[i].name[len] == '.')
            return true;
    }
    return false;
}

enum { NAME_MAX_COMPARED = 40 };

/* Levenshtein distance; names longer than the table's own are near nothing. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t a_len = strlen(a), b_len = strlen(b);
    size_t row[NAME_MAX_COMPARED + 1];
    if (a_len > NAME_MAX_COMPARED || b_len > NAME_MAX_COMPARED)
        return SIZE_MAX;
    for (size_t j = 0; j <= b_len; j++)
        row[j] = j;
    for (size_t i = 1; i <= a_len; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b_len; j++) {
            size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = BASE_MIN(replaced, BASE_MIN(row[j], row[j - 1]) + 1);
        }
    }
    return row[b_len];
}

static const char *last_part(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot != NULL ? dot + 1 : name;
}

const char *conf_key_nearest(const struct conf_key *keys, size_t count, const char *name)
{
    const char *best = NULL;
    size_t best_distance = 4; /* further away is no misspelling */
    for (size_t i = 0; i < count; i++) {
        size_t distance = edit_distance(name, keys[i].name);
        /* The right word in the wrong section. */
        if (strcmp(last_part(name), last_part(keys[i].name)) == 0)
            distance = BASE_MIN(distance, 2);
        if (distance < best_distance) {
            best_distance = distance;
            best = keys[i].name;
        }
    }
    return best;
}
