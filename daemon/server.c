/* Opening and closing the server: store, tiers, node and experts (stack.c), then what the
 * configuration says over them, router, engine, HTTP. */
#include "daemon/server.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/admin.h"
#include "daemon/api_guard.h"
#include "daemon/cli.h"
#include "daemon/engine_order.h"
#include "daemon/http.h"
#include "daemon/import_memo.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/plan.h"
#include "daemon/report.h"
#include "daemon/routing.h"

#define TEMPLATE_BYTES_MAX BASE_MIB

/* ---- importing what the configuration names ------------------------------------------------- */

static const char *file_of(const struct conf_expert *x)
{
    return x->adapter[0] != 0 ? x->adapter : x->model;
}

static bool is_imported(const struct conf *c, const struct conf_expert *x)
{
    char *name = import_memo_find(c, file_of(x));
    bool same = name != NULL && strcmp(name, x->name) == 0;
    free(name);
    return same;
}

/* An expert that is there with equal content is left as it is; with other content it is refused. */
static enum err_code import_one(struct memtier_store *store, const struct conf_expert *x,
                                const struct progress *progress, struct err *e)
{
    struct expert_add_report report;
    const struct expert_add_options add = {
        .path = file_of(x),
        .name = x->name,
        .base = x->base[0] != 0 ? x->base : NULL,
        .scale = x->scale,
        .description = x->description[0] != 0 ? x->description : NULL,
    };
    if (experts_add(store, &add, progress, &report, e) == ERR_OK)
        return ERR_OK;
    return err_wrap(e, "importing expert '%s'", x->name);
}

/* Bases before the adapters that sit on them. */
static enum err_code import_list(const struct conf *c, const bool *wanted,
                                 const struct progress *progress, struct err *e)
{
    struct memtier_store *store = NULL;
    enum err_code code = memtier_store_open(c->store_path, MEMTIER_WRITE, &store, e);
    for (int adapters = 0; adapters < 2; adapters++)
        for (size_t i = 0; i < c->experts_count && code == ERR_OK; i++)
            if (wanted[i] && (c->experts[i].adapter[0] != 0) == (adapters == 1))
                code = import_one(store, &c->experts[i], progress, e);
    memtier_store_close(&store);
    for (size_t i = 0; i < c->experts_count && code == ERR_OK; i++)
        if (wanted[i])
            import_memo_note(c, file_of(&c->experts[i]), c->experts[i].name);
    return code;
}

static enum err_code import_configured(const struct conf *c, const struct progress *progress,
                                       struct err *e)
{
    bool *wanted = mem_array(c->experts_count + 1, sizeof *wanted), any = false;
    for (size_t i = 0; i < c->experts_count; i++) {
        wanted[i] = file_of(&c->experts[i])[0] != 0 && !is_imported(c, &c->experts[i]);
        any |= wanted[i];
    }
    enum err_code code = any ? import_list(c, wanted, progress, e) : ERR_OK;
    free(wanted);
    return code;
}

static enum err_code import_model(const struct conf *c, const char *model_path,
                                  const struct progress *progress, char **ret_name, struct err *e)
{
    *ret_name = import_memo_find(c, model_path);
    if (*ret_name != NULL)
        return ERR_OK;
    enum err_code code = stack_import(c, model_path, progress, ret_name, e);
    if (code == ERR_OK)
        import_memo_note(c, model_path, *ret_name);
    return code;
}

static enum err_code import_all(const struct conf *c, const char *model_path, char **ret_name,
                                struct err *e)
{
    struct cli_bar bar;
    cli_bar_init(&bar);
    struct progress progress = cli_bar_progress(&bar);
    enum err_code code = ERR_OK;
    if (model_path[0] != 0)
        code = import_model(c, model_path, &progress, ret_name, e);
    if (code == ERR_OK)
        code = import_configured(c, &progress, e);
    cli_bar_done(&bar);
    return code;
}

/* ---- experts as served ---------------------------------------------------------------------- */

static const struct conf_expert *conf_of(const struct conf *c, const char *name)
{
    for (size_t i = 0; i < c->experts_count; i++)
        if (strcmp(c->experts[i].name, name) == 0)
            return &c->experts[i];
    return NULL;
}

