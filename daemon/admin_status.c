/* The state of the tiers as JSON: what `tiers status` and GET /admin/tiers show. */
#include <stdlib.h>

#include "daemon/admin.h"
#include "daemon/engine_order.h"
#include "daemon/json_out.h"

static const char *const verify_names[] = {"always", "first", "never"};

static void put_u64(struct buf *out, const char *before, uint64_t v)
{
    buf_printf(out, "%s%llu", before, (unsigned long long)v);
}

static void put_hbm(const struct memtier_stats *t, struct buf *out)
{
    uint64_t free_bytes = t->hbm_budget > t->hbm_used ? t->hbm_budget - t->hbm_used : 0;
    put_u64(out, "\"hbm\":{\"budget\":", t->hbm_budget);
    put_u64(out, ",\"used\":", t->hbm_used);
    put_u64(out, ",\"peak\":", t->hbm_peak);
    put_u64(out, ",\"pinned\":", t->hbm_pinned);
    put_u64(out, ",\"held\":", t->hbm_held);
    put_u64(out, ",\"largest_free\":", t->largest_free);
    /* Of what is free, the share that is not in the longest run. */
    buf_puts(out, ",\"fragmentation\":");
    json_put_real(
        out,
        free_bytes ? 1 - (double)BASE_MIN(t->largest_free, free_bytes) / (double)free_bytes : 0, 4);
    put_u64(out, ",\"segments\":", t->segments_resident);
    put_u64(out, ",\"kv_pages\":", t->pages);
    buf_puts(out, ",\"kinds\":{");
    for (int i = 0; i < MEMTIER_KINDS; i++)
        buf_printf(out, "%s\"%s\":%llu", i ? "," : "", memtier_kind_name((enum memtier_kind)i),
                   (unsigned long long)t->bytes_by_kind[i]);
    buf_puts(out, "}}");
}

static void put_move(struct buf *out, const char *from, const char *to, uint64_t count,
                     uint64_t bytes, const struct hist *h, double seconds)
{
    buf_printf(out,
               "{\"from\":\"%s\",\"to\":\"%s\",\"count\":%llu,\"bytes\":%llu,\"ms_p50\":", from, to,
               (unsigned long long)count, (unsigned long long)bytes);
    json_put_real(out, (double)hist_quantile(h, 0.5) * 1e-6, 4);
    buf_puts(out, ",\"ms_p99\":");
    json_put_real(out, (double)hist_quantile(h, 0.99) * 1e-6, 4);
    buf_puts(out, ",\"gb_per_s\":");
    json_put_real(out, seconds > 0 ? (double)bytes * 1e-9 / seconds : 0, 4);
    buf_puts(out, "}");
}

static void put_moves(const struct memtier_stats *t, struct buf *out)
{
    double copy_s = (double)t->copy_ns * 1e-9, all = (double)BASE_MAX(t->copy_bytes, (uint64_t)1);
    buf_puts(out, ",\"loads\":[");
    put_move(out, "nvme", "hbm", t->loads, t->load_bytes, &t->load_hist, (double)t->load_ns * 1e-9);
    buf_puts(out, ",");
    put_move(out, "ddr", "hbm", t->promotions, t->promote_bytes, &t->promote_hist,
             copy_s * (double)t->promote_bytes / all);
    buf_puts(out, ",");
    put_move(out, "hbm", "ddr", t->demotions, t->demote_bytes, &t->demote_hist,
             copy_s * (double)t->demote_bytes / all);
    buf_puts(out, "]");
}

