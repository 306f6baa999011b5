/* The start-up table and the budget part of `switchyard check`. */
#include "daemon/report.h"
#include "daemon/routing.h"

#include <string.h>

#include "daemon/http.h"
#include "daemon/json_out.h"

static const char *const exec_names[] = {"interp", "unfused", "fused", "native"};
static const char *const numerics_names[] = {"int8", "f32"};
static const char *const kv_names[] = {"f16", "q8_0", "f32"};

static void put_row(struct buf *out, const char *name, const char *fmt, ...) BASE_PRINTF(3, 4);
static void put_row(struct buf *out, const char *name, const char *fmt, ...)
{
    char text[600];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    buf_printf(out, "  %-12s%s\n", name, text);
}

/* ---- the running server --------------------------------------------------------------------- */

static void put_memory(struct server *s, struct buf *out)
{
    char text[5][32];
    struct memtier_stats m;
    memtier_stats(s->memtier, &m);
    put_row(out, "hbm", "%s%s; experts take %s of the store",
            size_format(m.hbm_budget, text[0], 32),
            s->conf->tiers_hbm_bytes == 0 ? " (automatic)" : "",
            size_format(memtier_store_bytes(s->store), text[1], 32));
    if (m.ddr_budget > 0)
        put_row(out, "ddr", "%s", size_format(m.ddr_budget, text[2], 32));
    put_row(out, "nvme", "%s", s->conf->store_path);
    put_row(out, "loader", "%s", memtier_loader_text(s->memtier));
    put_row(out, "machine", "%s of memory may be used by this process",
            size_format(memory_bytes_usable(), text[3], 32));
}

static void put_expert_row(struct server *s, struct expert *ex, struct buf *out)
{
    const struct expert_info *info = expert_info(ex);
    char size[32];
    struct err e = {0};
    if (!expert_ok(ex, &e)) {
        buf_printf(out, "    %-24s cannot serve: %s\n", info->name, e.msg);
        return;
    }
    buf_printf(out, "    %-24s %10s  %-10s context %u%s%s%s\n", info->name,
               size_format(info->bytes, size, sizeof size),
               info->is_adapter ? "adapter" : info->architecture, server_expert_of(s, ex)->context,
               info->is_adapter ? "  on " : "", info->is_adapter ? info->base : "",
               ex == s->generalist ? "  (generalist)" : "");
}

static void put_trouble(struct server *s, struct buf *out)
{
    const char *at = routing_trouble(s);
    while (*at != 0) {
        size_t len = strcspn(at, "\n");
        put_row(out, "trouble", "%.*s", (int)len, at);
        at += len + (at[len] != 0);
    }
}

static void put_router(struct server *s, struct buf *out)
{
    put_trouble(s, out);
    size_t mapped = 0, labels = s->head != NULL ? router_head_labels(s->head) : 0;
    if (s->head == NULL) {
        put_row(out, "router", "no head: 'auto' is answered by the generalist");
        return;
    }
    for (size_t i = 0; i < labels; i++)
        mapped += s->label_allowed[i];
    const struct route_encoder *encoder = routing_encoder(s);
    put_row(out, "router", "%zu labels, %zu of them served here; %s%s", labels, mapped,
            encoder ? "encoder " : "n-grams alone",
            encoder ? encoder_name(route_encoder_model(encoder)) : "");
}

void report_server(struct server *s, struct buf *out)
{
    const struct conf *c = s->conf;
    size_t count = experts_count(s->experts);
    buf_printf(out, "switchyard %s on %s\n", SWITCHYARD_VERSION, http_address(s->http));
    put_memory(s, out);
    put_row(out, "node", "%u sockets on %u threads, %s, %s, %s, KV %s", rdu_node_sockets(s->node),
            rdu_node_threads(s->node), rdu_node_isa(s->node), numerics_names[c->rdu_numerics],
            exec_names[c->rdu_exec], kv_names[c->kv_type]);
    put_row(out, "limits", "%u sequences, %u queued, body %llu MiB", c->sched_max_sequences,
            c->sched_max_queue, (unsigned long long)(c->server_max_body_bytes >> 20));
    put_router(s, out);
    put_row(out, "experts", "%zu", count);
    for (size_t i = 0; i < count && i < 40; i++)
        put_expert_row(s, experts_at(s->experts, i), out);
    if (count > 40)
        buf_printf(out, "    ... and %zu more: GET /v1/models\n", count - 40);
}

