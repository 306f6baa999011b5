/* Carrying out orders, the time to live of experts, what waits in the queue, and how far loads are.
 */
#include "daemon/engine_order.h"

#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/engine_private.h"

#define ORDERS_MAX 1024
#define EXPECTED_MAX 256
#define LOOK_AHEAD 4          /* waiting requests whose experts are brought in early */
#define SHOW_NS 20000000ull   /* age of what the router reads of where experts are */
#define LOOK_NS 1000000000ull /* between two looks at who has not been used */

/* ---- submitting
 * ------------------------------------------------------------------------------------- */

static void end_order(struct engine_order *o)
{
    o->ns = clock_ns() - o->start_ns;
    o->done(o);
}

void engine_order_submit(struct engine *g, struct engine_order *o)
{
    o->start_ns = clock_ns();
    o->lease = NULL;
    o->held = false;
    o->error = (struct err){0};
    if (!atomic_load(&g->stop) && ring_push(g->orders, o)) {
        ring_wake(g->ring);
        return;
    }
    err_set(&o->error, atomic_load(&g->stop) ? ERR_SHUTDOWN : ERR_BUSY,
            "the engine takes no more orders now");
    end_order(o);
}

static void post(struct engine_order *o)
{
    sem_post(o->ctx);
}

enum err_code engine_order_run(struct engine *g, struct engine_order *o, struct err *e)
{
    sem_t end;
    sem_init(&end, 0, 0);
    o->done = post;
    o->ctx = &end;
    engine_order_submit(g, o);
    while (sem_wait(&end) != 0)
        ; /* EINTR */
    sem_destroy(&end);
    if (o->error.code != ERR_OK && e)
        *e = o->error;
    return o->error.code;
}

/* ---- holding
 * ------------------------------------------------------------------------------------------ */

/* Footprint of the expert's segments that are not held, and that `beside` does not have either. */
static uint64_t unheld_bytes(const struct engine *g, const struct expert *ex,
                             const struct expert *beside)
{
    size_t count, others = 0;
    const uint32_t *segs = expert_segments(ex, &count), *other = NULL;
    uint64_t sum = 0;
    if (beside)
        other = expert_segments(beside, &others);
    for (size_t i = 0; i < count; i++) {
        bool covered = memtier_holds(g->opt.memtier, segs[i]) > 0;
        for (size_t k = 0; k < others && !covered; k++)
            covered = other[k] == segs[i];
        sum += covered ? 0 : memtier_footprint(memtier_segment_bytes(g->opt.memtier, segs[i]));
    }
    return sum;
}

/* What is held must leave room for every other expert with one page of KV for a step's tokens. */
static enum err_code check_hold(const struct engine *g, const struct expert *ex, struct err *e)
{
    struct memtier_stats st;
    const struct expert *worst = NULL;
    uint64_t most = 0;
    memtier_stats(g->opt.memtier, &st);
    for (size_t i = 0; i < experts_count(g->opt.experts); i++) {
        const struct expert *other = experts_at(g->opt.experts, i);
        if (!expert_ok(other, NULL))
            continue;
        uint64_t need =
            unheld_bytes(g, other, ex) +
            experts_kv_bytes(g->opt.experts, other, BASE_MIN(expert_context(other), 1024u));
        worst = need > most ? other : worst;
        most = BASE_MAX(most, need);
    }
    uint64_t own = unheld_bytes(g, ex, NULL), held = memtier_held_bytes(g->opt.memtier);
    if (held + own + most <= st.hbm_budget)
        return ERR_OK;
    char text[4][32];
    return err_set_param(
        e, ERR_NO_MEMORY, "tiers.hbm",
        "holding '%s' takes %s beside the %s held already, and then '%s' with 1,024 tokens "
        "of KV (%s) does not fit into tiers.hbm of %s",
        expert_info(ex)->name, size_format(own, text[0], 32), size_format(held, text[1], 32),
        expert_info(worst)->name, size_format(most, text[2], 32),
        size_format(st.hbm_budget, text[3], 32));
}

/* By an order, or as the generalist. */
static bool is_held(const struct engine *g, const struct expert *ex)
{
    return g->memory[expert_index(ex)].held || (g->holding && ex == g->opt.generalist);
}

static void hold(struct engine *g, const struct expert *ex, bool on)
{
    size_t count;
    const uint32_t *segs = expert_segments(ex, &count);
    for (size_t i = 0; i < count; i++) {
        if (on)
            memtier_hold(g->opt.memtier, segs[i]);
        else
            memtier_unhold(g->opt.memtier, segs[i]);
    }
    g->memory[expert_index(ex)].held = on;
    if (ex == g->opt.generalist)
        g->holding = on;
}

