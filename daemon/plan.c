/* From a configuration and a store to numbers: footprints with shared segments counted once, what is held,
 * and the one rule that decides: the expert that adds most to what is held must fit with some KV. */
#include "daemon/plan.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/json_out.h"
#include "daemon/stack.h"

#define MEASURE_BYTES ((uint64_t)64 << 20)

/* ---- facts ---------------------------------------------------------------------------------- */

static bool is_held(const struct conf *c, const char *name)
{
    for (size_t i = 0; i < c->experts_count; i++)
        if (strcmp(c->experts[i].name, name) == 0)
            return c->experts[i].hold;
    return false;
}

/* Each expert's footprint alone and beside what is held. */
static enum err_code measure_experts(struct memtier_store *store, struct plan *p, struct err *e)
{
    const char **names = mem_array(p->count + 1, sizeof *names);
    size_t held = 0;
    uint64_t with = 0;
    enum err_code code = ERR_OK;
    for (size_t i = 0; i < p->count; i++)
        if (p->experts[i].held)
            names[held++] = p->experts[i].name;
    code = experts_footprint(store, names, held, &p->held, e);
    for (size_t i = 0; i < p->count && code == ERR_OK; i++) {
        struct plan_expert *x = &p->experts[i];
        const char *own = x->name;
        code = experts_footprint(store, &own, 1, &x->footprint, e);
        names[held] = x->name;
        if (code == ERR_OK)
            code = experts_footprint(store, names, held + 1, &with, e);
        x->beside_held = with - p->held;
        if (x->beside_held > p->experts[p->largest].beside_held)
            p->largest = i;
    }
    for (size_t i = 0; i < p->count; i++)
        names[i] = p->experts[i].name;
    if (code == ERR_OK)
        code = experts_footprint(store, names, p->count, &p->all, e);
    free(names);
    return code;
}

static enum err_code list_experts(const struct conf *c, struct memtier_store *store, struct plan *p,
                                  struct err *e)
{
    struct expert_info *list = NULL;
    size_t count = 0;
    enum err_code code = experts_list(store, &list, &count, e);
    if (code != ERR_OK)
        return code;
    p->experts = mem_array(count + 1, sizeof *p->experts);
    for (size_t i = 0; i < count; i++)
        if (list[i].bytes > 0) /* one that cannot be read has none, and never runs */
            p->experts[p->count++] = (struct plan_expert){.name = mem_strdup(list[i].name),
                                                          .held = is_held(c, list[i].name),
                                                          .is_adapter = list[i].is_adapter,
                                                          .own_bytes = list[i].bytes};
    experts_list_done(list, count);
    return measure_experts(store, p, e);
}

static double measure_device(const struct memtier_store *store)
{
    struct memtier_device *d = NULL;
    uint64_t ns = 0;
    double rate = 0;
    char *path = memtier_store_largest_file(store);
    const struct memtier_shape shape = {1u << 20, 8};
    if (path && memtier_device_open(MEASURE_BYTES, &d, NULL) == ERR_OK &&
        memtier_device_read(d, path, MEASURE_BYTES, shape, &ns, NULL) == ERR_OK && ns > 0)
        rate = (double)MEASURE_BYTES * 1e9 / (double)ns;
    memtier_device_close(&d);
    free(path);
    return rate;
}

/* ---- can it work ---------------------------------------------------------------------------- */

static void judge(struct plan *p)
{
    char a[5][32];
    struct err *e = &p->refusal;
    uint64_t kv = p->kv_token_bytes * PLAN_KV_TOKENS;
    if (p->hbm > p->machine || p->ddr > p->machine - p->hbm) {
        err_set_param(
            e, ERR_NO_MEMORY, "tiers.hbm",
            "tiers.hbm of %s and tiers.ddr of %s are more than the %s this process may use: "
            "lower them to %s together",
            size_format(p->hbm, a[0], 32), size_format(p->ddr, a[1], 32),
            size_format(p->machine, a[2], 32), size_format(p->machine, a[3], 32));
        return;
    }
    if (p->nvme > 0 && p->store > p->nvme) {
        err_set_param(e, ERR_NO_MEMORY, "tiers.nvme",
                      "the store takes %s and tiers.nvme allows %s: raise it, or remove experts "
                      "('switchyard experts rm', 'gc')",
                      size_format(p->store, a[0], 32), size_format(p->nvme, a[1], 32));
        return;
    }
    if (p->count == 0)
        return;
    const struct plan_expert *x = &p->experts[p->largest];
    uint64_t need = p->held + x->beside_held + kv;
    if (need <= p->hbm)
        return;
    err_set_param(
        e, ERR_NO_MEMORY, "tiers.hbm",
        "tiers.hbm is %s, but '%s' needs %s%s%s, and %s for %d tokens of KV: raise it to %s%s",
        size_format(p->hbm, a[0], 32), x->name, size_format(x->beside_held, a[1], 32),
        p->held ? " beside the " : "", p->held ? size_format(p->held, a[2], 32) : "",
        size_format(kv, a[3], 32), PLAN_KV_TOKENS, size_format(need, a[4], 32),
        p->held ? " (the second figure is what is held), or hold less" : "");
}