/* ---- a configuration that is not running ---------------------------------------------------- */

struct plan {
    uint64_t machine, store, kv, hbm;
    size_t experts;
    bool store_there;
    struct err store_error;
};

static void look_into_store(const struct conf *c, struct plan *p)
{
    struct memtier_store *store = NULL;
    struct expert_info *list = NULL;
    if (memtier_store_open(c->store_path, MEMTIER_READ, &store, &p->store_error) != ERR_OK)
        return;
    p->store_there = true;
    p->store = memtier_store_bytes(store);
    if (experts_list(store, &list, &p->experts, &p->store_error) == ERR_OK)
        experts_list_done(list, p->experts);
    uint64_t token_bytes = 0;
    enum expert_kv_type kv = stack_kv_type(c);
    if (experts_kv_token_bytes(store, kv, &token_bytes, &p->store_error) == ERR_OK)
        p->kv = token_bytes * STACK_KV_TOKENS;
    memtier_store_close(&store);
}

static void make_plan(const struct conf *c, struct plan *p)
{
    *p = (struct plan){.machine = memory_bytes_usable()};
    look_into_store(c, p);
    p->hbm = c->tiers_hbm_bytes;
    if (p->hbm == 0 && p->store_there)
        p->hbm = stack_hbm_automatic(p->store, p->kv);
}

static void put_plan_json(const struct conf *c, const struct plan *p, struct buf *out)
{
    buf_printf(out,
               "{\"machine_bytes\":%llu,\"hbm_bytes\":%llu,\"hbm_automatic\":%s,\"ddr_bytes\":%llu,"
               "\"store_bytes\":%llu,\"kv_bytes_wanted\":%llu,\"experts\":%zu,\"threads\":%u",
               (unsigned long long)p->machine, (unsigned long long)p->hbm,
               c->tiers_hbm_bytes == 0 ? "true" : "false", (unsigned long long)c->tiers_ddr_bytes,
               (unsigned long long)p->store, (unsigned long long)p->kv, p->experts,
               c->rdu_threads > 0 ? c->rdu_threads : cpu_count_usable());
    buf_puts(out, ",\"store_error\":");
    json_put_str(out, p->store_there ? NULL : p->store_error.msg);
    buf_puts(out, "}");
}

static void put_plan_text(const struct conf *c, const struct plan *p, struct buf *out)
{
    char text[2][32];
    buf_puts(out, "# Budget here:\n");
    put_row(out, "machine", "%s may be used by this process", size_format(p->machine, text[0], 32));
    if (p->store_there)
        put_row(out, "store", "%zu experts, %s on disk", p->experts,
                size_format(p->store, text[0], 32));
    else
        put_row(out, "store", "not there yet (%s)", p->store_error.msg);
    if (p->hbm > 0)
        put_row(out, "hbm", "%s%s", size_format(p->hbm, text[0], 32),
                c->tiers_hbm_bytes == 0 ? " (automatic)" : "");
    else
        put_row(out, "hbm", "automatic, decided when there are experts");
    if (p->kv > 0)
        put_row(out, "kv", "%s for %d tokens", size_format(p->kv, text[0], 32), STACK_KV_TOKENS);
    put_row(out, "ddr", "%s",
            c->tiers_ddr_bytes > 0 ? size_format(c->tiers_ddr_bytes, text[0], 32) : "none");
    put_row(out, "threads", "%u", c->rdu_threads > 0 ? c->rdu_threads : cpu_count_usable());
    if (c->tiers_hbm_bytes + c->tiers_ddr_bytes > p->machine)
        put_row(out, "warning", "hbm and ddr together are more than this process may use");
}

void report_conf(const struct conf *c, bool json, struct buf *out)
{
    struct plan p;
    make_plan(c, &p);
    if (json)
        put_plan_json(c, &p, out);
    else
        put_plan_text(c, &p, out);
}