static void put_counts(const struct engine_stats *st, struct buf *out)
{
    const struct memtier_stats *t = &st->memtier;
    put_u64(out, ",\"hits\":{\"hbm\":", t->hits);
    put_u64(out, ",\"ddr\":", t->ddr_hits);
    put_u64(out, "},\"misses\":{\"hbm\":", t->misses);
    put_u64(out, ",\"ddr\":", t->ddr_misses);
    put_u64(out, "},\"evictions\":{\"hbm\":", t->evictions);
    put_u64(out, ",\"ddr\":", t->ddr_evictions);
    put_u64(out, "},\"waiters\":", t->waiters);
    put_u64(out, ",\"requests_loading\":", st->loading);
    put_u64(out, ",\"expired\":", st->expired);
    put_u64(out, ",\"failed\":", t->failed);
    put_u64(out, ",\"retries\":", t->load_retries);
    put_u64(out, ",\"cancelled\":", t->cancelled);
    put_u64(out, ",\"prefetch\":{\"begun\":", t->prefetched);
    put_u64(out, ",\"used\":", t->prefetch_used);
    put_u64(out, ",\"wasted\":", t->prefetch_wasted);
    put_u64(out, "},\"compacted_bytes\":", t->compacted_bytes);
}

/* Where its own bytes are; a tier of which it has none is not shown. */
static void put_place(const struct expert *ex, const struct engine_place *p, struct buf *out)
{
    const struct expert_info *info = expert_info(ex);
    buf_puts(out, "{\"name\":");
    json_put_str(out, info->name);
    struct err e = {0};
    if (!expert_ok(ex, &e)) {
        buf_puts(out, ",\"error\":");
        json_put_str(out, e.msg);
        buf_puts(out, "}");
        return;
    }
    buf_printf(out, ",\"adapter\":%s,\"held\":%s,\"bytes\":{", info->is_adapter ? "true" : "false",
               p->held ? "true" : "false");
    bool any = false;
    for (int t = MEMTIER_HBM; t <= MEMTIER_NVME; t++) {
        if (p->bytes[t] > 0)
            buf_printf(out, "%s\"%s\":%llu", any ? "," : "",
                       memtier_tier_name((enum memtier_tier)t), (unsigned long long)p->bytes[t]);
        any |= p->bytes[t] > 0;
    }
    buf_puts(out, "}}");
}

static void look(struct server *s, struct engine_place *places, size_t count)
{
    struct engine_order o = {.kind = ENGINE_ORDER_LOOK};
    enum err_code code = engine_order_run(s->engine, &o, NULL);
    (void)code; /* an engine that is closing shows what was last seen */
    engine_places(s->engine, places, count);
}

void admin_put_tiers(struct server *s, struct buf *out)
{
    size_t count = experts_count(s->experts);
    struct engine_stats *st = mem_alloc(sizeof *st); /* tens of kilobytes of histograms */
    struct engine_place *places = mem_array(count + 1, sizeof *places);
    engine_stats(s->engine, st);
    look(s, places, count);
    buf_puts(out, "{");
    put_hbm(&st->memtier, out);
    put_u64(out, ",\"ddr\":{\"budget\":", st->memtier.ddr_budget);
    put_u64(out, ",\"used\":", st->memtier.ddr_used);
    buf_puts(out, "},\"nvme\":{\"path\":");
    json_put_str(out, memtier_store_path(s->store));
    put_u64(out, ",\"budget\":", s->conf->tiers_nvme_bytes);
    put_u64(out, ",\"used\":", memtier_store_bytes(s->store));
    buf_puts(out, "},\"loader\":");
    json_put_str(out, memtier_loader_text(s->memtier));
    buf_puts(out, ",\"load_gb_per_s\":");
    json_put_real(out, memtier_load_rate(s->memtier) * 1e-9, 4);
    buf_puts(out, ",\"policy\":");
    json_put_str(out, s->conf->tiers_policy);
    buf_printf(out, ",\"verify\":\"%s\"", verify_names[s->conf->tiers_verify]);
    put_moves(&st->memtier, out);
    put_counts(st, out);
    buf_puts(out, ",\"experts\":[");
    for (size_t i = 0; i < count; i++) {
        buf_puts(out, i ? "," : "");
        put_place(experts_at(s->experts, i), &places[i], out);
    }
    buf_puts(out, "]}\n");
    free(places);
    free(st);
}

void admin_put_expert(struct server *s, const struct expert *ex, struct buf *out)
{
    size_t count = experts_count(s->experts);
    struct engine_place *places = mem_array(count + 1, sizeof *places);
    look(s, places, count);
    put_place(ex, &places[expert_index(ex)], out);
    buf_puts(out, "\n");
    free(places);
}