static const struct guard *guard_of(struct server *s, const struct tokenizer *t)
{
    for (size_t i = 0; i < s->guards_count; i++)
        if (s->guards[i].tokenizer == t)
            return s->guards[i].guard;
    s->guards = mem_grow(s->guards, s->guards_count + 1, sizeof *s->guards);
    struct server_guard *g = &s->guards[s->guards_count++];
    *g = (struct server_guard){.tokenizer = t, .guard = guard_open(t)};
    return g->guard;
}

static enum err_code read_template(const char *path, struct chat_template **ret, struct err *e)
{
    struct buf text = {0};
    enum err_code code = file_read(path, TEMPLATE_BYTES_MAX, &text, e);
    if (code == ERR_OK)
        code = template_parse(text.data != NULL ? text.data : "", text.len, ret, e);
    buf_done(&text);
    return code;
}

static enum err_code open_serving(struct server *s, struct expert *ex, struct server_expert *to,
                                  struct err *e)
{
    const struct expert_info *info = expert_info(ex);
    const struct conf_expert *conf = conf_of(s->conf, info->name);
    to->conf = conf;
    to->system = info->system != NULL ? info->system : "";
    if (!expert_ok(ex, NULL))
        return ERR_OK; /* listed with its error, never run */
    to->template = expert_template(ex);
    to->guard = guard_of(s, expert_tokenizer(ex));
    to->context = expert_context(ex);
    tool_format_probe(to->template, expert_tokenizer(ex), &to->tools);
    if (conf == NULL)
        return ERR_OK;
    to->priority = conf->priority;
    if (conf->system[0] != 0)
        to->system = conf->system;
    if (conf->context > 0)
        to->context = BASE_MIN(conf->context, to->context);
    if (conf->template_file[0] == 0)
        return ERR_OK;
    if (read_template(conf->template_file, &to->template_own, e) != ERR_OK)
        return err_wrap(e, "template of expert '%s'", info->name);
    to->template = to->template_own;
    tool_format_probe(to->template, expert_tokenizer(ex), &to->tools);
    return ERR_OK;
}

static enum err_code check_one(struct server *s, const struct conf_expert *x, struct err *e)
{
    struct expert *ex = experts_find(s->experts, x->name);
    if (ex == NULL)
        return err_set_param(e, ERR_NOT_FOUND, "experts",
                             "the configuration names the expert '%s', but the store %s has none "
                             "of that name and no `model` or `adapter` file is given to import it "
                             "from",
                             x->name, s->conf->store_path);
    double scale = expert_info(ex)->scale;
    if (x->adapter[0] != 0 && (x->scale < scale || x->scale > scale))
        return err_set_param(e, ERR_EXISTS, "experts",
                             "expert '%s' was imported with scale %g, but the configuration says "
                             "%g: remove it ('switchyard experts rm %s') and it will be imported "
                             "again",
                             x->name, scale, x->scale, x->name);
    return ERR_OK;
}

static enum err_code check_configured(struct server *s, struct err *e)
{
    enum err_code code = ERR_OK;
    for (size_t i = 0; i < s->conf->experts_count && code == ERR_OK; i++)
        code = check_one(s, &s->conf->experts[i], e);
    return code;
}

static enum err_code open_experts(struct server *s, struct err *e)
{
    size_t count = experts_count(s->experts);
    if (count == 0)
        return err_set(e, ERR_NOT_FOUND,
                       "the store %s has no experts: give --model FILE.gguf, or "
                       "add some with 'switchyard experts add FILE --name NAME'",
                       s->conf->store_path);
    s->serving = mem_array(count, sizeof *s->serving);
    enum err_code code = check_configured(s, e);
    for (size_t i = 0; i < count && code == ERR_OK; i++)
        code = open_serving(s, experts_at(s->experts, i), &s->serving[i], e);
    return code;
}

struct expert *server_find_expert(struct server *s, const char *name)
{
    struct expert *ex = experts_find(s->experts, name);
    for (size_t i = 0; ex == NULL && i < experts_count(s->experts); i++) {
        const struct conf_expert *conf = s->serving[i].conf;
        for (size_t k = 0; conf != NULL && k < conf->aliases_count; k++)
            if (strcmp(conf->aliases[k], name) == 0)
                ex = experts_at(s->experts, i);
    }
    return ex;
}

const struct server_expert *server_expert_of(const struct server *s, const struct expert *ex)
{
    return &s->serving[expert_index(ex)];
}

