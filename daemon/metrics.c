/* Prometheus metrics. The names are a contract (dashboards and scripts rely on them); what has no
 * data yet is not shown. */
#include "daemon/metrics.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/log.h"

#define STATUSES_MAX 16
#define REASONS (ROUTER_REASON_TOOL + 1)
#define ORIGINS (MEMTIER_NVME + 1)

struct status_count {
    int status;
    uint64_t count;
};

/* One expert, or what never found one. */
struct expert_metrics {
    struct status_count statuses[STATUSES_MAX];
    uint64_t routes[REASONS][ROUTER_STAGES];
    struct hist *ttft[ORIGINS]; /* NULL until first used: most experts see few origins */
};

struct metrics {
    struct lock lock;               /* guards all below; taken once per request, never per token */
    struct expert_metrics *experts; /* [count + 1], last: no expert */
    size_t count;
    struct hist route, route_stage[ROUTER_STAGES];
    uint64_t abstained, avoided;
};

struct metrics *metrics_open(size_t experts_count)
{
    struct metrics *m = mem_alloc(sizeof *m);
    lock_init(&m->lock, LOCK_RANK_METRICS, "metrics");
    m->count = experts_count;
    m->experts = mem_array(experts_count + 1, sizeof *m->experts);
    return m;
}

void metrics_close(struct metrics **mp)
{
    struct metrics *m = *mp;
    *mp = NULL;
    if (m == NULL)
        return;
    for (size_t i = 0; i <= m->count; i++)
        for (size_t k = 0; k < ORIGINS; k++)
            free(m->experts[i].ttft[k]);
    free(m->experts);
    lock_done(&m->lock);
    free(m);
}

/* ---- counting ------------------------------------------------------------------------------- */

static void count_status(struct expert_metrics *x, int status)
{
    for (size_t i = 0; i < STATUSES_MAX; i++) {
        if (x->statuses[i].count > 0 && x->statuses[i].status != status && i + 1 < STATUSES_MAX)
            continue;
        x->statuses[i].status = status;
        x->statuses[i].count++;
        return;
    }
}

static void count_ttft(struct expert_metrics *x, const struct api_call *call)
{
    for (size_t i = 0; i < call->requests_count; i++) {
        const struct request_account *a = &call->requests[i]->account;
        if (a->first_token_ns <= a->received_ns)
            continue;
        if (x->ttft[a->origin] == NULL)
            x->ttft[a->origin] = mem_alloc(sizeof(struct hist));
        hist_add(x->ttft[a->origin], a->first_token_ns - a->received_ns);
    }
}

void metrics_note_request(struct metrics *m, const struct api_call *call, int status)
{
    bool named = call != NULL && call->expert != NULL;
    size_t idx = named ? expert_index(call->expert) : m->count;
    lock_take(&m->lock);
    count_status(&m->experts[idx], status);
    if (named) {
        m->experts[idx].routes[call->reason][call->route_stage]++;
        m->abstained += call->reason == ROUTER_REASON_ABSTAIN;
        m->avoided += call->switch_avoided;
        if (call->route_ns > 0)
            hist_add(&m->route, call->route_ns);
        for (size_t i = 0; i < ROUTER_STAGES; i++)
            if (call->stage_ns[i] > 0)
                hist_add(&m->route_stage[i], call->stage_ns[i]);
        if (api_call_done(call))
            count_ttft(&m->experts[idx], call);
    }
    lock_drop(&m->lock);
}

/* ---- text format ---------------------------------------------------------------------------- */