enum err_code plan_make(const struct conf *c, bool measure, struct plan *ret, struct err *e)
{
    struct memtier_store *store = NULL;
    struct plan *p = ret;
    *p = (struct plan){.machine = memory_bytes_usable(),
                       .hbm = c->tiers_hbm_bytes,
                       .ddr = c->tiers_ddr_bytes,
                       .nvme = c->tiers_nvme_bytes,
                       .hbm_automatic = c->tiers_hbm_bytes == 0};
    enum err_code code = memtier_store_open(c->store_path, MEMTIER_READ, &store, e);
    if (code == ERR_OK) {
        p->store = memtier_store_bytes(store);
        code = list_experts(c, store, p, e);
    }
    if (code == ERR_OK)
        code = experts_kv_token_bytes(store, stack_kv_type(c), &p->kv_token_bytes, e);
    if (code == ERR_OK && p->hbm_automatic)
        p->hbm = stack_hbm_automatic(p->store, p->kv_token_bytes * STACK_KV_TOKENS);
    if (code == ERR_OK && measure)
        p->load_bytes_per_s = measure_device(store);
    memtier_store_close(&store);
    if (code == ERR_OK)
        judge(p);
    else
        plan_done(p);
    return code;
}

void plan_done(struct plan *p)
{
    for (size_t i = 0; i < p->count; i++)
        free(p->experts[i].name);
    free(p->experts);
    *p = (struct plan){0};
}

/* ---- showing -------------------------------------------------------------------------------- */

static double load_ms(const struct plan *p, uint64_t bytes)
{
    return p->load_bytes_per_s > 0 ? (double)bytes * 1e3 / p->load_bytes_per_s : 0;
}

void plan_put_text(const struct plan *p, struct buf *out)
{
    char a[4][32];
    uint64_t kv = p->kv_token_bytes * PLAN_KV_TOKENS, fits = p->hbm > p->all ? p->hbm - p->all : 0;
    buf_printf(out, "%-12s%12s   this process may use\n", "machine",
               size_format(p->machine, a[0], 32));
    buf_printf(out, "%-12s%12s   %s\n", "hbm", size_format(p->hbm, a[0], 32),
               p->hbm_automatic ? "automatic" : "tiers.hbm");
    buf_printf(out, "%-12s%12s   never evicted\n", "  held", size_format(p->held, a[0], 32));
    buf_printf(out, "%-12s%12s   all %zu experts, shared weights once\n", "  experts",
               size_format(p->all, a[0], 32), p->count);
    buf_printf(out, "%-12s%12s   for %d tokens of the most demanding model\n", "  KV",
               size_format(kv, a[0], 32), PLAN_KV_TOKENS);
    buf_printf(out, "%-12s%12s   %s\n", "ddr", size_format(p->ddr, a[0], 32),
               p->ddr ? "for what leaves hbm" : "none");
    buf_printf(out, "%-12s%12s   %s\n", "nvme", size_format(p->store, a[0], 32),
               p->nvme ? size_format(p->nvme, a[1], 32) : "no limit");
    if (p->load_bytes_per_s > 0)
        buf_printf(out, "%-12s%10.2f GB/s   measured now, %s read directly\n", "device",
                   p->load_bytes_per_s * 1e-9, size_format(MEASURE_BYTES, a[0], 32));
    buf_printf(out, "\n%-28s%12s%12s%12s  %s\n", "EXPERT", "OWN", "IN HBM", "COLD LOAD", "");
    for (size_t i = 0; i < p->count; i++) {
        const struct plan_expert *x = &p->experts[i];
        char cold[32] = "-";
        if (p->load_bytes_per_s > 0)
            snprintf(cold, sizeof cold, "%.0f ms", load_ms(p, x->footprint));
        buf_printf(out, "%-28s%12s%12s%12s  %s%s\n", x->name, size_format(x->own_bytes, a[0], 32),
                   size_format(x->footprint, a[1], 32), cold, x->held ? "held " : "",
                   x->is_adapter ? "adapter" : "");
    }
    if (p->refusal.code != ERR_OK)
        buf_printf(out, "\nThis cannot work: %s.\n", p->refusal.msg);
    else if (fits > 0)
        buf_printf(
            out,
            "\nAll experts fit, with %s for KV: no switch will load anything after the first.\n",
            size_format(fits, a[0], 32));
    else
        buf_printf(
            out,
            "\nNot all experts fit at once: tiers.hbm of %s would hold them and the KV above.\n",
            size_format(p->all + kv, a[0], 32));
}

void plan_put_json(const struct plan *p, struct buf *out)
{
    buf_printf(
        out,
        "{\"machine_bytes\":%llu,\"hbm_bytes\":%llu,\"hbm_automatic\":%s,\"ddr_bytes\":%llu,"
        "\"nvme_bytes\":%llu,\"store_bytes\":%llu,\"held_bytes\":%llu,\"experts_bytes\":%llu,"
        "\"kv_token_bytes\":%llu,\"load_gb_per_s\":",
        (unsigned long long)p->machine, (unsigned long long)p->hbm,
        p->hbm_automatic ? "true" : "false", (unsigned long long)p->ddr,
        (unsigned long long)p->nvme, (unsigned long long)p->store, (unsigned long long)p->held,
        (unsigned long long)p->all, (unsigned long long)p->kv_token_bytes);
    json_put_real(out, p->load_bytes_per_s * 1e-9, 4);
    buf_puts(out, ",\"refusal\":");
    json_put_str(out, p->refusal.code != ERR_OK ? p->refusal.msg : NULL);
    buf_puts(out, ",\"experts\":[");
    for (size_t i = 0; i < p->count; i++) {
        const struct plan_expert *x = &p->experts[i];
        buf_puts(out, i ? ",{\"name\":" : "{\"name\":");
        json_put_str(out, x->name);
        buf_printf(out,
                   ",\"held\":%s,\"adapter\":%s,\"own_bytes\":%llu,\"hbm_bytes\":%llu,\"load_ms\":",
                   x->held ? "true" : "false", x->is_adapter ? "true" : "false",
                   (unsigned long long)x->own_bytes, (unsigned long long)x->footprint);
        json_put_real(out, load_ms(p, x->footprint), 4);
        buf_puts(out, "}");
    }
    buf_puts(out, "]}\n");
}