/* ---- the generalist, holds, the router ------------------------------------------------------ */

/* How good a choice an expert is without a word from anyone: full weights before adapters, then the
 * one that most adapters sit on. */
static size_t generality(const struct server *s, struct expert *ex)
{
    size_t over = 0;
    if (!expert_ok(ex, NULL))
        return 0;
    for (size_t i = 0; i < experts_count(s->experts); i++) {
        struct expert *other = experts_at(s->experts, i);
        over += expert_ok(other, NULL) && expert_base_index(other) == expert_base_index(ex);
    }
    return expert_info(ex)->is_adapter ? 1 : 1 + over;
}

/* Who answers when the router abstains: as configured, else the model given on the command line,
 * else the most general one. */
static enum err_code choose_generalist(struct server *s, const char *imported, struct err *e)
{
    const char *name = s->conf->router_generalist;
    s->generalist = name[0] != 0       ? server_find_expert(s, name)
                    : imported != NULL ? experts_find(s->experts, imported)
                                       : NULL;
    if (name[0] != 0 && s->generalist == NULL)
        return err_set_param(e, ERR_NOT_FOUND, "router.generalist",
                             "router.generalist is '%s', but there is no such expert", name);
    size_t best = 0;
    for (size_t i = 0; i < experts_count(s->experts) && name[0] == 0 && imported == NULL; i++) {
        struct expert *ex = experts_at(s->experts, i);
        if (generality(s, ex) <= best)
            continue;
        best = generality(s, ex);
        s->generalist = ex;
    }
    if (s->generalist == NULL) {
        expert_ok(experts_at(s->experts, 0), e);
        return err_wrap(e, "no expert of the store can serve; the first says");
    }
    return ERR_OK;
}

/* ---- held experts --------------------------------------------------------------------------- */

struct preload {
    struct engine_order order;
    struct server *server;
};

/* On the engine's thread. */
static void preload_done(struct engine_order *o)
{
    struct preload *p = o->ctx;
    char size[32];
    if (o->error.code == ERR_OK)
        logger_event(p->server->log, LOG_INFO, "hold", "%s is in hbm and held: %s in %.0f ms",
                     expert_info(o->expert)->name, size_format(o->bytes, size, sizeof size),
                     (double)o->ns * 1e-6);
    else if (o->error.code != ERR_SHUTDOWN)
        logger_event(p->server->log, LOG_ERROR, "hold", "%s cannot be held: %s",
                     expert_info(o->expert)->name, o->error.msg);
    atomic_fetch_sub(&p->server->preloads, 1);
    free(p);
}

static bool is_held(const struct server *s, size_t i)
{
    const struct conf_expert *conf = s->serving[i].conf;
    struct expert *ex = experts_at(s->experts, i);
    return conf != NULL && conf->hold && ex != s->generalist && expert_ok(ex, NULL);
}

/* What the configuration holds is brought in at once, and the server is ready when it is there. */
static void preload_held(struct server *s)
{
    for (size_t i = 0; i < experts_count(s->experts); i++) {
        if (!is_held(s, i))
            continue;
        struct preload *p = mem_alloc(sizeof *p);
        p->server = s;
        p->order = (struct engine_order){.kind = ENGINE_ORDER_HOLD,
                                         .expert = experts_at(s->experts, i),
                                         .patience_ns = 60000000000ull,
                                         .done = preload_done,
                                         .ctx = p};
        atomic_fetch_add(&s->preloads, 1);
        engine_order_submit(s->engine, &p->order);
    }
}

/* Times to live, by expert; caller frees; NULL = none has one. */
static uint64_t *times_to_live(const struct server *s)
{
    size_t count = experts_count(s->experts);
    uint64_t *ttl = NULL;
    for (size_t i = 0; i < count; i++) {
        const struct conf_expert *conf = s->serving[i].conf;
        if (conf == NULL || !(conf->ttl_s > 0))
            continue;
        if (ttl == NULL)
            ttl = mem_array(count, sizeof *ttl);
        ttl[i] = (uint64_t)(conf->ttl_s * 1e9);
    }
    return ttl;
}

/* ---- open and close ------------------------------------------------------------------------- */

static enum err_code open_stack(struct server *s, enum memtier_access access, struct err *e)
{
    enum err_code code = stack_open(s->conf, access, &s->stack, e);
    s->store = s->stack.store;
    s->memtier = s->stack.memtier;
    s->node = s->stack.node;
    s->experts = s->stack.experts;
    return code;
}

