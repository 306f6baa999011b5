/* conf/: one schema of keys, types, units, bounds, defaults and help. It reads the YAML file, applies
 * environment and flags over it, validates, and prints. It knows no other module: daemon/ turns
 * `struct conf` into the option structs of the rooms. */
#ifndef SWITCHYARD_CONF_H
#define SWITCHYARD_CONF_H

#include "base/base.h"

enum conf_exec { CONF_EXEC_INTERP, CONF_EXEC_UNFUSED, CONF_EXEC_FUSED, CONF_EXEC_NATIVE };
enum conf_numerics { CONF_NUMERICS_INT8, CONF_NUMERICS_F32 };
enum conf_loader { CONF_LOADER_AUTO, CONF_LOADER_IO_URING, CONF_LOADER_PREAD, CONF_LOADER_BUFFERED };
enum conf_verify { CONF_VERIFY_ALWAYS, CONF_VERIFY_FIRST, CONF_VERIFY_NEVER };
/* Most that sched.max_sequences may be: tables of the engine are sized for it. */
#define CONF_SEQUENCES_MAX 1024

enum conf_kv { CONF_KV_F16, CONF_KV_Q8_0, CONF_KV_F32 };

/* Sampling defaults of an expert; NAN / -1 = not set (the server's default holds). */
struct conf_sampling {
    double temperature, top_p, min_p, repetition_penalty;
    int64_t top_k, max_tokens, seed;
};

/* One entry of `experts:`. Strings are never NULL ("" = not given). */
struct conf_expert {
    char *name;
    char **aliases;
    size_t aliases_count;
    char **keys;       /* of server.api_keys: who may use it; none = everyone who may come in */
    size_t keys_count;
    char *model;       /* a GGUF file to import on first use, or "" */
    char *base;        /* name of another expert whose weights it shares (adapters), or "" */
    char *adapter;     /* a GGUF LoRA file, or "" */
    double scale;      /* of the adapter, default 1 */
    char *description; /* shown to people and routers */
    char *label;       /* of the routing head, "" = its name */
    char **examples;   /* prompts for an expert that the head does not know */
    size_t examples_count;
    char *system;      /* system prompt put first when the client sends none */
    char *template_file; /* key `template`: a Jinja file that replaces the model's own */
    struct conf_sampling defaults;
    uint32_t context;  /* tokens; 0 = the model's own */
    bool hold;
    double ttl_s;      /* 0 = none */
    int32_t priority;
};

struct conf {
    /* server */
    char *server_host;         /* 127.0.0.1 */
    uint16_t server_port;      /* 8080 */
    uint16_t server_admin_port; /* 0 = none: /admin is at the store's admin.sock alone */
    char **server_api_keys;
    size_t server_api_keys_count;
    char **server_cors_origins;
    size_t server_cors_origins_count;
    char *server_unix_socket;  /* "" = none */
    uint64_t server_max_body_bytes; /* 8 MiB */
    double server_drain_s;     /* SIGTERM: how long running requests may take to finish, 30 */
    /* store, tiers */
    char *store_path;          /* $XDG_DATA_HOME/switchyard/store */
    uint64_t tiers_hbm_bytes;  /* 0 = automatic */
    uint64_t tiers_ddr_bytes;  /* 0 = none */
    uint64_t tiers_nvme_bytes; /* 0 = no limit */
    char *tiers_policy;        /* gdsf | lru */
    enum conf_loader tiers_loader;
    enum conf_verify tiers_verify;
    /* rdu */
    uint32_t rdu_sockets;      /* 8 */
    uint32_t rdu_threads;      /* 0 = automatic */
    enum conf_exec rdu_exec;   /* fused */
    enum conf_numerics rdu_numerics;
    char *rdu_chip;            /* "sn40l" */
    char *rdu_compiler;        /* "cc" */
    char *rdu_cache;           /* "" = below the user's cache directory */
    /* kv */
    enum conf_kv kv_type;      /* f16 */
    uint32_t kv_page_tokens;   /* 32 */
    uint64_t kv_spill_bytes;   /* 1 GiB; 0 = none */
    /* sched */
    uint32_t sched_max_sequences; /* 32 */
    uint32_t sched_max_queue;     /* 256 */
    uint32_t sched_max_defer_ms;  /* 500 */
    uint32_t sched_prefill_chunk; /* 256 tokens */
    uint32_t sched_draft_tokens;  /* 4 */
    /* router */
    char *router_head;         /* file; "" = the store's */
    char *router_encoder;      /* folder or GGUF file; "" = none */
    char *router_generalist;   /* expert name; "" = the first full expert */
    char **router_stages;      /* ["ngram"] */
    size_t router_stages_count;
    double router_lambda, router_margin;
    char *router_rules, *router_log; /* files, "" = none */
    char *router_policy;
    /* experts */
    struct conf_expert *experts;
    size_t experts_count;
    /* log */
    char *log_level;           /* error | warn | info | debug */
    bool log_requests;         /* one JSON line per request, true */
};

/* Fill `c` with the defaults. */
void conf_init(struct conf *c);
void conf_done(struct conf *c);

/* Read a YAML file over what `c` holds. Unknown keys, wrong types and values out of bounds are
 * ERR_INVALID with the key's path in e->param and line and column in the message. On failure `c`
 * is unchanged. */
enum err_code conf_load_file(struct conf *c, const char *path, struct err *e) BASE_NODISCARD;

/* Set one key from text ("tiers.hbm", "512MiB"), as flags and environment do. Lists are comma-
 * separated; `experts` cannot be set so. */
enum err_code conf_set(struct conf *c, const char *key, const char *value, struct err *e)
    BASE_NODISCARD;

/* Environment SWITCHYARD_TIERS_HBM=... for every scalar key (dots become underscores); variables
 * that name no key are left alone (SWITCHYARD_CPU and others belong to other rooms). */
enum err_code conf_load_environment(struct conf *c, struct err *e) BASE_NODISCARD;

/* Rules across keys: names unique, base exists, non-loopback bind without a key is refused, policy
 * known, page_tokens a multiple of 32, ... */
enum err_code conf_validate(const struct conf *c, struct err *e) BASE_NODISCARD;

/* The effective configuration as YAML (json = false) or JSON; API keys are shown as "***". */
void conf_format(const struct conf *c, bool json, struct buf *out);

/* The schema, for help and documentation: key, type, default, unit or choices, one-line help. */
struct conf_key_info {
    const char *key, *type, *default_text, *help;
};
const struct conf_key_info *conf_keys(size_t *ret_count);

#endif
