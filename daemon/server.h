/* What the HTTP side is made of: the open server with everything a handler needs. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_SERVER_H
#define SWITCHYARD_DAEMON_SERVER_H

#include "conf/conf.h"
#include "daemon/engine.h"
#include "daemon/stack.h"
#include "daemon/tool_format.h"

/* An expert as this server serves it: what the configuration says over what the store says. */
struct server_expert {
    const struct conf_expert *conf; /* NULL = the configuration does not mention it */
    const char *system;             /* put first when the client sends none; "" = nothing */
    const struct chat_template *template; /* NULL = the model has none */
    struct chat_template *template_own;   /* read from the configuration's file; owned */
    struct tool_format tools;       /* of calls, as the template has them */
    const struct guard *guard;      /* daemon/api_guard.h; shared by experts of one tokenizer */
    uint32_t context;               /* tokens */
    int32_t priority;
};

struct server_guard {
    const struct tokenizer *tokenizer;
    struct guard *guard;
};

struct server {
    const struct conf *conf;        /* effective configuration; main thread owns */
    struct stack stack;             /* owns the next four */
    struct memtier_store *store;
    struct memtier *memtier;
    struct rdu_node *node;
    struct experts *experts;
    struct router_head *head;       /* NULL = none loaded */
    struct routing *routing;        /* daemon/routing.h; NULL = none: the generalist answers */
    atomic_uint jobs;               /* work off the HTTP threads that a connection waits for */
    int *label_to_expert;           /* [router labels] expert index or -1 */
    bool *label_allowed;            /* [router labels] names an expert, or is the generalist's */
    struct expert *generalist;
    struct server_expert *serving;  /* [experts_count] */
    struct server_guard *guards;    /* owned; one per tokenizer */
    size_t guards_count;
    struct engine *engine;
    struct metrics *metrics;        /* daemon/metrics.h */
    struct logger *log;             /* daemon/log.h */
    struct http *http;              /* daemon/http.h */
    struct admin *admin;            /* daemon/admin.h */
    atomic_bool ready, draining;
    atomic_uint preloads;           /* held experts that are still on their way in */
    uint64_t started_ns;
};

/* Open in dependency order from a validated configuration; prints the budget table. On failure all that
 * was opened is closed. `model_path`: import this GGUF first if its content is new ("" = none). */
enum err_code server_open(const struct conf *c, const char *model_path, struct server *ret,
                          struct err *e) BASE_NODISCARD;
/* The same experts, router and engine over what the store holds, with no HTTP, metrics or log: for commands
 * that answer in process. Reads the store beside a daemon that serves it. */
enum err_code server_open_offline(const struct conf *c, struct server *ret, struct err *e) BASE_NODISCARD;
void server_close(struct server *s);
/* The generalist and what the configuration holds are in memory. Any thread. */
static inline bool server_ready(struct server *s)
{
    return atomic_load(&s->ready) && engine_ready(s->engine) && atomic_load(&s->preloads) == 0;
}

/* By name, by the store's aliases or by the configuration's; NULL = unknown. Any thread. */
struct expert *server_find_expert(struct server *s, const char *name);
const struct server_expert *server_expert_of(const struct server *s, const struct expert *ex);

#endif