static enum err_code open_engine(struct server *s, struct err *e)
{
    const struct conf *c = s->conf;
    uint64_t *ttl = times_to_live(s);
    const struct engine_options options = {
        .experts = s->experts,
        .memtier = s->memtier,
        .node = s->node,
        .generalist = s->generalist,
        .max_sequences = c->sched_max_sequences,
        .draft_tokens = c->sched_draft_tokens,
        .max_queue = c->sched_max_queue,
        .max_defer_ms = c->sched_max_defer_ms,
        .prefill_chunk = c->sched_prefill_chunk,
        .ttl_ns = ttl,
    };
    enum err_code code = engine_open(&options, &s->engine, e);
    free(ttl);
    return code;
}

/* Everything that answers, but nothing that listens. */
static enum err_code open_parts(struct server *s, enum memtier_access access, const char *imported,
                                struct err *e)
{
    enum err_code code = open_stack(s, access, e);
    if (code == ERR_OK)
        code = open_experts(s, e);
    if (code == ERR_OK)
        code = choose_generalist(s, imported, e);
    if (code == ERR_OK)
        code = routing_open(s, e);
    return code == ERR_OK ? open_engine(s, e) : code;
}

static enum err_code open_http(struct server *s, struct err *e)
{
    s->metrics = metrics_open(experts_count(s->experts));
    enum err_code code = logger_open(STDOUT_FILENO, log_level_parse(s->conf->log_level), &s->log, e);
    if (code == ERR_OK)
        code = admin_open(s, &s->admin, e);
    return code == ERR_OK ? http_open(s, &s->http, e) : code;
}

/* Holds that leave no room for the others cannot be meant; an expert that is too large by itself is refused
 * when somebody asks for it, and the others serve. */
static enum err_code check_budgets(struct server *s, struct err *e)
{
    struct plan p;
    enum err_code code = plan_make(s->conf, false, &p, e);
    if (code != ERR_OK)
        return code;
    if (p.refusal.code != ERR_OK && p.held > 0) {
        *e = p.refusal;
        code = e->code;
    } else if (p.refusal.code != ERR_OK) {
        logger_event(s->log, LOG_WARN, "budget", "%s", p.refusal.msg);
    }
    plan_done(&p);
    return code;
}

enum err_code server_open(const struct conf *c, const char *model_path, struct server *ret,
                          struct err *e)
{
    char *imported = NULL;
    *ret = (struct server){.conf = c, .started_ns = clock_ns()};
    enum err_code code = import_all(c, model_path, &imported, e);
    if (code == ERR_OK)
        code = open_parts(ret, MEMTIER_SERVE, imported, e);
    if (code == ERR_OK)
        code = open_http(ret, e);
    if (code == ERR_OK)
        code = check_budgets(ret, e);
    free(imported);
    if (code != ERR_OK) {
        server_close(ret);
        return code;
    }
    struct buf text = {0};
    report_server(ret, &text);
    fwrite(text.data, 1, text.len, stderr);
    buf_done(&text);
    preload_held(ret);
    atomic_store(&ret->ready, true);
    return ERR_OK;
}

enum err_code server_open_offline(const struct conf *c, struct server *ret, struct err *e)
{
    *ret = (struct server){.conf = c, .started_ns = clock_ns()};
    enum err_code code = open_parts(ret, MEMTIER_READ, NULL, e);
    if (code != ERR_OK)
        server_close(ret);
    return code;
}

static void close_serving(struct server *s)
{
    for (size_t i = 0; s->serving != NULL && i < experts_count(s->experts); i++)
        template_close(&s->serving[i].template_own);
    for (size_t i = 0; i < s->guards_count; i++)
        guard_close(&s->guards[i].guard);
    free(s->guards);
    free(s->serving);
}

void server_close(struct server *s)
{
    /* Connections first, then the engine that wakes them, then the table it wakes them through. */
    http_stop(s->http, 0);
    admin_close(&s->admin);
    engine_close(&s->engine);
    http_close(&s->http);
    logger_close(&s->log);
    metrics_close(&s->metrics);
    routing_close(s);
    close_serving(s);
    stack_close(&s->stack);
    *s = (struct server){0};
}