/* ---- the kinds
 * ---------------------------------------------------------------------------------------- */

/* The segments that are the expert's alone: an adapter's own, or all of a full model. Whoever
 * unloads an adapter does not mean the base that others run on. */
static const uint32_t *own_segments(const struct expert *ex, size_t *ret_count)
{
    const uint32_t *segs = expert_segments(ex, ret_count);
    size_t adapters = expert_adapter_segments(ex);
    if (adapters > 0)
        *ret_count = adapters;
    return segs;
}

static enum memtier_tier farthest(const struct engine *g, const uint32_t *segs, size_t count)
{
    enum memtier_tier far = MEMTIER_HBM;
    for (size_t i = 0; i < count; i++)
        far = BASE_MAX(far, memtier_where(g->opt.memtier, segs[i]));
    return far;
}

/* True = it goes on: the lease, or the room for it, is waited for. */
static bool begin_load(struct engine *g, struct engine_order *o)
{
    size_t count;
    const uint32_t *segs = expert_segments(o->expert, &count);
    if (o->kind == ENGINE_ORDER_HOLD && !o->held) {
        if (is_held(g, o->expert))
            o->kind = ENGINE_ORDER_LOAD; /* it is: make sure that it is also there */
        else if (check_hold(g, o->expert, &o->error) != ERR_OK)
            return false;
        else
            hold(g, o->expert, o->held = true);
    }
    enum err_code code =
        memtier_reserve(g->opt.memtier, segs, count, clock_ns(), &o->lease, &o->error);
    if (code == ERR_OK) {
        o->tier = memtier_lease_origin(o->lease);
        o->bytes = memtier_lease_load_bytes(o->lease);
        o->error = (struct err){0};
        return true;
    }
    bool patient = clock_ns() - o->start_ns < o->patience_ns && !atomic_load(&g->draining);
    if (code == ERR_BUSY && patient)
        return true;
    if (o->held)
        hold(g, o->expert, o->held = false);
    return false;
}

static void unload(struct engine *g, struct engine_order *o)
{
    size_t count;
    const uint32_t *segs = own_segments(o->expert, &count);
    if (is_held(g, o->expert)) {
        err_set(&o->error, ERR_BUSY, "'%s' is held in hbm: unhold it first",
                expert_info(o->expert)->name);
        return;
    }
    o->bytes = memtier_drop(g->opt.memtier, segs, count, !o->to_nvme);
    o->tier = farthest(g, segs, count);
    bool stays = o->bytes == 0;
    for (size_t i = 0; i < count && stays; i++)
        stays = memtier_where(g->opt.memtier, segs[i]) == MEMTIER_HBM;
    if (stays && count > 0)
        err_set(&o->error, ERR_BUSY, "'%s' is in use, or what it has is held by others",
                expert_info(o->expert)->name);
}

static void prefetch(struct engine *g, struct engine_order *o)
{
    size_t count, begun;
    const uint32_t *segs = expert_segments(o->expert, &count);
    o->tier = farthest(g, segs, count);
    for (size_t i = 0; i < count; i++)
        if (memtier_where(g->opt.memtier, segs[i]) != MEMTIER_HBM)
            o->bytes += memtier_segment_bytes(g->opt.memtier, segs[i]);
    begun = memtier_prefetch(g->opt.memtier, segs, count);
    if (begun == 0 && o->bytes > 0)
        err_set(&o->error, ERR_BUSY,
                "there is no free room in hbm for '%s', or what was prefetched lately "
                "was mostly not used",
                expert_info(o->expert)->name);
}

/* Where everything is, for whoever asks from another thread. */
static void show_places(struct engine *g)
{
    for (size_t i = 0; i < experts_count(g->opt.experts); i++) {
        const struct expert *ex = experts_at(g->opt.experts, i);
        struct engine_place p = {.held = is_held(g, ex)};
        size_t count = 0;
        const uint32_t *segs = expert_ok(ex, NULL) ? own_segments(ex, &count) : NULL;
        for (size_t k = 0; k < count; k++)
            p.bytes[memtier_where(g->opt.memtier, segs[k])] +=
                memtier_segment_bytes(g->opt.memtier, segs[k]);
        lock_take(&g->stats_lock);
        g->places[i] = p;
        lock_drop(&g->stats_lock);
    }
}