static void put_family(struct buf *out, const char *name, const char *type, const char *help)
{
    buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void put_value(struct buf *out, const char *name, const char *labels, double value)
{
    buf_printf(out, labels[0] != 0 ? "%s{%s} %.17g\n" : "%s%s %.17g\n", name, labels, value);
}

static void put_simple(struct buf *out, const char *name, const char *type, const char *help,
                       double value)
{
    put_family(out, name, type, help);
    put_value(out, name, "", value);
}

/* Label values may hold any UTF-8; these three are escaped. */
static const char *escape_label(const char *text, char *to, size_t cap)
{
    size_t at = 0;
    for (; *text != 0 && at + 3 < cap; text++) {
        if (*text == '\\' || *text == '"')
            to[at++] = '\\';
        to[at++] = *text;
        if (*text == '\n')
            memcpy(to + at - 1, "\\n", 2), at++;
    }
    to[at] = 0;
    return to;
}

static const uint64_t edges_us[] = {20,      50,      100,     200,      500,      1000,    2000,
                                    5000,    10000,   20000,   50000,    100000,   200000,  500000,
                                    1000000, 2000000, 5000000, 10000000, 30000000, 60000000};

static void put_hist(struct buf *out, const char *name, const char *labels, const struct hist *h)
{
    const char *comma = labels[0] != 0 ? "," : "";
    for (size_t i = 0; i < BASE_COUNT(edges_us); i++)
        buf_printf(out, "%s_bucket{%s%sle=\"%g\"} %llu\n", name, labels, comma,
                   (double)edges_us[i] / 1e6,
                   (unsigned long long)hist_count_below(h, edges_us[i] * 1000));
    buf_printf(out, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, labels, comma,
               (unsigned long long)h->count);
    buf_printf(out, labels[0] != 0 ? "%s_sum{%s} %.9g\n" : "%s_sum%s %.9g\n", name, labels,
               (double)h->sum_ns / 1e9);
    buf_printf(out, labels[0] != 0 ? "%s_count{%s} %llu\n" : "%s_count%s %llu\n", name, labels,
               (unsigned long long)h->count);
}

/* ---- the HTTP side's families --------------------------------------------------------------- */

static const char *expert_name(struct server *s, size_t idx, char *to, size_t cap)
{
    bool named = idx < experts_count(s->experts);
    return escape_label(named ? expert_info(experts_at(s->experts, idx))->name : "", to, cap);
}

static void put_requests(struct server *s, struct buf *out)
{
    const struct metrics *m = s->metrics;
    put_family(out, "switchyard_requests_total", "counter",
               "Requests answered, by expert (empty: none was found) and HTTP status");
    for (size_t i = 0; i <= m->count; i++) {
        char name[300], labels[400];
        expert_name(s, i, name, sizeof name);
        for (size_t k = 0; k < STATUSES_MAX && m->experts[i].statuses[k].count > 0; k++) {
            snprintf(labels, sizeof labels, "expert=\"%s\",status=\"%d\"", name,
                     m->experts[i].statuses[k].status);
            put_value(out, "switchyard_requests_total", labels,
                      (double)m->experts[i].statuses[k].count);
        }
    }
}

static void put_ttft(struct server *s, struct buf *out)
{
    const struct metrics *m = s->metrics;
    put_family(out, "switchyard_ttft_seconds", "histogram",
               "Request received to first token, by expert and the tier its weights came from");
    for (size_t i = 0; i < m->count; i++) {
        char name[300], labels[400];
        expert_name(s, i, name, sizeof name);
        for (size_t k = 0; k < ORIGINS; k++) {
            if (m->experts[i].ttft[k] == NULL)
                continue;
            snprintf(labels, sizeof labels, "expert=\"%s\",origin=\"%s\"", name,
                     memtier_tier_name((enum memtier_tier)k));
            put_hist(out, "switchyard_ttft_seconds", labels, m->experts[i].ttft[k]);
        }
    }
}

/* Decisions of the stages, "none" for those that no stage was asked for. */
static const char *stage_of(enum router_reason r, enum router_stage s)
{
    bool read = r == ROUTER_REASON_NGRAM || r == ROUTER_REASON_ENCODER ||
                r == ROUTER_REASON_PROTOTYPE || r == ROUTER_REASON_GENERAL ||
                r == ROUTER_REASON_ABSTAIN || r == ROUTER_REASON_EMPTY;
    return read ? router_stage_name(s) : "none";
}

static void put_expert_routes(struct server *s, size_t idx, struct buf *out)
{
    const struct metrics *m = s->metrics;
    char name[300], labels[400];
    expert_name(s, idx, name, sizeof name);
    for (size_t r = 0; r < REASONS; r++)
        for (size_t k = 0; k < ROUTER_STAGES; k++) {
            if (m->experts[idx].routes[r][k] == 0)
                continue;
            snprintf(labels, sizeof labels, "expert=\"%s\",stage=\"%s\",reason=\"%s\"", name,
                     stage_of((enum router_reason)r, (enum router_stage)k),
                     router_reason_name((enum router_reason)r));
            put_value(out, "switchyard_route_total", labels, (double)m->experts[idx].routes[r][k]);
        }
}

static void put_routes(struct server *s, struct buf *out)
{
    const struct metrics *m = s->metrics;
    put_family(out, "switchyard_route_total", "counter",
               "Requests by expert, the stage that chose it and why");
    for (size_t i = 0; i < m->count; i++)
        put_expert_routes(s, i, out);
    put_simple(out, "switchyard_route_abstained_total", "counter",
               "Prompts that no expert was sure of", (double)m->abstained);
    put_simple(out, "switchyard_route_switches_avoided_total", "counter",
               "Decisions that the price of a switch changed", (double)m->avoided);
    put_family(out, "switchyard_route_seconds", "histogram",
               "Time to choose an expert, by stage and in all");
    for (size_t k = 0; k < ROUTER_STAGES; k++) {
        char labels[40];
        snprintf(labels, sizeof labels, "stage=\"%s\"", router_stage_name((enum router_stage)k));
        if (k == ROUTER_STAGE_NGRAM || m->route_stage[k].count > 0)
            put_hist(out, "switchyard_route_seconds", labels, &m->route_stage[k]);
    }
    put_hist(out, "switchyard_route_seconds", "stage=\"all\"", &m->route);
}

/* ---- the engine's families ------------------------------------------------------------------ */

static void put_engine(const struct engine_stats *st, struct buf *out)
{
    put_simple(out, "switchyard_steps_total", "counter", "Engine steps", (double)st->steps);
    put_family(out, "switchyard_step_tokens_total", "counter", "Tokens run, by phase");
    put_value(out, "switchyard_step_tokens_total", "phase=\"prefill\"", (double)st->tokens_prefill);
    put_value(out, "switchyard_step_tokens_total", "phase=\"decode\"", (double)st->tokens_decode);
    put_family(out, "switchyard_step_seconds", "histogram", "Decision to end of a step");
    put_hist(out, "switchyard_step_seconds", "", &st->step_hist);
    put_family(out, "switchyard_inter_token_seconds", "histogram",
               "Time between tokens of one sequence, all experts");
    put_hist(out, "switchyard_inter_token_seconds", "", &st->inter_token_hist);
    put_family(out, "switchyard_queue_seconds", "histogram", "Submitted to admitted");
    put_hist(out, "switchyard_queue_seconds", "", &st->queue_hist);
    put_simple(out, "switchyard_base_reads_total", "counter",
               "Whole-layer weight reads; once per step whatever the batch",
               (double)st->base_reads);
    put_simple(out, "switchyard_sequences_running", "gauge", "Sequences being generated",
               st->running);
    put_simple(out, "switchyard_queue_length", "gauge", "Requests waiting for admission",
               st->queued);
    put_simple(out, "switchyard_prefix_tokens_reused_total", "counter",
               "Prompt tokens whose KV was found", (double)st->prefix_tokens_reused);
    put_family(out, "switchyard_draft_tokens_total", "counter",
               "Tokens guessed ahead by prompt lookup, by outcome");
    put_value(out, "switchyard_draft_tokens_total", "outcome=\"accepted\"",
              (double)st->tokens_accepted);
    put_value(out, "switchyard_draft_tokens_total", "outcome=\"rejected\"",
              (double)(st->tokens_drafted - st->tokens_accepted));
    put_simple(out, "switchyard_preemptions_total", "counter",
               "Sequences that gave their KV pages back and computed them again",
               (double)st->preemptions);
    put_family(out, "switchyard_kv_pages", "gauge", "KV pages in use, by tier");
    put_value(out, "switchyard_kv_pages", "tier=\"hbm\"", (double)st->memtier.pages);
    put_value(out, "switchyard_kv_pages", "tier=\"nvme\"", (double)st->memtier.pages_spilled);
    put_simple(out, "switchyard_kv_pages_idle", "gauge",
               "KV pages in hbm that no sequence uses, kept for prompts that begin alike",
               (double)st->memtier.pages_idle);
    put_family(out, "switchyard_node_seconds_total", "counter",
               "Node time: what the modelled node would have taken");
    put_value(out, "switchyard_node_seconds_total", "what=\"run\"",
              (double)(st->node_ns - st->node_load_ns) / 1e9);
    put_value(out, "switchyard_node_seconds_total", "what=\"load\"",
              (double)st->node_load_ns / 1e9);
}

static void put_switches(const struct engine_stats *st, struct buf *out)
{
    char labels[64];
    put_family(out, "switchyard_switches_total", "counter",
               "Steps that ran another expert than the one before, by where its weights were");
    for (int i = MEMTIER_HBM; i <= MEMTIER_NVME; i++) {
        snprintf(labels, sizeof labels, "origin=\"%s\"", memtier_tier_name((enum memtier_tier)i));
        put_value(out, "switchyard_switches_total", labels, (double)st->switches[i]);
    }
    put_family(out, "switchyard_switch_seconds", "histogram",
               "Decision to first launch of such a step");
    for (int i = MEMTIER_HBM; i <= MEMTIER_NVME; i++) {
        snprintf(labels, sizeof labels, "origin=\"%s\"", memtier_tier_name((enum memtier_tier)i));
        put_hist(out, "switchyard_switch_seconds", labels, &st->switch_hist[i]);
    }
}

static void put_expert_tokens(struct server *s, struct buf *out)
{
    size_t count = experts_count(s->experts);
    uint64_t *tokens = mem_array(count + 1, sizeof *tokens);
    engine_expert_tokens(s->engine, tokens, count);
    put_family(out, "switchyard_tokens_generated_total", "counter", "Tokens generated, by expert");
    for (size_t i = 0; i < count; i++) {
        char name[300], labels[400];
        snprintf(labels, sizeof labels, "expert=\"%s\"", expert_name(s, i, name, sizeof name));
        put_value(out, "switchyard_tokens_generated_total", labels, (double)tokens[i]);
    }
    free(tokens);
}

/* ---- the memory's families ------------------------------------------------------------------ */

static void put_tiers(struct server *s, const struct memtier_stats *t, struct buf *out)
{
    char labels[96];
    put_family(out, "switchyard_tier_bytes", "gauge", "Bytes in a tier, by kind of segment");
    for (int i = 0; i < MEMTIER_KINDS; i++) {
        snprintf(labels, sizeof labels, "tier=\"hbm\",kind=\"%s\"",
                 memtier_kind_name((enum memtier_kind)i));
        put_value(out, "switchyard_tier_bytes", labels, (double)t->bytes_by_kind[i]);
    }
    if (t->ddr_budget > 0)
        put_value(out, "switchyard_tier_bytes", "tier=\"ddr\",kind=\"all\"", (double)t->ddr_used);
    if (s->store != NULL)
        put_value(out, "switchyard_tier_bytes", "tier=\"nvme\",kind=\"all\"",
                  (double)memtier_store_bytes(s->store));
    put_family(out, "switchyard_tier_budget_bytes", "gauge", "What a tier may hold");
    put_value(out, "switchyard_tier_budget_bytes", "tier=\"hbm\"", (double)t->hbm_budget);
    put_value(out, "switchyard_tier_budget_bytes", "tier=\"ddr\"", (double)t->ddr_budget);
    put_simple(out, "switchyard_tier_pinned_bytes", "gauge", "Bytes of hbm in use by open steps",
               (double)t->hbm_pinned);
    put_simple(out, "switchyard_tier_held_bytes", "gauge", "Bytes of hbm that are never evicted",
               (double)t->hbm_held);
}

/* One family over the three ways that segments move. */
static void put_moves(struct buf *out, const char *name, const char *help, double nvme_hbm,
                      double ddr_hbm, double hbm_ddr)
{
    put_family(out, name, "counter", help);
    put_value(out, name, "from=\"nvme\",to=\"hbm\"", nvme_hbm);
    put_value(out, name, "from=\"ddr\",to=\"hbm\"", ddr_hbm);
    put_value(out, name, "from=\"hbm\",to=\"ddr\"", hbm_ddr);
}

static void put_loads(const struct memtier_stats *t, struct buf *out)
{
    put_moves(out, "switchyard_loads_total", "Segments moved between tiers", (double)t->loads,
              (double)t->promotions, (double)t->demotions);
    put_moves(out, "switchyard_load_bytes_total", "Bytes moved between tiers", (double)t->load_bytes,
              (double)t->promote_bytes, (double)t->demote_bytes);
    put_family(out, "switchyard_load_seconds", "histogram", "Submit to done, per segment");
    put_hist(out, "switchyard_load_seconds", "from=\"nvme\",to=\"hbm\"", &t->load_hist);
    put_hist(out, "switchyard_load_seconds", "from=\"ddr\",to=\"hbm\"", &t->promote_hist);
    put_hist(out, "switchyard_load_seconds", "from=\"hbm\",to=\"ddr\"", &t->demote_hist);
    put_simple(out, "switchyard_load_busy_seconds_total", "counter",
               "Time with at least one read of the store in flight", (double)t->load_ns * 1e-9);
    put_simple(out, "switchyard_load_cpu_seconds_total", "counter", "Processor time of the loader",
               (double)t->load_cpu_ns * 1e-9);
    put_simple(out, "switchyard_load_failures_total", "counter", "Loads that failed for good",
               (double)t->failed);
    put_simple(out, "switchyard_load_retries_total", "counter", "Reads that were tried again",
               (double)t->load_retries);
    put_simple(out, "switchyard_loads_cancelled_total", "counter",
               "Loads that nobody waited for any more", (double)t->cancelled);
}

static void put_hits(const struct memtier_stats *t, struct buf *out)
{
    char labels[96];
    put_family(out, "switchyard_evictions_total", "counter", "Segments evicted");
    for (int i = 0; i < MEMTIER_KINDS; i++) {
        snprintf(labels, sizeof labels, "tier=\"hbm\",kind=\"%s\"",
                 memtier_kind_name((enum memtier_kind)i));
        put_value(out, "switchyard_evictions_total", labels, (double)t->evictions_by_kind[i]);
    }
    put_value(out, "switchyard_evictions_total", "tier=\"ddr\",kind=\"all\"",
              (double)t->ddr_evictions);
    put_family(out, "switchyard_hits_total", "counter", "Segments of reservations found in a tier");
    put_value(out, "switchyard_hits_total", "tier=\"hbm\"", (double)t->hits);
    put_value(out, "switchyard_hits_total", "tier=\"ddr\"", (double)t->ddr_hits);
    put_family(out, "switchyard_misses_total", "counter",
               "Segments of reservations not found in a tier");
    put_value(out, "switchyard_misses_total", "tier=\"hbm\"", (double)t->misses);
    put_value(out, "switchyard_misses_total", "tier=\"ddr\"", (double)t->ddr_misses);
    put_family(out, "switchyard_prefetches_total", "counter", "Segments prefetched, by outcome");
    put_value(out, "switchyard_prefetches_total", "outcome=\"begun\"", (double)t->prefetched);
    put_value(out, "switchyard_prefetches_total", "outcome=\"used\"", (double)t->prefetch_used);
    put_value(out, "switchyard_prefetches_total", "outcome=\"wasted\"", (double)t->prefetch_wasted);
}

/* Waiting and fragmentation are of now. */
static void put_now(const struct engine_stats *st, struct buf *out)
{
    const struct memtier_stats *t = &st->memtier;
    uint64_t free_bytes = t->hbm_budget > t->hbm_used ? t->hbm_budget - t->hbm_used : 0;
    put_simple(out, "switchyard_tier_waiters", "gauge", "Reservations that wait for segments",
               (double)t->waiters);
    put_simple(out, "switchyard_requests_loading", "gauge", "Running requests that wait for weights",
               st->loading);
    put_simple(out, "switchyard_tier_largest_free_bytes", "gauge", "The longest free run of hbm",
               (double)t->largest_free);
    put_simple(out, "switchyard_tier_fragmentation", "gauge",
               "Of the free bytes of hbm, the share outside the longest run",
               free_bytes ? 1 - (double)BASE_MIN(t->largest_free, free_bytes) / (double)free_bytes : 0);
    put_family(out, "switchyard_turns_foretold_total", "counter",
               "Next experts of conversations that were foretold, by whether it came so");
    put_value(out, "switchyard_turns_foretold_total", "outcome=\"right\"", (double)st->turns_right);
    put_value(out, "switchyard_turns_foretold_total", "outcome=\"wrong\"",
              (double)(st->turns_foretold - st->turns_right));
    put_simple(out, "switchyard_experts_expired_total", "counter",
               "Experts that left hbm because nobody asked for them (ttl_s)", (double)st->expired);
}

static void put_process(struct server *s, struct buf *out)
{
    put_family(out, "switchyard_build_info", "gauge", "Which version this is");
    put_value(out, "switchyard_build_info", "version=\"" SWITCHYARD_VERSION "\"", 1);
    put_simple(out, "switchyard_uptime_seconds", "gauge", "Since the server opened",
               (double)(clock_ns() - s->started_ns) / 1e9);
    if (s->log != NULL)
        put_simple(out, "switchyard_log_lines_dropped_total", "counter",
                   "Log lines nobody read in time", (double)logger_dropped(s->log));
}

void metrics_put(struct server *s, struct buf *out)
{
    struct engine_stats *st = mem_alloc(sizeof *st); /* tens of kilobytes of histograms */
    engine_stats(s->engine, st);
    lock_take(&s->metrics->lock);
    put_requests(s, out);
    put_ttft(s, out);
    put_routes(s, out);
    lock_drop(&s->metrics->lock);
    put_engine(st, out);
    put_switches(st, out);
    put_expert_tokens(s, out);
    put_tiers(s, &st->memtier, out);
    put_loads(&st->memtier, out);
    put_hits(&st->memtier, out);
    put_now(st, out);
    put_process(s, out);
    free(st);
}