/* True = it goes on. */
static bool begin_order(struct engine *g, struct engine_order *o)
{
    if (o->expert && !expert_ok(o->expert, &o->error))
        return false;
    o->bytes = 0;
    o->tier = MEMTIER_HBM;
    switch (o->kind) {
    case ENGINE_ORDER_LOAD:
    case ENGINE_ORDER_HOLD:
        return begin_load(g, o);
    case ENGINE_ORDER_UNLOAD:
        unload(g, o);
        break;
    case ENGINE_ORDER_UNHOLD:
        if (is_held(g, o->expert))
            hold(g, o->expert, false);
        break;
    case ENGINE_ORDER_PREFETCH:
        prefetch(g, o);
        break;
    case ENGINE_ORDER_BUDGET:
        if (memtier_set_budget(g->opt.memtier, o->hbm_bytes, &o->error) == ERR_OK)
            o->bytes = o->hbm_bytes;
        break;
    case ENGINE_ORDER_LOOK:
        show_places(g);
        break;
    }
    return false;
}

/* True = it goes on. */
static bool continue_order(struct engine *g, struct engine_order *o)
{
    size_t count;
    if (o->lease == NULL)
        return begin_load(g, o);
    expert_segments(o->expert, &count);
    bool ok = memtier_lease_ok(o->lease, &o->error);
    if (ok && memtier_lease_ready(o->lease) < count)
        return true;
    memtier_release(g->opt.memtier, &o->lease);
    if (!ok && o->held)
        hold(g, o->expert, false);
    return false;
}

/* ---- what the engine's loop calls
 * ----------------------------------------------------------------------- */

void engine_run_orders(struct engine *g)
{
    struct engine_order *o;
    for (struct engine_order **at = &g->open_orders; *at;) {
        o = *at;
        if (continue_order(g, o)) {
            at = &o->next;
            continue;
        }
        *at = o->next;
        end_order(o);
    }
    while ((o = ring_pop(g->orders)) != NULL) {
        /* What is resident already is done at once: nothing would wake the loop for it. */
        if (begin_order(g, o) && (o->lease == NULL || continue_order(g, o))) {
            o->next = g->open_orders;
            g->open_orders = o;
            continue;
        }
        end_order(o);
    }
}

void engine_end_orders(struct engine *g)
{
    struct engine_order *o;
    while ((o = ring_pop(g->orders)) != NULL) {
        o->next = g->open_orders;
        g->open_orders = o;
    }
    while ((o = g->open_orders) != NULL) {
        g->open_orders = o->next;
        memtier_release(g->opt.memtier, &o->lease);
        err_set(&o->error, ERR_SHUTDOWN, "the server is shutting down");
        end_order(o);
    }
}

/* Time to live: an expert that nobody asked for in so long leaves hbm, unless it is held. A full
 * model counts as used when an adapter over it is. */
static void expire(struct engine *g, uint64_t now)
{
    for (size_t i = 0; i < experts_count(g->opt.experts); i++) {
        const struct expert *ex = experts_at(g->opt.experts, i);
        struct engine_memory *x = &g->memory[i];
        if (x->ttl_ns == 0 || is_held(g, ex) || !expert_ok(ex, NULL))
            continue;
        uint64_t used = x->used_ns;
        for (size_t k = 0; k < experts_count(g->opt.experts) && !expert_info(ex)->is_adapter; k++) {
            const struct expert *other = experts_at(g->opt.experts, k);
            if (expert_ok(other, NULL) && expert_base_index(other) == expert_base_index(ex))
                used = BASE_MAX(used, g->memory[k].used_ns);
        }
        if (used == 0 || now - used < x->ttl_ns)
            continue;
        size_t count;
        const uint32_t *segs = own_segments(ex, &count);
        if (memtier_drop(g->opt.memtier, segs, count, true) > 0)
            atomic_fetch_add(&g->expired, 1);
    }
}

static void prefetch_expert(struct engine *g, const struct expert *ex)
{
    size_t count;
    const uint32_t *segs = expert_segments(ex, &count);
    if (farthest(g, segs, count) != MEMTIER_HBM)
        memtier_prefetch(g->opt.memtier, segs, count);
}

void engine_expect(struct engine *g, struct expert *ex)
{
    if (expert_ok(ex, NULL) && ring_push(g->expected, ex))
        ring_wake(g->ring);
}

void engine_note_turn(struct engine *g, const struct request *r)
{
    struct markov_stats st;
    if (r->conversation == 0)
        return;
    uint32_t next = markov_turn(g->markov, r->conversation, expert_index(r->expert));
    if (next != MARKOV_NONE && expert_ok(experts_at(g->opt.experts, next), NULL))
        prefetch_expert(g, experts_at(g->opt.experts, next));
    markov_stats(g->markov, &st);
    lock_take(&g->stats_lock);
    g->stats.turns_foretold = st.foretold;
    g->stats.turns_right = st.right;
    g->stats.foretelling = st.on;
    lock_drop(&g->stats_lock);
}

/* Requests that must wait for a lane: their experts come in meanwhile, into free room, behind every
 * load that somebody waits for. */
static void look_ahead(struct engine *g)
{
    uint32_t n = 0;
    for (struct engine_request *er = g->waiting; er && n < LOOK_AHEAD; er = er->next, n++)
        prefetch_expert(g, er->request->expert);
}

void engine_look(struct engine *g)
{
    uint64_t now = clock_ns();
    for (struct expert *ex = ring_pop(g->expected); ex; ex = ring_pop(g->expected))
        prefetch_expert(g, ex);
    if (g->queue_changed) {
        g->queue_changed = false;
        look_ahead(g);
    }
    if (now - g->shown_ns >= SHOW_NS) {
        g->shown_ns = now;
        show_places(g);
    }
    if (now - g->looked_ns < LOOK_NS)
        return;
    g->looked_ns = now;
    expire(g, now);
}

static uint32_t permille(uint64_t missing, uint64_t bytes)
{
    return bytes ? (uint32_t)(1000 - 1000 * BASE_MIN(missing, bytes) / bytes) : 1000;
}

/* Tells whoever waits when another tenth is there: a stream shows it. */
static void set_progress(struct request *r, uint32_t now)
{
    /* relaxed: a figure for people. */
    uint32_t before = atomic_exchange_explicit(&r->load_permille, now, memory_order_relaxed);
    if (r->notify && now / 100 != before / 100)
        r->notify(r);
}

void engine_note_loads(struct engine *g)
{
    uint32_t loading = 0;
    uint64_t missing = 0;
    for (uint32_t i = 0; i < STEPS_MAX; i++) {
        struct open_step *o = &g->open[i];
        if (o->step == NULL || o->origin == MEMTIER_HBM)
            continue;
        struct step_stats st;
        expert_step_stats(o->step, &st);
        uint32_t done = permille(expert_step_missing_bytes(o->step), st.load_bytes);
        missing += expert_step_missing_bytes(o->step);
        loading += done < 1000 ? o->lanes_count : 0;
        for (uint32_t k = 0; k < o->lanes_count; k++)
            set_progress(o->lanes[k]->request, done);
    }
    for (uint32_t i = 0; i < g->lanes_top; i++) {
        struct lane *l = &g->lanes[i];
        if (l->request == NULL || l->load == NULL)
            continue;
        loading++;
        missing += memtier_lease_missing_bytes(l->load);
        set_progress(l->request, permille(memtier_lease_missing_bytes(l->load),
                                          memtier_lease_load_bytes(l->load)));
    }
    /* relaxed: a gauge. */
    atomic_store_explicit(&g->loading, loading, memory_order_relaxed);
    atomic_store_explicit(&g->missing_bytes, missing, memory_order_relaxed);
}

void engine_note_demand(struct engine *g, const struct request *r, int change)
{
    size_t count;
    const uint32_t *segs = expert_segments(r->expert, &count);
    memtier_demand(g->opt.memtier, segs, count, change);
    g->memory[expert_index(r->expert)].used_ns = clock_ns();
    g->queue_changed = true;
}

/* ---- open and close
 * ---------------------------------------------------------------------------------------- */

enum err_code engine_open_orders(struct engine *g, struct err *e)
{
    size_t experts = experts_count(g->opt.experts);
    g->memory = mem_array(BASE_MAX(experts, 1), sizeof(*g->memory));
    g->places = mem_array(BASE_MAX(experts, 1), sizeof(*g->places));
    for (size_t i = 0; i < experts && g->opt.ttl_ns; i++)
        g->memory[i].ttl_ns = g->opt.ttl_ns[i];
    g->markov = markov_open((uint32_t)experts);
    enum err_code code = ring_open(&g->expected, EXPECTED_MAX, e);
    return code == ERR_OK ? ring_open(&g->orders, ORDERS_MAX, e) : code;
}

void engine_close_orders(struct engine *g)
{
    if (g->orders)
        engine_end_orders(g);
    ring_close(&g->orders);
    ring_close(&g->expected);
    markov_close(&g->markov);
    free(g->memory);
    free(g->places);
}

void engine_places(struct engine *g, struct engine_place *ret, size_t count)
{
    lock_take(&g->stats_lock);
    memcpy(ret, g->places, BASE_MIN(count, experts_count(g->opt.experts)) * sizeof(*ret));
    lock_drop(&g->stats_lock);
}
